# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model: send, undo, retry, edit, fork, save.

What the model has read is always exactly the template's text of the turns, as one list of token ids. An answer's own
ids are kept as the model chose them; what stands between turns is encoded together with the next message, as it
would be in one long text. Where an answer ended differently (the model had begun to write "User:" itself, or was
interrupted), the next message continues from the last snapshot that fits, so nothing foreign stays in the state.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rwkv_cpu.chat.answer import Answer, Outcome, Run
from rwkv_cpu.chat.snapshots import Snapshot, Snapshots
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError, Busy, Cancelled
from rwkv_cpu.generation.sampling import SamplingParams

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.loop import Stats
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Answer", "Chat", "Turn"]

DEFAULT_MAX_TOKENS = 2048
DEFAULT_SNAPSHOT_BYTES = 256_000_000

# A longer prompt gets a snapshot at its end, so that /retry need not read it again; for a shorter one the snapshot
# before it is near enough.
_LONG_PROMPT_TOKENS = 32


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
class _Border:
    """Where a turn begins: after the first *n_ids* ids; *pending* is text the model has not read yet."""

    n_ids: int
    pending: str


@dataclass(frozen=True)
class _History:
    """All that undo changes, to put back if a retry comes to nothing."""

    turns: tuple[Turn, ...]
    borders: tuple[_Border, ...]
    ids: tuple[int, ...]
    snapshots: Snapshots


