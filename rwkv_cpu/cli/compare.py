# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu compare``: two models side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkv_cpu.cli._errors import WrongUse, warn
from rwkv_cpu.cli._options import json_option, unescape

if TYPE_CHECKING:
    from rwkv_cpu.evaluation.continuations import Continuations


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--prompt", "-p", "prompts", multiple=True, metavar="TEXT", help="The text to continue. Repeatable.")
@click.option(
    "--file", "-f", type=click.Path(path_type=Path), metavar="FILE", help="Prompts, one a line (\\n: new line)."
)
@click.option(
    "--max-tokens", "-n", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Tokens to continue by."
)
@click.option("--threads", "-t", type=click.IntRange(min=1), metavar="N", help="Default: the physical cores.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    first: str,
    second: str,
    prompts: tuple[str, ...],
    file: Path | None,
    max_tokens: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Continue the same text greedily with the models A and B, and show where they part.

    A's tokens are coloured by the KL divergence of B's predictions on the same text; where B would have chosen
    otherwise, the likeliest tokens of both are listed. A checkpoint is converted first (q8). Without a prompt the
    models begin a document.
    """
    from rwkv_cpu.evaluation.continuations import compare_continuations
    from rwkv_cpu.terminal.comparison import show
    from rwkv_cpu.terminal.loading import open_model
    from rwkv_cpu.terminal.progress import run_with_progress

    texts = [unescape(text) for text in prompts]
    if file is not None:
        from rwkv_cpu.textfile import read_text

        texts += [unescape(line) for line in read_text(file).splitlines() if line.strip()]
        if not texts:
            raise WrongUse(f"{file} has no prompt", ctx, hint="it should have one a line")
    names = (Path(first).name, Path(second).name)
    if names[0] == names[1]:
        names = (first, second)
    with (
        open_model(first, threads=threads, warn=warn) as one,
        open_model(second, threads=threads, warn=warn) as other,
    ):

        def compared(text: str) -> Continuations:
            return run_with_progress(
                "comparing",
                lambda on_progress, cancel: compare_continuations(
                    one, other, text, tokens=max_tokens, cancel=cancel, on_progress=on_progress
                ),
            )

        found = [compared(text) for text in texts or [""]]
    if as_json:
        click.echo(json.dumps({"a": first, "b": second, "prompts": [one.to_dict() for one in found]}))
    else:
        show(found, names)
