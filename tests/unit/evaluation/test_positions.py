# SPDX-License-Identifier: Apache-2.0
"""Loss by position: the long context is the stream's, the short one is what it says; and the verdict."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation import by_position, perplexity
from rwkv_cpu.evaluation.positions import PositionBin, _edges, _long, _short, _verdict
from rwkv_cpu.evaluation.statistics import Estimate


@pytest.fixture(scope="module")
def model(make_rwkv):
    with Model(make_rwkv(format="f32")) as found:
        yield found


@pytest.fixture(scope="module")
def ids():
    return np.concatenate([[0], np.random.default_rng(2).integers(1, 256, 2500)]).astype(np.uint32)


def test_bins_cover_the_text_three_a_decade():
    assert _edges(100_000)[:5] == [0, 10, 22, 46, 100]
    assert _edges(100_000)[-2:] == [46416, 100_000]
    assert _edges(2200) == [0, 10, 22, 46, 100, 215, 464, 1000, 2200]  # no bin of a few tokens at the end


def test_the_long_context_is_the_stream(model, ids):
    losses, sizes = _long(model, ids, _edges(2500), None, lambda _: None)
    assert losses.tobytes() == perplexity(model, ids[1:]).losses.tobytes()
    _, state = model.forward(ids[:-1])
    assert sizes[-1] == pytest.approx(float(np.sqrt(np.square(state.parts()["wkv"], dtype=np.float64).mean())))
    assert len(sizes) == len(_edges(2500)) - 1


@pytest.mark.parametrize("short", [7, 256])
def test_the_short_context_has_half_of_its_tokens_to_all(model, ids, short):
    losses = _short(model, ids, short, None, lambda _: None)
    half = short - short // 2
    for place in (0, 1, half - 1, half, 1000, 2 * half, 2499):
        begin = place // half * half
        first = max(0, begin + half - short)
        assert place - begin < half
        assert place + 1 - first <= short
        x = model.forward(ids[first : place + 1])[0].astype(np.float64)
        x -= x.max()
        assert losses[place] == pytest.approx(np.log(np.exp(x).sum()) - x[ids[place + 1]], abs=1e-9)


def test_the_result_adds_up(model, ids):
    seen = []
    found = by_position(model, ids[1:], progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (7500, 7500)
    assert found.tokens == sum(b.tokens for b in found.bins) == 2500
    mean = sum(b.tokens * b.loss.value for b in found.bins) / 2500
    assert mean == pytest.approx(perplexity(model, ids[1:]).loss.value)
    assert [b.gain is None for b in found.bins] == [b.first <= 256 for b in found.bins]
    far = [b for b in found.bins if b.gain is not None]
    assert far[-1].gain.value == pytest.approx(far[-1].short_loss.value - far[-1].loss.value)
    assert found.to_dict()["bins"][0]["first"] == 1
    assert by_position(model, ids[1:], max_tokens=2100).tokens == 2100


@pytest.mark.parametrize("name", ["v4-fp32", "v6-fp16"])
def test_states_of_other_versions_have_a_size(name, shared, tmp_path):
    from rwkv_cpu.quantize import quantize

    quantize(shared / "goldens" / "models" / f"{name}.pth", tmp_path / "x.rwkv", tokenizer="none")
    with Model(tmp_path / "x.rwkv") as other:
        found = by_position(other, np.random.default_rng(1).integers(1, other.n_vocab, 2000))
    assert all(np.isfinite(b.state_rms) and b.state_rms > 0 for b in found.bins)


def bins(*gains: tuple[float, float, float]) -> list[PositionBin]:
    some = Estimate(1.0, 0.9, 1.1)
    return [
        PositionBin(1000 * (i + 1), 2000 * (i + 1), 1000, some, some, Estimate(*gain), 1.0 + i)
        for i, gain in enumerate(gains)
    ]


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        (((0.2, 0.1, 0.3), (0.25, 0.2, 0.3)), "still profits from context beyond 256 tokens at 2,000 to 4,000"),
        (((0.5, 0.4, 0.6), (0.1, 0.05, 0.2)), "less than at 1,000 to 2,000 tokens (+0.500)"),
        (((0.2, 0.1, 0.3), (-0.1, -0.2, -0.05)), "saturated"),
        (((0.2, 0.1, 0.3), (0.0, -0.1, 0.1)), "no gain that can be told from chance"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(gains, says):
    found = _verdict(bins(*gains), 256)
    assert says in found
    assert "2.00 times as large" in found


def test_too_short_a_text_is_told(model, ids):
    with pytest.raises(ArgumentError, match="too few") as caught:
        by_position(model, ids[:500])
    assert caught.value.hint
    with pytest.raises(ArgumentError):
        by_position(model, ids[1:], short=1)