class Chat:
    """A conversation with *model*.

    Args:
        model: an open Model; several chats may share it.
        system: opening instruction; None or "" for none.
        params: how to choose tokens; None: the template's own advice, else SamplingParams' defaults.
        max_tokens: longest answer.
        stop: further texts that end an answer (they are not part of it).
        template: None: the one in the model file.
        snapshot_bytes: memory for states kept for undo; below that, undo reads the conversation again.

    One chat answers one question at a time: send() while an answer is still being read raises Busy, from the same
    thread or another.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        params: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        template: ChatTemplate | None = None,
        snapshot_bytes: int = DEFAULT_SNAPSHOT_BYTES,
    ) -> None:
        self.model = model
        self.template = template or ChatTemplate.from_bytes(model.chat_template)
        advice = dict(self.template.sampling)
        self.max_tokens: int = (
            max_tokens if max_tokens is not None else int(advice.get("max_tokens", DEFAULT_MAX_TOKENS))
        )
        advice.pop("max_tokens", None)
        self.params = params if params is not None else _replace(SamplingParams(), advice)
        self.stop: tuple[str, ...] = _texts(stop)
        self._system = system or ""
        self._lock = threading.Lock()
        self._n_sent = 0
        self._turns: list[Turn] = []
        self._ids: list[int] = []
        self._borders = [_Border(0, self.template.system_part(self._system))]
        self._snapshots = Snapshots(snapshot_bytes, model.state_bytes)
        self._snapshot_bytes = snapshot_bytes

    @property
    def system(self) -> str:
        """The opening instruction, "" if there is none."""
        return self._system

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far, oldest first."""
        return tuple(self._turns)

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._ids)

    def send(
        self,
        text: str,
        *,
        cancel: CancelToken | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Answer:
        """Ask; iterate the result for pieces of the answer as they come.

        Args:
            text: the user's message; blank lines in it are closed up.
            cancel: stops it from any thread; what was answered until then stays in the conversation.
            on_progress: called with (tokens read, tokens to read) on the thread that iterates, while a long message
                is read.
            overrides: fields of SamplingParams, max_tokens or stop, for this answer only.

        Raises:
            Busy: an answer of this chat is still being read.
            ArgumentError: an empty message or a wrong setting.
        """
        self._acquire()
        try:
            return self._answer(text, cancel, on_progress, overrides, before=None)
        except BaseException:
            self._lock.release()
            raise

    def retry(
        self,
        *,
        cancel: CancelToken | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Answer:
        """Answer the last message again, in place of the old answer. Arguments and errors as send()."""
        return self.edit(-1, None, cancel=cancel, on_progress=on_progress, **overrides)

    def edit(
        self,
        i: int,
        text: str | None,
        *,
        cancel: CancelToken | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Answer:
        """Go back to before turn *i* and send *text* there instead (None: the same text again).

        If that is cancelled before the first word, or fails, the conversation is what it was before.
        Arguments and errors as send(); ArgumentError if there is no such turn.
        """
        self._acquire()
        before = self._history()
        try:
            i = self._turn_index(i)
            text = self._turns[i].user if text is None else text
            self._cut(i)
            return self._answer(text, cancel, on_progress, overrides, before)
        except BaseException:
            self._restore(before)
            self._lock.release()
            raise

    def undo(self, n: int = 1) -> list[Turn]:
        """Take back the last *n* turns and return them, oldest first. Costs no computation.

        Raises:
            ArgumentError: there are fewer.
            Busy: as send().
        """
        self._acquire()
        try:
            if n < 0:
                raise ArgumentError(f"cannot take back {n} turns")
            first = self._turn_index(-n) if n else len(self._turns)
            taken = self._turns[first:]
            self._cut(first)
            return taken
        finally:
            self._lock.release()

    def reset(self, system: str | None = None) -> None:
        """Begin anew, with the same settings and, unless a new one is given, the same system text."""
        self._acquire()
        try:
            if system is not None:
                self._system = system
            self._turns, self._ids = [], []
            self._borders = [_Border(0, self.template.system_part(self._system))]
            self._snapshots = Snapshots(self._snapshot_bytes, self.model.state_bytes)
        finally:
            self._lock.release()

    def fork(self) -> Chat:
        """An independent conversation with the same past. Shares the kept states, so it costs almost nothing."""
        self._acquire()
        try:
            twin = Chat(
                self.model,
                self._system,
                self.params,
                max_tokens=self.max_tokens,
                stop=self.stop,
                template=self.template,
                snapshot_bytes=self._snapshot_bytes,
            )
            twin._n_sent = self._n_sent
            twin._restore(self._history())
            return twin
        finally:
            self._lock.release()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to *path* (JSON, atomically, readable by its owner only)."""
        from rwkv_cpu.chat import store

        self._acquire()
        try:
            store.save(self, path)
        finally:
            self._lock.release()

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model) -> Chat:
        """A saved conversation, to go on with *model* (any model: the text is what is kept).

        Raises:
            FormatError: no such conversation file, or a damaged one.
            OSError: it cannot be read.
        """
        from rwkv_cpu.chat import store

        return store.load(path, model)

    def params_with(self, changes: dict[str, Any]) -> SamplingParams:
        """The chat's params with some fields changed.

        Raises:
            ArgumentError: an unknown field or a value out of range.
        """
        return _replace(self.params, changes)

    # ------------------------------------------------------------------------- for chat/store.py

    def export_ids(self) -> tuple[list[int], list[tuple[int, str]]]:
        """The ids read, and per turn (and for the next one) where it begins and what text comes before it."""
        return list(self._ids), [(b.n_ids, b.pending) for b in self._borders]

    def last_snapshot(self) -> Snapshot | None:
        """The state at the conversation's end, if it was not dropped."""
        last = self._snapshots.last()
        return last if last is not None and last.base == len(self._ids) else None

    def adopt_state(self, tail: Sequence[int], state: State) -> None:
        """Begin with the *state* of last_snapshot(), whose extra ids were *tail*."""
        if state.n_tokens == len(self._ids) + len(tail):
            self._snapshots.add(Snapshot(len(self._ids), tuple(tail), state))

    def adopt(self, turns: list[tuple[str, str, str]], ids: Any = None, borders: Any = None) -> None:
        """Become a conversation of these (user, answer, finish_reason) turns.

        Args:
            turns: oldest first.
            ids, borders: as export_ids() gave them; None: encode the text.

        Raises:
            ValueError: ids and borders do not go with the turns.
        """
        self._turns = [Turn(*turn) for turn in turns]
        self._snapshots = Snapshots(self._snapshot_bytes, self.model.state_bytes)
        if ids is None:
            self._ids, self._borders = [], [_Border(0, self.template.system_part(self._system))]
            encode = self.model.tokenizer.encode
            for turn in self._turns:
                part = self._borders[-1].pending + self.template.user_part(turn.user)
                self._ids += encode(part)
                self._ids += encode(self.template.answer_part(turn.text).removesuffix(self.template.separator))
                self._borders.append(_Border(len(self._ids), self.template.separator))
            return
        self._ids = [i for i in ids if isinstance(i, int) and 0 <= i < self.model.n_vocab]
        self._borders = [_Border(int(n), str(pending)) for n, pending in borders]
        starts = [b.n_ids for b in self._borders]
        if len(self._ids) != len(ids) or len(starts) != len(turns) + 1 or starts != sorted(starts):
            raise ValueError("its token ids do not go with its turns")
        if starts[0] != 0 or starts[-1] != len(self._ids):
            raise ValueError("its token ids do not go with its turns")

    # -------------------------------------------------------------------------------------- inside

    def _acquire(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise Busy(
                "this conversation is still answering",
                hint="read the answer to its end, cancel or close() it, or fork() the chat for a second one",
            )

    def _turn_index(self, i: int) -> int:
        n = len(self._turns)
        if not -n <= i < n:
            raise ArgumentError(
                "the conversation has no turns yet" if n == 0 else f"the conversation has only {n} turns"
            )
        return i % n

    def _history(self) -> _History:
        return _History(tuple(self._turns), tuple(self._borders), tuple(self._ids), self._snapshots.copy())

    def _restore(self, history: _History) -> None:
        self._turns, self._borders, self._ids = list(history.turns), list(history.borders), list(history.ids)
        self._snapshots = history.snapshots.copy()

    def _cut(self, n_turns: int) -> None:
        """Keep the first *n_turns* turns."""
        del self._turns[n_turns:], self._borders[n_turns + 1 :]
        del self._ids[self._borders[-1].n_ids :]
        self._snapshots.forget_beyond(len(self._ids))

    def _answer(
        self,
        text: str,
        cancel: CancelToken | None,
        on_progress: Callable[[int, int], None] | None,
        overrides: dict[str, Any],
        before: _History | None,
    ) -> Answer:
        max_tokens = overrides.pop("max_tokens", None)
        stop = overrides.pop("stop", None)
        params = _replace(self.params, overrides)
        if params.seed is not None:
            # Another answer each time, yet the same conversation for the same seed.
            params = replace(params, seed=(params.seed + self._n_sent) % 2**64)
        part = self._borders[-1].pending + self.template.user_part(text)
        goal = self._ids + list(self.model.tokenizer.encode(part))
        self._n_sent += 1

        def finish(outcome: Outcome | None) -> None:
            try:
                if outcome is not None:
                    self._commit(text, goal, outcome)
                elif before is not None:
                    self._restore(before)
            finally:
                self._lock.release()

        return Answer(
            Run(
                model=self.model,
                read_prompt=lambda: self._read_prompt(goal, cancel, on_progress),
                finish=finish,
                params=params,
                max_tokens=self.max_tokens if max_tokens is None else max_tokens,
                stop=(*self.template.stop, *(self.stop if stop is None else _texts(stop))),
                cancel=cancel,
                on_progress=on_progress,
            )
        )

    def _read_prompt(
        self, goal: list[int], cancel: CancelToken | None, on_progress: Callable[[int, int], None] | None
    ) -> tuple[State, list[int], int]:
        """A state of its own that has read *goal* up to the returned last ids (at least one), and how many it read now.

        Raises:
            Cancelled: what was read until then is kept as a snapshot, so that it is not lost.
        """
        known = self._snapshots.best(goal)
        position = 0 if known is None else known.position
        state = self.model.new_state() if known is None else known.state.copy()
        unread = goal[position:]
        if len(unread) < _LONG_PROMPT_TOKENS:
            return state, unread, 0
        try:
            self.model.advance(unread[:-1], state, logits="none", cancel=cancel, progress=on_progress)
        except Cancelled as error:
            self._keep(goal, position + error.n_done, state)
            raise
        self._keep(goal, len(goal) - 1, state)
        return state, goal[-1:], len(unread) - 1

    def _keep(self, goal: list[int], position: int, state: State) -> None:
        if position > 0:
            base = min(position, len(self._ids))
            self._snapshots.add(Snapshot(base, tuple(goal[base:position]), state.copy()))

    def _commit(self, user: str, goal: list[int], outcome: Outcome) -> None:
        """Take an answer into the history."""
        kept, unread = split_answer(outcome.raw, outcome.consumed, self.model.tokenizer.decode_bytes)
        self._turns.append(Turn(user, outcome.raw.strip(), outcome.finish_reason, outcome.stats))
        self._ids = goal + outcome.consumed[:kept]
        self._borders.append(_Border(len(self._ids), unread + self.template.separator))
        # A copy: the state that was advanced holds a second block to work with.
        self._snapshots.add(Snapshot(len(self._ids), tuple(outcome.consumed[kept:]), outcome.state.copy()))


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


def _texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _replace(params: SamplingParams, changes: dict[str, Any]) -> SamplingParams:
    """dataclasses.replace() with an error that names what there is."""
    known = {f.name for f in fields(SamplingParams)}
    for name in changes:
        if name not in known:
            raise ArgumentError(f"no setting {name!r}", hint=f"the settings are {', '.join(sorted(known))}")
    return replace(params, **changes)
