# SPDX-License-Identifier: Apache-2.0
"""Two continuations side by side, coloured by how far the models are apart; plain text in a pipe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rwkv_cpu.terminal.render import harmless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rwkv_cpu.evaluation.continuations import Alternative, Continuations

__all__ = ["as_text", "show"]

# KL from so many nats on → style. The terminal's own colours, which read on light and on dark; the lines under the
# larger two are for eyes and terminals without colours, which get these two alone.
_LEVELS = ((0.5, "bold underline red"), (0.1, "underline magenta"), (0.01, "cyan"), (0.0, ""))
_COLOURLESS = tuple(level for level in _LEVELS if level[0] != 0.01)
_MARK = "▶"
_SIDE_BY_SIDE = 72  # columns; narrower terminals get one below the other
_MAX_DISAGREEMENTS = 8
_Levels: TypeAlias = "tuple[tuple[float, str], ...]"
_Row: TypeAlias = "tuple[int, str, str, str]"  # which token, its KL, the likeliest of both models


def show(found: Sequence[Continuations], names: tuple[str, str]) -> None:
    """Print to stdout: in colours on a terminal, else as_text()."""
    if not sys.stdout.isatty():
        sys.stdout.write(as_text(found, names))
        return
    console = Console(highlight=False, no_color=bool(os.environ.get("NO_COLOR")))
    for i, one in enumerate(found):
        if i:
            console.print()
        console.print(_drawn(one, names, console.width, _COLOURLESS if console.no_color else _LEVELS))


def as_text(found: Sequence[Continuations], names: tuple[str, str]) -> str:
    """Plain, line by line."""
    return "\n".join(_plain(one, names) for one in found)


def _drawn(one: Continuations, names: tuple[str, str], width: int, levels: _Levels) -> Group:
    parts: list[RenderableType] = []
    if one.prompt:
        parts.append(Text.assemble(("prompt  ", "dim"), (harmless(one.prompt), "bold")))
    first, second = _own(one, levels), _other(one)
    heads = [Text(harmless(name), style="bold underline") for name in names]
    if width >= _SIDE_BY_SIDE:
        table = Table(box=None, expand=True, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(*heads)
        table.add_row(first, second)
        parts.append(table)
    else:
        parts += [heads[0], first, heads[1], second]
    parts.append(Text(""))
    parts.append(Text(_verdict(one)))
    parts.append(_legend(levels))
    rows = _disagreements(one)
    if rows:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for head in ("token", "KL"):
            table.add_column(head, no_wrap=True, justify="right")
        for name in names:
            table.add_column(Text(harmless(name)))
        for place, kl, ours, theirs in rows[:_MAX_DISAGREEMENTS]:
            table.add_row(str(place), kl, Text(ours), Text(theirs))
        parts += [Text("\nWhere they would choose differently:", style="dim"), table]
    if len(rows) > _MAX_DISAGREEMENTS:
        parts.append(Text(_more(rows), style="dim"))
    return Group(*parts)


def _own(one: Continuations, levels: _Levels) -> Text:
    text = Text()
    for i, token in enumerate(one.tokens):
        if i == one.divergence:
            text.append(_MARK, style="bold red")
        text.append(harmless(token.text), style=next(style for least, style in levels if token.kl >= least))
    if len(one.tokens) == one.divergence:
        text.append(_MARK, style="bold red")
    return text


def _other(one: Continuations) -> Text:
    text = Text()
    for i, piece in enumerate(one.other_texts):
        if i == one.divergence:
            text.append(_MARK, style="bold red")
        text.append(harmless(piece), style="" if one.divergence is None or i < one.divergence else "italic")
    if len(one.other_texts) == one.divergence:
        text.append(_MARK, style="bold red")
    return text


def _legend(levels: _Levels) -> Text:
    text = Text.assemble(("KL, nats: ", "dim"), f"below {levels[-2][0]:g}")
    for least, style in reversed(levels[:-1]):
        text.append("  ")
        text.append(f"from {least:g}", style=style)
    return text


def _verdict(one: Continuations) -> str:
    if one.divergence is None:
        where = f"the same {len(one.tokens)} tokens"
    else:
        where = f"they part at token {one.divergence + 1}"
    return (
        f"{where}; on the first one's text: KL mean {one.kl_mean:.2g}, largest {one.kl_max:.2g} nats, "
        f"same choice {one.top1:.1%}"
    )


def _disagreements(one: Continuations) -> list[_Row]:
    return [
        (i, f"{token.kl:.2g}", _options(token.first), _options(token.second))
        for i, token in enumerate(one.tokens, 1)
        if token.first
    ]


def _more(rows: Sequence[_Row]) -> str:
    return f"and at {len(rows) - _MAX_DISAGREEMENTS} more tokens; --json has them all"


def _options(options: Sequence[Alternative]) -> str:
    return "  ".join(f"{_visible(one.text)} {one.probability:.0%}" for one in options)


def _visible(text: str) -> str:
    """A token in quotes: spaces and line ends can be seen, nothing acts."""
    shown = text.replace("\n", "⏎").replace("\t", "→")
    return f"“{harmless(shown)}”"


def _plain(one: Continuations, names: tuple[str, str]) -> str:
    first = "".join((_MARK if i == one.divergence else "") + token.text for i, token in enumerate(one.tokens))
    second = "".join((_MARK if i == one.divergence else "") + piece for i, piece in enumerate(one.other_texts))
    lines = [f"prompt: {one.prompt}", f"--- {names[0]}", first, f"--- {names[1]}", second, f"--- {_verdict(one)}"]
    rows = _disagreements(one)
    lines += [f"token {place}: KL {kl}: {ours} | {theirs}" for place, kl, ours, theirs in rows[:_MAX_DISAGREEMENTS]]
    if len(rows) > _MAX_DISAGREEMENTS:
        lines.append(_more(rows))
    return "\n".join(lines) + "\n"
