# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu serve``."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from rwkv_cpu.cli._errors import EXIT_INTERRUPTED, WrongUse
from rwkv_cpu.cli._options import load_options

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command(name="serve")
@click.argument("model", metavar="[MODEL]", required=False, default=None)
@load_options
@click.option("--stdio", is_flag=True, help="Speak JSON-RPC on standard input and output (the only way there is yet).")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of all messages, and end.")
@click.pass_context
def command(
    ctx: click.Context, model: str | None, threads: int | None, weight_format: str | None, stdio: bool, schema: bool
) -> None:
    """Serve models to another program, which starts this one (Electron, Tauri, an editor).

    Requests and answers are JSON-RPC 2.0, one message a line; docs/stdio.md describes them. MODEL is loaded at once;
    without it, the first request says which. The server ends when its standard input does.
    """
    if not stdio:
        hint = "write rwkv-cpu serve --stdio [MODEL]; programs speak to it as docs/stdio.md says"
        raise WrongUse("--stdio is missing: this version serves on standard input and output only", ctx, hint=hint)
    if schema:
        from rwkv_cpu.server.schema import schema_text

        click.echo(schema_text(), nl=False)
        return
    from rwkv_cpu.server.server import Server
    from rwkv_cpu.server.workspace import LoadOptions

    read, write = _streams()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        Server(read, write, LoadOptions(model, threads, weight_format)).run()
    except KeyboardInterrupt:  # click would write an empty line
        ctx.exit(EXIT_INTERRUPTED)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _streams() -> tuple[Callable[[int], bytes], Callable[[bytes], None]]:
    """Reading and writing the standard streams byte by byte. What else is printed goes to standard error."""
    source, target = os.dup(sys.stdin.fileno()), os.dup(sys.stdout.fileno())
    if sys.platform == "win32":
        import msvcrt

        for handle in (source, target):
            msvcrt.setmode(handle, os.O_BINARY)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]

    return lambda size: os.read(source, size), write
