# SPDX-License-Identifier: Apache-2.0
"""Streamed text on a terminal: words are not broken at the edge, and control characters of a model do nothing."""

from __future__ import annotations

import re

from rich.cells import cell_len

__all__ = ["WordWrap", "harmless"]

# All controls but tab and newline: a model must not move the cursor, ring, or set the window's title.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TAB = 8


def harmless(text: str) -> str:
    """*text* without control characters (tab and newline stay)."""
    return _CONTROL.sub("", text)


class WordWrap:
    """Turns pieces of text into what to write, piece by piece, with nothing held back.

    A word that turns out not to fit is taken back and written again on the next line. Code (between ``` lines, or
    indented by four) is left to the terminal: a line break put into it would be copied with it.
    """

    def __init__(self, width: int) -> None:
        self.width = max(width, 1)
        self._line = ""  # its beginning, to recognise code
        self._fenced = False
        self._column = 0
        self._word = ""  # the part of the current word that is on the screen

    def feed(self, text: str) -> str:
        """What to write for this piece."""
        return "".join(self._character(c) for c in harmless(text))

    def _character(self, c: str) -> str:
        if c == "\n":
            if self._line.startswith("```"):
                self._fenced = not self._fenced
            self._line, self._column, self._word = "", 0, ""
            return c
        if len(self._line) < 4:
            self._line += c
        if self._fenced or self._line[:3] == "```" or self._line[:4] == "    " or self._line[:1] == "\t":
            return c
        if c in " \t":
            return self._space(c)
        size = cell_len(c)
        if size > 1:
            # East Asian text has no spaces; a line may break before and after each character.
            self._word = ""
        if self._column + size > self.width:
            return self._break_line(c, size)
        self._column += size
        self._word = "" if size > 1 else self._word + c
        return c

    def _space(self, c: str) -> str:
        self._word = ""
        self._column += 1 if c == " " else _TAB - self._column % _TAB
        if self._column <= self.width:
            return c
        # The line is full: the line break takes the space's place.
        self._column = 0
        return "\n"

    def _break_line(self, c: str, size: int) -> str:
        taken = cell_len(self._word)
        start = self._column - taken
        fits = taken > 0 and start > 0 and taken + size <= self.width
        if not fits:
            self._word = "" if size > 1 else c
            self._column = size
            return "\n" + c
        word = self._word
        self._word = word + c
        self._column = taken + size
        # Counted from column 1: in the last column a terminal's cursor may stand on the character or after it.
        return f"\r\x1b[{start}C\x1b[K\n{word}{c}"
