# SPDX-License-Identifier: Apache-2.0
"""What a conversation consists of: a tree of turns, the token ids the model has read for each, and kept states.

The ids are always those of the template's text of the turns. An answer's own ids are kept as the model chose them; what
stands between turns is *pending* text, encoded together with the next message, as it would be in one long text.

Taking a turn back moves the head of the tree only. So undo, edit and branches cost nothing, whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.chat import jinja
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.chat.answer import Outcome
    from rwkv_cpu.chat.shelf import Slot, StateShelf
    from rwkv_cpu.chat.template import ChatTemplate
    from rwkv_cpu.generation.loop import Stats
    from rwkv_cpu.state import State
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["MAIN", "Goal", "History", "Kept", "Node", "Turn"]

MAIN = "main"
# States kept at one point: after its turn, and after one or two questions that were asked there.
_KEPT_PER_NODE = 4


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        user: as it was sent (not cleaned).
        text: the answer, without space around it.
        finish_reason: "stop", "end", "length" or "cancelled" (then text is what there was).
        stats: of the reply; None in a loaded conversation.
        thought: what the model thought before it answered; no part of what it reads later.
    """

    user: str
    text: str
    finish_reason: str
    stats: Stats | None = None
    thought: str = ""


@dataclass(frozen=True)
class Kept:
    """A state that has read a node's text and *extra* ids more."""

    extra: tuple[int, ...]
    slot: Slot


