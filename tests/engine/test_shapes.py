# SPDX-License-Identifier: Apache-2.0
"""Models of odd sizes in every version and format: the same bits however they are run, nothing out of bounds.

Ranks that are no multiple of 16, one token in the vocabulary, heads of 1 to 512, a single layer: sizes that no released
model has, so that padding and tails are met. Under AddressSanitizer (make asan) reads outside show too.
"""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_cpu import engine
from tests.random_model import VERSIONS, build, random_config

ISAS = [isa.name for isa in engine.isas() if isa.usable]


def run(context: engine.Context, model: engine.OpenModel, pieces: list[np.ndarray]) -> tuple[bytes, bytes]:
    state, rows = None, []
    for piece in pieces:
        end = np.full(model.state_floats, np.nan, np.float32)
        rows.append(context.forward(model, [engine.SequenceRun(piece, state, end, "all")]))
        state = end
    assert state is not None
    return np.concatenate(rows).tobytes(), state.tobytes()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", ["f32", "f16", "q8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_odd_sizes_give_the_same_bits_however_they_are_run(version: int, preset: str, seed: int) -> None:
    rng = np.random.default_rng([version, engine.format_by_name(preset), seed])
    model = engine.OpenModel(build(rng, random_config(rng, version), preset))
    n_vocab = model.config.public().n_vocab
    ids = rng.integers(0, n_vocab, int(rng.choice([2, 5, 13, 40]))).astype(np.uint32)
    reference = engine.Context(1, "scalar")
    expected, end = run(reference, model, [ids])
    reference.close()
    start = np.empty(model.state_floats, np.float32)
    model.init_state(start)
    for isa in ISAS:
        for threads, chunk in ((1, None), (3, 7)):
            context = engine.Context(threads, isa, chunk)
            assert run(context, model, [ids]) == (expected, end)
            assert run(context, model, list(ids.reshape(-1, 1))) == (expected, end)
            moved, every = start.copy(), np.full((len(ids), model.state_floats), np.nan, np.float32)
            batch = [
                engine.SequenceRun(ids, moved, moved, "all"),
                engine.SequenceRun(ids, start, every.reshape(-1), "none", every_state=True),
                engine.SequenceRun(ids[:1], None, np.empty(model.state_floats, np.float32), "last"),
            ]
            logits = context.forward(model, batch)
            assert [sequence.n_done for sequence in batch] == [len(ids), len(ids), 1]
            assert logits[: len(ids)].tobytes() == expected
            assert logits[-1].tobytes() == logits[0].tobytes()
            assert moved.tobytes() == every[-1].tobytes() == end
            assert every[0].tobytes() == batch[2].state_out.tobytes()
            context.close()
    model.close()
