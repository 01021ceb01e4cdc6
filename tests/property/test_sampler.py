# SPDX-License-Identifier: Apache-2.0
"""What must hold for any logits and settings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu.generation import Sampler, SamplingParams

logit = st.floats(-60, 60, width=32)
some_logits = st.one_of(
    st.lists(logit, min_size=1, max_size=200),
    st.tuples(st.integers(1, 3000), st.floats(0, 12), st.integers(0, 99)).map(
        lambda t: np.random.default_rng(t[2]).normal(0, t[1], t[0]).tolist()
    ),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, -30.0, 1e-40, float("-inf"), 3e38, -3e38]), min_size=1, max_size=90),
).map(lambda values: np.array(values, np.float32))
some_settings = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.just(0.0), st.floats(1e-6, 1000)),
        "top_p": st.one_of(st.just(1.0), st.floats(0, 1)),
        "top_k": st.one_of(st.just(0), st.integers(1, 300)),
        "min_p": st.one_of(st.just(0.0), st.floats(0, 1)),
        "seed": st.integers(0, 2**64 - 1),
    }
)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def may_be_chosen(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Mask of tokens that pass all cuts, with a margin for sums that end within rounding of one."""
    p = np.exp(log_softmax(logits))
    order = np.argsort(-logits.astype(np.float64), kind="stable")  # p may round differences away
    mask = np.isfinite(logits)
    mask &= p >= params.min_p * p.max() * (1 - 1e-5)
    if params.top_p < 1:
        reached = np.cumsum(p[order]) >= params.top_p + 1e-5
        if reached.any():
            mask &= logits >= logits[order[np.argmax(reached)]]
    if params.top_k:
        mask &= logits >= np.sort(logits)[::-1][min(params.top_k, len(logits)) - 1]
    if params.temperature == 0:
        mask &= logits == logits.max()
    return mask


@settings(max_examples=300)
@given(some_logits, some_settings)
def test_chosen_token_passes_all_cuts_and_has_the_right_logprob(logits, options):
    if np.isneginf(logits).all():
        logits[0] = 0
    params = SamplingParams(**options)
    sampler = Sampler(len(logits), params)
    mask = may_be_chosen(logits, params)
    for _ in range(5):
        token, logprob = sampler.sample_with_logprob(logits)
        assert mask[token]
        assert logprob == pytest.approx(log_softmax(logits)[token], abs=3e-6, rel=1e-6)
    if params.temperature == 0:
        assert token == int(np.argmax(logits))


@given(some_logits, some_settings, st.lists(st.integers(0, 2**31), max_size=20), st.floats(-3, 3), st.floats(-3, 3))
def test_penalties_and_bans_are_those_of_the_formula(logits, options, events, presence, frequency):
    n = len(logits)
    logits = np.where(np.isfinite(logits), logits, np.float32(0)).clip(-100, 100).astype(np.float32)
    params = SamplingParams(**options, presence_penalty=presence, frequency_penalty=frequency, penalty_decay=0.9)
    banned = sorted({e % n for e in events[::3]} - {0})
    uncounted = [e % n for e in events[1::3]]
    sampler = Sampler(n, params, banned=banned, uncounted=uncounted)
    counts: dict[int, float] = {}
    for event in events:
        sampler.accept(event % n)
        counts = {token: count * np.float32(0.9).item() for token, count in counts.items()}
        counts[event % n] = counts.get(event % n, 0.0) + (event % n not in uncounted)
    expected = logits.astype(np.float64)
    for token, count in counts.items():
        expected[token] -= np.float32(presence).item() + count * np.float32(frequency).item()
    expected[banned] = -np.inf
    twin = Sampler(n, params.replace(presence_penalty=0, frequency_penalty=0))
    adjusted = expected.astype(np.float32)
    assert [sampler.sample(logits) for _ in range(5)] == [twin.sample(adjusted) for _ in range(5)]


@given(some_logits, some_settings)
def test_same_seed_same_choices(logits, options):
    if np.isneginf(logits).all():
        logits[0] = 0
    a, b = (Sampler(len(logits), SamplingParams(**options)) for _ in range(2))
    assert [a.sample(logits) for _ in range(8)] == [b.sample(logits) for _ in range(8)]
