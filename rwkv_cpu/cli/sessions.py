# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu sessions``: conversations that ``rwkv-cpu chat --session NAME`` keeps."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from rwkv_cpu.cli._options import json_option


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, show, export and delete named conversations.

    rwkv-cpu chat --session NAME begins one, or goes on with it. RWKV_CPU_HOME moves the place.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, as_json=as_json)


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List them, the one used last first."""
    from rwkv_cpu.chat.sessions import list_sessions
    from rwkv_cpu.memory import human_bytes

    found = list_sessions()
    if as_json:
        rows = [{**asdict(info), "changed": info.changed.isoformat(timespec="seconds")} for info in found]
        click.echo(json.dumps({"sessions": rows}, ensure_ascii=False))
        return
    if not found:
        click.echo("no sessions yet; rwkv-cpu chat --session NAME begins one")
    for info in found:
        turns = f"{info.turns} turn{'' if info.turns == 1 else 's'}"
        what = f"damaged: {info.damaged}" if info.damaged else _one_line(info.first)
        size = human_bytes(info.size_bytes)
        click.echo(f"{info.name:16}  {info.changed:%Y-%m-%d %H:%M}  {turns:>9}  {size:>9}  {what}")


@command.command("show")
@click.argument("name")
@click.option("--thoughts", is_flag=True, help="With what the model thought before its answers.")
def show(name: str, thoughts: bool) -> None:
    """Print the conversation NAME."""
    from rwkv_cpu.chat.sessions import export_session

    _print(export_session(name, thoughts=thoughts))


@command.command("export")
@click.argument("name")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["markdown", "json"]),
    default=None,
    help="Default: by FILE's name, or markdown.",
)
@click.option("--output", "-o", type=click.Path(), default=None, metavar="FILE", help="Default: stdout.")
@click.option("--thoughts", is_flag=True, help="With what the model thought before its answers (JSON always has it).")
def export(name: str, kind: str | None, output: str | None, thoughts: bool) -> None:
    """Write the conversation NAME as Markdown or JSON."""
    from rwkv_cpu.chat.sessions import export_session
    from rwkv_cpu.chat.store import write_private

    if kind is None:
        kind = "json" if output is not None and Path(output).suffix == ".json" else "markdown"
    text = export_session(name, kind, thoughts=thoughts)
    if output is None:
        _print(text)
    else:
        write_private(Path(output), text.encode("utf-8", "replace"))


@command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, names: tuple[str, ...], yes: bool) -> None:
    """Delete conversations with everything in them."""
    from rwkv_cpu.chat.sessions import delete_session, session_info

    for name in names:
        info = session_info(name)
        turns = f"{info.turns} turn{'' if info.turns == 1 else 's'}"
        if not yes and sys.stdin.isatty() and not click.confirm(f"Delete {name!r} with its {turns}?"):
            ctx.exit(1)
        delete_session(name)
        click.echo(f"deleted {name}")


def _print(text: str) -> None:
    from rwkv_cpu.terminal.render import harmless

    click.echo(harmless(text) if sys.stdout.isatty() else text, nl=False)


def _one_line(text: str, width: int = 50) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
