# SPDX-License-Identifier: Apache-2.0
"""Models run over a text, their logits piece by piece: memory does not depend on its length."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation.texts import END

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Piece", "piece_tokens", "predictions"]

_PIECE_BYTES = 1 << 26  # of one model's logits
_MAX_PIECE = 1024


class Piece(NamedTuple):
    """A piece of a text.

    Attributes:
        begin: its first token's place among all that are predicted.
        targets: the tokens that follow, u32 [n].
        logits: each model's, f32 [n, V], in the order of the models.
        states: each model's behind the piece; None where several windows were read at once.
    """

    begin: int
    targets: NDArray[np.uint32]
    logits: list[NDArray[np.float32]]
    states: list[State] | None


def piece_tokens(n_vocab: int) -> int:
    """Tokens whose logits are held at once."""
    return max(1, min(_MAX_PIECE, _PIECE_BYTES // (4 * n_vocab)))


def predictions(
    models: Sequence[Model],
    ids: NDArray[np.uint32],
    *,
    window: int | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """What each model expects of ids[1:], in order.

    Args:
        ids: u32 [1 + T], token 0 first (texts.stream_of).
        window: None: one stream, whose state is carried from the first token to the last. Else so many tokens are
            predicted from a new state that has read token 0, then the next so many.
        progress: called with (tokens run by all models, of all).
    """
    if window is not None and window < 1:
        raise ArgumentError(f"a window of {window} tokens")
    n = len(ids) - 1
    size = piece_tokens(models[0].n_vocab)
    if window is None:
        pieces = _stream(models, ids, size, cancel)
    elif window >= size:
        pieces = _long_windows(models, ids, window, size, cancel)
    else:
        pieces = _short_windows(models, ids, window, size, cancel)
    for piece in pieces:
        yield piece
        if progress is not None:
            progress(len(models) * (piece.begin + len(piece.targets)), len(models) * n)


def _stream(
    models: Sequence[Model], ids: NDArray[np.uint32], size: int, cancel: CancelToken | None, begin: int = 0
) -> Iterator[Piece]:
    states = [model.new_state() for model in models]
    for at in range(0, len(ids) - 1, size):
        targets = ids[at + 1 : at + 1 + size]
        inputs = ids[at : at + len(targets)]
        rows = [
            model.advance(inputs, state, logits="all", cancel=cancel)
            for model, state in zip(models, states, strict=True)
        ]
        yield Piece(begin + at, targets, rows, states)


def _long_windows(
    models: Sequence[Model], ids: NDArray[np.uint32], window: int, size: int, cancel: CancelToken | None
) -> Iterator[Piece]:
    for at in range(0, len(ids) - 1, window):
        yield from _stream(models, _one_window(ids, at, window), size, cancel, at)


def _short_windows(
    models: Sequence[Model], ids: NDArray[np.uint32], window: int, size: int, cancel: CancelToken | None
) -> Iterator[Piece]:
    """Several windows in one call."""
    step = size // window * window
    for begin in range(0, len(ids) - 1, step):
        ends = min(begin + step, len(ids) - 1)
        windows = [_one_window(ids[: ends + 1], at, window)[:-1] for at in range(begin, ends, window)]
        rows = []
        for model in models:
            found, _ = model.forward_batch(windows, logits="all", cancel=cancel)
            rows.append(np.concatenate([part for part in found if part is not None]))
        yield Piece(begin, ids[begin + 1 : ends + 1], rows, None)


def _one_window(ids: NDArray[np.uint32], at: int, window: int) -> NDArray[np.uint32]:
    """The tokens predicted from place *at* on, with token 0 before them."""
    return np.concatenate([np.asarray([END], np.uint32), ids[at + 1 : at + 1 + window]])
