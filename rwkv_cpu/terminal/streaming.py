# SPDX-License-Identifier: Apache-2.0
"""Show text while it is made: pieces as they come, progress while a long prompt is read, Ctrl-C at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.terminal.progress import PatientProgress
from rwkv_cpu.terminal.worker import cancel_on_ctrl_c, events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["stream"]


class Pieces(Protocol):
    """A Reply, or an Answer."""

    def __iter__(self) -> Iterator[str]: ...

    def close(self) -> None:
        """End it."""
        ...


Made = TypeVar("Made", bound=Pieces)


def stream(start: Callable[[CancelToken, Callable[[int, int], None]], Made], show: Callable[[str], None]) -> Made:
    """Make a text in a worker thread and show it here.

    Args:
        start: called in the worker with a token that Ctrl-C cancels and a progress callback; begins the text.
        show: called here with each piece.

    Returns:
        What *start* returned, at its end.

    Raises:
        KeyboardInterrupt: Ctrl-C a second time. Whatever *start*, the text or *show* raises.
    """
    cancel = CancelToken()

    def work(emit: Callable[[str | tuple[int, int]], None]) -> Made:
        made = start(cancel, lambda done, total: emit((done, total)))
        try:
            for piece in made:
                emit(piece)
        finally:
            made.close()
        return made

    with cancel_on_ctrl_c(cancel), PatientProgress("Reading") as progress:
        reading, done, total = True, 0, 0
        running = events_of(work)
        try:
            while True:
                event = next(running)
                if isinstance(event, str):
                    progress.close()
                    reading = False
                    show(event)
                elif reading:
                    done, total = event or (done, total)
                    progress.update(done, total)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]
        except BaseException:
            # The reader of the text is gone (a closed pipe): the worker need not go on.
            cancel.cancel()
            raise
