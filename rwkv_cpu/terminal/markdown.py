# SPDX-License-Identifier: Apache-2.0
"""Markdown as lines for a terminal, while it is still being written.

Blocks that are complete never change again; only the last one is rendered anew with each piece. So a screen can let the
former scroll away and redraw the latter.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import CodeBlock, Heading, Markdown
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from rwkv_cpu.terminal.render import harmless

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import ConsoleOptions, RenderResult

__all__ = ["MarkdownStream", "Painter", "code_blocks", "light_background"]

# Without HTML: what a model writes in angle brackets is text.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
_RULE = 40


def light_background() -> bool:
    """Whether the terminal says that its background is light (COLORFGBG, as rxvt, Konsole and others set it)."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background in ("7", "15")


def code_blocks(text: str) -> list[str]:
    """The code in fenced and indented blocks of *text*, in order."""
    return [token.content.rstrip("\n") for token in _PARSER.parse(text) if token.type in ("fence", "code_block")]


class _Heading(Heading):
    """Left-aligned, without a frame."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        self.text.justify = "left"
        yield self.text


class _Code(CodeBlock):
    """Indented, in the terminal's own colours, with its language above."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        language = "" if self.lexer_name == "text" else self.lexer_name
        width = min(options.max_width, _RULE)
        yield Text((f"── {language} " if language else "").ljust(width, "─")[:width], "dim")
        code = str(self.text).rstrip("\n")
        yield Syntax(
            code, self.lexer_name, theme=self.theme, word_wrap=True, padding=0, background_color="default", tab_size=4
        )
        yield Text("─" * width, "dim")


class _ChatMarkdown(Markdown):
    elements = {**Markdown.elements, "heading_open": _Heading, "fence": _Code, "code_block": _Code}  # noqa: RUF012


class Painter:
    """Turns texts into lines with colours for a terminal of a given width.

    Args:
        colours: colours are wanted; bold, italic and dim are used in any case.
        light: the terminal's background is light.
    """

    def __init__(self, *, colours: bool, light: bool) -> None:
        self._code_theme = "ansi_light" if light else "ansi_dark"
        self._console = Console(
            file=io.StringIO(),
            force_terminal=True,
            no_color=not colours,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
            width=80,
            theme=Theme(
                {
                    "markdown.code": Style(color="cyan"),
                    "markdown.h1": Style(bold=True, underline=True),
                    "markdown.h2": Style(bold=True),
                    "markdown.link_url": Style(underline=True),
                    "markdown.block_quote": Style(dim=True),
                }
            ),
        )

    def markdown(self, text: str, width: int) -> list[str]:
        """*text* as Markdown. Line breaks in a paragraph stay: models mean them."""
        found = _ChatMarkdown("", code_theme=self._code_theme, hyperlinks=False)
        found.parsed = _PARSER.parse(text)
        _keep_line_breaks(found.parsed)
        return self._lines(found, width)

    def text(self, text: str, width: int, style: str = "") -> list[str]:
        """*text* as it stands, wrapped at words."""
        return self._lines(Text(text, style=style), width)

    def _lines(self, content: Markdown | Text, width: int) -> list[str]:
        self._console.width = max(width, 1)
        with self._console.capture() as captured:
            self._console.print(content)
        lines = [line.rstrip(" ") for line in captured.get().split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        return lines


def _keep_line_breaks(tokens: list[Token]) -> None:
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


class MarkdownStream:
    """Markdown that comes in pieces, as lines that are final and lines that may change."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        self._tail = ""
        self._n_taken = 0  # lines of the tail that the screen let scroll away
        self._is_first = True

    def feed(self, text: str) -> None:
        """Take the next piece."""
        self._tail += harmless(text)

    def update(self, width: int, most: int, *, at_end: bool = False) -> tuple[list[str], list[str]]:
        """Lines that became final since the last call, and those that may change, of which there are at most *most*."""
        final: list[str] = []
        done, self._tail = ("", self._tail) if at_end else _split(self._tail)
        if done:
            final += self._block(done, width)
            self._n_taken, self._is_first = 0, False
        live = self._block(self._tail, width)
        if at_end:
            self._tail = ""
            return final + live, []
        if len(live) > most:
            # What does not fit on the screen cannot be redrawn; as a rule only the last lines change anyway.
            n = len(live) - most
            final, live = final + live[:n], live[n:]
            self._n_taken += n
        return final, live

    def _block(self, text: str, width: int) -> list[str]:
        lines = self._painter.markdown(text, width) if text.strip() else []
        if lines and not self._is_first:
            lines.insert(0, "")
        return lines[self._n_taken :]


def _split(text: str) -> tuple[str, str]:
    """The complete blocks of *text*, and the last one, which may go on."""
    starts = [token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    if len(starts) < 2:
        return "", text
    lines = text.splitlines(keepends=True)
    return "".join(lines[: starts[-1]]), "".join(lines[starts[-1] :])
