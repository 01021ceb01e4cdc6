# SPDX-License-Identifier: Apache-2.0
"""The sampler beside a numpy reference: which tokens may be chosen, how often, and the same ones everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rwkv_cpu.errors import ArgumentError, NonFiniteError, TokenError
from rwkv_cpu.generation import Sampler, SamplingParams
from rwkv_cpu.generation.sampling import uncounted_ids
from rwkv_cpu.tokenizer.world import WorldTokenizer

FLATTEN = 1000.0  # a temperature at which all tokens that are left are equally likely


def sampler(n_vocab: int, **settings: Any) -> Sampler:
    defaults = {"top_p": 1.0, "top_k": 0, "seed": 1}
    return Sampler(n_vocab, SamplingParams(**{**defaults, **settings}))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    top = x.max()
    return x - top - np.log(np.exp(x - top).sum())


def kept(logits: np.ndarray, top_p: float, top_k: int, min_p: float) -> set[int]:
    """What the rwkv package's sample_logits leaves (ties of top_k: lowest ids), and min_p."""
    p = np.exp(log_softmax(logits))
    order = np.argsort(-p, kind="stable")
    keep = p >= min_p * p.max()
    if top_p < 1:
        cutoff = p[order[np.argmax(np.cumsum(p[order]) >= top_p)]]
        keep &= p >= cutoff
    if top_k > 0:
        keep &= np.isin(np.arange(len(p)), order[:top_k])
    return set(np.flatnonzero(keep).tolist())


def distinct_logits(n: int, scale: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).permutation(n) * (scale / n)).astype(np.float32)


@pytest.mark.parametrize("scale", [0.5, 6.0, 30.0])
@pytest.mark.parametrize("top_p", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 40])
@pytest.mark.parametrize("min_p", [0.0, 0.3])
def test_tokens_left_are_those_of_the_reference(scale, top_p, top_k, min_p):
    # Not evenly spaced, so that no sum lies on a cut.
    logits = distinct_logits(60, scale, 3) + np.float32(0.001) * np.arange(60, dtype=np.float32)
    s = sampler(60, temperature=FLATTEN, top_p=top_p, top_k=top_k, min_p=min_p)
    expected = kept(logits, top_p, top_k, min_p)
    assert {s.sample(logits) for _ in range(15 * len(expected) + 50)} == expected


@pytest.mark.parametrize(("std", "top_p"), [(0.01, 0.5), (1.0, 0.5), (1.0, 0.999), (3.0, 0.9), (6.0, 0.97)])
def test_cut_of_a_large_vocabulary_is_where_the_reference_has_it(std, top_p):
    logits = np.random.default_rng(5).normal(0, std, 65536).astype(np.float32)
    s = sampler(65536, temperature=FLATTEN, top_p=top_p)
    expected = kept(logits, top_p, 0, 0)
    drawn = {s.sample(logits) for _ in range(400)}
    assert drawn <= expected
    # The least likely of 400 draws out of those that are left is among the last hundredths of them.
    ranks = {token: rank for rank, token in enumerate(sorted(expected, key=lambda i: -logits[i]))}
    assert max(ranks[token] for token in drawn) >= 0.97 * (len(expected) - 1)


@pytest.mark.parametrize("many", [60, 100, 300])
@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.8])
def test_cut_among_many_equally_likely_tokens_is_exact(many, top_p):
    logits = np.full(65536, -20.0, np.float32)
    logits[::200][:many] = 5 - distinct_logits(many, 0.3, many) - 1e-4 * np.arange(many)
    s = sampler(65536, temperature=FLATTEN, top_p=top_p)
    expected = kept(logits, top_p, 0, 0)
    assert {s.sample(logits) for _ in range(12 * len(expected) + 50)} == expected


@pytest.mark.parametrize("k", [1, 2, 100, 1000, 1024, 1025, 30000, 65536, 2**32 - 1])
def test_top_k_of_a_large_vocabulary(k):
    logits = distinct_logits(65536, 8.0, 7)
    s = sampler(65536, temperature=FLATTEN, top_k=k)
    allowed = set(np.argsort(-logits)[:k].tolist())
    assert {s.sample(logits) for _ in range(300)} <= allowed
    if k <= 100:
        assert {s.sample(logits) for _ in range(20 * k)} == allowed


def test_ties_at_top_k_go_to_the_lowest_ids():
    logits = np.zeros(500, np.float32)
    logits[400] = 1
    s = sampler(500, temperature=FLATTEN, top_k=4)
    assert {s.sample(logits) for _ in range(200)} == {0, 1, 2, 400}


