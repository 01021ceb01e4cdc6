# SPDX-License-Identifier: Apache-2.0
"""How sure a figure is. Neighbouring tokens are alike, so what is drawn anew are blocks of them (block bootstrap).

Source: Künsch, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17 (1989).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["Bootstrap", "Estimate", "mean_of_items", "proportion"]

LEVEL = 0.95
_BLOCK_TOKENS = 512  # correlations of the loss are gone behind that
_WANTED_BLOCKS, _MIN_BLOCKS, _MIN_BLOCK = 40, 10, 16
_MAX_BLOCKS = 1000
_RESAMPLES = 1000
_RESAMPLED_NUMBERS = 100_000_000  # of a quantile's: bounds its time
_SEED = 0
_Z = 1.959964  # of the normal distribution at 95 %


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval; None where there is too little to tell."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def map(self, function: Callable[[float], float]) -> Estimate:
        """Of an increasing *function* of the figure."""
        low, high = (None if x is None else function(x) for x in (self.low, self.high))
        return Estimate(function(self.value), low, high)


class Bootstrap:
    """Estimates for *n* figures in order, one a token.

    Args:
        n: how many.
        block: tokens that are drawn together; None: 512, less where that gives fewer than 40 blocks, but at least 16.
            Windows that were read apart from each other are blocks by themselves.

    Attributes:
        block: tokens of a block. n_blocks: with fewer than 10 there are no intervals.
    """

    def __init__(self, n: int, block: int | None = None) -> None:
        if n < 1 or (block is not None and block < 1):
            raise ArgumentError(f"{n} figures in blocks of {block}")
        length = max(_MIN_BLOCK, min(_BLOCK_TOKENS, n // _WANTED_BLOCKS)) if block is None else block
        length *= max(1, -(-n // (length * _MAX_BLOCKS)))
        self.block = length
        self._n = n
        self._edges = np.arange(0, n, length)
        if len(self._edges) > 1 and n - self._edges[-1] < length // 2:
            self._edges = self._edges[:-1]  # a short rest belongs to the block before it
        self.n_blocks = len(self._edges)
        self._drawn: NDArray[np.int64] | None = None

    @property
    def _counts(self) -> NDArray[np.int64]:
        """How often each block was drawn, [resamples, blocks]."""
        if self._drawn is None:
            random = np.random.default_rng(_SEED)
            self._drawn = random.multinomial(self.n_blocks, np.full(self.n_blocks, 1 / self.n_blocks), _RESAMPLES)
        return self._drawn

    def mean(self, values: NDArray[Any]) -> Estimate:
        """Of figures [n]."""
        return self.ratio(values, np.ones(self._n))

    def ratio(self, values: NDArray[Any], weights: NDArray[Any]) -> Estimate:
        """Σ values / Σ weights, both [n]."""
        self._check(values)
        above, below = (np.add.reduceat(x.astype(np.float64), self._edges) for x in (values, weights))
        value = float(above.sum() / below.sum())
        if self.n_blocks < _MIN_BLOCKS:
            return Estimate(value)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (self._counts @ above) / (self._counts @ below)
        return Estimate(value, *_interval(found[np.isfinite(found)]))

    def quantile(self, values: NDArray[Any], q: float) -> Estimate:
        """Of figures [n]."""
        self._check(values)
        value = float(np.quantile(values, q))
        if self.n_blocks < _MIN_BLOCKS:
            return Estimate(value)
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        block_of = np.searchsorted(self._edges, order, "right") - 1
        n_resamples = max(100, min(_RESAMPLES, _RESAMPLED_NUMBERS // self._n))
        found = np.empty(n_resamples)
        for i, counts in enumerate(self._counts[:n_resamples]):
            reached = np.cumsum(counts[block_of])
            found[i] = ordered[np.searchsorted(reached, q * reached[-1])]
        return Estimate(value, *_interval(found))

    def _check(self, values: NDArray[Any]) -> None:
        if values.shape != (self._n,):
            raise ArgumentError(f"figures of shape {list(values.shape)}, expected {self._n}")


def _interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_of_items(values: NDArray[Any] | Sequence[float]) -> tuple[Estimate, float]:
    """Mean and its standard error of independent items (questions, lines): s / √n, s with n - 1.

    The interval is the normal one. Source: lm-evaluation-harness (`mean_stderr`).
    """
    values = np.asarray(values, np.float64)
    value = float(values.mean())
    if len(values) < 2:
        return Estimate(value), math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(value, value - _Z * error, value + _Z * error), error


def proportion(right: int, of: int) -> Estimate:
    """A share with Wilson's interval, which holds for few items and shares near 0 and 1, too."""
    if of < 1:
        raise ArgumentError("a share of nothing")
    p, z2 = right / of, _Z * _Z
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half))
