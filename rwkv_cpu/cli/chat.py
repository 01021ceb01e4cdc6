# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu chat``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkv_cpu.cli._errors import warn
from rwkv_cpu.cli._options import (
    GroupedCommand,
    cache_prompt_option,
    cached_prompts,
    load_options,
    model_argument,
    preload_option,
    sampling_options,
    state_option,
)

if TYPE_CHECKING:
    from rwkv_cpu.chat import Chat, ChatTemplate
    from rwkv_cpu.model import Model


@click.command(name="chat", cls=GroupedCommand)
@model_argument
@click.option("--system", default=None, metavar="TEXT", help="Opening instruction for the model.")
@click.option(
    "--session",
    default=None,
    metavar="NAME",
    help="Go on with this session, or begin it; rwkv-cpu sessions lists them.",
)
@click.option(
    "--think",
    type=click.Choice(["off", "short", "on", "long"]),
    default=None,
    help="How long a thinking model (G1) thinks before it answers. Default: as it likes.",
)
@click.option(
    "--template",
    default=None,
    metavar="NAME",
    help="The words between turns: world, world-paragraph or raw. Default: the model file's.",
)
@click.option("--raw", is_flag=True, help="No turns: what is typed is continued as it stands (for text, ABC, MIDI).")
@sampling_options
@load_options
@preload_option
@click.option(
    "--load", "conversation", type=click.Path(), default=None, metavar="FILE", help="Go on with a saved conversation."
)
@state_option
@cache_prompt_option
@click.option("--plain", is_flag=True, help="Show answers as they come, without Markdown and status line.")
@click.option(
    "--theme",
    type=click.Choice(["auto", "light", "dark"]),
    default="auto",
    help="Background of the terminal, for the colours of code.  [default: what the terminal says]",
)
@click.option("--stats", is_flag=True, help="Print speed and memory after each answer.")
@click.option("--no-history", is_flag=True, help="Do not keep what is typed for the next run.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    system: str | None,
    session: str | None,
    think: str | None,
    template: str | None,
    raw: bool,
    sampling: dict[str, Any],
    threads: int | None,
    weight_format: str | None,
    preload: bool,
    conversation: str | None,
    state: str | None,
    cache_prompt: str | None,
    plain: bool,
    theme: str,
    stats: bool,
    no_history: bool,
) -> None:
    """Chat with MODEL in the terminal.

    MODEL is a .rwkv file or a checkpoint; without it, the small demonstration model that came along.
    With piped input each line is a message, and its answer is printed to stdout.
    """
    from rwkv_cpu.chat import ChatTemplate
    from rwkv_cpu.terminal.loading import open_model
    from rwkv_cpu.terminal.session import run_chat

    if conversation is not None and (system is not None or session is not None):
        other = "--system" if system is not None else "--session"
        raise click.UsageError(f"{other} and --load do not go together: a saved conversation has its own", ctx)
    if raw and (template is not None or think is not None):
        raise click.UsageError("--raw has no turns: it goes with neither --template nor --think", ctx)
    named = "raw" if raw else template
    words = None if named is None else ChatTemplate.named(named)
    with (
        open_model(model, weight_format=weight_format, threads=threads, preload=preload, warn=warn) as opened,
        cached_prompts(opened, cache_prompt),
        _conversation(opened, system, session, conversation, words, state) as chat,
    ):
        chat.max_tokens = sampling.pop("max_tokens", chat.max_tokens)
        chat.stop = sampling.pop("stop", chat.stop)
        chat.think = chat.think if think is None else think
        chat.params = chat.params_with(sampling)
        code = run_chat(
            opened,
            chat,
            show_stats=stats,
            history=not no_history,
            greeting=_greeting(opened, model, chat.session),
            file=conversation,
            plain=plain,
            theme=theme,
        )
        ctx.exit(code)


def _conversation(
    model: Model,
    system: str | None,
    session: str | None,
    saved: str | None,
    template: ChatTemplate | None,
    state: str | None,
) -> Chat:
    """A session's, a saved or a new conversation."""
    from rwkv_cpu.chat import Chat, open_session

    start = None if state is None else model.load_state(state)
    if saved is not None:
        return Chat.load(saved, model, state=start)
    if session is not None:
        return open_session(session, model, system, state=start, template=template)
    return Chat(model, system, state=start, template=template)


def _greeting(model: Model, name: str, session: str) -> list[str]:
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
    if session:
        lines.append(f"Session {session}: every turn is kept, whatever ends this program.")
    return [*lines, "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."]


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.expanduser().samefile(b)
    except OSError:
        return False
