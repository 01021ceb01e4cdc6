# SPDX-License-Identifier: Apache-2.0
"""Other systems: the engine and its tests in C built for each, and run where something here runs them."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.cross.machines import PACKAGES, ROOT, SYSTEMS, TARGETS, Programs, Target, check_same_bits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

# Where in the file: what the system's loader looks for (ELF's e_machine, PE's machine, Mach-O's CPU type).
ELF, MACHO = b"\x7fELF\x02\x01", b"\xcf\xfa\xed\xfe"
MACHINES = {
    "linux-arm": (ELF, 18, b"\xb7\x00"),
    "musl-x86": (ELF, 18, b"\x3e\x00"),
    "musl-arm": (ELF, 18, b"\xb7\x00"),
    "windows-x86": (b"MZ", 4, b"\x64\x86"),
    "windows-arm": (b"MZ", 4, b"\x64\xaa"),
    "macos-x86": (MACHO, 4, b"\x07\x00\x00\x01"),
    "macos-arm": (MACHO, 4, b"\x0c\x00\x00\x01"),
}
RUNNABLE = [name for name, target in SYSTEMS.items() if target.emulator is not None]
GIGABYTE = 1 << 30


def needed(name: str, *, run: bool = True) -> Target:
    """The system, or a skip that says what it lacks."""
    target = SYSTEMS[name]
    missing = target.missing if run else Target(target.compiler).missing
    if missing:
        pytest.skip(f"needs {missing}; make portable installs ziglang; on Debian and Ubuntu: apt install {PACKAGES}")
    return target


@pytest.mark.parametrize("name", SYSTEMS)
def test_library_and_programs_are_built(
    programs: Programs, name: str, record_property: Callable[[str, object], None]
) -> None:
    compiler = needed(name, run=False).compiler
    magic, offset, machine = MACHINES[name]
    found = [programs.library(compiler)]
    found += [programs.program(compiler, program) for program in ("same_bits", "platform", "pool_tsan")]
    for path in found:
        data = path.read_bytes()
        header = int.from_bytes(data[60:64], "little") if magic == b"MZ" else 0
        assert data.startswith(magic)
        assert data[header + offset :].startswith(machine)
    record_property("library_bytes", found[0].stat().st_size)
    assert found[0].stat().st_size < 1_000_000
    assert b"rwkvc_forward\0" in found[0].read_bytes(), "exported"


@pytest.mark.parametrize("name", RUNNABLE)
def test_files_threads_clock_and_memory(programs: Programs, name: str, tmp_path: Path) -> None:
    """Names in other scripts, long paths, more than 4 GiB; what cannot be mapped is refused with a reason."""
    deep = tmp_path.joinpath(*("a folder whose name is long" for _ in range(8)))
    deep.mkdir(parents=True)
    large, small = tmp_path / "modèle-模型-🙂.bin", deep / "ü.bin"
    with large.open("wb") as file:
        file.write(b"begin")
        file.seek(4 * GIGABYTE + 5)
        file.write(b"\x2a")
    small.write_bytes(b"abc")
    (tmp_path / "empty").touch()
    paths = [large, small, tmp_path / "empty", tmp_path / "nothing here", tmp_path]
    lines = programs.run(needed(name), "platform", text="".join(f"{path}\n" for path in paths)).lines()
    first = zlib.crc32(b"begin" + bytes((1 << 20) - 5))
    assert lines[0] == ["mapped", str(4 * GIGABYTE + 6), "42", f"{first:08x}"]
    assert lines[1] == ["mapped", "3", str(ord("c")), f"{zlib.crc32(b'abc'):08x}"]
    assert [line[0] for line in lines[2:5]] == ["refused"] * 3
    assert lines[2][1:] == ["the", "file", "is", "empty"]
    assert all(len(line) > 1 for line in lines[3:5])
    assert lines[5][0] == "cores"
    assert 1 <= int(lines[5][1]) <= (os.cpu_count() or 1)
    assert lines[6:] == [["pid", "1"], ["turns", "1"], ["clock", "1"], ["memory", "1"]]


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_operation_equals_plain_c(programs: Programs, name: str) -> None:
    lines = programs.run(needed(name), "vocabulary").lines()
    assert [words[-2:] for words in lines[:-1]] == [["0", "wrong"]] * (len(lines) - 1)
    assert lines[-1] == programs.run(TARGETS["here"], "vocabulary").lines()[-1]


@pytest.mark.parametrize("name", RUNNABLE)
def test_threads_agree(programs: Programs, name: str) -> None:
    run = programs.run(needed(name), "pool_tsan", ROOT / "rwkv_cpu" / "data" / "demo.rwkv")
    assert run.status == 0, run.errors
    assert "same bits" in run.output


@pytest.mark.parametrize("name", RUNNABLE)
def test_golden_models_have_the_same_bits(programs: Programs, name: str, few_models: list[Path]) -> None:
    """As this machine computes them, which tests/golden compares with the references."""
    check_same_bits(programs, needed(name), few_models)
