# SPDX-License-Identifier: Apache-2.0
"""Parts of a forward measured by themselves: what is counted, and what is refused. No test looks at a time."""

from __future__ import annotations

import pytest

from rwkv_cpu import benchmark, engine, errors
from rwkv_cpu.benchmark import kernels


@pytest.fixture(scope="module")
def context():
    found = engine.Context(threads=2)
    yield found
    found.close()


@pytest.mark.parametrize("name", [*engine.quantised_formats(), "f16"])
def test_a_product_counts_its_weights_and_multiply_adds(context, name):
    cost = context.measure_product(engine.KIND_MATRIX, engine.format_by_name(name), 64, 128, 5, copies=2)
    bits = 16 if name == "f16" else int(name[1:]) + 0.5
    assert cost.bytes == pytest.approx(64 * 128 * bits / 8, abs=64)
    assert cost.multiply_adds == 64 * 128 * 5
    assert cost.seconds > 0


@pytest.mark.parametrize("name", engine.quantised_formats())
def test_zero_inputs_of_a_value_matrix_are_not_counted_as_read(context, name):
    def measured(zeros):
        return context.measure_product(engine.KIND_VALUE, engine.format_by_name(name), 512, 256, 1, zeros=zeros).bytes

    everything, nothing = measured(0.0), measured(1.0)
    assert everything == pytest.approx(512 * 256 * (int(name[1:]) + 0.5) / 8, rel=0.01)
    assert nothing == 0
    assert 0.3 * everything < measured(0.5) < 0.75 * everything


def test_the_recurrence_counts_its_state(context):
    cost = context.measure_recurrence(4, 64, 3)
    assert cost.bytes == 4 * 64 * 64 * 4
    assert cost.multiply_adds == 5 * 4 * 64 * 64 * 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: c.measure_product(engine.KIND_MATRIX, engine.FORMAT_Q8, 0, 64, 1),
        lambda c: c.measure_product(engine.KIND_MATRIX, engine.FORMAT_Q8, 64, 64, -1),
        lambda c: c.measure_product(engine.KIND_MATRIX, engine.FORMAT_Q8, 64, 64, 1, zeros=1.5),
        lambda c: c.measure_product(engine.KIND_MATRIX, engine.FORMAT_Q8, 64, 64, 1, zeros=float("nan")),
        lambda c: c.measure_product(engine.KIND_VECTOR, engine.FORMAT_F32, 64, 64, 1),
        lambda c: c.measure_product(engine.KIND_LOW_RANK, 14, 64, 64, 1),
        lambda c: c.measure_product(engine.KIND_MATRIX, engine.FORMAT_Q8, 1 << 23, 64, 1),
        lambda c: c.measure_recurrence(2, 24, 1),
    ],
)
def test_what_cannot_be_measured_is_refused(context, wrong):
    with pytest.raises(errors.ArgumentError):
        wrong(context)


def test_kernel_results_name_shares_only_where_there_is_a_limit(monkeypatch):
    cost = engine.PartCost(1e-3, 20e6, 1e8)
    monkeypatch.setattr(engine.Context, "measure_product", lambda *_a, **_k: cost)
    monkeypatch.setattr(engine.Context, "measure_recurrence", lambda *_a, **_k: cost)
    monkeypatch.setattr(engine.Context, "measure_read", lambda *_a: 40e9)
    monkeypatch.setattr(engine.Context, "measure_int8", lambda *_a: 0.4e12)
    steps = []
    found = kernels.run_kernels(
        threads=1, isas=["scalar"], formats=["q8", "f16"], repeats=2, on_progress=lambda *step: steps.append(step)
    )
    assert steps[-1][0] == steps[-1][1] == 2 * len(found)
    by_name = {(one.kernel, one.weight_format, one.tokens, one.zeros): one for one in found}
    matrix = by_name["matrix", "q8", 1, 0.0]
    assert (matrix.gbs.median, matrix.share.median) == (pytest.approx(20), pytest.approx(0.5))
    many = by_name["matrix", "q8", 256, 0.0]
    assert (many.gbs, many.tops.median, many.share.median) == (None, pytest.approx(0.2), pytest.approx(0.5))
    assert by_name["matrix", "f16", 256, 0.0].share is None
    assert by_name["recurrence", "f32", 1, 0.0].share is None
    text = benchmark.kernels_as_text(found)
    assert len(text.splitlines()) == len(found) + 1
    assert "scalar  matrix      q8           1" in text
    with pytest.raises(errors.ArgumentError):
        kernels.run_kernels(repeats=0)
