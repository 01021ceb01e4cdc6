# SPDX-License-Identifier: Apache-2.0
"""States kept along a conversation, so that undo, retry and edit cost a copy instead of reading it all again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rwkv_cpu.state import State

__all__ = ["Snapshot", "Snapshots"]


@dataclass(frozen=True)
class Snapshot:
    """A state, and which tokens made it: the conversation's first *base* ids, then *extra*.

    Only *extra* is stored: the ids below *base* are the conversation's own, and a snapshot is dropped as soon as
    those change.
    """

    base: int
    extra: tuple[int, ...]
    state: State

    @property
    def position(self) -> int:
        """Tokens the state holds."""
        return self.base + len(self.extra)


class Snapshots:
    """The snapshots of one conversation, oldest first, at most *max_bytes* of them (but always two).

    The states in it are never advanced: whoever continues from one copies it.
    """

    def __init__(self, max_bytes: int, state_bytes: int) -> None:
        self._room = max(2, max_bytes // max(1, state_bytes))
        self._kept: list[Snapshot] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, snapshot: Snapshot) -> None:
        """Keep one more; the oldest goes if there is no room. One for the same tokens is replaced."""
        self._kept = [s for s in self._kept if (s.base, s.extra) != (snapshot.base, snapshot.extra)]
        self._kept.append(snapshot)
        del self._kept[: -self._room]

    def best(self, goal: Sequence[int]) -> Snapshot | None:
        """The one that holds the most of *goal*'s beginning and still leaves a token to compute."""
        usable = (s for s in self._kept if s.position < len(goal) and tuple(goal[s.base : s.position]) == s.extra)
        return max(usable, key=lambda s: s.position, default=None)

    def last(self) -> Snapshot | None:
        """The newest."""
        return self._kept[-1] if self._kept else None

    def forget_beyond(self, n_ids: int) -> None:
        """The conversation was cut back to its first *n_ids* ids: drop what is based on later ones."""
        self._kept = [s for s in self._kept if s.base <= n_ids]

    def copy(self) -> Snapshots:
        """An independent list of the same (never changing) states."""
        twin = Snapshots(0, 1)
        twin._room, twin._kept = self._room, list(self._kept)
        return twin
