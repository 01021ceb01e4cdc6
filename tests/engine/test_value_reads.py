# SPDX-License-Identifier: Apache-2.0
"""The engine's count of the value columns it reads, and the bytes per token that follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import synthetic
from rwkv_cpu import Model, engine, quantize
from rwkv_cpu.benchmark import traffic
from rwkv_cpu.engine import ValueReads

SHAPE = synthetic.Shape(n_layer=3, n_embd=256, n_vocab=512)
TOKENS = [(17 * i + 5) % SHAPE.n_vocab for i in range(24)]


def make(folder, zeros, weights="q8"):
    source, target = folder / f"{zeros}.pth", folder / f"{zeros}-{weights}.rwkv"
    synthetic.write_pth(source, list(synthetic.tensors(SHAPE, zeros)))
    quantize.quantize(source, target, format=weights, tokenizer="none")
    return Model(target, threads=2)


def decode(model):
    state = model.new_state()
    before = model.context.value_reads
    for token in TOKENS:
        model.advance([token], state)
    return model.context.value_reads.since(before)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.87])
def test_synthetic_weights_give_the_share_of_zeros_asked_for(tmp_path, zeros):
    with make(tmp_path, zeros) as model:
        reads = decode(model)
        assert reads.inputs == len(TOKENS) * SHAPE.n_layer * SHAPE.ffn
        # relu(k)^2 below 1/254 of its group's largest rounds to zero as well: another 5 % of what is positive
        assert zeros - 0.03 < traffic.zero_share(reads) < zeros + 0.03 + 0.12 * (1 - zeros) * (zeros > 0)
        assert reads.columns / 32 <= reads.groups <= reads.inputs / 32


def test_prompts_and_float_weights_count_nothing(tmp_path):
    with make(tmp_path, 0.5) as model:
        before = model.context.value_reads
        model.advance(TOKENS, model.new_state())
        assert model.context.value_reads == before
    with make(tmp_path, 0.5, "f16") as model:
        reads = decode(model)
        assert reads == ValueReads(0, 0, 0)
        assert traffic.bytes_per_token(model, reads, len(TOKENS)) == model.token_bytes + model.state_bytes


def test_counts_do_not_depend_on_threads_or_instruction_set(tmp_path):
    make(tmp_path, 0.87).close()
    found = set()
    for isa in (info.name for info in engine.isas() if info.usable):
        for threads in (1, 3):
            with Model(tmp_path / "0.87-q8.rwkv", threads=threads, isa=isa) as model:
                found.add(decode(model))
    assert len(found) == 1


@pytest.mark.parametrize("weights", engine.quantised_formats())
def test_bytes_per_token_leave_out_skipped_columns_and_add_the_state(tmp_path, weights):
    with make(tmp_path, 0.5, weights) as model:
        values = [info for info in model.tensors() if info.kind == engine.KIND_VALUE]
        per_token = SHAPE.n_layer * SHAPE.ffn
        everything = ValueReads(per_token, per_token, per_token // 32)
        dense = model.token_bytes + model.state_bytes
        headers = 64 * SHAPE.n_layer  # q4 begins with its code book
        assert traffic.bytes_per_token(model, everything, 1) == pytest.approx(dense, abs=headers)
        nothing = ValueReads(per_token, 0, 0)
        assert traffic.bytes_per_token(model, nothing, 1) == dense - sum(info.size_bytes for info in values)
        bits = int(weights[1:])  # of a weight; a group's scale takes two bytes a row
        assert traffic.value_bytes_read(values[0], ValueReads(64, 3, 2)) == (3 * bits / 8 + 2 * 2) * SHAPE.n_embd


def test_multiply_adds_are_those_of_the_layers(tmp_path):
    c, ranks = SHAPE.n_embd, sum(SHAPE.ranks.values())
    with make(tmp_path, 0.5) as model:
        full = SHAPE.n_layer * (4 * c * c + 2 * c * SHAPE.ffn + 2 * c * ranks)
        unused = 2 * c * SHAPE.ranks["v"]  # layer 0 has no value residual
        assert traffic.multiply_adds_per_token(model) in (full, full - unused)
        assert np.isfinite(model.token_bytes)
