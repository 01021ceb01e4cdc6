# SPDX-License-Identifier: Apache-2.0
"""Ending an answer at a text, wherever token borders lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["StopMatcher"]


class StopMatcher:
    """Lets text through until one of the stop strings appears in it.

    Text that may be the beginning of a stop string is withheld until it is clear, so that no part of one is ever let
    through. How the text is divided into pieces makes no difference: the stop that is complete first counts; of two
    that end together, the longer.

    Args:
        stops: the strings; none lets everything through.

    Raises:
        ArgumentError: something else than non-empty strings.
    """

    def __init__(self, stops: str | Iterable[str] = ()) -> None:
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self._stops:
            if not isinstance(stop, str) or not stop or "\0" in stop:
                raise ArgumentError(f"a stop must be a text of at least one character, none of them 0, not {stop!r}")
        self._reader = Reader(stops=[_bytes(stop) for stop in self._stops])

    @property
    def matched(self) -> str | None:
        """The string that appeared, else None."""
        stop = self._reader.stopped
        return None if stop is None else _text(stop)

    @property
    def withheld(self) -> str:
        """Text that may yet turn out to be the beginning of a stop string."""
        return _text(self._reader.withheld)

    def feed(self, text: str) -> str:
        """Take the next piece of text; return what is certain not to belong to a stop.

        Once a stop has matched, everything after it is swallowed.
        """
        return _text(self._reader.feed(_bytes(text))[1])

    def flush(self) -> str:
        """The text still withheld, when no more will come."""
        return _text(self._reader.finish()[1])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
