# SPDX-License-Identifier: Apache-2.0
"""The hidden states that a forward hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def f32_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    from rwkv_cpu.quantize import quantize

    source = request.config.rootpath / "tests" / "data" / "goldens" / "v7-bf16.pth"
    target: Path = tmp_path_factory.mktemp("hidden") / "golden-f32.rwkv"
    quantize(source, target, format="f32", tokenizer="none")
    with Model(target) as model:
        yield model


def run(model: Model, tokens: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    floats = model.state_bytes // 4
    hidden = np.full((len(tokens), model.config.n_embd), np.nan, np.float32)
    sequence = engine.SequenceRun(tokens, None, np.empty(floats, np.float32), "all", hidden=hidden)
    context = engine.Context(2, chunk=chunk)
    logits = context.forward(model._engine, [sequence])
    context.close()
    return hidden, logits


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_head_times_hidden_state_is_the_logits_of_every_token(f32_model, chunk):
    tokens = np.random.default_rng(5).integers(0, f32_model.n_vocab, 40).astype(np.uint32)
    hidden, logits = run(f32_model, tokens, chunk)
    info = next(tensor for tensor in f32_model.tensors() if tensor.kind == engine.KIND_HEAD)
    head = engine.unpack(info, f32_model._engine.bytes_of(info.name))
    np.testing.assert_allclose(hidden @ head.T, logits, atol=2e-5 * np.abs(logits).max())
    again, _ = run(f32_model, tokens, 40)
    assert again.tobytes() == hidden.tobytes()


def test_only_the_sequence_that_asks_gets_hidden_states(f32_model):
    tokens = np.arange(5, dtype=np.uint32)
    state = f32_model.state_bytes // 4
    hidden = np.full((5, f32_model.config.n_embd), np.nan, np.float32)
    runs = [
        engine.SequenceRun(tokens, None, np.empty(state, np.float32), "none"),
        engine.SequenceRun(tokens, None, np.empty(state, np.float32), "none", hidden=hidden),
    ]
    f32_model.context.forward(f32_model._engine, runs)
    assert hidden.tobytes() == run(f32_model, tokens, 256)[0].tobytes()


def test_hidden_states_of_the_wrong_shape_are_refused(f32_model):
    tokens = np.arange(5, dtype=np.uint32)
    state = np.empty(f32_model.state_bytes // 4, np.float32)
    with pytest.raises(ArgumentError):
        f32_model.context.forward(
            f32_model._engine, [engine.SequenceRun(tokens, None, state, hidden=np.empty((4, 9), np.float32))]
        )
