# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu chat``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkv_cpu.cli._errors import warn
from rwkv_cpu.cli._options import (
    load_options,
    model_argument,
    preload_option,
    sampling_options,
    state_option,
)

if TYPE_CHECKING:
    from rwkv_cpu.model import Model


@click.command(name="chat")
@model_argument
@click.option("--system", default=None, metavar="TEXT", help="Opening instruction for the model.")
@sampling_options
@load_options
@preload_option
@click.option(
    "--load", "conversation", type=click.Path(), default=None, metavar="FILE", help="Go on with a saved conversation."
)
@state_option
@click.option("--stats", is_flag=True, help="Print speed and memory after each answer.")
@click.option("--no-history", is_flag=True, help="Do not keep what is typed for the next run.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    system: str | None,
    sampling: dict[str, Any],
    threads: int | None,
    weight_format: str | None,
    preload: bool,
    conversation: str | None,
    state: str | None,
    stats: bool,
    no_history: bool,
) -> None:
    """Chat with MODEL in the terminal.

    MODEL is a .rwkv file or a checkpoint; without it, the small demonstration model that came along.
    With piped input each line is a message, and its answer is printed to stdout.
    """
    from rwkv_cpu.chat import Chat
    from rwkv_cpu.terminal.loading import open_model
    from rwkv_cpu.terminal.session import run_chat

    if conversation is not None and system is not None:
        raise click.UsageError("--system and --load do not go together: a saved conversation has its own", ctx)
    with open_model(model, weight_format=weight_format, threads=threads, preload=preload, warn=warn) as opened:
        start = None if state is None else opened.load_state(state)
        chat = Chat.load(conversation, opened, state=start) if conversation else Chat(opened, system, state=start)
        chat.max_tokens = sampling.pop("max_tokens", chat.max_tokens)
        chat.stop = sampling.pop("stop", chat.stop)
        chat.params = chat.params_with(sampling)
        code = run_chat(
            opened,
            chat,
            show_stats=stats,
            history=not no_history,
            greeting=_greeting(opened, model),
            file=conversation,
        )
        ctx.exit(code)


def _greeting(model: Model, name: str) -> list[str]:
    """Paragraphs: what runs and how, and what a newcomer should know."""
    from rwkv_cpu._version import __version__
    from rwkv_cpu.memory import human_bytes

    config = model.config
    title = "Pip, the demonstration model" if name == "demo" else Path(name).name
    size = f"{model.metadata.get('rwkv_cpu.format', '')} {human_bytes(model.weight_bytes)}"
    lines = [
        f"{title} · {config.name}, {config.n_layer} layers of {config.n_embd}, {size}",
        f"rwkv-cpu {__version__}, {model.isa}, {model.threads} thread{'' if model.threads == 1 else 's'}",
    ]
    if name == "demo":
        lines.append(
            "Pip is tiny: it knows a few simple things and is often wrong. For real answers get a released RWKV-7 "
            "model (a .pth file, say from https://huggingface.co/BlinkDL/rwkv7-g1) and run: rwkv-cpu chat FILE.pth"
        )
    elif not _same_file(Path(name), model.path):
        lines.append("A copy in the compact format is kept for the next time; rwkv-cpu cache lists such copies.")
    return [*lines, "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."]


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.expanduser().samefile(b)
    except OSError:
        return False
