# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu chat``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rwkv_cpu.cli._errors import warn
from rwkv_cpu.cli._options import load_options, model_argument, sampling_options

if TYPE_CHECKING:
    from rwkv_cpu.model import Model


@click.command(name="chat")
@model_argument
@click.option("--system", default=None, metavar="TEXT", help="Opening instruction for the model.")
@sampling_options
@load_options
@click.option(
    "--load", "conversation", type=click.Path(), default=None, metavar="FILE", help="Go on with a saved conversation."
)
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
    conversation: str | None,
    stats: bool,
    no_history: bool,
) -> None:
    """Chat with MODEL in the terminal.

    MODEL is a .rwkv file or a .pth checkpoint; without it, the small demonstration model that came along.
    With piped input each line is a message, and its answer is printed to stdout.
    """
    from rwkv_cpu.chat import Chat
    from rwkv_cpu.terminal.loading import open_model
    from rwkv_cpu.terminal.session import run_chat

    with open_model(model, weight_format=weight_format, threads=threads, warn=warn) as opened:
        chat = Chat.load(conversation, opened) if conversation else Chat(opened, system)
        chat.max_tokens = sampling.pop("max_tokens", chat.max_tokens)
        chat.stop = sampling.pop("stop", chat.stop)
        chat.params = chat.params_with(sampling)
        ctx.exit(run_chat(opened, chat, show_stats=stats, history=not no_history, greeting=_greeting(opened, model)))


def _greeting(model: Model, name: str) -> list[str]:
    from rwkv_cpu._version import __version__
    from rwkv_cpu.memory import human_bytes

    config = model.config
    title = "Pip, the demonstration model" if name == "demo" else model.path.stem
    version = config.version.partition(".")[0]
    size = f"{config.n_layer} layers of {config.n_embd}, {human_bytes(model.weight_bytes)}"
    lines = [
        f"{title} · RWKV-{version}, {size}",
        f"rwkv-cpu {__version__}, {model.isa}, {model.threads} thread{'' if model.threads == 1 else 's'}",
    ]
    if name == "demo":
        lines.append(
            "Pip is tiny: it knows a few simple things and is often wrong. For real answers get a released RWKV-7 "
            "model (a .pth file, say from https://huggingface.co/BlinkDL/rwkv7-g1) and run: rwkv-cpu chat FILE.pth"
        )
    return [*lines, "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."]
