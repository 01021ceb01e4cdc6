# SPDX-License-Identifier: Apache-2.0
"""What the user sees: answers, notes, errors and tables, on a terminal or into a pipe.

Answers go to stdout. On a terminal everything else does too; into a pipe, stdout carries answers alone.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rwkv_cpu.terminal.live import terminal_size
from rwkv_cpu.terminal.render import harmless
from rwkv_cpu.terminal.view import LiveView, PlainView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rwkv_cpu.terminal.markdown import Painter
    from rwkv_cpu.terminal.typeahead import TypeAhead

    View = LiveView | PlainView

__all__ = ["Screen"]


class Screen:
    """Where a chat is shown.

    Args:
        plain: answers as they come, without Markdown or a status line.
        theme: "light" or "dark" background; "auto": what the terminal says.

    Attributes:
        interactive: a person types at a terminal and reads it there.
        fancy: that terminal can move its cursor (not TERM=dumb).
        colours: and colours are wanted (no NO_COLOR).
        painter: renders Markdown; None: answers are shown as they come.
    """

    def __init__(self, *, plain: bool = False, theme: str = "auto") -> None:
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
        self.painter: Painter | None = None
        if self.interactive and self.fancy and not plain:
            from rwkv_cpu.terminal.markdown import Painter, light_background

            light = light_background() if theme == "auto" else theme == "light"
            self.painter = Painter(colours=self.colours, light=light)

    def view(self, typing: TypeAhead | None, *, thoughts: str, status: Callable[[int], list[str]]) -> View:
        """What shows the next answer, as a context manager."""
        if self.painter is not None and typing is not None:
            return LiveView(self.painter, typing, thoughts=thoughts, status=status)
        width = terminal_size()[0] if self.fancy else 0
        return PlainView(width=width, clean=sys.stdout.isatty())

    def markdown(self, text: str) -> None:
        """An answer that was given before."""
        if self.painter is None:
            self._print(text, "")
            return
        lines = self.painter.markdown(harmless(text), terminal_size()[0])
        sys.stdout.write("".join(f"{line}\n" for line in lines))
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
