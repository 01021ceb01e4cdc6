# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu bench``: speed and memory of a model on this machine."""

from __future__ import annotations

import sys

import click

from rwkv_cpu.cli._errors import WrongUse
from rwkv_cpu.cli._options import json_option, load_options, model_argument


@click.command()
@model_argument
@click.option(
    "--prompt", "-p", type=click.IntRange(1, 10_000_000), default=512, show_default=True, help="Tokens of the prompt."
)
@click.option(
    "--tokens", "-n", type=click.IntRange(1, 1_000_000), default=64, show_default=True, help="Tokens to generate."
)
@click.option("--repeats", "-r", type=click.IntRange(1, 1000), default=5, show_default=True, help="Measure so often.")
@click.option("--kernels", is_flag=True, help="Measure the engine's kernels by themselves, on every instruction set.")
@load_options
@json_option
def command(
    model: str,
    prompt: int,
    tokens: int,
    repeats: int,
    threads: int | None,
    weight_format: str | None,
    kernels: bool,
    as_json: bool,
) -> None:
    """Measure load time, prefill, decode and memory, beside this machine's limits.

    Nothing else should run meanwhile: every figure is the median of several passes. With --kernels no model is run:
    each kernel is measured with weights that are made up.
    """
    from rwkv_cpu import benchmark

    def progress(done: int, total: int) -> None:
        if not as_json and sys.stderr is not None and sys.stderr.isatty():
            click.echo(f"\rmeasuring {done}/{total}" if done < total else "\r\033[K", nl=False, err=True)

    if kernels:
        if model != "demo":
            hint = "Leave MODEL out, or measure it without --kernels."
            raise WrongUse("--kernels measures no model", click.get_current_context(), hint=hint)
        formats = [weight_format] if weight_format else None
        found = benchmark.run_kernels(threads=threads, formats=formats, repeats=repeats, on_progress=progress)
        click.echo(benchmark.kernels_as_json(found) if as_json else benchmark.kernels_as_text(found))
        return
    result = benchmark.run(
        model,
        prompt=prompt,
        tokens=tokens,
        repeats=repeats,
        threads=threads,
        format=weight_format,
        on_progress=progress,
    )
    click.echo(benchmark.as_json(result) if as_json else benchmark.as_text(result))
