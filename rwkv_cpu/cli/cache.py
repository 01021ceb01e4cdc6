# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu cache``: checkpoints that were opened directly leave their converted form here."""

from __future__ import annotations

import json

import click

from rwkv_cpu.cli._options import json_option


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List and clear converted checkpoints.

    A checkpoint that is opened directly is converted once and kept here. RWKV_CPU_HOME moves the place.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_cache, as_json=as_json)


@command.command("list")
@json_option
def list_cache(as_json: bool) -> None:
    """Show what is kept, and where."""
    from rwkv_cpu.loading import cached_models
    from rwkv_cpu.memory import human_bytes
    from rwkv_cpu.places import cache_directory

    folder, models = cache_directory(), cached_models()
    total = sum(model.size_bytes for model in models)
    if as_json:
        rows = [
            {"path": str(m.path), "source": m.source, "format": m.format, "size_bytes": m.size_bytes} for m in models
        ]
        click.echo(json.dumps({"directory": str(folder), "size_bytes": total, "models": rows}))
        return
    for model in models:
        click.echo(f"{human_bytes(model.size_bytes):>9}  {model.format or '?':4}  {model.path.name}")
    click.echo(f"{folder}: {len(models)} file{'' if len(models) == 1 else 's'}, {human_bytes(total)}")


@command.command("clear")
@json_option
def clear(as_json: bool) -> None:
    """Delete all of it. Models are converted again when they are next opened."""
    from rwkv_cpu.loading import clear_cache
    from rwkv_cpu.memory import human_bytes
    from rwkv_cpu.places import cache_directory

    freed = clear_cache()
    if as_json:
        click.echo(json.dumps({"directory": str(cache_directory()), "freed_bytes": freed}))
    else:
        click.echo(f"{human_bytes(freed)} freed in {cache_directory()}")
