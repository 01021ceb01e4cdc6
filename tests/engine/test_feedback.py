# SPDX-License-Identifier: Apache-2.0
"""rwkvc_choose_group: its result is what its definition says, by the same bits on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError, NonFiniteError
from rwkv_cpu.quantize.calibrated import BOOK

ISAS = [isa.name for isa in engine.isas() if isa.usable]
FORMATS = {8: engine.FORMAT_Q8, 6: engine.FORMAT_Q6, 5: engine.FORMAT_Q5, 4: engine.FORMAT_Q4}


def group(bits: int, rows: int, n: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, 3 * n)).astype(np.float32)[:, n : 2 * n]
    return {
        "format": FORMATS[bits],
        "book": BOOK if bits == 4 else None,
        "weights": weights,
        "targets": weights + random.standard_normal((rows, n)).astype(np.float32) * np.float32(0.02),
        "feedback": (random.standard_normal((n, n)) * 0.2).astype(np.float32),
        "importance": random.uniform(0.1, 2, n).astype(np.float32),
        "integers": np.full((rows, n + 5), 99, np.int8)[:, :n],
        "scales": np.zeros((rows, 3), np.float16)[:, 1],
        "errors": np.zeros((rows, n), np.float32),
    }


def replay(g: dict[str, Any], scales: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs in order, each to the nearest value, in f64: cost of each row, and errors."""
    rows, n = g["weights"].shape
    errors, total = np.zeros((rows, n)), np.zeros(rows)
    for k in range(n):
        target = g["targets"][:, k] + errors[:, :k] @ g["feedback"][:k, k]
        stored = values[np.abs(target[:, None] - scales[:, None] * values).argmin(1)] * scales
        errors[:, k] = g["weights"][:, k] - stored
        total += g["importance"][k] * (target - stored) ** 2
    return total, errors


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize(("rows", "n"), [(1, 32), (16, 32), (37, 32), (20, 7), (16, 1)])
def test_integers_scales_and_errors_agree(
    monkeypatch: pytest.MonkeyPatch, isa: str, bits: int, rows: int, n: int
) -> None:
    monkeypatch.setenv("RWKV_CPU_ISA", isa)
    g = group(bits, rows, n)
    engine.GroupChoice(**g).run(0, rows)
    integers, scales = g["integers"].astype(int), g["scales"].astype(np.float64)
    least = -127 if bits == 8 else -(1 << (bits - 1))
    assert integers.min() >= least
    assert integers.max() < 1 << (bits - 1)
    values = BOOK.astype(np.float64) if bits == 4 else np.arange(least, 1 << (bits - 1), dtype=np.float64)
    stored = scales[:, None] * (values[integers + 8] if bits == 4 else integers)
    np.testing.assert_allclose(g["errors"], g["weights"] - stored, atol=1e-5)
    found, errors = replay(g, scales, values)
    assert (np.abs(errors - g["errors"]) < 1e-4).mean() > 0.98  # but for ties that f64 breaks otherwise
    if rows >= 16 and n == 32:  # the search found better scales than others near them
        for factor in (0.8, 0.9, 1.15, 1.3):
            assert found.mean() < replay(g, scales * factor, values)[0].mean()


@pytest.mark.parametrize("bits", FORMATS)
def test_the_same_bits_on_every_instruction_set(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    found = set()
    for isa in ISAS:
        monkeypatch.setenv("RWKV_CPU_ISA", isa)
        g = group(bits, 50, 32, seed=bits)
        choice = engine.GroupChoice(**g)
        choice.run(0, 21)
        choice.run(21, 50)
        found.add((g["integers"].tobytes(), g["scales"].tobytes(), g["errors"].tobytes()))
    assert len(found) == 1


def test_only_its_own_rows_and_columns_are_written() -> None:
    g = group(5, 40, 20)
    whole = g["integers"].base
    engine.GroupChoice(**g).run(16, 32)
    assert (whole[:16] == 99).all()
    assert (whole[32:] == 99).all()
    assert (whole[:, 20:] == 99).all()


def test_groups_of_zeros_and_values_that_are_not_finite() -> None:
    g = group(4, 16, 32)
    g["weights"][:], g["targets"][:] = 0, 0
    engine.GroupChoice(**g).run(0, 16)
    assert not g["scales"].any()
    assert not g["errors"].any()
    for value in (np.inf, 1e30):
        g["weights"][3, 4] = g["targets"][3, 4] = value
        with pytest.raises(NonFiniteError, match="row 3"):
            engine.GroupChoice(**g).run(0, 16)


def test_wrong_books_and_arrays_are_refused() -> None:
    g = group(4, 16, 32) | {"book": BOOK[::-1].copy()}
    with pytest.raises(ArgumentError, match="ascend"):
        engine.GroupChoice(**g).run(0, 16)
    with pytest.raises(ArgumentError, match="book"):
        engine.GroupChoice(**(g | {"book": None})).run(0, 16)
    with pytest.raises(ArgumentError, match="contiguous"):
        engine.GroupChoice(**(g | {"weights": np.asfortranarray(np.ones((16, 32), np.float32))}))