def test_ties_at_top_p_are_all_kept():
    logits = np.array([0, 2, 2, 2, 1], np.float32)
    s = sampler(5, temperature=FLATTEN, top_p=0.3)
    assert {s.sample(logits) for _ in range(200)} == {1, 2, 3}


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
def test_frequencies_follow_the_softmax_at_a_temperature(temperature):
    logits = np.array([1.0, 0.0, -1.0, 2.0, 0.5, -3.0, 1.5, -np.inf], np.float32)
    s = sampler(8, temperature=temperature, seed=11)
    n = 20_000
    counts = np.bincount([s.sample(logits) for _ in range(n)], minlength=8)
    expected = np.exp(log_softmax(logits[:7] / temperature)) * n
    assert counts[7] == 0
    # 6 degrees of freedom: chance exceeds 22.5 once in a thousand, and the seed is fixed.
    assert ((counts[:7] - expected) ** 2 / expected).sum() < 22.5


def test_frequencies_over_a_large_flat_vocabulary():
    s = sampler(5000, temperature=1.0, seed=3)
    counts = np.bincount([s.sample(np.zeros(5000, np.float32)) for _ in range(20_000)], minlength=5000)
    assert abs(((counts - 4.0) ** 2 / 4.0).sum() - 4999) < 4 * math.sqrt(2 * 4999)


def test_temperature_zero_takes_the_lowest_id_of_the_most_likely():
    logits = distinct_logits(1000, 4.0, 9)
    logits[[17, 600, 999]] = 5
    for settings in ({}, {"top_p": 0.3}, {"top_k": 3}, {"min_p": 0.5}):
        s = sampler(1000, temperature=0, **settings)
        assert [s.sample(logits) for _ in range(3)] == [17] * 3


def test_tiny_temperature_is_the_most_likely_token():
    logits = distinct_logits(1000, 4.0, 9)
    assert sampler(1000, temperature=1e-30).sample(logits) == logits.argmax()


def pseudo_logits(n: int, step: int) -> np.ndarray:
    """The same on every machine: only exact operations."""
    i = np.arange(n, dtype=np.uint64)
    mixed = ((i + np.uint64(step * 7919)) * np.uint64(2654435761)) % np.uint64(1 << 20)
    return mixed.astype(np.float32) / np.float32(1 << 17)


def test_same_seed_gives_the_same_bits_on_every_machine():
    s = sampler(
        1000, temperature=0.8, top_p=0.9, top_k=200, seed=42, presence_penalty=0.3, frequency_penalty=0.2, min_p=0.01
    )
    tokens, logprobs = [], []
    for step in range(24):
        token, logprob = s.sample_with_logprob(pseudo_logits(1000, step))
        s.accept(token)
        tokens.append(token)
        logprobs.append(np.float32(logprob).view(np.uint32).item())
    assert tokens == GOLDEN_TOKENS
    assert logprobs == GOLDEN_LOGPROBS


# fmt: off
GOLDEN_TOKENS = [
    92, 377, 679, 917, 988, 768, 717, 850, 756, 583, 682, 280, 796, 317, 709, 874, 607, 860, 689, 702, 86,
    187, 423, 601,
]
GOLDEN_LOGPROBS = [
    3231666920, 3231817208, 3232929827, 3232418460, 3232306604, 3231561858, 3231429767, 3231846238,
    3233211902, 3233108728, 3231655024, 3231417565, 3232812777, 3232094763, 3232404211, 3233729572,
    3232236695, 3231591170, 3232535448, 3234044454, 3233506842, 3233179086, 3231541502, 3231564002,
]
# fmt: on


def test_seeds_differ_and_none_is_a_new_one_each_time():
    logits = np.zeros(1000, np.float32)

    def draw(seed: int | None) -> list[int]:
        s = sampler(1000, seed=seed)
        return [s.sample(logits) for _ in range(8)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)
    s = sampler(1000, seed=None)
    first = [s.sample(logits) for _ in range(8)]
    assert draw(s.seed) == first


def test_reset_starts_again():
    logits = distinct_logits(300, 3.0, 1)
    s = sampler(300, presence_penalty=2.0, seed=9)

    def run() -> list[int]:
        tokens = []
        for _ in range(20):
            tokens.append(s.sample(logits))
            s.accept(tokens[-1])
        return tokens

    first = run()
    assert run() != first
    s.reset()
    assert run() == first


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.5}, {"temperature": 0}, {"presence_penalty": 1.0}])
def test_logprob_is_that_of_the_untouched_logits(settings):
    rng = np.random.default_rng(2)
    for n in (1, 2, 63, 64, 65, 2048, 65536):
        logits = rng.normal(0, 4, n).astype(np.float32)
        before = logits.copy()
        s = Sampler(n, SamplingParams(**{"seed": 4, "top_k": 0, **settings}), banned=[0] if n > 1 else [])
        s.accept(n - 1)
        token, logprob = s.sample_with_logprob(logits)
        assert logprob == pytest.approx(log_softmax(logits)[token], abs=2e-6, rel=1e-6)
        assert np.array_equal(logits, before)


def test_banned_tokens_are_never_chosen():
    logits = distinct_logits(100, 2.0, 4)
    banned = np.argsort(-logits)[:50]
    s = Sampler(
        100, SamplingParams(seed=1, top_p=1.0, top_k=0, banned=tuple(banned[:25].tolist())), banned=banned[25:].tolist()
    )
    drawn = {s.sample(logits) for _ in range(2000)}
    assert drawn == set(range(100)) - set(banned)


