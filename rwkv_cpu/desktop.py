# SPDX-License-Identifier: Apache-2.0
"""A chat for a window: everything that takes time happens in another thread, and the window asks what happened.

    desk = Desk()
    desk.load("demo", session="talk")         # each of these returns at once
    desk.send("Hello!")
    for event in desk.poll(): ...             # in a timer, about every 30 ms while desk.busy: never waits

No toolkit is named here, no callback comes from another thread, and no thread exists while nothing is done.
docs/embedding.md shows Qt and Tk.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import threading
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.chat.events import DoneEvent, PrefillEvent, TextEvent, ThoughtEvent
from rwkv_cpu.errors import ArgumentError, Busy, Cancelled
from rwkv_cpu.memory import MemoryForecast, forecast_file, human_bytes
from rwkv_cpu.places import find_models

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from rwkv_cpu.chat.answer import Answer
    from rwkv_cpu.chat.conversation import Chat
    from rwkv_cpu.chat.events import Event
    from rwkv_cpu.model import Model

__all__ = [
    "POLL_MS",
    "Desk",
    "DeskEvent",
    "FailedEvent",
    "LoadEvent",
    "ModelChoice",
    "ReadyEvent",
    "last_session",
    "model_choices",
    "new_session",
    "progress_of",
    "status_of",
]

# How often a window should poll: as often as people see a difference.
POLL_MS = 30


@dataclass(frozen=True)
class LoadEvent:
    """A model is being loaded: *done* of *total* bytes are converted ("convert") or read ("read")."""

    done: int
    total: int
    stage: Literal["convert", "read"]
    kind: ClassVar[Literal["load"]] = "load"


@dataclass(frozen=True)
class ReadyEvent:
    """Model and conversation are there: desk.model, desk.chat. The last event of load() and open()."""

    kind: ClassVar[Literal["ready"]] = "ready"


@dataclass(frozen=True)
class FailedEvent:
    """It did not work, or was stopped: the last event then. What there was before is there still.

    Attributes:
        error: what was raised; Cancelled after cancel(). message, hint: of it, for people.
    """

    error: Exception
    kind: ClassVar[Literal["failed"]] = "failed"

    @property
    def message(self) -> str:
        """One line for people."""
        return str(self.error) or type(self.error).__name__

    @property
    def hint(self) -> str:
        """What to do about it, "" if there is nothing to say."""
        return getattr(self.error, "hint", "")


DeskEvent: TypeAlias = "LoadEvent | ReadyEvent | FailedEvent | Event"


class Desk:
    """A model, a conversation with it, and at most one thing that it is doing.

    load(), open(), send(), retry() and edit() return at once, or raise Busy while something else is being done. Events
    tell how it goes: "load" and then "ready"; "prefill", "thought", "text" and then "done"; or "failed" at the end.
    What takes no time is done on *chat* itself while the desk is not busy: undo(), start_branch(), switch(), turns.

    To be used by one thread, the window's; cancel() by any.

    Attributes:
        model: None until one is loaded. chat: the conversation, None until then.
    """

    def __init__(self) -> None:
        self.model: Model | None = None
        self.chat: Chat | None = None
        self._events: SimpleQueue[DeskEvent | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._cancel = CancelToken()

    @property
    def busy(self) -> bool:
        """Whether something is being done, or its last event was not polled yet."""
        return self._thread is not None

    def load(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        session: str | None = None,
        system: str | None = None,
        chat_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Load a model; the conversation goes on with it, from the next question on.

        Args:
            session: of this name, kept on disk turn by turn; None: a conversation that ends with the program.
            system, chat_options: for a new conversation, as Model.chat() takes them.
            options: as Model.load() takes them; threads that leave the window a core (embedded=True) are the default.
        """

        def work(cancel: CancelToken) -> None:
            from rwkv_cpu.model import Model

            def tell(stage: Literal["convert", "read"]) -> Callable[[int, int], None]:
                return lambda done, total: self._events.put(LoadEvent(done, total, stage))

            model = Model.load(
                name_or_path, on_progress=tell("convert"), cancel=cancel, **{"embedded": True, **options}
            )
            try:
                model.preload(on_progress=tell("read"), cancel=cancel)
                before = self.model
                self._open(model, session, system, chat_options or {})
            except BaseException:
                model.close()
                raise
            if before is not None:
                before.close()

        self._start(work)

    def open(self, session: str | None, *, system: str | None = None, **chat_options: Any) -> None:
        """Go on with another conversation, or begin one. Arguments as load()."""
        model = self._needed_model()
        self._start(lambda _cancel: self._open(model, session, system, chat_options))

    def send(self, text: str, **options: Any) -> None:
        """Ask. Arguments as Chat.send()."""
        self._answer(lambda chat: chat.send(text, **options))

    def retry(self, **options: Any) -> None:
        """Answer the last question again. Arguments as Chat.retry()."""
        self._answer(lambda chat: chat.retry(**options))

    def edit(self, i: int, text: str, **options: Any) -> None:
        """Another question in the place of the *i*-th; the conversation as it was stays as a branch, "edit 1" and so on
        unless keep_as says another name, or None. Arguments as Chat.edit().
        """
        names = self.chat.branches if self.chat else {}
        free = next(name for n in itertools.count(1) if (name := f"edit {n}") not in names)
        self._answer(lambda chat: chat.edit(i, text, **{"keep_as": free, **options}))

    def cancel(self) -> None:
        """Stop what is being done, within milliseconds, whatever it is. An answer's last event is still "done"."""
        self._cancel.cancel()

    def poll(self) -> list[DeskEvent]:
        """What happened since the last time: pieces of text joined, of progress the last. Never waits."""
        events: list[DeskEvent] = []
        with contextlib.suppress(Empty):
            while True:
                event = self._events.get_nowait()
                if event is None:
                    self._thread = None
                else:
                    _add(events, event)
        return events

    def close(self) -> None:
        """Stop everything, keep the conversation, free the model. Waits for milliseconds."""
        self.cancel()
        if self._thread is not None:
            self._thread.join()
            self.poll()
        if self.chat is not None:
            self.chat.close()
        if self.model is not None:
            self.model.close()
        self.model = self.chat = None

    # -------------------------------------------------------------------------------------- inside

    def _needed_model(self) -> Model:
        if self.model is None:
            raise ArgumentError("no model is loaded yet", hint="load() one first")
        return self.model

    def _start(self, work: Callable[[CancelToken], None]) -> None:
        if self.busy:
            raise Busy("something else is being done", hint="wait for its last event, or cancel() it")
        self._cancel = cancel = CancelToken()

        def run() -> None:
            try:
                work(cancel)
            except Exception as error:  # noqa: BLE001  the window shows it
                self._events.put(FailedEvent(error))
            finally:
                self._events.put(None)

        # A daemon: a window that is gone must not keep the program alive.
        self._thread = threading.Thread(target=run, name="rwkv-cpu desk", daemon=True)
        self._thread.start()

    def _open(self, model: Model, session: str | None, system: str | None, options: dict[str, Any]) -> None:
        from rwkv_cpu.chat.sessions import open_session

        before = self.chat
        if before is not None and before.session and before.session == session:
            before.close()  # the same conversation with another model
        if session is None:
            chat = model.chat(system, **options)
        else:
            chat = open_session(session, model, system, **options)
        if before is not None:
            before.close()
        self.model, self.chat = model, chat
        self._events.put(ReadyEvent())

    def _answer(self, ask: Callable[[Chat], Answer]) -> None:
        self._needed_model()
        chat = self.chat
        if chat is None:
            raise ArgumentError("no conversation is open", hint="open() one first")

        def work(cancel: CancelToken) -> None:
            answer = ask(chat)
            cancel.link(answer.cancel)
            try:
                for event in answer.events():
                    self._events.put(event)
            finally:
                cancel.unlink(answer.cancel)

        self._start(work)


