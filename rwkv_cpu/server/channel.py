# SPDX-License-Identifier: Apache-2.0
"""Lines in, lines out, both bounded: a client that sends too long a line or reads nothing costs no memory."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ClientGoneError", "Outbox", "TooLong", "lines_of"]

_READ_BYTES = 1 << 16
# What may wait for a client that reads slowly. The pipe itself holds as much again.
_WAITING_BYTES = 1 << 18


class ClientGoneError(Exception):
    """Nobody reads any more."""


class TooLong:
    """Stands for a line that was longer than allowed, and is not kept."""


def lines_of(read: Callable[[int], bytes], max_bytes: int) -> Iterator[bytes | TooLong]:
    """The lines of a stream without their ends; blank ones are left out. The last need not have an end.

    Args:
        read: gives at most so many bytes, b"" at the end of the stream.
    """
    parts: list[bytes] = []
    size, dropped = 0, False
    while data := read(_READ_BYTES):
        *ended, rest = data.split(b"\n")
        for part in ended:
            if dropped or size + len(part) > max_bytes:
                yield TooLong()
            elif line := b"".join([*parts, part]).strip():
                yield line
            parts, size, dropped = [], 0, False
        size += len(rest)
        if size > max_bytes:
            parts, dropped = [], True
        elif rest:
            parts.append(rest)
    if dropped:
        yield TooLong()
    elif line := b"".join(parts).strip():
        yield line


class Outbox:
    """Writes lines in the order in which they were put, in a thread of its own.

    Args:
        write: writes all of its bytes, or raises OSError.
        on_gone: called once, in the writing thread, if nobody reads any more.
    """

    def __init__(self, write: Callable[[bytes], None], on_gone: Callable[[], None]) -> None:
        self._write = write
        self._on_gone = on_gone
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._idle = True
        self._gone = False
        self._thread = threading.Thread(target=self._run, name="rwkv-cpu answers", daemon=True)
        self._thread.start()

    def put(self, line: bytes, timeout: float | None = None) -> None:
        """Have *line* written; waits while too much waits already.

        Raises:
            ClientGoneError: nobody reads, or there was no room for *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._gone or self._waiting_bytes < _WAITING_BYTES, timeout):
                self._give_up()
            if self._gone:
                raise ClientGoneError
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until everything is written, but not for long; whether it is."""
        end = monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._gone or (self._idle and not self._lines), max(0.0, end - monotonic()))
            return self._idle and not self._lines

    def give_up(self) -> None:
        """Whoever waits for room need not wait any longer."""
        with self._changed:
            self._give_up()

    def _give_up(self) -> None:
        self._gone = True
        self._lines.clear()
        self._waiting_bytes = 0
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines) or self._gone)
                if self._gone:
                    break
                self._idle = False
                block = b"".join(self._lines)
                self._lines.clear()
            try:
                self._write(block)
            except (OSError, ValueError):  # ValueError: the file was closed
                self.give_up()
                break
            with self._changed:
                self._waiting_bytes = max(0, self._waiting_bytes - len(block))
                self._changed.notify_all()
        self._on_gone()
