# SPDX-License-Identifier: Apache-2.0
"""Every version of RWKV: against the goldens by the scorer, and the same bits however it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from rwkv_cpu.quantize import quantize

if TYPE_CHECKING:
    from pathlib import Path

ISAS = [isa.name for isa in engine.isas() if isa.usable]
VERSIONS = {
    "v4-fp32": "4.0",
    "v5.0-fp16": "5.0",
    "v5.1-fp16": "5.1",
    "v5.2-bf16": "5.2",
    "v6-fp16": "6.0",
    "v7-bf16": "7.0",
    "v7a-fp16": "7a",
}
FORMATS = ("f32", "f16", "q8", "q6", "q5", "q4")


@pytest.fixture(scope="module", params=[f"{name} {fmt}" for name in VERSIONS for fmt in FORMATS])
def converted(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, fmt = request.param.split()
    target = tmp_path_factory.mktemp("versions") / f"{name}-{fmt}.rwkv"
    quantize(shared / "goldens" / "models" / f"{name}.pth", target, format=fmt, tokenizer="none")
    return target


def test_version_is_recognised(converted: Path) -> None:
    with Model(converted) as model:
        assert model.config.version == VERSIONS[converted.name.rsplit("-", 1)[0]]


def test_same_bits_however_it_is_run(converted: Path) -> None:
    """Instruction sets, threads, chunks, batches; states too."""
    with Model(converted, threads=1, isa="scalar") as model:
        ids = np.random.default_rng(3).integers(0, model.n_vocab, 70).astype(np.uint32)
        logits, state = model.forward(ids, logits="all")
    for isa in ISAS:
        for threads in (1, 3):
            with Model(converted, threads=threads, isa=isa) as model:
                whole, end = model.forward(ids, logits="all")
                assert whole.tobytes() == logits.tobytes()
                assert end.data.tobytes() == state.data.tobytes()
                for chunk in (1, 5, 64):
                    moving = model.new_state()
                    steps = range(0, len(ids), chunk)
                    rows = [model.advance(ids[at : at + chunk], moving, logits="all") for at in steps]
                    assert np.concatenate(rows).tobytes() == logits.tobytes()
                    assert moving.data.tobytes() == state.data.tobytes()
                batch, ends = model.forward_batch([ids[:9], ids, ids[3:33]], logits="all")
                assert batch[1] is not None
                assert batch[1].tobytes() == logits.tobytes()
                assert ends[1].data.tobytes() == state.data.tobytes()


def test_states_can_be_saved(converted: Path, tmp_path: Path) -> None:
    with Model(converted) as model:
        state = model.forward(range(20))[1]
        state.save(tmp_path / "a.state")
        again = model.load_state(tmp_path / "a.state")
        assert np.array_equal(again.data, state.data)
        assert np.array_equal(model.forward([1, 2, 3], again)[0], model.forward([1, 2, 3], state)[0])
