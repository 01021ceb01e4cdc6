# SPDX-License-Identifier: Apache-2.0
"""Two continuations side by side, coloured by how far the models are apart; plain text in a pipe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rwkv_cpu.terminal.render import harmless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rwkv_cpu.evaluation.continuations import Alternative, Continuations

__all__ = ["as_text", "show"]

# KL from so many nats on → style. The terminal's own colours, which read on light and on dark.
_LEVELS = ((0.5, "bold red"), (0.1, "magenta"), (0.01, "cyan"), (0.0, ""))
_MARK = "▶"
_SIDE_BY_SIDE = 72  # columns; narrower terminals get one below the other
_MAX_DISAGREEMENTS = 8


def show(found: Sequence[Continuations], names: tuple[str, str]) -> None:
    """Print to stdout: in colours on a terminal, else as_text()."""
    if not sys.stdout.isatty():
        sys.stdout.write(as_text(found, names))
        return
    console = Console(highlight=False, no_color=bool(os.environ.get("NO_COLOR")))
    for i, one in enumerate(found):
        if i:
            console.print()
        console.print(_drawn(one, names, console.width))


def as_text(found: Sequence[Continuations], names: tuple[str, str]) -> str:
    """Plain, line by line."""
    return "\n".join(_plain(one, names) for one in found)


def _drawn(one: Continuations, names: tuple[str, str], width: int) -> Group:
    parts: list[RenderableType] = []
    if one.prompt:
        parts.append(Text.assemble(("prompt  ", "dim"), (harmless(one.prompt), "bold")))
    first, second = _own(one), _other(one)
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
    parts.append(_legend())
    if rows := _disagreements(one):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for column in range(4):
            table.add_column(no_wrap=column < 2)
        table.add_row(Text(""), Text(""), *(Text(harmless(name), style="underline") for name in names))
        for place, kl, ours, theirs in rows:
            table.add_row(Text(place, style="dim"), Text(kl), Text(ours), Text(theirs))
        parts.append(Text("Where they would choose differently:", style="dim"))
        parts.append(table)
    return Group(*parts)


def _own(one: Continuations) -> Text:
    text = Text()
    for i, token in enumerate(one.tokens):
        if i == one.divergence:
            text.append(_MARK, style="bold red")
        text.append(harmless(token.text), style=next(style for least, style in _LEVELS if token.kl >= least))
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


def _legend() -> Text:
    text = Text("KL, nats: ", style="dim")
    text.append("below 0.01", style="")
    for (least, style), word in zip(reversed(_LEVELS[:-1]), ("from", "from", "from"), strict=True):
        text.append("  ")
        text.append(f"{word} {least:g}", style=style)
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


def _disagreements(one: Continuations) -> list[tuple[str, str, str, str]]:
    rows = [
        (f"token {i + 1}", f"KL {token.kl:.2g}", _options(token.first), _options(token.second))
        for i, token in enumerate(one.tokens)
        if token.first
    ]
    more = len(rows) - _MAX_DISAGREEMENTS
    return rows[:_MAX_DISAGREEMENTS] + ([(f"{more} more", "", "", "")] if more > 0 else [])


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
    lines += [f"{place}: {kl}: {ours} | {theirs}" for place, kl, ours, theirs in _disagreements(one)]
    return "\n".join(lines) + "\n"
