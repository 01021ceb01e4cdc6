# SPDX-License-Identifier: Apache-2.0
"""Perplexity and divergence of models, against sums in f64 over a forward of the whole text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.errors import ArgumentError, Cancelled, TokenError
from rwkv_cpu.evaluation import divergence, perplexity, streaming
from rwkv_cpu.evaluation.texts import stream_of

TEXT = "User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is 12.\n\nUser: Tell me a joke.\n\nAssistant: No.\n\n" * 20


def log_p(model: Model, ids: list[int]) -> np.ndarray:
    x = model.forward(ids, logits="all")[0].astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def demo(demo_path):
    with Model.load(demo_path) as model:
        yield model


@pytest.fixture(scope="module")
def pair(make_rwkv):
    """A small model in f32, and in q4: no tokenizer, 256 tokens."""
    with Model(make_rwkv(format="f32")) as exact, Model(make_rwkv(format="q4")) as small:
        yield exact, small


def ids_of(n: int, n_vocab: int = 256) -> list[int]:
    return np.random.default_rng(n).integers(1, n_vocab, n).tolist()


def test_perplexity_of_a_stream_is_that_of_one_forward(demo):
    ids = demo.tokenizer.encode(TEXT)
    losses = -log_p(demo, [0, *ids[:-1]])[np.arange(len(ids)), ids]
    found = perplexity(demo, TEXT)
    np.testing.assert_allclose(found.losses, losses, atol=1e-9)
    assert found.tokens == len(ids)
    assert found.perplexity.value == pytest.approx(math.exp(losses.mean()), rel=1e-12)
    assert found.text_bytes == len(TEXT.encode())
    assert found.bits_per_byte.value == pytest.approx(losses.sum() / math.log(2) / len(TEXT), rel=1e-12)
    assert found.loss.low < found.loss.value < found.loss.high
    assert found.perplexity.value == pytest.approx(demo.score(TEXT).perplexity, rel=1e-5)
    assert set(found.to_dict()) == {
        "model", "tokens", "text_bytes", "window", "loss", "perplexity", "bits_per_byte", "seconds",
    }  # fmt: skip


def test_pieces_do_not_change_a_bit(pair, monkeypatch):
    exact, small = pair
    ids = ids_of(700)
    whole = divergence(small, exact, ids)
    for size in (1, 7, 256, 699):
        monkeypatch.setattr(streaming, "_MAX_PIECE", size)
        cut = divergence(small, exact, ids)
        assert cut[0].kl.tobytes() == whole[0].kl.tobytes()
        assert cut[1].losses.tobytes() == whole[1].losses.tobytes()


@pytest.mark.parametrize("window", [1, 5, 64, 300, 1000])
def test_windows_begin_anew(pair, window, monkeypatch):
    monkeypatch.setattr(streaming, "_MAX_PIECE", 130)
    model = pair[0]
    ids = ids_of(333)
    expected = []
    for at in range(0, len(ids), window):
        part = ids[at : at + window]
        expected += list(-log_p(model, [0, *part[:-1]])[np.arange(len(part)), part])
    found = perplexity(model, ids, window=window)
    np.testing.assert_allclose(found.losses, expected, atol=1e-9)
    assert found.window == window
    assert found.bits_per_byte is None  # a model without a tokenizer


def test_divergence_is_the_sum_over_the_vocabulary(pair):
    exact, small = pair
    ids = ids_of(600)
    p, q = log_p(exact, [0, *ids[:-1]]), log_p(small, [0, *ids[:-1]])
    kl = (np.exp(p) * (p - q)).sum(1)
    found, own, reference = divergence(small, exact, ids)
    np.testing.assert_allclose(found.kl, kl, atol=1e-9)
    assert found.kl_mean.value == pytest.approx(kl.mean(), rel=1e-6)
    assert found.kl_median.value == pytest.approx(np.median(kl), rel=1e-6)
    assert found.kl_99.value == pytest.approx(np.quantile(kl, 0.99), rel=1e-6)
    assert found.top1.value == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    at = np.arange(len(ids))
    ratio = math.exp((p[at, ids] - q[at, ids]).mean())
    assert found.perplexity_ratio.value == pytest.approx(ratio, rel=1e-9)
    assert own.perplexity.value / reference.perplexity.value == pytest.approx(ratio, rel=1e-9)
    for figure in (found.kl_mean, found.kl_99, found.top1, found.perplexity_ratio):
        assert figure.low <= figure.value <= figure.high


def test_a_model_does_not_diverge_from_itself(demo):
    found, own, reference = divergence(demo, demo, TEXT, window=100)
    assert not found.kl.any()
    assert (found.top1.value, found.perplexity_ratio.value) == (1, 1)
    assert own.losses.tobytes() == reference.losses.tobytes()


def test_documents_are_divided_by_their_lines(demo):
    encode = demo.tokenizer.encode
    ids = stream_of(demo.tokenizer, "One\n<|eod|>\n\n<|endoftext|>\nTwo <|eod|> same\n<|eod|>")
    assert ids.tolist() == [0, *encode("One\n"), 0, *encode("Two <|eod|> same\n")]
    found = perplexity(demo, "One\n<|eod|>\nTwo")
    assert found.text_bytes == len("One\nTwo")


def test_max_tokens_takes_the_first(demo):
    for n in (1, 50, 400):
        short = perplexity(demo, TEXT, max_tokens=n)
        assert short.losses.tobytes() == perplexity(demo, TEXT).losses[:n].tobytes()
    assert perplexity(demo, "Hello.", max_tokens=10**9).tokens == len(demo.tokenizer.encode("Hello."))


def test_progress_counts_all_models_and_cancelling_ends_it(pair):
    seen = []
    divergence(*pair, ids_of(3000), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6000, 6000)
    assert seen == sorted(seen)
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        perplexity(pair[0], ids_of(5000), cancel=cancel, progress=lambda *_: cancel.cancel())


def test_what_does_not_compare_is_refused(pair, demo, make_rwkv):
    with pytest.raises(ArgumentError, match="vocabulary") as caught:
        divergence(pair[0], demo, ids_of(20))
    assert caught.value.hint
    for text in ("", "\n<|eod|>\n", []):
        with pytest.raises(ArgumentError):
            perplexity(demo, text)
    with pytest.raises(ArgumentError, match="tokenizer"):
        perplexity(pair[0], "text for a model without a tokenizer")
    with pytest.raises(TokenError):
        perplexity(pair[0], [3, 256])
    with pytest.raises(ArgumentError):
        perplexity(demo, TEXT, window=0)
