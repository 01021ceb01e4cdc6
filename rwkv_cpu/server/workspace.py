# SPDX-License-Identifier: Apache-2.0
"""What a client holds by name: open models ("m1"), conversations ("c1") and states ("s1")."""

from __future__ import annotations

import contextlib
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from rwkv_cpu.errors import ArgumentError, Busy, Cancelled
from rwkv_cpu.server.protocol import RepeatedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.chat.conversation import Chat
    from rwkv_cpu.generation.tools import Tool
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Conversation", "Held", "LoadOptions", "Workspace"]

T = TypeVar("T")
_WAIT_SECONDS = 0.02


@dataclass(frozen=True)
class LoadOptions:
    """What the command line said: the model to open, and what holds for load where the request says nothing."""

    model: str | None = None
    threads: int | None = None
    format: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A chat and the functions that its model may call."""

    chat: Chat
    model: str
    tools: tuple[Tool, ...] | None = None


@dataclass(frozen=True)
class Held:
    """A state, which serves one request at a time."""

    state: State
    model: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def used(self) -> Iterator[State]:
        """The state, for this request alone. Raises: Busy."""
        if not self.lock.acquire(blocking=False):
            raise Busy("this state is in use by another request", hint="Wait for its response, or copy the state.")
        try:
            yield self.state
        finally:
            self.lock.release()


class Workspace:
    """Everything that is open. Threads may use it."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._numbers = {kind: itertools.count(1) for kind in "mcs"}
        self._models: dict[str, Model] = {}
        self._chats: dict[str, Conversation] = {}
        self._states: dict[str, Held] = {}
        # The model of the command line: until it is there, or why it is not.
        self.first_done = threading.Event()
        self.first_error: dict[str, Any] | None = None

    # -------------------------------------------------------------------------------------- models

    def add_model(self, model: Model) -> str:
        """Hold it; its handle."""
        with self._lock:
            handle = self._new_handle("m")
            self._models[handle] = model
        return handle

    def model(self, handle: str | None, cancel: CancelToken) -> tuple[str, Model]:
        """(handle, model) of *handle*; None: the one that was opened last. Waits for the command line's.

        Raises: ArgumentError: there is none. What opening the command line's failed with. Cancelled.
        """
        if handle is None and self.options.model is not None:
            while not self.first_done.wait(_WAIT_SECONDS):
                if cancel.cancelled:
                    raise Cancelled
        with self._lock:
            if handle is None and not self._models:
                if self.first_error is not None:
                    raise RepeatedError(self.first_error)
                raise ArgumentError("no model is loaded", hint='Send "load" first, or start with serve --stdio MODEL.')
            handle = next(reversed(self._models)) if handle is None else handle
            return handle, _found(self._models, handle, "model")

    def models(self) -> dict[str, Model]:
        """All, by handle, in the order in which they were opened."""
        with self._lock:
            return dict(self._models)

    def unload(self, handle: str) -> None:
        """Close a model, with its chats and states."""
        with self._lock:
            model = self._models.pop(handle)
            chats = [name for name, one in self._chats.items() if one.model == handle]
            closed = [self._chats.pop(name).chat for name in chats]
            for name in [name for name, one in self._states.items() if one.model == handle]:
                del self._states[name]
        model.close()
        for chat in closed:
            chat.close()

    # ---------------------------------------------------------------------------- chats and states

    def add_chat(self, conversation: Conversation) -> str:
        """Hold it; its handle."""
        with self._lock:
            self._check_open(conversation.model)
            handle = self._new_handle("c")
            self._chats[handle] = conversation
        return handle

    def conversation(self, handle: str) -> Conversation:
        """Raises: ArgumentError: there is no such chat."""
        with self._lock:
            return _found(self._chats, handle, "chat")

    def drop_chat(self, handle: str) -> Conversation:
        """Hold it no longer. Raises: ArgumentError: there is no such chat."""
        with self._lock:
            _found(self._chats, handle, "chat")
            return self._chats.pop(handle)

    def add_state(self, state: State, model: str) -> str:
        """Hold it; its handle."""
        with self._lock:
            self._check_open(model)
            handle = self._new_handle("s")
            self._states[handle] = Held(state, model)
        return handle

    def state(self, handle: str) -> Held:
        """Raises: ArgumentError: there is no such state."""
        with self._lock:
            return _found(self._states, handle, "state")

    def drop_state(self, handle: str) -> None:
        """Hold it no longer. Raises: ArgumentError: there is no such state."""
        with self._lock:
            _found(self._states, handle, "state")
            del self._states[handle]

    def _new_handle(self, kind: str) -> str:
        return f"{kind}{next(self._numbers[kind])}"

    def _check_open(self, model: str) -> None:
        _found(self._models, model, "model")

    def close(self) -> None:
        """Close everything."""
        for handle in list(self.models()):
            with contextlib.suppress(KeyError):  # another thread unloads it
                self.unload(handle)


def _found(things: dict[str, T], handle: Any, what: str) -> T:
    try:
        return things[handle]
    except KeyError:
        there_are = f"there are {', '.join(things)}" if things else "there are none"
        raise ArgumentError(f"no {what} {handle!r}", hint=there_are) from None
