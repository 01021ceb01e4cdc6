# SPDX-License-Identifier: Apache-2.0
"""The C library as other languages use it: `make lib` has built it into build/lib."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.one_process import one_process

ROOT = Path(__file__).resolve().parents[2]
LIB = ROOT / "build" / "lib"


@pytest.fixture(scope="session")
def library():
    """The shared library's path, built where it is not."""
    if sys.platform != "linux":
        pytest.skip("make lib is checked on Linux")
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("needs make and a C compiler")
    with one_process(LIB):
        run = subprocess.run(["make", "-j2", "lib"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return LIB / "librwkv_cpu.so"


@pytest.fixture(scope="session")
def world_model(tmp_path_factory):
    """The bundled model with its pieces as a World vocabulary."""
    path = tmp_path_factory.mktemp("model") / "demo-world.rwkv"
    subprocess.run([sys.executable, ROOT / "examples" / "demo_for_c.py", path], check=True, cwd=ROOT)
    return path


@pytest.fixture(scope="session")
def compile_c(library, tmp_path_factory):
    """compile_c(source, *flags): a program linked with the shared library."""
    folder = tmp_path_factory.mktemp("programs")

    def compiled(source: Path, *flags: str) -> Path:
        program = folder / source.stem
        command = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", *flags, source, f"-I{ROOT / 'src'}"]
        subprocess.run([*command, f"-L{LIB}", "-lrwkv_cpu", "-lm", "-o", program], check=True)
        return program

    return compiled


@pytest.fixture(scope="session")
def environment(library):
    """Where programs find the library."""
    return {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
