# SPDX-License-Identifier: Apache-2.0
"""An answer as it streams on a terminal: thought, text, a status line, and what is typed meanwhile."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from rwkv_cpu.terminal.live import LiveRegion, shortened
from rwkv_cpu.terminal.markdown import MarkdownStream
from rwkv_cpu.terminal.render import WordWrap, harmless

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from rwkv_cpu.chat import Answer
    from rwkv_cpu.chat.thoughts import Piece
    from rwkv_cpu.terminal.markdown import Painter
    from rwkv_cpu.terminal.typeahead import TypeAhead

__all__ = ["LiveView", "PlainView", "fitted"]

_REFRESH_SECONDS = 0.05
# Drawing may take this part of the time, so that it does not slow down what it shows.
_SHARE_OF_TIME = 0.1
_THOUGHT_LINES = 6
_PATIENCE_SECONDS = 0.3


def fitted(parts: list[str], width: int) -> str:
    """As many of *parts*, from the first, as fit into *width* columns."""
    while len(parts) > 1 and len(" · ".join(parts)) > width:
        parts = parts[:-1]
    return " · ".join(parts)[:width]


class PlainView:
    """Text as it comes: into pipes, on terminals that cannot move their cursor, and for --plain.

    Args:
        width: wrap at words here; 0: leave that to the terminal.
        clean: control characters are taken out (a terminal).
    """

    answer: Answer | None = None

    def __init__(self, *, width: int, clean: bool) -> None:
        self._wrap = WordWrap(width) if width else None
        self._clean = harmless if clean else str
        self._wrote = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._wrote:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def show(self, piece: Piece) -> None:
        """A piece, shown at once; thoughts are not."""
        if piece.is_thought:
            return
        self._wrote = True
        sys.stdout.write(self._clean(piece.text) if self._wrap is None else self._wrap.feed(piece.text))
        sys.stdout.flush()

    def end(self) -> None:
        """The answer is complete, and may be empty: its line ends all the same where programs read it."""
        self._wrote = self._wrote or not sys.stdout.isatty()


class LiveView:
    """Markdown as it comes, above a status line.

    Args:
        painter: makes lines.
        typing: what is typed meanwhile; entered and left with the view.
        thoughts: "fold": a thought shrinks to a line when it ends; "show": it stays; "hide".
        status: what follows the speed in the status line, given the number of new tokens.
    """

    answer: Answer | None = None

    def __init__(
        self, painter: Painter, typing: TypeAhead, *, thoughts: str, status: Callable[[int], list[str]]
    ) -> None:
        self._painter = painter
        self._typing = typing
        self._thoughts = thoughts
        self._status = status
        self._region = LiveRegion(sys.stdout)
        self._text = MarkdownStream(painter)
        self._thought = ""
        self._thinking = False
        self._final: list[str] = []
        self._began = time.monotonic()
        self._first: float | None = None
        self._latest = 0.0
        self._read: tuple[int, int] = (0, 0)
        self._next_draw = 0.0

    def __enter__(self) -> Self:
        self._typing.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            width, _ = self._region.size
            self._end_thought(width)
            final, _ = self._text.update(width, 0, at_end=True)
            # Nobody reads any more (a closed terminal): the keyboard must be given back all the same.
            with contextlib.suppress(OSError):
                self._region.close([*self._final, *final])
        finally:
            self._typing.__exit__()

    def progress(self, done: int, total: int) -> None:
        """So many tokens of a long message have been read."""
        self._read = (done, total)

    def show(self, piece: Piece) -> None:
        """The next piece."""
        self._latest = time.monotonic()
        if self._first is None:
            self._first = self._latest
        if piece.is_thought:
            self._thinking = True
            self._thought += harmless(piece.text)
        else:
            self._end_thought(self._region.size[0])
            self._text.feed(piece.text)
        self.tick()

    def tick(self) -> None:
        """Draw, if it is time."""
        now = time.monotonic()
        if now < self._next_draw:
            return
        self._typing.poll()
        width, height = self._region.size
        typed = self._typing.text
        final, live = self._text.update(width, height - 4)
        if self._thinking:
            live = self._thought_lines(width)[-_THOUGHT_LINES:] if self._thoughts != "hide" else []
        live = [*live, *self._painter.text(self._status_line(now, width - 1), width, "dim")]
        if typed:
            live.append(f"> {shortened(typed, width - 4)}")
        self._region.draw([*self._final, *final], live)
        self._final = []
        self._next_draw = now + max(_REFRESH_SECONDS, (time.monotonic() - now) / _SHARE_OF_TIME)

    def end(self) -> None:
        """The answer is complete."""

    def _status_line(self, now: float, width: int) -> str:
        tokens = 0 if self.answer is None else len(self.answer.tokens)
        if self._first is None or not tokens:
            done, total = self._read
            slow = now - self._began > _PATIENCE_SECONDS
            shown = f"Reading {done:,} of {total:,} tokens" if total and slow else "Reading" if slow else "…"
            return fitted([shown, "Ctrl-C stops"], width)
        # Up to the latest piece: while nothing comes nothing is redrawn, and a terminal that is being resized (tmux
        # tells of it a moment later) is not written to in its old width.
        seconds = self._latest - self._first
        speed = [f"{(tokens - 1) / seconds:.1f} tokens/s"] if seconds > _PATIENCE_SECONDS and tokens > 1 else []
        what = "thinking" if self._thinking else f"{tokens} token{'' if tokens == 1 else 's'}"
        return fitted([what, *speed, *self._status(tokens)], width)

    def _thought_lines(self, width: int) -> list[str]:
        return [f"\x1b[2m│ {line}\x1b[0m" for line in self._painter.text(self._thought.strip(), width - 2)]

    def _end_thought(self, width: int) -> None:
        if not self._thinking:
            return
        self._thinking = False
        if self._thoughts == "show":
            self._final += [*self._thought_lines(width), ""]
        elif self._thoughts == "fold":
            seconds = time.monotonic() - (self._first or self._began)
            line = fitted([f"▸ thought for {seconds:.1f} s", "/thought shows it"], width)
            self._final += [*self._painter.text(line, width, "dim"), ""]
