# SPDX-License-Identifier: Apache-2.0
"""The ``rwkv-cpu`` command: a group whose commands are imported when they are used.

To add a command: a module in this folder with a click command named ``command``, and a row in COMMANDS.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rwkv_cpu.cli import _errors

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# name → (module, one line of help). The line stands here so that `rwkv-cpu --help` imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "chat": ("rwkv_cpu.cli.chat", "Chat with a model in the terminal."),
    "sessions": ("rwkv_cpu.cli.sessions", "List, show, export and delete named conversations."),
    "generate": ("rwkv_cpu.cli.generate", "Continue a text once and print it."),
    "serve": ("rwkv_cpu.cli.serve", "Serve models to another program (JSON-RPC)."),
    "quantize": ("rwkv_cpu.cli.quantize", "Turn a checkpoint into a compact .rwkv file."),
    "convert": ("rwkv_cpu.cli.convert", "Write a model as safetensors or GGUF."),
    "compare": ("rwkv_cpu.cli.compare", "Show where two models' continuations part."),
    "info": ("rwkv_cpu.cli.info", "Describe a model file, or this machine."),
    "eval": ("rwkv_cpu.cli.eval", "Measure quality: perplexity, divergence, accuracy, recall."),
    "bench": ("rwkv_cpu.cli.bench", "Measure speed and memory."),
    "cache": ("rwkv_cpu.cli.cache", "List and clear converted checkpoints."),
}

# Commands whose first word people wait for. OpenBLAS, which comes with numpy, starts a thread per core when it is
# imported, and they spin: 40 ms of processor time on 2 cores. These commands multiply with the engine alone.
_WITHOUT_BLAS = ("chat", "generate", "info", "serve")

_WELCOME = """\
rwkv-cpu runs RWKV language models on this computer's CPU. To begin:

  rwkv-cpu chat                  chat with the small model that came along, offline
  rwkv-cpu chat MODEL            chat with your own: a .rwkv file or a checkpoint
  rwkv-cpu info                  what this machine can do, and what would be used

rwkv-cpu --help lists all commands, rwkv-cpu COMMAND --help one command's options.
"""


class _LazyGroup(click.Group):
    """A group that reads COMMANDS, suggests near misses, and ends as _errors.py says."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in _WITHOUT_BLAS:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            _unknown_command(ctx, args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse and run; with *standalone_mode* leave the process with the exit codes of _errors.py."""
        given = list(sys.argv[1:] if args is None else args)
        parse = super().main

        def command() -> Any:
            try:
                result = parse(given, prog_name or "rwkv-cpu", complete_var, standalone_mode=False, **extra)
            except click.UsageError as error:
                name = next((word for word in given if word in COMMANDS), None)
                if error.ctx is not None or name is None:
                    raise
                # click's parser does not say which command's option it was.
                hint = f"{prog_name or 'rwkv-cpu'} {name} --help lists what it takes"
                raise _errors.WrongUse(error.format_message(), hint=hint) from error
            # Outside standalone mode click returns the code of ctx.exit() instead of raising.
            if isinstance(result, int) and result != 0:
                raise click.exceptions.Exit(result)
            return result

        if not standalone_mode:
            return command()
        return sys.exit(_errors.run(command, debug=lambda: "--debug" in given))


def _unknown_command(ctx: click.Context, name: str) -> NoReturn:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if near:
        hint = f"Did you mean `{ctx.command_path} {near[0]}`?"
    elif Path(name).exists() or Path(name).suffix in (".rwkv", ".pth", ".safetensors", ".gguf"):
        hint = f"Did you mean `{ctx.command_path} chat {name}`?"
    else:
        hint = f"the commands are {', '.join(COMMANDS)}"
    raise _errors.WrongUse(f"no command {name!r}", ctx, hint=hint)


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from rwkv_cpu._version import __version__

        click.echo(f"rwkv-cpu {__version__}")
        ctx.exit()


@click.group(
    name="rwkv-cpu",
    cls=_LazyGroup,
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
@click.option("--debug", is_flag=True, help="Log what happens to stderr, with tracebacks of errors.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """RWKV language models on an ordinary CPU."""
    if debug:
        logging.basicConfig(format="%(relativeCreated)7.0f ms %(name)s: %(message)s")
        logging.getLogger("rwkv_cpu").setLevel(logging.DEBUG)
    if ctx.invoked_subcommand is None:
        click.echo(_WELCOME, nl=False)
