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


# ------------------------------------------------------------------------------------------ more of the chain


def chosen(logits: np.ndarray, n: int = 400, allowed: np.ndarray | None = None, **options: float) -> set[int]:
    """What *n* draws choose at a temperature that makes everything left about as likely."""
    sampler = Sampler(len(logits), SamplingParams(**{"temperature": 50, "top_p": 1, "top_k": 0, "seed": 1, **options}))
    return {sampler.sample(logits, allowed) for _ in range(n)}


few_logits = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12).map(lambda x: np.array(x, np.float32))


@settings(max_examples=60)
@given(few_logits, st.floats(0.01, 1))
def test_top_a_keeps_what_its_formula_says(logits, top_a):
    p = np.exp(log_softmax(logits))
    found = chosen(logits, top_a=top_a)
    assert all(p[token] >= top_a * p.max() ** 2 * (1 - 1e-4) for token in found)
    assert {i for i in range(len(p)) if p[i] > top_a * p.max() ** 2 * (1 + 1e-4)} <= found


@settings(max_examples=60)
@given(few_logits, st.floats(0.05, 0.95))
def test_typical_p_keeps_the_tokens_of_usual_surprise(logits, typical_p):
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    distance = np.abs(-log_p + (p * log_p).sum())
    order = np.argsort(distance, kind="stable")
    n = int(np.argmax(np.cumsum(p[order]) >= typical_p - 1e-4)) + 1
    surely = int(np.argmax(np.cumsum(p[order]) >= typical_p + 1e-4)) + 1
    found = chosen(logits, typical_p=typical_p)
    assert all(distance[token] <= distance[order[surely - 1]] + 1e-4 for token in found)
    assert {int(i) for i in order[:n] if distance[i] < distance[order[n - 1]] - 1e-4} <= found


@settings(max_examples=60)
@given(few_logits, st.floats(0.02, 0.5))
def test_xtc_leaves_only_the_least_likely_of_the_top_choices(logits, threshold):
    p = np.exp(log_softmax(logits))
    top = [i for i in range(len(p)) if p[i] >= threshold]
    if any(abs(value - threshold) < 1e-4 for value in p):
        return
    least = min((p[i] for i in top), default=1.0)
    expected = {i for i in range(len(p)) if len(top) < 2 or logits[i] <= logits[top].min()}
    assert least > 0
    assert chosen(logits, xtc_probability=1.0, xtc_threshold=threshold) == expected
    assert chosen(logits, xtc_probability=0.0) == set(range(len(p)))


def test_mirostat_holds_the_surprise_it_is_given():
    random = np.random.default_rng(2)
    for tau in (5.5, 6.5, 7.5):
        sampler = Sampler(4000, SamplingParams(mirostat_tau=tau, seed=1))
        surprises = []
        for _ in range(1500):
            logits = random.normal(0, 2, 4000).astype(np.float32)
            token = sampler.sample(logits)
            surprises.append(-log_softmax(logits)[token] / np.log(2))
        assert np.mean(surprises[200:]) == pytest.approx(tau, abs=0.15)


@given(st.lists(st.integers(0, 5), min_size=0, max_size=60), st.integers(1, 4), st.integers(2, 40))
def test_dry_penalises_what_would_repeat_the_longest_sequence(tokens, allowed_length, dry_range):
    breaker = 5
    params = SamplingParams(
        temperature=0, dry_multiplier=0.5, dry_base=2, dry_allowed_length=allowed_length, dry_range=dry_range
    )
    sampler = Sampler(6, params, breakers=[breaker])
    half = len(tokens) // 2
    sampler.observe(tokens[:half])
    for token in tokens[half:]:
        sampler.accept(token)
    seen = tokens[-dry_range:]
    longest = dict.fromkeys(range(6), 0)
    for i in range(len(seen) - 1):
        length = 0
        while length <= i and seen[i - length] == seen[-1 - length] != breaker:
            length += 1
        longest[seen[i + 1]] = max(longest[seen[i + 1]], length)
    penalty = {t: 0.5 * 2 ** (n - allowed_length) if n >= allowed_length else 0.0 for t, n in longest.items()}
    for token in range(6):  # a token wins at equal logits plus its penalty, and not with less
        for delta in (-0.01, 0.01):
            logits = np.full(6, -1e9, np.float32)
            rival = (token + 1) % 6
            logits[token], logits[rival] = min(penalty[token], 1e6) + delta, penalty[rival] - penalty[rival]
            logits[rival] += np.float32(min(penalty[rival], 1e6))
            if penalty[token] < 1e4 and penalty[rival] < 1e4:
                assert sampler.sample(logits) == (token if delta > 0 else rival)


@settings(max_examples=50)
@given(some_logits, st.integers(0, 99))
def test_top_logprobs_are_the_likeliest_in_order(logits, seed):
    if np.isneginf(logits).all():
        logits[0] = 0
    logits = np.where(np.isfinite(logits), logits.clip(-1e38, 1e38), logits)  # differences stay numbers
    n = 1 + seed % min(len(logits), 40)
    found = Sampler(len(logits), SamplingParams()).top_logprobs(logits, n)
    expected = np.argsort(-logits.astype(np.float64), kind="stable")[:n]
    finite = np.isfinite(logits[expected])
    assert [token for token, _ in found][: finite.sum()] == expected[finite].tolist()
    assert [value for _, value in found][: finite.sum()] == pytest.approx(
        log_softmax(logits)[expected][finite].tolist(), abs=3e-6, rel=1e-6
    )


def test_only_allowed_tokens_are_chosen_and_biases_add_up():
    logits = np.zeros(70, np.float32)
    allowed = np.zeros(3, np.uint32)
    for token in (3, 32, 69):
        allowed[token // 32] |= np.uint32(1 << token % 32)
    assert chosen(logits, allowed=allowed) == {3, 32, 69}
    assert chosen(logits, temperature=0, logit_bias={7: 1.5, 9: 1.0}) == {7}
    assert chosen(logits, temperature=0, logit_bias={"7": 1.5}, banned=(7,)) == {0}


def test_repetition_penalty_fades_and_spares_digits():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    params = SamplingParams(temperature=0, repetition_penalty=1.2, penalty_decay=0.5)
    sampler = Sampler(3, params)
    sampler.accept(0)
    assert sampler.sample(logits) == 1
    for _ in range(6):
        sampler.accept(2)
    assert sampler.sample(logits) == 0
    spared = Sampler(3, params, uncounted=[0])
    spared.accept(0)
    assert spared.sample(logits) == 0


def test_a_follower_goes_on_like_its_leader():
    random = np.random.default_rng(5)
    params = SamplingParams(seed=3, top_p=1, top_k=0, frequency_penalty=0.5, dry_multiplier=0.5, mirostat_tau=5)
    leader, follower = Sampler(300, params), Sampler(300, params)
    rows = random.normal(0, 2, (40, 300)).astype(np.float32)
    for row in rows[:20]:
        leader.accept(leader.sample(row))
    follower.follow(leader)
    for row in rows[20:]:
        token = leader.sample(row)
        assert follower.sample(row) == token
        leader.accept(token)
        follower.accept(token)


def test_settings_out_of_range_are_refused_by_name():
    for name, value in {
        "top_a": 2,
        "typical_p": -1,
        "xtc_probability": 2,
        "mirostat_tau": -1,
        "repetition_penalty": 0,
        "dry_base": 0.5,
        "dry_range": -1,
        "logit_bias": {1: float("nan")},
        "dry_breakers": ("",),
    }.items():
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: value})