def _add(events: list[DeskEvent], event: DeskEvent) -> None:
    """Append it, or join it with the last one."""
    last = events[-1] if events else None
    if isinstance(event, TextEvent) and isinstance(last, TextEvent):
        events[-1] = TextEvent(last.text + event.text)
    elif isinstance(event, ThoughtEvent) and isinstance(last, ThoughtEvent):
        events[-1] = ThoughtEvent(last.text + event.text)
    elif isinstance(event, (PrefillEvent, LoadEvent)) and type(last) is type(event):
        events[-1] = event
    else:
        events.append(event)


def progress_of(event: DeskEvent) -> float | None:
    """How far it is, 0 to 1; None for events that are no progress."""
    if isinstance(event, (LoadEvent, PrefillEvent)):
        return event.done / event.total if event.total else 0.0
    return None


def status_of(event: DeskEvent) -> str:
    """A few words for a status line, "" if there is nothing to say."""
    share = progress_of(event)
    if share is not None:
        what = "Reading" if event.kind == "prefill" else "Loading the model"
        return f"{what}: {share:.0%}"
    if isinstance(event, ThoughtEvent):
        return "Thinking …"
    if isinstance(event, FailedEvent):
        return "Stopped" if isinstance(event.error, Cancelled) else event.message
    if isinstance(event, DoneEvent):
        speed = f"{event.stats.tokens_per_second:.0f} tokens/s" if event.stats and event.text else ""
        return " · ".join(part for part in ("Stopped" if event.finish_reason == "cancelled" else "", speed) if part)
    return ""


def last_session() -> str:
    """The conversation that was used last, or a new one's name."""
    from rwkv_cpu.chat.sessions import list_sessions

    sessions = [session.name for session in list_sessions() if not session.damaged]
    return sessions[0] if sessions else new_session()


def new_session() -> str:
    """A name for another conversation: the time."""
    return f"Chat {dt.datetime.now():%Y-%m-%d %H.%M.%S}"  # noqa: DTZ005  the user's clock


@dataclass(frozen=True)
class ModelChoice:
    """A model as a window offers it.

    Attributes:
        name: for Desk.load(). forecast: of the memory it needs.
    """

    name: str
    forecast: MemoryForecast

    @property
    def label(self) -> str:
        """The name, and what it needs: "demo · 0.2 GB"; with a mark if that is too much."""
        label = f"{self.name} · {human_bytes(self.forecast.needed_bytes)}"
        return f"{label} ⚠" if self.forecast.would_swap else label


def model_choices() -> list[ModelChoice]:
    """Every model that has a name here (places.find_models()), the one that came along first."""

    def choices() -> Iterator[ModelChoice]:
        for model in find_models():
            with contextlib.suppress(OSError):  # deleted meanwhile
                yield ModelChoice(model.name, forecast_file(model.path))

    return list(choices())