def test_nothing_left_is_an_error():
    with pytest.raises(NonFiniteError, match="banned"):
        Sampler(3, SamplingParams(), banned=[0, 1, 2]).sample(np.zeros(3, np.float32))
    with pytest.raises(NonFiniteError):
        sampler(3).sample(np.full(3, -np.inf, np.float32))


@pytest.mark.parametrize("n", [1, 64, 65, 1000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.nan])
def test_logits_that_are_no_numbers_are_an_error_and_named(n, bad):
    for at in {0, n // 2, n - 1}:
        logits = np.zeros(n, np.float32)
        logits[at] = bad
        for s in (sampler(n), sampler(n, temperature=0), sampler(n, banned=(at,))):
            with pytest.raises(NonFiniteError, match=f"token {at} is"):
                s.sample(logits)


def test_penalties_subtract_presence_and_fading_counts():
    # Chosen with temperature 0: the penalised token loses as soon as it falls below the other.
    s = sampler(4, temperature=0, presence_penalty=0.5, frequency_penalty=0.25, penalty_decay=0.5)
    for token in (1, 1, 2):
        s.accept(token)
    # Counts: token 1 (1 · 0.5 + 1) · 0.5 = 0.75, token 2 1 → 0.5 + 0.1875 and 0.5 + 0.25.
    for below, expected in ((0.6874, 0), (0.6876, 1)):
        assert s.sample(np.array([1 - below, 1, -9, -9], np.float32)) == expected
    for below, expected in ((0.7499, 0), (0.7501, 2)):
        assert s.sample(np.array([1 - below, -9, 1, -9], np.float32)) == expected


def test_uncounted_tokens_have_the_presence_penalty_only():
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=10.0)
    s = Sampler(3, params, uncounted=[1])
    for _ in range(5):
        s.accept(1)
        s.accept(2)
    assert s.sample(np.array([0.4, 1, -99], np.float32)) == 1
    assert s.sample(np.array([0.6, 1, -99], np.float32)) == 0
    assert s.sample(np.array([0, -99, 10], np.float32)) == 0


def test_uncounted_ids_are_those_of_the_rwkv_package():
    world = WorldTokenizer()
    expected = [i for i in range(1, world.n_vocab) if world.decode([i]) in " \t0123456789"]
    assert uncounted_ids(world) == expected
    assert {33, 10, 49} <= set(expected)


def test_many_counted_tokens():
    s = sampler(3000, temperature=0, presence_penalty=1.0)
    logits = np.zeros(3000, np.float32)
    chosen = []
    for _ in range(3000):
        chosen.append(s.sample(logits))
        s.accept(chosen[-1])
    assert chosen == list(range(3000))


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 1023, 1025])
def test_any_size_of_vocabulary(n):
    logits = distinct_logits(n, 5.0, n)
    assert sampler(n, temperature=0).sample(logits) == logits.argmax()
    for settings in ({}, {"top_p": 0.5}, {"top_k": 7}, {"min_p": 0.1}):
        assert 0 <= sampler(n, **settings).sample(logits) < n


def test_wrong_logits_are_refused():
    s = sampler(10)
    for wrong in (np.zeros(9, np.float32), np.zeros((1, 10), np.float32), np.zeros(10)):
        with pytest.raises(ArgumentError, match=r"float32 \[10\]"):
            s.sample(wrong)
    assert s.sample(np.zeros(20, np.float32)[::2]) < 10


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(TokenError, match="token 10 "):
        Sampler(10, SamplingParams(), banned=[3, 10])
    with pytest.raises(TokenError, match="token 12 "):
        Sampler(10, SamplingParams(frequency_penalty=1.0), uncounted=[12])
    with pytest.raises(TokenError, match="token 10 "):
        sampler(10).accept(10)
    with pytest.raises(ArgumentError):
        sampler(0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1001),
        ("temperature", "hot"),
        ("temperature", None),
        ("temperature", True),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", 2),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", 2**32),
        ("presence_penalty", math.nan),
        ("presence_penalty", 1e9),
        ("frequency_penalty", math.inf),
        ("penalty_decay", 1.1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("banned", 5),
        ("banned", (-1,)),
        ("banned", ("a",)),
    ],
)
def test_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=name):
        SamplingParams(**{name: value})


def test_settings_are_replaced_and_checked_again():
    params = SamplingParams(temperature=0.5).replace(top_k=3)
    assert (params.temperature, params.top_k) == (0.5, 3)
    with pytest.raises(ArgumentError, match="top_p"):
        params.replace(top_p=2)
    with pytest.raises(ArgumentError, match="'topk'"):
        params.replace(topk=2)
    assert SamplingParams(temperature=np.float32(0.5), top_k=np.int64(4), seed=np.uint64(7)).top_k == 4
