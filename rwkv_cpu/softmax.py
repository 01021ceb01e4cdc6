# SPDX-License-Identifier: Apache-2.0
"""What logits mean: log-probabilities, how far two models' are apart, how surprising a token was. numpy alone.

Divergences of q8 are about 1e-6 nats a token, what rounding to f32 leaves of a sum over a vocabulary as well: these are
computed in f64, some rows at a time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rwkv_cpu.errors import ArgumentError, NonFiniteError, TokenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Comparison", "compare_rows", "kl_divergence", "log_softmax", "token_losses"]

_Float = TypeVar("_Float", bound=np.floating[Any])

_BLOCK_NUMBERS = 1 << 16  # logits worked on at once, so that their f64 copies stay in the cache
_MIN_BLOCKS = 8  # for fewer, threads are not worth starting
_NAN_HINT = "The weights are damaged: `rwkv-cpu info --verify` checks a file."


class Comparison(NamedTuple):
    """Rows of two models' logits compared.

    Attributes:
        kl: KL(reference‖model), nats, f64 [T]. same: whether both have the same likeliest token, bool [T].
        reference_loss, loss: negative natural logs of the probability of the token that follows, f64 [T].
    """

    kl: NDArray[np.float64]
    same: NDArray[np.bool_]
    reference_loss: NDArray[np.float64]
    loss: NDArray[np.float64]


def log_softmax(logits: NDArray[_Float]) -> NDArray[_Float]:
    """Natural logs of the probabilities along the last axis, in the logits' own precision."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[_Float] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def kl_divergence(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(reference‖model) of each row, nats, f64 [T], from two models' logits f32 [T, V].

    Raises: ArgumentError: different shapes. NonFiniteError: NaN or Inf among the logits.
    """
    return compare_rows(reference, logits, np.zeros(len(logits), np.uint32)).kl


def compare_rows(
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    targets: NDArray[np.integer[Any]],
    *,
    threads: int = 1,
) -> Comparison:
    """All that is said about two models' logits f32 [T, V]; *targets* [T] are the tokens that follow.

    Raises: ArgumentError: different shapes. TokenError. NonFiniteError: NaN or Inf among the logits.
    """
    if reference.shape != logits.shape:
        raise ArgumentError(f"logits of shapes {list(reference.shape)} and {list(logits.shape)} do not compare")
    n = _checked(logits, targets)
    found = Comparison(np.empty(n), np.empty(n, np.bool_), np.empty(n), np.empty(n))

    def compare(rows: slice) -> None:
        a, p, log_a = _exponentials(reference[rows])
        b, _, log_b = _exponentials(logits[rows])
        at, following = np.arange(len(a)), targets[rows]
        found.same[rows] = a.argmax(1) == b.argmax(1)
        found.reference_loss[rows] = log_a - a[at, following]
        found.loss[rows] = log_b - b[at, following]
        with np.errstate(invalid="ignore"):
            np.subtract(a, b, out=b)
        # Σ p·(log p - log q) = Σ p·(a - b) - (log Σ exp a - log Σ exp b), where p = exp a / Σ exp a
        found.kl[rows] = np.einsum("tv,tv->t", p, b) / np.exp(log_a) - (log_a - log_b)

    _in_blocks(compare, logits.shape, threads)
    if not (np.isfinite(found.kl).all() and np.isfinite(found.loss).all()):
        raise NonFiniteError("the logits have numbers that are not finite", hint=_NAN_HINT)
    return found


def token_losses(
    logits: NDArray[np.float32], targets: NDArray[np.integer[Any]], *, threads: int = 1
) -> NDArray[np.float64]:
    """Negative natural log of the probability of each row's token, f64 [T], from logits f32 [T, V].

    Raises: as compare_rows().
    """
    losses = np.empty(_checked(logits, targets))

    def lose(rows: slice) -> None:
        a, _, log_a = _exponentials(logits[rows])
        losses[rows] = log_a - a[np.arange(len(a)), targets[rows]]

    _in_blocks(lose, logits.shape, threads)
    if not np.isfinite(losses).all():
        raise NonFiniteError("the logits have numbers that are not finite", hint=_NAN_HINT)
    return losses


def _exponentials(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Logits less the largest of their row, exp of these, and the log of its sum."""
    shifted = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the callers tell what is not finite
        shifted -= shifted.max(1, keepdims=True)
        raised = np.exp(shifted)
        return shifted, raised, np.log(raised.sum(1))


def _in_blocks(work: Callable[[slice], None], shape: tuple[int, ...], threads: int) -> None:
    """*work* on all rows, some at a time. numpy lets other threads run meanwhile."""
    step = max(1, _BLOCK_NUMBERS // max(1, shape[1]))
    blocks = [slice(at, at + step) for at in range(0, shape[0], step)]
    if threads == 1 or len(blocks) < _MIN_BLOCKS:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(threads, "rwkv_cpu-softmax") as pool:
        list(pool.map(work, blocks))


def _checked(logits: NDArray[np.float32], targets: NDArray[np.integer[Any]]) -> int:
    if logits.ndim != 2 or not logits.shape[1] or targets.shape != logits.shape[:1]:
        raise ArgumentError(f"logits of shape {list(logits.shape)} and tokens of shape {list(targets.shape)}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise TokenError(f"a token outside the vocabulary of {logits.shape[1]}")
    return len(targets)