@dataclass(eq=False)
class Node:
    """A point of the conversation: before the first turn (the root), or after *turn*.

    Attributes:
        parent: the point before this turn.
        base: the point whose text this one's continues: the parent, but where a Jinja template writes the past anew.
        ids: read since *base*. pending: text after them, which the model has not read yet.
        n_ids: ids from the beginning to here. depth: turns from the beginning to here.
        number: unique in its tree.
    """

    parent: Node | None
    base: Node | None
    turn: Turn | None
    ids: tuple[int, ...]
    pending: str
    number: int
    kept: list[Kept] = field(default_factory=list)
    n_ids: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        self.n_ids = len(self.ids) + (0 if self.base is None else self.base.n_ids)
        self.depth = 0 if self.parent is None else self.parent.depth + 1

    def path(self) -> Iterator[Node]:
        """This node, its parent, and so on, without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    def keep(self, extra: Sequence[int], slot: Slot) -> None:
        """Remember a state that has read *extra* after this point; one for the same ids is replaced."""
        found = tuple(extra)
        others = [kept for kept in self.kept if kept.extra != found]
        self.kept = [*others[1 - _KEPT_PER_NODE :], Kept(found, slot)]


@dataclass
class Goal:
    """What the model shall have read before it answers: the text up to *base*, then *ids*.

    Attributes:
        parent: the point in the conversation where the question is asked.
        shared: so many of the ids belong to the conversation's text; the others only ask for a thought.
        rest: text of the question that *shared* ids do not cover.
        n_opening: so many of the ids are the same for every question asked here (a system text), as far as is known.
    """

    parent: Node
    base: Node
    ids: list[int]
    shared: int
    rest: str = ""
    n_opening: int = 0


class History:
    """The tree of turns with its kept states.

    Args:
        template: how turns are written.
        tokenizer: of the model.
        system: text before the first turn.
        shelf: an empty one for states.

    Attributes:
        head: where the conversation is now.
        branch: name of the current branch. branches: the ends of the others by name.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, system: str, shelf: StateShelf) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._system = system
        self._next_number = 1
        opening = "" if template.jinja else template.system_part(system)
        self.root = Node(None, None, None, (), opening, 0)
        self.head = self.root
        self.branch = MAIN
        self.branches: dict[str, Node] = {}
        self.shelf = shelf
        self._tail: tuple[Node | None, NDArray[np.uint32]] = (None, np.empty(0, np.uint32))

    def copy(self) -> History:
        """An independent history with the same past; points and states are shared."""
        twin = History(self._template, self._tokenizer, self._system, self.shelf)
        twin.root, twin.head, twin.branch, twin.branches = self.root, self.head, self.branch, dict(self.branches)
        twin._next_number = self._next_number
        return twin

    @property
    def turns(self) -> list[Turn]:
        """From the first to the current one."""
        found = [node.turn for node in self.head.path() if node.turn is not None]
        return found[::-1]

    @property
    def n_turns(self) -> int:
        """How many turns there are."""
        return self.head.depth

    def turn_index(self, i: int) -> int:
        """*i*, counted from the end if negative, as an index.

        Raises:
            ArgumentError: there is no such turn.
        """
        n = self.n_turns
        if not -n <= i < n:
            raise ArgumentError(
                "the conversation has no turns yet" if n == 0 else f"the conversation has only {n} turns"
            )
        return i % n

    def after(self, n_turns: int) -> Node:
        """The point after the first *n_turns* turns."""
        node = self.head
        while node.depth > n_turns and node.parent is not None:
            node = node.parent
        return node

    # ----------------------------------------------------------------------------- reading and answering

    def goal(self, message: str, think: str = "") -> Goal:
        """What the model shall have read before it answers *message*, asked at the head.

        Raises: ArgumentError: an empty message, or no such think mode.
        """
        if self._template.jinja:
            return self._written_goal(message, think)
        head = self.head
        text = head.pending + self._template.user_part(message)
        ids = list(self._tokenizer.encode(text))
        goal = Goal(head, head, ids, len(ids))
        if think:
            goal.ids = list(self._tokenizer.encode(head.pending + self._template.user_part(message, think)))
            goal.shared, goal.rest = self._common(ids, goal.ids, text)
        if head is self.root and head.pending:
            opening = list(self._tokenizer.encode(head.pending))
            goal.n_opening = min(_equal(opening, goal.ids), goal.shared)
        return goal

    def nearest(self, goal: Goal) -> tuple[State | None, list[int]]:
        """The kept state that is furthest on the way to *goal*, and the ids (at least one) that it has not read."""
        after, node = goal.ids, goal.base
        while True:
            for kept in sorted(node.kept, key=lambda kept: -len(kept.extra)):
                n = len(kept.extra)
                if n < len(after) and tuple(after[:n]) == kept.extra:
                    state = kept.slot.get()
                    if state is not None:
                        return state, after[n:]
            if node.base is None:
                return None, after
            after = [*node.ids, *after]
            node = node.base

    def last_ids(self, goal: Goal, most: int) -> NDArray[np.uint32]:
        """The last ids of the text before the goal's own, at most so many."""
        node: Node | None = goal.base
        known, tail = self._tail
        if known is not None and len(tail) < min(most, known.n_ids):
            known = None
        parts: list[NDArray[np.uint32]] = []
        n = 0
        while node is not None and n < most:
            # From one question to the next only the last turn is new: a long conversation costs no more.
            parts.append(tail if node is known else np.array(node.ids, np.uint32))
            n, node = n + len(parts[-1]), None if node is known else node.base
        found = np.concatenate([np.empty(0, np.uint32), *parts[::-1]])[-most:]
        self._tail = goal.base, found
        return found

    def keep(self, goal: Goal, n_read: int, state: State) -> None:
        """Remember *state*, which has read the first *n_read* of the goal's ids."""
        # A copy: a state that was advanced holds a second block to work with.
        goal.base.keep(goal.ids[:n_read], self.shelf.put(state.copy()))

    def take(self, message: str, goal: Goal, outcome: Outcome, *, file_names: bool = False) -> Node:
        """Add the turn of *message*, whose answer began at *goal* and left *outcome*; it becomes the head.

        Args:
            file_names: the state after it is also put into a file, named by the node's number.
        """
        answer = outcome.answer if outcome.thought or goal.shared < len(goal.ids) else None
        turn = Turn(
            message,
            outcome.answer.strip() if not self._template.raw else outcome.answer,
            outcome.finish_reason,
            outcome.stats,
            outcome.thought,
        )
        number, self._next_number = self._next_number, self._next_number + 1
        file_name = f"{number}.state" if file_names else None
        if answer is not None:
            # The thought is not part of the past: the answer is read again, from before it, with the next question.
            pending = goal.rest + self._template.answer_part(answer)
            node = Node(goal.parent, goal.base, turn, tuple(goal.ids[: goal.shared]), pending, number)
            slot = next((kept.slot for kept in goal.base.kept if kept.extra == node.ids), None)
            state = None if slot is None else slot.get()
            if state is not None:
                node.keep((), self.shelf.put(state, file_name))
        else:
            kept, unread = split_answer(outcome.raw, outcome.consumed, self._tokenizer.decode_bytes)
            pending = unread + self._template.separator
            kept, pending = self._with_odd_end(outcome.consumed, kept, pending)
            node = Node(goal.parent, goal.base, turn, (*goal.ids, *outcome.consumed[:kept]), pending, number)
            # What the state has read beyond the answer is as a rule the beginning of what comes next.
            node.keep(outcome.consumed[kept:], self.shelf.put(outcome.state.copy(), file_name))
        self.head = node
        return node

    def _with_odd_end(self, consumed: list[int], kept: int, pending: str) -> tuple[int, str]:
        """*kept* and *pending* where an answer ended in other ids than the template's for the same text.

        As in a single line break: it is the beginning of the separator, but the encoded separator is one id for both.
        The model's own ids are kept then, or else its state could not be used and the answer would be read again.
        """
        beyond = consumed[kept:]
        said = self._tokenizer.decode_bytes(beyond)
        if (
            self._template.jinja
            or not pending.encode().startswith(said)
            or list(self._tokenizer.encode(pending))[: len(beyond)] == beyond
        ):
            return kept, pending
        return len(consumed), pending.encode()[len(said) :].decode()

    def _common(self, ids: list[int], prompt: list[int], text: str) -> tuple[int, str]:
        """How many ids *prompt* has in common with those of *text*, and the text after them."""
        n = _equal(ids, prompt)
        raw = text.encode("utf-8", "surrogatepass")
        while True:
            rest = raw[len(self._tokenizer.decode_bytes(ids[:n])) :]
            if not rest or rest[0] & 0xC0 != 0x80:
                return n, rest.decode("utf-8", "surrogatepass")
            n -= 1

    def _written_goal(self, message: str, think: str) -> Goal:
        """The goal where a Jinja template writes the whole conversation: as much of it as was read stays."""
        if not message.strip():
            raise ArgumentError("the message is empty")
        if think:
            raise ArgumentError("this model's own chat template knows no think modes", hint="use --template world")
        text = jinja.render(self._template.jinja, [*self.messages(), {"role": "user", "content": message}])
        raw = text.encode("utf-8", "replace")
        chain = [self.head]
        while chain[-1].base is not None:
            chain.append(chain[-1].base)
        base, n = self.root, 0
        for node in chain[-2::-1]:
            piece = self._tokenizer.decode_bytes(node.ids)
            if not piece or raw[n : n + len(piece)] != piece:
                break
            base, n = node, n + len(piece)
        ids = list(self._tokenizer.encode(raw[n:]))
        return Goal(self.head, base, ids, len(ids))

    def messages(self) -> list[jinja.Message]:
        """The conversation as others write it: a list of {"role": …, "content": …}."""
        found = [{"role": "system", "content": self._system}] if self._system else []
        for turn in self.turns:
            found.append({"role": "user", "content": turn.user})
            found.append({"role": "assistant", "content": turn.text})
        return found

    # ------------------------------------------------------------------------------- saving and loading

    def chain(self) -> tuple[list[int], list[tuple[int, str]]]:
        """All ids up to the head, and (n_ids, pending) at the beginning and after each turn. Not for Jinja."""
        nodes = [self.root, *[*self.head.path()][::-1]]
        ids = [token for node in nodes for token in node.ids]
        return ids, [(node.n_ids, node.pending) for node in nodes]

    def add(self, turn: Turn, parent: Node, base: Node, ids: Sequence[int], pending: str, number: int) -> Node:
        """A point that was saved, as it was."""
        self._next_number = max(self._next_number, number + 1)
        return Node(parent, base, turn, tuple(ids), pending, number)

    def add_encoded(self, turn: Turn, parent: Node, number: int | None = None) -> Node:
        """A turn of which only the text is known, after *parent*."""
        number = self._next_number if number is None else number
        if self._template.jinja:
            return self.add(turn, parent, self.root, (), "", number)
        answer = self._template.answer_part(turn.text).removesuffix(self._template.separator)
        question = parent.pending + self._template.user_part(turn.user)
        ids = [*self._tokenizer.encode(question), *self._tokenizer.encode(answer)]
        return self.add(turn, parent, parent, ids, self._template.separator, number)

    def encode(self, turns: Sequence[Turn]) -> None:
        """Go on with these turns, of which only the text is known."""
        for turn in turns:
            self.head = self.add_encoded(turn, self.head)

    def adopt(self, turns: list[Turn], ids: list[Any], borders: list[Any], n_vocab: int) -> None:
        """Become these turns with what chain() gave for them. Only for an empty history.

        Raises:
            ValueError: they do not belong together.
        """
        found = [(int(n), str(pending)) for n, pending in borders]
        starts = [n for n, _ in found]
        if not are_ids(ids, n_vocab) or len(found) != len(turns) + 1 or starts != sorted(starts):
            raise ValueError("its token ids do not go with its turns")
        if starts[0] != 0 or starts[-1] != len(ids):
            raise ValueError("its token ids do not go with its turns")
        self.root.pending = found[0][1]
        for turn, begin, (end, pending) in zip(turns, starts, found[1:], strict=False):
            self.head = self.add(turn, self.head, self.head, ids[begin:end], pending, self._next_number)


def are_ids(ids: Any, n_vocab: int) -> bool:
    """Whether a value from a file is a list of token ids."""
    return isinstance(ids, list) and all(isinstance(i, int) and 0 <= i < n_vocab for i in ids)


def _equal(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids at their beginning are the same."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


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
