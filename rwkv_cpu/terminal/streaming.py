# SPDX-License-Identifier: Apache-2.0
"""Show text while it is made: pieces as they come, progress while a long prompt is read, Ctrl-C at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.terminal.progress import PatientProgress
from rwkv_cpu.terminal.worker import cancel_on_ctrl_c, events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["stream"]


class Pieces(Protocol):
    """A Reply, or an Answer."""

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None:
        """End it."""
        ...


Made = TypeVar("Made", bound=Pieces)
Piece = TypeVar("Piece")


class _Piece(Generic[Piece]):
    """Tells a piece from other events, whatever it is."""

    def __init__(self, content: Piece) -> None:
        self.content = content


def stream(
    start: Callable[[CancelToken, Callable[[int, int], None]], Made],
    show: Callable[[Piece], None],
    *,
    pieces: Callable[[Made], Iterable[Piece]] = iter,
    progress: Callable[[int, int], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> Made:
    """Make a text in a worker thread and show it here.

    Args:
        start: called in the worker with a token that Ctrl-C cancels and a progress callback; begins the text.
        show: called here with each piece.
        pieces: what to iterate, if not the text itself.
        progress: called here while a long prompt is read; None: a bar shows that.
        tick: called here several times a second.

    Returns:
        What *start* returned, at its end.

    Raises:
        KeyboardInterrupt: Ctrl-C a second time. Whatever *start*, the text or *show* raises.
    """
    cancel = CancelToken()

    def work(emit: Callable[[_Piece[Piece] | tuple[int, int]], None]) -> Made:
        made = start(cancel, lambda done, total: emit((done, total)))
        try:
            for piece in pieces(made):
                emit(_Piece(piece))
        finally:
            made.close()
        return made

    with cancel_on_ctrl_c(cancel), PatientProgress("Reading") as bar:
        reading, done, total = True, 0, 0
        running = events_of(work)
        try:
            while True:
                event = next(running)
                if isinstance(event, _Piece):
                    bar.close()
                    reading = False
                    show(event.content)
                elif reading:
                    done, total = event or (done, total)
                    (progress or bar.update)(done, total)
                if tick is not None:
                    tick()
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]
        except BaseException:
            # The reader of the text is gone (a closed pipe): the worker need not go on.
            cancel.cancel()
            raise
