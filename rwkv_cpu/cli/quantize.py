# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu quantize``: a checkpoint becomes a compact .rwkv file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    help="How the matrices are stored. Default: q8. In q4 embedding and head are q5, in q5 the embedding is q6.",
)
@click.option(
    "--bits",
    type=click.FloatRange(4.5, 8.5),
    metavar="B",
    help="Instead of --format: bits per weight on average, 4.5 to 8.5. Matrices get q4 to q8, more bits where the "
    "model is more sensitive, which is measured.",
)
@click.option("--size", metavar="SIZE", help="Instead of --format: such a mixture for a file of at most 900MB, 1.5GB…")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text for calibration, like those the model will be used for. Default: a built-in one for q4, q5, q6, "
    "--bits and --size, none for q8. 'default' is the built-in one.",
)
@click.option("--no-calibration", is_flag=True, help="Look at the weights only: seconds instead of minutes.")
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
@click.option(
    "--report",
    "report_directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Measure what it cost and how fast it runs; write DIR/index.html to look at, and DIR/report.json.",
)
@click.option(
    "--digest/--no-digest",
    default=None,
    help="Put the checkpoint's sha256 into the file. Default: with calibration only; without, it would take longest.",
)
@click.option("--threads", "-t", type=click.IntRange(min=1), help="Default: the physical cores.")
@click.option("--force", "-f", is_flag=True, help="Replace OUT if it exists.")
@json_option
def command(
    checkpoint: Path,
    out: Path | None,
    weight_format: str | None,
    bits: float | None,
    size: str | None,
    calibration: Path | None,
    no_calibration: bool,
    tokenizer: str | None,
    chat_template: str | None,
    lora: Path | None,
    lora_alpha: float | None,
    pissa_init: Path | None,
    report_directory: Path | None,
    digest: bool | None,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a trained CHECKPOINT into the .rwkv file OUT.

    Without OUT the file gets the checkpoint's name and the format's: model.pth → model-q8.rwkv. Tokenizer and chat
    template travel inside. Below 8 bits the model is calibrated: it runs over a text and over samples of its own, and
    its weights are rounded so that its outputs there stay the same. That takes minutes for a billion weights.
    """
    from rwkv_cpu.quantize import quantize
    from rwkv_cpu.terminal.progress import run_with_progress

    if (weight_format is not None) + (bits is not None) + (size is not None) > 1:
        raise click.UsageError("--format, --bits and --size are three ways to say the same: give one of them")
    if calibration is not None and no_calibration:
        raise click.UsageError("--calibration and --no-calibration contradict each other")
    size_bytes = None if size is None else _bytes(size)
    if calibration is None and not no_calibration and weight_format not in (None, "q8", "f16", "f32"):
        calibration = Path("default")
    if calibration is None and not no_calibration and (bits is not None or size is not None):
        calibration = Path("default")
    stem = checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem
    kind = weight_format or (f"{bits:g}bit" if bits is not None else size.replace(" ", "") if size else "q8")
    target = out or checkpoint.parent / f"{stem}-{kind}.rwkv"
    if report_directory is not None:
        from rwkv_cpu.report import check_ready

        check_ready(report_directory)
    report = run_with_progress(
        f"{checkpoint.name} → {target.name}",
        lambda on_progress, cancel: quantize(
            checkpoint,
            target,
            format=weight_format,
            bits=bits,
            size_bytes=size_bytes,
            calibration=None if calibration is None else str(calibration),
            tokenizer=tokenizer,
            chat_template=_template_bytes(chat_template),
            lora=lora,
            lora_alpha=lora_alpha,
            pissa_init=pissa_init,
            source_digest=digest,
            threads=threads,
            force=force,
            on_progress=on_progress,
            cancel=cancel,
        ),
    )
    page = None
    if report_directory is not None:
        given = {"lora": lora, "lora_alpha": lora_alpha, "pissa_init": pissa_init}
        page = _write_report(report, report_directory, given, threads)
    if as_json:
        click.echo(json.dumps(report.to_dict() | ({} if page is None else {"report": str(page)})))
    else:
        click.echo(_text(report) + ("" if page is None else f"\n  report: {page}"))


def _write_report(report: Report, directory: Path, given: dict[str, Any], threads: int | None) -> Path:
    """Measure, write, and say where; the file is there already, whatever happens."""
    from rwkv_cpu.report import measure, write
    from rwkv_cpu.terminal.progress import run_with_progress

    figures = run_with_progress(
        f"{report.target.name} → report",
        lambda on_progress, cancel: measure(report, given, threads=threads, on_progress=on_progress, cancel=cancel),
    )
    return write(figures, directory)


def _bytes(text: str) -> int:
    """900MB, 1.5 GB, 800MiB or a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?\s*", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no size: 900MB, 1.5GB or 800MiB are", param_hint="--size")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(unit.replace("K", "k") or " "))


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
        f"  calibration: {report.calibration or 'none'}\n"
        f"  {report.seconds:.1f} seconds"
    )
