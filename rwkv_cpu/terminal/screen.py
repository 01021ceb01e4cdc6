# SPDX-License-Identifier: Apache-2.0
"""What the user sees: answers, notes, errors and tables, on a terminal or into a pipe.

Answers go to stdout. On a terminal everything else does too; into a pipe, stdout carries answers alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rwkv_cpu.terminal.render import WordWrap, harmless

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Screen"]


class Screen:
    """Where a chat is shown.

    Attributes:
        interactive: a person types at a terminal and reads it there.
        fancy: that terminal can move its cursor (not TERM=dumb).
        colours: and colours are wanted (no NO_COLOR).
    """

    def __init__(self) -> None:
        dumb = os.environ.get("TERM", "") in ("dumb", "unknown")
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.fancy = sys.stdout.isatty() and not dumb
        self.colours = self.fancy and not os.environ.get("NO_COLOR")
        self._console = Console(
            file=sys.stdout if self.interactive else sys.stderr,
            highlight=False,
            no_color=not self.colours,
            color_system="auto" if self.colours else None,
            soft_wrap=False,
        )
        self._wrap: WordWrap | None = None

    def begin_answer(self) -> None:
        """An answer follows, on a line of its own."""
        self._wrap = WordWrap(shutil.get_terminal_size().columns) if self.fancy else None

    def piece(self, text: str) -> None:
        """A piece of an answer, shown at once."""
        if self._wrap is not None:
            text = self._wrap.feed(text)
        elif sys.stdout.isatty():
            text = harmless(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    def end_answer(self) -> None:
        """The answer is complete."""
        sys.stdout.write("\n")
        sys.stdout.flush()

    def blank(self) -> None:
        """An empty line, for people."""
        if self.interactive:
            self._console.print()

    def note(self, text: str) -> None:
        """Something by the way."""
        self._print(text, "dim")

    def say(self, text: str, style: str = "") -> None:
        """Something to read."""
        self._print(text, style)

    def error(self, text: str, hint: str = "") -> None:
        """What went wrong; on stderr, as commands report it, where nobody sits at a terminal."""
        if not self.interactive:
            text, hint = f"rwkv-cpu: error: {text}", hint and f"hint: {hint}"
        self._print(text, "red")
        if hint:
            self._print(hint, "dim")

    def table(self, rows: Iterable[tuple[str, ...]]) -> None:
        """Columns, the first one highlighted; into a pipe, plain text on stderr."""
        grid = Table.grid(padding=(0, 2))
        for i, row in enumerate(rows):
            if i == 0:
                for k in range(len(row)):
                    grid.add_column(no_wrap=k == 0, style="cyan" if k == 0 else "")
            grid.add_row(*(Text(cell) for cell in row))
        self._console.print(grid)

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(harmless(text), style=style))
