# SPDX-License-Identifier: Apache-2.0
"""A forward allocates nothing after the first call of its size: counted, in every version, by tests/c/allocations.c."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import engine
from tests.random_model import VERSIONS, build, usual_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or shutil.which("gcc") is None,
    reason="needs gcc and glibc, to replace malloc",
)
PRESETS = [n for n in ("f32", "f16", "q8", "q6", "q5", "q4") if engine.lib.rwkvc_format_by_name(n.encode()) >= 0]


@pytest.fixture(scope="module")
def counter(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("allocations") / "allocations"
    sources = [*sorted(map(str, (checkout / "src").rglob("*.c"))), str(checkout / "tests" / "c" / "allocations.c")]
    flags = ["-std=c11", "-O0", "-ffp-contract=off", "-pthread", f"-I{checkout / 'src'}", '-DRWKVC_VERSION="test"']
    subprocess.run(["gcc", *flags, *sources, "-o", str(program), "-lm"], check=True)
    return program


@pytest.mark.parametrize("preset", PRESETS)
def test_a_second_forward_allocates_nothing(counter: Path, tmp_path: Path, preset: str) -> None:
    files = []
    for version in VERSIONS:
        config = usual_config(version, n_embd=128, n_vocab=64)
        files.append(tmp_path / f"{version:x}.rwkv")
        files[-1].write_bytes(build(np.random.default_rng(version), config, preset).tobytes())
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # `make asan`: another malloc
    run = subprocess.run([str(counter), *map(str, files)], capture_output=True, text=True, check=False, env=env)
    counts = re.findall(r"threads \d: warm (\d+) after (\d+) grown (-?\d+)", run.stdout)
    assert len(counts) == len(files) * 2, run.stderr
    assert all(int(warm) > 0 for warm, _, _ in counts), "the counter sees the first calls' allocations"
    assert run.returncode == 0, run.stdout
    assert {(after, grown) for _, after, grown in counts} == {("0", "0")}
