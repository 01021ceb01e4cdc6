# SPDX-License-Identifier: Apache-2.0
"""The C program of docs/embedding.md compiles, runs and answers."""

from __future__ import annotations

import re
import subprocess

from tests.library.conftest import ROOT


def test_the_program_on_the_page(compile_c, environment, world_model, tmp_path):
    page = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    (text,) = re.findall(r"```c\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.c").write_text(text)
    program = compile_c(tmp_path / "page.c")
    run = subprocess.run([program, world_model], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "2 plus 3 is 5."
