# SPDX-License-Identifier: Apache-2.0
"""What a conversation consists of: its turns, the token ids the model has read for them, and states along the way.

The ids are always those of the template's text of the turns. An answer's own ids are kept as the model chose them; what
stands between turns is *pending* text, encoded together with the next message, as it would be in one long text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkv_cpu.chat.snapshots import Snapshot, Snapshots
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rwkv_cpu.chat.answer import Outcome
    from rwkv_cpu.chat.template import ChatTemplate
    from rwkv_cpu.generation.loop import Stats
    from rwkv_cpu.state import State
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["Border", "History", "Turn"]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        user: as it was sent (not cleaned).
        text: the answer, without space around it.
        finish_reason: "stop", "end", "length" or "cancelled" (then text is what there was).
        stats: of the reply; None in a loaded conversation.
    """

    user: str
    text: str
    finish_reason: str
    stats: Stats | None = None


@dataclass(frozen=True)
class Border:
    """Where a turn begins: after the first *n_ids* ids; *pending* is text the model has not read yet."""

    n_ids: int
    pending: str


class History:
    """Turns, ids and snapshots, always in step.

    Args:
        template: how turns are written.
        tokenizer: of the model.
        opening: text before the first turn.
        snapshots: an empty store for states.

    Attributes:
        turns: oldest first.
        ids: what the model has read, up to the last border.
        borders: where each turn begins, and where the next one will.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, opening: str, snapshots: Snapshots) -> None:
        self.turns: list[Turn] = []
        self.ids: list[int] = []
        self.borders = [Border(0, opening)]
        self.snapshots = snapshots
        self._template = template
        self._tokenizer = tokenizer

    def copy(self) -> History:
        """An independent history with the same past; the states are shared."""
        twin = History(self._template, self._tokenizer, "", self.snapshots.copy())
        twin.turns, twin.ids, twin.borders = list(self.turns), list(self.ids), list(self.borders)
        return twin

    def turn_index(self, i: int) -> int:
        """*i*, counted from the end if negative, as an index.

        Raises:
            ArgumentError: there is no such turn.
        """
        n = len(self.turns)
        if not -n <= i < n:
            raise ArgumentError(
                "the conversation has no turns yet" if n == 0 else f"the conversation has only {n} turns"
            )
        return i % n

    def cut(self, n_turns: int) -> None:
        """Keep the first *n_turns* turns."""
        del self.turns[n_turns:], self.borders[n_turns + 1 :]
        del self.ids[self.borders[-1].n_ids :]
        self.snapshots.forget_beyond(len(self.ids))

    def goal(self, message: str) -> list[int]:
        """The ids the model shall have read before it answers *message*."""
        part = self.borders[-1].pending + self._template.user_part(message)
        return self.ids + list(self._tokenizer.encode(part))

    def nearest(self, goal: list[int]) -> Snapshot | None:
        """The state that is furthest on the way to *goal*."""
        return self.snapshots.best(goal)

    def keep(self, goal: list[int], position: int, state: State) -> None:
        """Remember *state*, which has read the first *position* ids of *goal*."""
        if position > 0:
            base = min(position, len(self.ids))
            # A copy: a state that was advanced holds a second block to work with.
            self.snapshots.add(Snapshot(base, tuple(goal[base:position]), state.copy()))

    def take(self, message: str, goal: list[int], outcome: Outcome) -> None:
        """Add the turn of *message*, whose answer began at *goal* and left *outcome*."""
        kept, unread = split_answer(outcome.raw, outcome.consumed, self._tokenizer.decode_bytes)
        self.turns.append(Turn(message, outcome.raw.strip(), outcome.finish_reason, outcome.stats))
        self.ids = goal + outcome.consumed[:kept]
        self.borders.append(Border(len(self.ids), unread + self._template.separator))
        # What the state has read beyond the answer is as a rule the beginning of what comes next.
        self.keep(goal + outcome.consumed, len(goal) + len(outcome.consumed), outcome.state)

    def encode(self, turns: list[Turn]) -> None:
        """Become these turns, by encoding their text. Only for an empty history."""
        for turn in turns:
            answer = self._template.answer_part(turn.text).removesuffix(self._template.separator)
            self.ids = self.goal(turn.user) + list(self._tokenizer.encode(answer))
            self.turns.append(turn)
            self.borders.append(Border(len(self.ids), self._template.separator))

    def adopt(self, turns: list[Turn], ids: list[Any], borders: list[Any], n_vocab: int) -> None:
        """Become these turns with the ids and (n_ids, pending) borders they had.

        Raises:
            ValueError: they do not belong together.
        """
        found = [Border(int(n), str(pending)) for n, pending in borders]
        starts = [border.n_ids for border in found]
        known = all(isinstance(i, int) and 0 <= i < n_vocab for i in ids)
        if not known or len(found) != len(turns) + 1 or starts != sorted(starts):
            raise ValueError("its token ids do not go with its turns")
        if starts[0] != 0 or starts[-1] != len(ids):
            raise ValueError("its token ids do not go with its turns")
        self.turns, self.ids, self.borders = list(turns), list(ids), found


def split_answer(raw: str, consumed: Sequence[int], decode_bytes: Callable[[Sequence[int]], bytes]) -> tuple[int, str]:
    """How many of the *consumed* ids lie wholly within the text *raw*, and what of it they do not cover.

    The rest of the ids belongs to what ended the answer (a blank line, the next "User:").
    """
    text = raw.encode("utf-8")
    ends = [0]  # ends[k]: bytes that the first k ids cover
    for token in consumed:
        piece = decode_bytes([token])
        if not piece or text[ends[-1] : ends[-1] + len(piece)] != piece:
            break
        ends.append(ends[-1] + len(piece))
    # A character's later bytes look like 10xxxxxx: never cut before one.
    while ends[-1] < len(text) and text[ends[-1]] & 0xC0 == 0x80:
        ends.pop()
    return len(ends) - 1, text[ends[-1] :].decode("utf-8")
