# SPDX-License-Identifier: Apache-2.0
"""The lines at the bottom of the screen that are redrawn while an answer streams.

Only lines that changed are written, in one write, inside a synchronised update where the terminal knows that: nothing
flickers. What scrolls away is never touched again, so the terminal's own scrolling and selecting work as always.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

__all__ = ["LiveRegion", "shortened", "terminal_size"]

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal, as it is now: COLUMNS and LINES tell how it was when a shell exported them."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        size = shutil.get_terminal_size()
    if not size.columns:  # a pseudo-terminal that was given no size
        size = os.terminal_size((80, 24))
    return max(size.columns, 2), max(size.lines, 4)


def shortened(text: str, width: int) -> str:
    """*text* cut at its start to *width* cells."""
    while cell_len(text) > width:
        text = "…" + text[2:] if len(text) > 1 else ""
    return text


class LiveRegion:
    """A few lines at the bottom. close() leaves the screen as if they had never been there."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn: list[str] = []
        self._width = 0

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal."""
        return terminal_size()

    def draw(self, final: Sequence[str], live: Sequence[str]) -> None:
        """Write *final* above for good and *live* below, in place of what was live. Lines fit the width."""
        width, _ = self.size
        old, self._drawn = self._drawn, list(live)
        if not final and old == self._drawn and width == self._width:
            return
        parts = [_BEGIN, _HIDE_CURSOR]
        if self._width != width and old:
            # The terminal has wrapped the old lines anew; where they are now has to be counted.
            parts.append(_up(sum(_rows(line, width) for line in old) - 1) + "\x1b[J")
            old = []
        elif old:
            parts.append(_up(len(old) - 1))
        self._width = width
        new = [*final, *live]
        for i, line in enumerate(new):
            if i:
                parts.append("\r\n")
            if i < len(old) and old[i] == line:
                continue
            # Erasing after a full line would take its last character away.
            parts.append(line if _cells(line) >= width else f"{line}\x1b[K")
        if len(old) > len(new):
            parts.append("\x1b[J" if new else "\r\x1b[J")
        parts.append(_END)
        self._out.write("".join(parts))
        self._out.flush()

    def close(self, final: Sequence[str] = ()) -> None:
        """Write *final*, remove what is live, and give the cursor back, at the beginning of an empty line."""
        self.draw([*final], [""])
        self._drawn = []
        self._out.write("\r" + _SHOW_CURSOR)
        self._out.flush()


def _up(rows: int) -> str:
    return f"\r\x1b[{rows}A" if rows > 0 else "\r"


def _cells(line: str) -> int:
    return cell_len(_STYLES.sub("", line))


def _rows(line: str, width: int) -> int:
    return max(1, -(-_cells(line) // width))
