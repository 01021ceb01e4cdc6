# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model: send, undo, retry, edit, branch, fork, save.

Where an answer ended differently from the template (the model had begun to write "User:" itself, or was interrupted),
the next message continues from the last kept state that fits, so that nothing foreign is ever in the state.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.chat import jinja
from rwkv_cpu.chat.answer import Answer, AsyncAnswer, Outcome, Run
from rwkv_cpu.chat.history import History, Node, Turn
from rwkv_cpu.chat.reading import read_goal
from rwkv_cpu.chat.shelf import StateShelf
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.chat.thoughts import think_mode
from rwkv_cpu.errors import ArgumentError, Busy
from rwkv_cpu.generation.repetition import WINDOW
from rwkv_cpu.generation.sampling import SamplingParams
from rwkv_cpu.generation.stop import StopMatcher

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.chat.recorder import Recorder, Unanswered
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Answer", "Chat", "Turn"]

DEFAULT_MAX_TOKENS = 2048
DEFAULT_SNAPSHOT_BYTES = 256_000_000
DEFAULT_DISK_BYTES = 2_000_000_000


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
        think: whether and how long a thinking model thinks: "off", "short", "on", "long", or "" as it likes.
        snapshot_bytes: memory for states kept for undo and the like.
        disk_bytes: where that does not reach, older states go into files, in the user's folder for such things, until
            the chat is dropped. Where those do not reach either (0: none), undo reads a part of the conversation again.
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
        think: str = "",
        snapshot_bytes: int = DEFAULT_SNAPSHOT_BYTES,
        disk_bytes: int = DEFAULT_DISK_BYTES,
        **sampling: Any,
    ) -> None:
        self.model = model
        self.template = template or ChatTemplate.from_bytes(model.chat_template)
        advice = dict(self.template.sampling)
        advised = int(advice.pop("max_tokens", DEFAULT_MAX_TOKENS))
        self.max_tokens: int = advised if max_tokens is None else max_tokens
        self.params = (SamplingParams().replace(**advice) if params is None else params).replace(**sampling)
        self.stop: tuple[str, ...] = _texts(stop)
        self._think = ""
        self.think = think
        self._system = system or ""
        self._lock = threading.Lock()
        self._n_sent = 0
        self._start = None if state is None else state.copy()
        self._snapshot_bytes = snapshot_bytes
        self._disk_bytes = disk_bytes
        self._recorder: Recorder | None = None
        self._session = ""
        self._unanswered: Unanswered | None = None
        self._shelf: StateShelf | None = None
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
    def think(self) -> str:
        """The think mode; may be set. Raises ArgumentError: there is no such mode, or not with this template."""
        return self._think

    @think.setter
    def think(self, name: str) -> None:
        think_mode(name)
        if name and (self.template.raw or self.template.jinja):
            raise ArgumentError("this chat template knows no think modes", hint="use the template world")
        self._think = name

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far, oldest first."""
        return tuple(self._history.turns)

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return self._history.head.n_ids

    @property
    def n_turns(self) -> int:
        """How many turns there are. Unlike len(turns), the same time for any number."""
        return self._history.n_turns

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as {"role": "system" | "user" | "assistant", "content": …}, oldest first."""
        return self._history.messages()

    @property
    def branch(self) -> str:
        """Name of the current branch; "main" until another is begun."""
        return self._history.branch

    @property
    def branches(self) -> dict[str, int]:
        """How many turns each branch has, by name, the current one first."""
        others = {name: node.depth for name, node in self._history.branches.items()}
        return {self._history.branch: self._history.n_turns, **others}

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
            overrides: fields of SamplingParams, max_tokens, stop or think, for this answer only.

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

    def asend(self, text: str, **options: Any) -> AsyncAnswer:
        """send() for asyncio: ``async for piece in chat.asend("Hello"): ...``. The event loop stays free meanwhile;
        cancelling the task stops the answer, and what there was of it stays in the conversation.

        Arguments and errors as send(), but that on_progress is called in another thread. retry() and edit() have such
        twins too.
        """
        return AsyncAnswer(self.send(text, **options))

    def aretry(self, **options: Any) -> AsyncAnswer:
        """retry() for asyncio, see asend()."""
        return AsyncAnswer(self.retry(**options))

    def aedit(self, i: int, text: str | None, **options: Any) -> AsyncAnswer:
        """edit() for asyncio, see asend()."""
        return AsyncAnswer(self.edit(i, text, **options))

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
        keep_as: str | None = None,
        cancel: CancelToken | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Answer:
        """Go back to before turn *i* and send *text* there instead (None: the same text again).

        If that is cancelled before the first word, or fails, the conversation is what it was before.
        Arguments and errors as send(); ArgumentError if there is no such turn, or a branch *keep_as* already.

        Args:
            keep_as: the conversation as it was stays as a branch of this name.
        """
        self._acquire()
        before = self._history.head
        try:
            if keep_as is not None:
                self._check_new_branch(keep_as)
            node = self._history.after(self._history.turn_index(i) + 1)
            if text is None and node.turn is not None:
                text = node.turn.user
            self._history.head = self._history.after(node.depth - 1)
            return self._answer(str(text), cancel, on_progress, overrides, before, keep_as)
        except BaseException:
            self._history.head = before
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
            history = self._history
            first = history.turn_index(-n) if n else history.n_turns
            after = history.after(first)
            taken = [node.turn for node in history.head.path() if node.depth > first and node.turn is not None]
            history.head = after
            self._moved()
            return taken[::-1]
        finally:
            self._lock.release()

    def start_branch(self, name: str) -> None:
        """Go on under a new name from here; the current branch stays as it is, and switch() returns to it.

        Raises: ArgumentError: there is one of this name, or it is no name. Busy: as send().
        """
        self._acquire()
        try:
            self._check_new_branch(name)
            history = self._history
            history.branches[history.branch] = history.head
            history.branch = name
            self._moved()
        finally:
            self._lock.release()

    def switch(self, name: str) -> None:
        """Go on with another branch, where it was left. Costs no computation.

        Raises: ArgumentError: there is none of this name. Busy: as send().
        """
        self._acquire()
        try:
            history = self._history
            if name == history.branch:
                return
            if name not in history.branches:
                raise ArgumentError(f"no branch {name!r}", hint=f"there are {', '.join(self.branches)}")
            history.branches[history.branch] = history.head
            history.head, history.branch = history.branches.pop(name), name
            self._moved()
        finally:
            self._lock.release()

    def delete_branch(self, name: str) -> None:
        """Forget a branch, with what only it has.

        Raises: ArgumentError: there is none of this name, or it is the current one. Busy: as send().
        """
        self._acquire()
        try:
            if name not in self._history.branches:
                here = name == self._history.branch
                raise ArgumentError(
                    f"{name!r} is the current branch" if here else f"no branch {name!r}",
                    hint=f"there are {', '.join(self.branches)}",
                )
            del self._history.branches[name]
            self._moved()
        finally:
            self._lock.release()

    def _check_new_branch(self, name: str) -> None:
        if not name or name != name.strip() or not name.isprintable() or len(name) > 64:
            raise ArgumentError(f"{name!r} is no name for a branch")
        if name in self.branches:
            raise ArgumentError(f"there is a branch {name!r} already", hint="switch() to it, or choose another name")

    def reset(self, system: str | None = None) -> None:
        """Begin anew, with the same settings and, unless a new one is given, the same system text."""
        self._acquire()
        try:
            if system is not None:
                self._system = system
            root = self._history.root
            self._history = self._begin()
            if system is None:
                self._history.root.kept = root.kept  # a long system text need not be read again
            if self._recorder is not None:
                self._recorder.began(self._history)
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
                think=self._think,
                snapshot_bytes=self._snapshot_bytes,
                disk_bytes=self._disk_bytes,
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
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Model,
        *,
        state: State | None = None,
        snapshot_bytes: int = DEFAULT_SNAPSHOT_BYTES,
        disk_bytes: int = DEFAULT_DISK_BYTES,
    ) -> Chat:
        """A saved conversation, to go on with *model* (any model: the text is what is kept).

        Args:
            state: what it began with, if that was not the model's own starting state.
            snapshot_bytes, disk_bytes: as for a new one.

        Raises:
            FormatError: no such conversation file, or a damaged one.
            OSError: it cannot be read.
        """
        from rwkv_cpu.chat import store

        return store.load(path, model, state, snapshot_bytes=snapshot_bytes, disk_bytes=disk_bytes)

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
        if self._shelf is None:
            self._shelf = StateShelf(
                self._snapshot_bytes,
                self.model.state_bytes,
                self.model.load_state,
                max_disk_bytes=self._disk_bytes,
            )
        return History(self.template, self.model.tokenizer, self._system, self._shelf)

    def _moved(self) -> None:
        if self._recorder is not None:
            self._recorder.moved(self._history)

    def record(self, recorder: Recorder, shelf: StateShelf, session: str) -> None:
        """From now on *recorder* is told what happens, and states are kept on *shelf*. For an empty conversation."""
        self._recorder, self._shelf, self._session = recorder, shelf, session
        self._history.shelf = shelf

    def go_on(self, n_sent: int, unanswered: Unanswered | None) -> None:
        """For sessions: so many questions were asked before, and the last one may not have been answered."""
        self._n_sent, self._unanswered = n_sent, unanswered

    @property
    def session(self) -> str:
        """Name of the session this belongs to, "" for none; see sessions.open_session()."""
        return self._session

    @property
    def unanswered(self) -> Unanswered | None:
        """In a session that ended while it answered: that question, until the next one is asked."""
        return self._unanswered

    def close(self) -> None:
        """End the use of a session: another program may open it. Harmless for other conversations."""
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_recorder", None) is not None:
            self.close()

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
        before: Node | None,
        keep_as: str | None = None,
    ) -> Answer:
        think = overrides.pop("think", self._think)
        max_tokens = overrides.pop("max_tokens", self.max_tokens)
        stops = (*self._template_stops(think), *_texts(overrides.pop("stop", self.stop)))
        StopMatcher(stops)  # raises now, not at the first piece, if one of them is none
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ArgumentError(f"max_tokens must be a whole number from 1, not {max_tokens!r}")
        params = self.params.replace(**overrides)
        if params.seed is not None:
            # Another answer each time, yet the same conversation for the same seed.
            params = params.replace(seed=(params.seed + self._n_sent) % 2**64)
        history = self._history
        goal = history.goal(text, think)
        self._n_sent += 1
        self._unanswered = None

        stop_token = CancelToken()  # so that the answer can be stopped whether or not the caller gave one
        if cancel is not None:
            cancel.link(stop_token.cancel)

        def read_prompt() -> tuple[State, list[int], int, NDArray[np.uint32]]:
            if self._recorder is not None:
                self._recorder.asked(goal.parent, text)
            state, rest, n_read = read_goal(self.model, history, self._start, goal, stop_token, run.tell_progress)
            # For DRY and drafts: what the prompt does not read again.
            before = np.array(goal.ids[: -len(rest)], np.uint32)
            return state, rest, n_read, np.concatenate([history.last_ids(goal, WINDOW), before])

        def finish(outcome: Outcome | None) -> None:
            try:
                if cancel is not None:
                    cancel.unlink(stop_token.cancel)
                if outcome is None:
                    if before is not None:
                        history.head = before
                    if self._recorder is not None:
                        self._recorder.dropped()
                    return
                node = history.take(text, goal, outcome, file_names=self._recorder is not None)
                if keep_as is not None and before is not None:
                    history.branches[keep_as] = before
                if self._recorder is not None:
                    self._recorder.took(node, history.branch)
                    if keep_as is not None:
                        self._recorder.moved(history)
            finally:
                self._lock.release()

        run = Run(
            model=self.model,
            read_prompt=read_prompt,
            finish=finish,
            params=params,
            max_tokens=max_tokens,
            stop=stops,
            cancel=stop_token,
            on_progress=on_progress,
            lead=think_mode(think).lead,
            exact=self.template.raw,
        )
        return Answer(run)

    def _template_stops(self, think: str) -> tuple[str, ...]:
        if self.template.jinja:
            return jinja.stops_of(self.template.jinja)
        return self.template.stops(think)


def _texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)
