# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model: send, undo, retry, edit, fork, save.

Where an answer ended differently from the template (the model had begun to write "User:" itself, or was interrupted),
the next message continues from the last kept state that fits, so that nothing foreign is ever in the state.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rwkv_cpu.chat.answer import Answer, Outcome, Run
from rwkv_cpu.chat.history import History, Turn
from rwkv_cpu.chat.snapshots import Snapshots
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError, Busy, Cancelled
from rwkv_cpu.generation.sampling import SamplingParams
from rwkv_cpu.generation.stop import StopMatcher

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Answer", "Chat", "Turn"]

DEFAULT_MAX_TOKENS = 2048
DEFAULT_SNAPSHOT_BYTES = 256_000_000

# A longer prompt gets a snapshot at its end, so that /retry need not read it again; for a shorter one the snapshot
# before it is near enough.
_LONG_PROMPT_TOKENS = 32


class Chat:
    """A conversation with *model*.

    Args:
        model: an open Model; several chats may share it.
        system: opening instruction; None or "" for none.
        params: how to choose tokens; None: the template's own advice, else SamplingParams' defaults.
        max_tokens: longest answer.
        stop: further texts that end an answer (they are not part of it).
        template: None: the one in the model file.
        state: what a new conversation begins with (a tuned state, say); None: the model's own. Not changed.
        snapshot_bytes: memory for states kept for undo; where it does not reach, undo reads the conversation again.
        sampling: fields of SamplingParams to change (temperature=0.7).

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
        state: State | None = None,
        snapshot_bytes: int = DEFAULT_SNAPSHOT_BYTES,
        **sampling: Any,
    ) -> None:
        self.model = model
        self.template = template or ChatTemplate.from_bytes(model.chat_template)
        advice = dict(self.template.sampling)
        advised = int(advice.pop("max_tokens", DEFAULT_MAX_TOKENS))
        self.max_tokens: int = advised if max_tokens is None else max_tokens
        self.params = (SamplingParams().replace(**advice) if params is None else params).replace(**sampling)
        self.stop: tuple[str, ...] = _texts(stop)
        self._system = system or ""
        self._lock = threading.Lock()
        self._n_sent = 0
        self._start = None if state is None else state.copy()
        self._snapshot_bytes = snapshot_bytes
        self._history = self._begin()

    @property
    def system(self) -> str:
        """The opening instruction, "" if there is none."""
        return self._system

    @property
    def start(self) -> State | None:
        """What the conversation began with, None: the model's own starting state."""
        return self._start

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far, oldest first."""
        return tuple(self._history.turns)

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._history.ids)

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
        before = self._history.copy()
        try:
            i = self._history.turn_index(i)
            text = self._history.turns[i].user if text is None else text
            self._history.cut(i)
            return self._answer(text, cancel, on_progress, overrides, before)
        except BaseException:
            self._history = before
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
            first = self._history.turn_index(-n) if n else len(self._history.turns)
            taken = self._history.turns[first:]
            self._history.cut(first)
            return taken
        finally:
            self._lock.release()

    def reset(self, system: str | None = None) -> None:
        """Begin anew, with the same settings and, unless a new one is given, the same system text."""
        self._acquire()
        try:
            if system is not None:
                self._system = system
            self._history = self._begin()
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
                state=self._start,
                snapshot_bytes=self._snapshot_bytes,
            )
            twin._n_sent = self._n_sent
            twin._history = self._history.copy()
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
    def load(cls, path: str | os.PathLike[str], model: Model, *, state: State | None = None) -> Chat:
        """A saved conversation, to go on with *model* (any model: the text is what is kept).

        Args:
            state: what it began with, if that was not the model's own starting state.

        Raises:
            FormatError: no such conversation file, or a damaged one.
            OSError: it cannot be read.
        """
        from rwkv_cpu.chat import store

        return store.load(path, model, state)

    def params_with(self, changes: dict[str, Any]) -> SamplingParams:
        """The chat's params with some fields changed.

        Raises:
            ArgumentError: an unknown field or a value out of range.
        """
        return self.params.replace(**changes)

    @property
    def history(self) -> History:
        """Ids and states behind the turns; for saving and loading."""
        return self._history

    # -------------------------------------------------------------------------------------- inside

    def _begin(self) -> History:
        opening = self.template.system_part(self._system)
        snapshots = Snapshots(self._snapshot_bytes, self.model.state_bytes)
        return History(self.template, self.model.tokenizer, opening, snapshots)

    def _acquire(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise Busy(
                "this conversation is still answering",
                hint="read the answer to its end, cancel or close() it, or fork() the chat for a second one",
            )

    def _answer(
        self,
        text: str,
        cancel: CancelToken | None,
        on_progress: Callable[[int, int], None] | None,
        overrides: dict[str, Any],
        before: History | None,
    ) -> Answer:
        max_tokens = overrides.pop("max_tokens", self.max_tokens)
        stops = (*self.template.stop, *_texts(overrides.pop("stop", self.stop)))
        StopMatcher(stops)  # raises now, not at the first piece, if one of them is none
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ArgumentError(f"max_tokens must be a whole number from 1, not {max_tokens!r}")
        params = self.params.replace(**overrides)
        if params.seed is not None:
            # Another answer each time, yet the same conversation for the same seed.
            params = params.replace(seed=(params.seed + self._n_sent) % 2**64)
        goal = self._history.goal(text)
        self._n_sent += 1

        def finish(outcome: Outcome | None) -> None:
            try:
                if outcome is not None:
                    self._history.take(text, goal, outcome)
                elif before is not None:
                    self._history = before
            finally:
                self._lock.release()

        return Answer(
            Run(
                model=self.model,
                read_prompt=lambda: self._read_prompt(goal, cancel, on_progress),
                finish=finish,
                params=params,
                max_tokens=max_tokens,
                stop=stops,
                cancel=cancel,
                on_progress=on_progress,
            )
        )

    def _read_prompt(
        self, goal: list[int], cancel: CancelToken | None, on_progress: Callable[[int, int], None] | None
    ) -> tuple[State, list[int], int]:
        """A state of its own that has read *goal* up to the returned last ids (at least one), and how many it read now.

        Raises:
            Cancelled: what was read until then is kept, so that it is not lost.
        """
        known = self._history.nearest(goal)
        position = 0 if known is None else known.position
        if known is not None:
            state = known.state.copy()
        else:
            state = self.model.new_state() if self._start is None else self._start.copy()
        unread = goal[position:]
        if len(unread) < _LONG_PROMPT_TOKENS:
            return state, unread, 0
        try:
            self.model.advance(unread[:-1], state, logits="none", cancel=cancel, progress=on_progress)
        except Cancelled as error:
            self._history.keep(goal, position + error.n_done, state)
            raise
        self._history.keep(goal, len(goal) - 1, state)
        return state, goal[-1:], len(unread) - 1


def _texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)
