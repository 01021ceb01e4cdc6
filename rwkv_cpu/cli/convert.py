# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu convert``: a model becomes safetensors, or GGUF for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkv_cpu.cli._options import json_option

if TYPE_CHECKING:
    from rwkv_cpu.export import Report


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16"]),
    help="Round to this. Default: exact, each tensor as it is stored; quantised ones become blocks in GGUF, f32 in "
    "safetensors.",
)
@click.option("--force", "-f", is_flag=True, help="Replace OUT if it exists.")
@json_option
def command(model: Path, out: Path, dtype: str | None, force: bool, as_json: bool) -> None:
    """Write MODEL (a .rwkv file or a checkpoint) as OUT.safetensors or OUT.gguf.

    safetensors: any version, with the names of the released checkpoints. GGUF: RWKV-6 and RWKV-7, for llama.cpp, with
    the tokenizer inside.
    """
    from rwkv_cpu.export import export
    from rwkv_cpu.terminal.progress import run_with_progress

    report = run_with_progress(
        f"{model.name} → {out.name}",
        lambda on_progress, cancel: export(
            model, out, dtype=dtype, force=force, on_progress=on_progress, cancel=cancel
        ),
    )
    click.echo(json.dumps(report.to_dict()) if as_json else _text(report))


def _text(report: Report) -> str:
    from rwkv_cpu.memory import human_bytes

    dtypes = ", ".join(f"{count} {name}" for name, count in report.dtypes.items())
    inside = report.tokenizer if report.kind == "gguf" else "not part of a safetensors file, keep it beside it"
    return (
        f"{report.target}\n"
        f"  {report.architecture}, tokenizer: {inside}\n"
        f"  {human_bytes(report.source_bytes)} → {human_bytes(report.target_bytes)}, tensors: {dtypes}\n"
        f"  {'every value exact' if report.exact else 'values rounded'}, {report.seconds:.1f} seconds"
    )
