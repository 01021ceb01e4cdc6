# SPDX-License-Identifier: Apache-2.0
"""Ending an answer at a text, wherever token borders lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_cpu.errors import ArgumentError

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

    Attributes:
        matched: the string that appeared, else None.

    Raises:
        ArgumentError: something else than non-empty strings.
    """

    def __init__(self, stops: str | Iterable[str] = ()) -> None:
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise ArgumentError(f"a stop must be a text of at least one character, not {stop!r}")
        self._longest = max(map(len, self._stops), default=0)
        self._withheld = ""
        self.matched: str | None = None

    @property
    def withheld(self) -> str:
        """Text that may yet turn out to be the beginning of a stop string."""
        return self._withheld

    def feed(self, text: str) -> str:
        """Take the next piece of text; return what is certain not to belong to a stop.

        Once a stop has matched, everything after it is swallowed.
        """
        if self.matched is not None or not text:
            return ""
        text = self._withheld + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._withheld = ""
            return text[:at]
        kept = self._length_of_beginning(text)
        self._withheld = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """The text still withheld, when no more will come."""
        text, self._withheld = self._withheld, ""
        return text

    def _length_of_beginning(self, text: str) -> int:
        """How many characters at the end of *text* may be the beginning of a stop."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
