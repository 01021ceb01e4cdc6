# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals: they hold the truth as often as they say, for figures whose neighbours are alike too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation.statistics import Bootstrap, mean_of_items, proportion


def autocorrelated(random: np.random.Generator, n: int, memory: float) -> np.ndarray:
    """Mean 0, each figure *memory* times the one before and noise."""
    noise = random.normal(size=n)
    values = np.empty(n)
    last = 0.0
    for i in range(n):
        last = memory * last + noise[i]
        values[i] = last
    return values


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_intervals_of_a_mean_hold_the_truth_nine_times_in_ten(memory):
    random = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        found = Bootstrap(4000).mean(autocorrelated(random, 4000, memory))
        held += found.low <= 0 <= found.high
    assert held >= 88


def test_drawing_single_tokens_would_claim_too_much():
    """What the blocks are for: with blocks of one the interval of correlated figures is several times too narrow."""
    values = autocorrelated(np.random.default_rng(6), 1000, 0.9)
    blocks, single = Bootstrap(1000).mean(values), Bootstrap(1000, 1).mean(values)
    assert single.high - single.low < 0.6 * (blocks.high - blocks.low)


@pytest.mark.parametrize("q", [0.5, 0.99])
def test_intervals_of_a_quantile_hold_the_truth(q):
    random = np.random.default_rng(7)
    truth = -math.log(1 - q)
    held = 0
    for _ in range(60):
        values = random.exponential(size=6000)
        found = Bootstrap(6000).quantile(values, q)
        assert found.value == pytest.approx(float(np.quantile(values, q)))
        held += found.low <= truth <= found.high
    assert held >= 52


def test_the_same_figures_give_the_same_interval():
    values = np.random.default_rng(8).normal(size=3000)
    assert Bootstrap(3000).mean(values) == Bootstrap(3000).mean(values)


def test_a_ratio_weighs_its_blocks():
    values, weights = np.arange(1, 1001.0), np.full(1000, 4.0)
    found = Bootstrap(1000).ratio(values, weights)
    assert found.value == pytest.approx(values.sum() / 4000)
    assert found.low < found.value < found.high
    assert Bootstrap(1000).mean(values).map(math.sqrt).high == pytest.approx(
        math.sqrt(Bootstrap(1000).mean(values).high)
    )


@pytest.mark.parametrize(
    ("n", "block", "expected"), [(100_000, None, 512), (2000, None, 50), (100, None, 16), (640, 64, 64)]
)
def test_blocks_have_the_length_that_the_docs_give(n, block, expected):
    assert Bootstrap(n, block).block == expected


def test_long_texts_get_longer_blocks():
    found = Bootstrap(10_000_000, 16)
    assert found.n_blocks <= 1000
    assert found.block % 16 == 0


def test_too_little_to_tell_gives_no_interval():
    found = Bootstrap(100).mean(np.ones(100))
    assert (found.value, found.low, found.high) == (1, None, None)
    assert Bootstrap(100).quantile(np.ones(100), 0.5).low is None
    assert found.map(math.exp).to_dict() == {"value": math.e, "low": None, "high": None}
    for wrong in ((0, None), (5, 0)):
        with pytest.raises(ArgumentError):
            Bootstrap(*wrong)
    with pytest.raises(ArgumentError):
        Bootstrap(5).mean(np.ones(6))


def test_standard_error_of_items_is_the_harness_formula():
    right = np.array([1, 0, 1, 1, 0, 1, 1, 1])
    found, error = mean_of_items(right)
    p = right.mean()
    assert error == pytest.approx(math.sqrt(p * (1 - p) / (len(right) - 1)))
    assert found.high - p == pytest.approx(1.959964 * error)
    assert math.isnan(mean_of_items([1])[1])


def test_shares_near_the_ends_keep_an_interval_inside():
    none, all_right, half = proportion(0, 20), proportion(20, 20), proportion(10, 20)
    assert (none.low, all_right.high) == (0, 1)
    assert 0.1 < none.high < 0.2
    assert (half.low, half.high) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))  # Wilson 1927
    with pytest.raises(ArgumentError):
        proportion(0, 0)
