# SPDX-License-Identifier: Apache-2.0
"""Models of odd sizes in every version and format: the same bits however they are run, nothing out of bounds.

Ranks that are no multiple of 16, one token in the vocabulary, heads of 1 to 512, a single layer: sizes that no released
model has, so that padding and tails are met. Under AddressSanitizer (make asan) reads outside show too.
"""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_cpu import engine
from rwkv_cpu.engine import lib
from tests.random_model import VERSIONS, build

ISAS = [isa.name for isa in engine.isas() if isa.usable]
RANKS = (1, 3, 8, 15, 17, 32, 33, 100)


def random_config(rng: np.random.Generator, version: int) -> engine.Config:
    def pick(*choices: int) -> int:
        return int(rng.choice(choices))

    sizes = {"VOCAB": pick(1, 2, 15, 17, 65, 100), "FFN": pick(1, 15, 17, 33, 64, 95, 129, 300)}
    if version == lib.RWKVC_RWKV4:
        sizes["ATT"] = pick(16, 48, 80)
    else:
        head = pick(1, 3, 8, 16, 24, 40, 64, 80, 512)
        heads = next(n for n in range(pick(1, 2, 3), 50) if n * head % 16 == 0)
        sizes |= {"HEAD": head, "HEADS": heads, "ATT": head * heads}
    sizes["EMBD"] = pick(16, 48, 80, sizes["ATT"])
    config = engine.Config()
    config.raw.version, config.raw.n_layer = version, pick(1, 2)
    config.raw.ln_eps, config.raw.gn_eps = 1e-5, 64e-5
    if version == lib.RWKVC_RWKV6:
        rank = pick(*RANKS)
        sizes |= {"RANK_W": pick(*RANKS), "RANK_M": rank, "RANK_M5": 5 * rank, "FIVE": 5}
    if version >= lib.RWKVC_RWKV7:
        sizes |= {f"RANK_{letter}": pick(*RANKS) for letter in "WAVG"}
    if version == lib.RWKVC_RWKV7A:
        rank = pick(1, 3, 8, 17)
        sizes |= {"RANK_S": rank, "RANK_SS": rank * rank}
    for name, size in sizes.items():
        config.raw.size[getattr(lib, f"RWKVC_SIZE_{name}")] = size
    return config


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
