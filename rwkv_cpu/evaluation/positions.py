# SPDX-License-Identifier: Apache-2.0
"""Whether a model still profits from what it read long ago: its loss by position in one long text, beside the loss on
the same tokens when it has read only a little before them, and the size of its state.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation.statistics import Bootstrap, Estimate
from rwkv_cpu.evaluation.streaming import piece_tokens
from rwkv_cpu.evaluation.texts import stream_of, tokenizer_of
from rwkv_cpu.softmax import token_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["PositionBin", "Positions", "by_position"]

SHORT = 256
_MIN_TOKENS = 2000
_STATE_PARTS = ("wkv", "aa", "bb")  # what adds up over a text; the rest are single tokens and exponents


@dataclass(frozen=True)
class PositionBin:
    """Tokens at positions *first* to *last*, counted from 1.

    Attributes:
        loss: mean, nats a token, with everything before it read. short_loss: with only the nearest tokens read.
        gain: short_loss - loss: what the far context brings, nats a token. Only for positions that have one.
        state_rms: root of the mean square of the state's numbers at the end of the bin.
    """

    first: int
    last: int
    tokens: int
    loss: Estimate
    short_loss: Estimate
    gain: Estimate | None
    state_rms: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "first": self.first,
            "last": self.last,
            "tokens": self.tokens,
            "loss": self.loss.to_dict(),
            "short_loss": self.short_loss.to_dict(),
            "gain": None if self.gain is None else self.gain.to_dict(),
            "state_rms": self.state_rms,
        }


@dataclass(frozen=True)
class Positions:
    """Loss over position. *short*: the short context has half of this to all of it, in tokens."""

    model: str
    tokens: int
    short: int
    bins: tuple[PositionBin, ...]
    verdict: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "tokens": self.tokens,
            "short": self.short,
            "bins": [found.to_dict() for found in self.bins],
            "verdict": self.verdict,
            "seconds": self.seconds,
        }


def by_position(
    model: Model,
    text: str | Sequence[int] | NDArray[Any],
    *,
    short: int = SHORT,
    max_tokens: int | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Positions:
    """Loss in bins of position, three a decade from 10 on, with a long and a short context.

    Args:
        short: windows of so many tokens, half of it apart: each token is predicted with short/2 to short tokens read.
        progress: called with (tokens run, of all).

    Raises: ArgumentError: the text is too short to tell (2,000 tokens). NonFiniteError. Cancelled.
    """
    began = time.perf_counter()
    if short < 2:
        raise ArgumentError(f"a short context of {short} tokens", hint="Give at least 2.")
    ids = stream_of(tokenizer_of(model), text, max_tokens)
    n = len(ids) - 1
    if n < max(_MIN_TOKENS, 2 * short):
        raise ArgumentError(
            f"{n} tokens are too few to see what position does: at least {max(_MIN_TOKENS, 2 * short)} are needed",
            hint="Give a long text, best of one kind and without breaks.",
        )
    edges = _edges(n)

    def told(done: int) -> None:
        if progress is not None:
            progress(done, 3 * n)

    losses, sizes = _long(model, ids, edges, cancel, told)
    short_losses = _short(model, ids, short, cancel, lambda done: told(n + done))
    bins = tuple(
        _bin(first, last, losses[first:last], short_losses[first:last], size, far=first >= short)
        for (first, last), size in zip(itertools.pairwise(edges), sizes, strict=True)
    )
    return Positions(model.path.name, n, short, bins, _verdict(bins, short), time.perf_counter() - began)


def _edges(n: int) -> list[int]:
    """0, 10, 22, 46, 100, …, n; no last bin smaller than half of the one before."""
    edges = [0]
    step = 3
    while (edge := round(10 ** (step / 3))) < n:
        edges.append(edge)
        step += 1
    if n - edges[-1] < (edges[-1] - edges[-2]) // 2:
        edges.pop()
    return [*edges, n]


def _long(
    model: Model,
    ids: NDArray[np.uint32],
    edges: Sequence[int],
    cancel: CancelToken | None,
    progress: Callable[[int], None],
) -> tuple[NDArray[np.float64], list[float]]:
    """Losses in one stream, and the state's size at the end of each bin."""
    losses = np.empty(len(ids) - 1)
    sizes: list[float] = []
    state = model.new_state()
    size = piece_tokens(model.n_vocab)
    for first, last in itertools.pairwise(edges):
        for at in range(first, last, size):
            end = min(at + size, last)
            logits = model.advance(ids[at:end], state, logits="all", cancel=cancel)
            losses[at:end] = token_losses(logits, ids[at + 1 : end + 1], threads=model.threads)
            progress(end)
        sizes.append(_rms(state))
    return losses, sizes


def _rms(state: State) -> float:
    parts = [part for name, part in state.parts().items() if name in _STATE_PARTS]
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
    return float(np.sqrt(squares / sum(part.size for part in parts)))


def _short(
    model: Model, ids: NDArray[np.uint32], short: int, cancel: CancelToken | None, progress: Callable[[int], None]
) -> NDArray[np.float64]:
    """Losses with the half window before a token read, to the whole of it; several windows in one call."""
    n, half = len(ids) - 1, short - short // 2
    losses = np.empty(n)
    together = max(1, piece_tokens(model.n_vocab) // short)
    begins = list(range(0, n, half))
    for at in range(0, len(begins), together):
        part = begins[at : at + together]
        windows = [ids[max(0, begin + half - short) : min(begin + half, n)] for begin in part]
        rows, _ = model.forward_batch(windows, logits="all", cancel=cancel)
        for begin, logits in zip(part, rows, strict=True):
            end = min(begin + half, n)
            if logits is not None:
                losses[begin:end] = token_losses(logits[begin - end :], ids[begin + 1 : end + 1], threads=model.threads)
        progress(min(2 * (part[-1] + half), 2 * n))
    return losses


def _bin(
    first: int, last: int, losses: NDArray[np.float64], short: NDArray[np.float64], size: float, *, far: bool
) -> PositionBin:
    bootstrap = Bootstrap(last - first)
    gain = bootstrap.mean(short - losses) if far else None
    return PositionBin(first + 1, last, last - first, bootstrap.mean(losses), bootstrap.mean(short), gain, size)


def _verdict(bins: Sequence[PositionBin], short: int) -> str:
    """In words, with the numbers behind it."""
    far = [found for found in bins if found.gain is not None and found.gain.low is not None]
    if not far:
        return f"the text is too short to tell: nothing to compare beyond {short} tokens"
    last = far[-1]
    where = f"at {last.first:,} to {last.last:,} tokens"
    growth = f"state {bins[-1].state_rms / max(far[0].state_rms, 1e-30):.2f} times as large as at {far[0].last:,}"
    gain, low, high = _numbers(last)
    best = max(far, key=lambda found: _numbers(found)[0])
    numbers = f"{gain:+.3f} nats a token ({low:+.3f} to {high:+.3f}), {growth}"
    if low > 0:
        fading = ""
        if best is not last and _numbers(best)[1] > high:
            fading = f"; less than at {best.first:,} to {best.last:,} tokens ({_numbers(best)[0]:+.3f})"
        return f"still profits from context beyond {short} tokens {where}: {numbers}{fading}"
    if high < 0:
        return f"saturated: {where} the far context does harm: {numbers}"
    return f"no gain that can be told from chance {where}: {numbers}"


def _numbers(found: PositionBin) -> tuple[float, float, float]:
    """gain, low, high; of a bin that has them."""
    gain = found.gain
    if gain is None or gain.low is None or gain.high is None:
        raise AssertionError(found)
    return gain.value, gain.low, gain.high
