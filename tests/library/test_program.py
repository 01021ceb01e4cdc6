# SPDX-License-Identifier: Apache-2.0
"""tests/c/library.c, with the shared library. `make asan` runs it instrumented."""

from __future__ import annotations

import subprocess

from tests.library.conftest import ROOT


def test_the_c_program_finds_everything_as_the_header_says(compile_c, environment, world_model, demo_path, tmp_path):
    program = compile_c(ROOT / "tests" / "c" / "library.c")
    run = subprocess.run(
        [program, world_model, demo_path, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "library: good\n"), run.stderr
