# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu quantize``: a checkpoint becomes a compact .rwkv file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkv_cpu.cli._options import json_option

if TYPE_CHECKING:
    from rwkv_cpu.quantize import Report


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--format",
    "weight_format",
    type=click.Choice(["q8", "q6", "q5", "q4", "f16", "f32"]),
    default="q8",
    show_default=True,
)
@click.option(
    "--tokenizer",
    metavar="FILE",
    help="A World vocabulary, a sentencepiece .model or a tokenizer.json; 'none' for none. Default: the "
    "checkpoint's own, FILE.model beside it, World's where the vocabulary has its size, tokenizer.json beside it.",
)
@click.option("--chat-template", metavar="NAME|JSON|FILE", help="What the file's chats look like. Default: world.")
@click.option(
    "--lora",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Merge this adapter (LoRA or PiSSA, as RWKV-PEFT writes them).",
)
@click.option("--lora-alpha", type=float, metavar="X", help="The alpha it was trained with; it is not in the file.")
@click.option(
    "--pissa-init", type=click.Path(path_type=Path), metavar="FILE", help="For PiSSA: the file of initial factors."
)
@click.option("--threads", "-t", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--force", "-f", is_flag=True, help="Replace OUT if it exists.")
@json_option
def command(
    checkpoint: Path,
    out: Path | None,
    weight_format: str,
    tokenizer: str | None,
    chat_template: str | None,
    lora: Path | None,
    lora_alpha: float | None,
    pissa_init: Path | None,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a trained CHECKPOINT into the .rwkv file OUT.

    Without OUT the file gets the checkpoint's name and the format's: model.pth → model-q8.rwkv. Tokenizer and chat
    template travel inside.
    """
    from rwkv_cpu.quantize import quantize
    from rwkv_cpu.terminal.progress import run_with_progress

    stem = checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem
    target = out or checkpoint.parent / f"{stem}-{weight_format}.rwkv"
    report = run_with_progress(
        f"{checkpoint.name} → {target.name}",
        lambda on_progress, cancel: quantize(
            checkpoint,
            target,
            format=weight_format,
            tokenizer=tokenizer,
            chat_template=_template_bytes(chat_template),
            lora=lora,
            lora_alpha=lora_alpha,
            pissa_init=pissa_init,
            threads=threads,
            force=force,
            on_progress=on_progress,
            cancel=cancel,
        ),
    )
    click.echo(json.dumps(report.to_dict()) if as_json else _text(report))


def _template_bytes(given: str | None) -> bytes | None:
    """A template's name, its JSON or a file with either, checked before the work begins."""
    if given is None:
        return None
    from rwkv_cpu.chat.template import ChatTemplate

    # A name or JSON is no path, and may be too long for one.
    is_file = len(given) < 1024 and not given.lstrip().startswith("{") and Path(given).is_file()
    data = Path(given).read_bytes() if is_file else given.encode()
    ChatTemplate.from_bytes(data)
    return data


def _text(report: Report) -> str:
    from rwkv_cpu.memory import human_bytes

    formats = ", ".join(f"{count} {name}" for name, count in report.formats.items())
    return (
        f"{report.target}\n"
        f"  {report.architecture}, {report.parameters / 1e6:.1f} M weights, tokenizer: {report.tokenizer}\n"
        f"  {human_bytes(report.source_bytes)} → {human_bytes(report.target_bytes)}, tensors: {formats}\n"
        f"  {report.bits_per_weight:.2f} bits per weight ({report.file_bits_per_weight:.2f} with everything)\n"
        f"  {report.seconds:.1f} seconds"
    )
