# SPDX-License-Identifier: Apache-2.0
"""Reading what a question adds: from the nearest state that is kept, keeping states on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_cpu.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.chat.history import Goal, History
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["read_goal"]

# A longer prompt gets a snapshot at its end, so that /retry need not read it again; for a shorter one the snapshot
# before it is near enough.
_LONG_PROMPT_TOKENS = 32


def read_goal(
    model: Model,
    history: History,
    start: State | None,
    goal: Goal,
    cancel: CancelToken | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[State, list[int], int]:
    """A state of its own that has read *goal* up to the returned last ids (at least one), and how many it read now.

    Args:
        start: what the conversation begins with; None: the model's own starting state.

    Raises:
        Cancelled: what was read until then is kept, so that it is not lost.
    """
    known, unread = history.nearest(goal)
    cache = model.prefix_cache if known is None else None
    if known is not None:
        state = known.copy()
    else:
        state = model.new_state() if start is None else start.copy()
    if cache is not None:
        unread = unread[cache.find(state, unread) :]
    total = len(unread) - 1
    done = 0

    def progress(piece_done: int, _total: int) -> None:
        if on_progress is not None:
            on_progress(done + piece_done, total + 1)

    for mark in _marks(goal, total + 1):
        n = mark - (len(goal.ids) - len(unread))
        if n <= 0:
            continue
        try:
            model.advance(unread[:n], state, logits="none", cancel=cancel, progress=progress)
        except Cancelled as error:
            n_read = len(goal.ids) - len(unread) + error.n_done
            if n_read > 0:
                history.keep(goal, n_read, state)
            raise
        done, unread = done + n, unread[n:]
        history.keep(goal, mark, state)
        if cache is not None and mark == goal.n_opening:
            cache.add(state)
    return state, unread, done


def _marks(goal: Goal, n_unread: int) -> list[int]:
    """After how many of the goal's ids a state is worth keeping."""
    n = len(goal.ids)
    marks = {goal.n_opening} if goal.n_opening >= _LONG_PROMPT_TOKENS else set()
    if 0 < goal.shared < n:
        marks.add(goal.shared)
    if n_unread >= _LONG_PROMPT_TOKENS:
        marks.add(n - 1)
    return sorted(marks)
