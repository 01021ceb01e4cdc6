# SPDX-License-Identifier: Apache-2.0
"""What the user sees: answers, notes, errors, tables and progress, on a terminal or into a pipe.

Answers go to stdout. On a terminal everything else does too; into a pipe, stdout carries answers alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from rwkv_cpu.terminal.render import WordWrap, harmless

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["PatientProgress", "Screen"]

# Work shorter than this shows no progress: a bar that flashes up is noise.
_PATIENCE_SECONDS = 1.0
_REFRESH_SECONDS = 0.1


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


class PatientProgress:
    """A progress bar on stderr for work that takes longer than a second; it removes itself at the end.

    Shows nothing where stderr is no terminal, or one that cannot move its cursor.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._drawn = 0.0
        self._bar: Progress | None = None
        console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
        self._console = console if console.is_terminal and not console.is_dumb_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """So much of it is done; *total* 0 where that is not known."""
        now = time.monotonic()
        if self._console is None or now - self._began < _PATIENCE_SECONDS or now - self._drawn < _REFRESH_SECONDS:
            return
        self._drawn = now
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", style="dim"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%" if total else "", style="dim"),
                console=self._console,
                transient=True,
                auto_refresh=False,
            )
            self._bar.add_task(self._what, total=total or None)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, refresh=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
