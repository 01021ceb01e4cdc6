# SPDX-License-Identifier: Apache-2.0
"""The same bits on processors that this machine is not: 64-bit ARM and older x86 under qemu, AVX-VNNI by encoding."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cross.machines import FLAGS, ROOT, TARGETS, X86, Programs, Target, check_same_bits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_every_operation_of_the_vocabulary_equals_plain_c(programs: Programs, target: Target) -> None:
    lines = programs.run(target, "vocabulary").lines()
    found = [words[0].rstrip(":") for words in lines if words[-1] == "wrong"]
    assert [words[-2:] for words in lines[:-1]] == [["0", "wrong"]] * len(found)
    assert tuple(found) == target.isas or not target.isas
    assert lines[-1] == programs.run(TARGETS["here"], "vocabulary").lines()[-1]


def test_random_models_and_packed_weights_have_the_same_bits(
    programs: Programs, target: Target, random_models: list[Path]
) -> None:
    """Logits, states and packed tensors, on each instruction set that the processor has."""
    check_same_bits(programs, target, random_models)


@pytest.mark.parametrize("name", ["here", "arm"])
def test_trained_models_have_the_same_bits(programs: Programs, name: str, trained_models: list[Path]) -> None:
    if TARGETS[name].missing:
        pytest.skip(f"needs {TARGETS[name].missing}")
    check_same_bits(programs, TARGETS[name], trained_models)


@pytest.mark.parametrize(("name", "isa"), [("nehalem", "avx2"), ("cortex-a53", "neon_dotprod"), ("arm", "avx2")])
def test_what_a_processor_lacks_is_refused(programs: Programs, name: str, isa: str) -> None:
    """No illegal instruction: the reason, and what it would need."""
    if TARGETS[name].missing:
        pytest.skip(f"needs {TARGETS[name].missing}")
    run = programs.run(TARGETS[name], "same_bits", RWKV_CPU_ISA=isa)
    assert run.status == 2
    assert f"'{isa}'" in run.errors
    assert re.search("cannot run the instruction set|is no instruction set of this engine", run.errors)


@pytest.mark.skipif(not X86, reason="needs an x86-64 machine")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_avxvnni_uses_its_own_encoding_and_nothing_of_avx512(compiler: str, tmp_path: Path) -> None:
    """CPUs with AVX-VNNI alone know neither the EVEX prefix nor its registers."""
    if shutil.which(compiler) is None or shutil.which("objdump") is None:
        pytest.skip(f"needs {compiler} and objdump")
    unit, target = ROOT / "src" / "isa" / "isa_avxvnni.c", tmp_path / "unit.o"
    subprocess.run([compiler, *FLAGS, f"-I{ROOT / 'src'}", "-c", unit, "-o", target], check=True)
    code = subprocess.run(["objdump", "-d", target], capture_output=True, text=True, check=True).stdout
    instructions = [line.split("\t") for line in code.splitlines() if line.count("\t") >= 2]
    products = [bytes_ for _, bytes_, text in instructions if "vpdpbusd" in text]
    assert len(products) > 50
    assert {bytes_[:2] for bytes_ in products} == {"c4"}
    # 62 opens every EVEX instruction, and no other in 64-bit code
    assert [text for _, bytes_, text in instructions if bytes_.startswith("62")] == []


@pytest.mark.skipif(not X86, reason="needs an x86-64 machine")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_only_dispatched_units_have_avx(programs: Programs) -> None:
    """What runs before the processor is asked, and plain C, must run on each: no VEX and no EVEX encoding in it."""
    sources = sorted((ROOT / "src").rglob("*.c"))
    dispatched = {"isa_avx2", "isa_avxvnni", "isa_avx512vnni"}
    found = {}
    for path in programs.objects("native", "engine", sources, ["src"]):
        code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
        lines = [line.split("\t") for line in code.splitlines() if line.count("\t") >= 2]
        # c4, c5 and 62 open those encodings and nothing else in 64-bit code
        found[path.stem] = sum(bytes_.split()[0] in ("c4", "c5", "62") for _, bytes_, _ in lines)
    assert {name for name, count in found.items() if count} == dispatched
