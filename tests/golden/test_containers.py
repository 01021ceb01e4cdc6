# SPDX-License-Identifier: Apache-2.0
"""Files of web-rwkv and fla, adapters and tuned states against the golden data, by its scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import engine
from tests.golden.test_goldens import run_scorer

if TYPE_CHECKING:
    from pathlib import Path

ISAS = [isa.name for isa in engine.isas() if isa.usable]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("only", "n_files"), [(".st", 2), ("fla", 1)])
def test_safetensors_of_every_naming_pass(shared: Path, isa: str, only: str, n_files: int) -> None:
    arguments = ["--only", only, "--impl", "adapter:logits", "--state", "adapter:final_state"]
    assert f"PASS: {n_files}/{n_files} cases" in run_scorer(shared, arguments, RWKV_CPU_ISA=isa)


def test_adapters_and_tuned_states_pass(shared: Path) -> None:
    assert "PASS: 3/3 cases" in run_scorer(shared, ["--adapters", "adapter:logits_with"])


def test_every_hostile_safetensors_file_is_refused(shared: Path) -> None:
    lines = [
        line for line in run_scorer(shared, ["--bad", "adapter:load", "--only", ".st"]).splitlines() if "bad/" in line
    ]
    assert len(lines) >= 8
    assert [line for line in lines if not line.startswith("PASS")] == []
