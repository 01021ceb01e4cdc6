# SPDX-License-Identifier: Apache-2.0
"""Divergences and losses of logits, against sums that Python takes exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkv_cpu import softmax
from rwkv_cpu.errors import ArgumentError, NonFiniteError, TokenError


def exact(reference: np.ndarray, logits: np.ndarray, token: int) -> tuple[float, float]:
    """KL divergence and loss of one row, by definition."""

    def log_p(row: np.ndarray) -> list[float]:
        top = float(row.max())
        total = math.log(math.fsum(math.exp(float(x) - top) for x in row))
        return [float(x) - top - total for x in row]

    p, q = log_p(reference), log_p(logits)
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)), -q[token]


@pytest.mark.parametrize("n_vocab", [1, 2, 63, 2048, 65536])
@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_divergence_is_the_sum_by_definition(n_vocab, noise):
    random = np.random.default_rng(n_vocab)
    reference = random.normal(0, 4, (5, n_vocab)).astype(np.float32) + np.float32(30)
    logits = reference + random.normal(0, noise, reference.shape).astype(np.float32) - np.float32(7)
    targets = random.integers(0, n_vocab, 5)
    found = softmax.compare_rows(reference, logits, targets)
    for i in range(5):
        kl, loss = exact(reference[i], logits[i], targets[i])
        assert found.kl[i] == pytest.approx(kl, rel=1e-6, abs=1e-13)
        assert found.loss[i] == pytest.approx(loss, rel=1e-12, abs=1e-13)
    assert found.same.tolist() == (reference.argmax(1) == logits.argmax(1)).tolist()
    assert softmax.kl_divergence(reference, logits).tolist() == found.kl.tolist()
    assert softmax.token_losses(logits, targets).tolist() == found.loss.tolist()
    assert softmax.token_losses(reference, targets).tolist() == found.reference_loss.tolist()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads):
    random = np.random.default_rng(threads)
    reference, logits = (random.normal(0, 4, (40, 65536)).astype(np.float32) for _ in range(2))
    targets = random.integers(0, 65536, 40)
    for one, several in zip(
        softmax.compare_rows(reference, logits, targets),
        softmax.compare_rows(reference, logits, targets, threads=threads),
        strict=True,
    ):
        assert one.tobytes() == several.tobytes()
    logits[33, 5] = np.nan
    with pytest.raises(NonFiniteError):
        softmax.token_losses(logits, targets, threads=threads)


def test_equal_predictions_do_not_diverge_whatever_is_added_to_the_logits():
    logits = np.random.default_rng(0).normal(0, 5, (300, 700)).astype(np.float32)
    assert (softmax.kl_divergence(logits, logits) == 0).all()
    shifted = (logits.astype(np.float64) + 64).astype(np.float32)  # rounds the low bits away
    assert (softmax.kl_divergence(logits, shifted) >= 0).all()
    assert softmax.kl_divergence(logits, shifted).max() < 1e-9


def test_log_softmax_keeps_its_precision_and_sums_to_one():
    logits = np.random.default_rng(1).normal(0, 5, (3, 50))
    for dtype in (np.float32, np.float64):
        found = softmax.log_softmax(logits.astype(dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(softmax.log_softmax(logits)[1], softmax.log_softmax(logits[1]))


def test_what_is_wrong_is_told():
    good, tokens = np.zeros((2, 5), np.float32), np.zeros(2, np.uint32)
    bad = good.copy()
    bad[1, 3] = np.nan
    for logits in (bad, np.where(np.isnan(bad), np.float32(np.inf), bad)):
        with pytest.raises(NonFiniteError) as caught:
            softmax.compare_rows(good, logits, tokens)
        assert caught.value.hint
        with pytest.raises(NonFiniteError):
            softmax.compare_rows(logits, good, tokens)
        with pytest.raises(NonFiniteError):
            softmax.token_losses(logits, tokens)
    with pytest.raises(ArgumentError):
        softmax.kl_divergence(good, np.zeros((2, 6), np.float32))
    with pytest.raises(ArgumentError):
        softmax.token_losses(good, tokens[:1])
    with pytest.raises(TokenError):
        softmax.token_losses(good, np.array([0, 5]))
