# SPDX-License-Identifier: Apache-2.0
"""Run the engine in a thread while the main thread waits.

Python runs signal handlers in the main thread only, and only between its own instructions. So the main thread must
not be inside a long C call: it waits here, and Ctrl-C acts at once, in the middle of a prompt too.
"""

from __future__ import annotations

import queue
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from rwkv_cpu.cancel import CancelToken

__all__ = ["cancel_on_ctrl_c", "events_of"]

Event = TypeVar("Event")
Result = TypeVar("Result")

# How long the main thread sleeps at a time. On Windows a wait without end cannot be interrupted.
_WAIT_SECONDS = 0.1


class _Ended(Generic[Result]):
    """The worker's last word."""

    def __init__(self, result: Result | None, error: BaseException | None) -> None:
        self.result = result
        self.error = error


def events_of(work: Callable[[Callable[[Event], None]], Result]) -> Generator[Event | None, None, Result]:
    """Run *work* in a thread; yield what it emits, and None when nothing came for a while.

    Args:
        work: called with a function to emit events with.

    Returns:
        (as the generator's value) what *work* returned; what it raised is raised here.
    """
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended = _Ended(work(events.put), None)
        except BaseException as error:  # noqa: BLE001 (handed to the waiting thread, which raises it)
            ended = _Ended(None, error)
        events.put(ended)

    # A daemon: a second Ctrl-C leaves without waiting for it.
    threading.Thread(target=run, name="rwkv-cpu engine", daemon=True).start()
    while True:
        try:
            event = events.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            yield None
            continue
        if isinstance(event, _Ended):
            if event.error is not None:
                raise event.error
            return event.result  # type: ignore[return-value]
        yield event


@contextmanager
def cancel_on_ctrl_c(token: CancelToken) -> Iterator[None]:
    """While in the block, Ctrl-C cancels *token* instead of raising; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signal: int, _frame: object) -> None:
        if token.cancelled:
            raise KeyboardInterrupt
        token.cancel()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
