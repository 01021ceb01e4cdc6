# SPDX-License-Identifier: Apache-2.0
"""Everything a quantisation report shows, measured: errors of tensors, sensitivity, divergence and speed by format."""

from __future__ import annotations

import dataclasses
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rwkv_cpu import benchmark, engine
from rwkv_cpu._version import __version__
from rwkv_cpu.benchmark.runner import cpu_name, load_average
from rwkv_cpu.errors import Cancelled
from rwkv_cpu.model import Model
from rwkv_cpu.modelfile import ModelFile
from rwkv_cpu.quantize import Report, Sensitivity, mixture, quantize
from rwkv_cpu.quantize.calibration import Reference, sample
from rwkv_cpu.softmax import Comparison, compare_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken

__all__ = ["Figures", "FormatFigures", "TensorFigures", "measure"]

LADDER = ("q8", "q6", "q5", "q4")
_HELD_OUT_SEED = 1  # calibration's samples are drawn with another one
_SAMPLES, _SAMPLE_TOKENS = 32, 256
_LOGITS_BYTES = 1 << 28  # of the original, which are kept
_MAX_EXACT_BYTES = 1 << 29  # originals up to this size are judged in f32, larger ones in f16
_QUANTILES = tuple(float(q) for q in (*np.linspace(0.05, 0.95, 19), 0.97, 0.98, 0.99, 0.995, 0.999))
_SPEED_PROMPT, _SPEED_TOKENS, _SPEED_REPEATS = 128, 32, 3


@dataclass(frozen=True)
class TensorFigures:
    """A tensor of the file.

    Attributes:
        role: its name without the layer. layer: None outside the layers.
        bits_per_weight: 8 × bytes / weights.
        relative_error: Σ (w - stored)² / Σ w² of its weights.
    """

    name: str
    role: str
    layer: int | None
    rows: int
    cols: int
    format: str
    size_bytes: int
    bits_per_weight: float
    relative_error: float


@dataclass(frozen=True)
class FormatFigures:
    """A format beside the original, on text that calibration did not see.

    Attributes:
        chosen: whether this is the file that was made; the others are made for comparison, without calibration.
        kl_mean, kl_error, kl_median, kl_99: KL(original‖format), nats a token; kl_error: standard error of the mean.
        kl_quantiles: at Figures.quantiles. top1: share of tokens with the same likeliest one.
        perplexity_ratio: format's / original's.
        decode, prefill: tokens a second here.
    """

    name: str
    chosen: bool
    calibration: str | None
    bits_per_weight: float
    file_bytes: int
    kl_mean: float
    kl_error: float
    kl_median: float
    kl_99: float
    kl_quantiles: list[float]
    top1: float
    perplexity_ratio: float
    decode: benchmark.Spread
    prefill: benchmark.Spread


@dataclass(frozen=True)
class Figures:
    """A whole report; see to_dict().

    Attributes:
        made: what quantize() says of the file. metadata: the file's.
        reference: how the original was run: "f32" or "f16". held_out_tokens: the divergences are of so many.
        measured_for_mixture: whether the sensitivities decided about the formats.
    """

    version: str
    made: Report
    metadata: dict[str, str]
    reference: str
    held_out_tokens: int
    quantiles: tuple[float, ...]
    tensors: list[TensorFigures]
    sensitivity: tuple[Sensitivity, ...]
    measured_for_mixture: bool
    formats: list[FormatFigures]
    machine: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"made": self.made.to_dict()}


class _Stages:
    """Progress through stages of known shares; each tells how much of it is done."""

    SHARES: ClassVar = {"reference": 6, "samples": 18, "errors": 6, "sensitivity": 30, "formats": 40}

    def __init__(self, on_progress: Callable[[int, int], None] | None, cancel: CancelToken | None) -> None:
        self._on_progress = on_progress
        self.cancel = cancel
        self._total = sum(self.SHARES.values())

    def tell(self, stage: str, share: float) -> None:
        """*share* of *stage* is done. Raises: Cancelled."""
        if self.cancel is not None and self.cancel.cancelled:
            raise Cancelled("the report was cancelled")
        if self._on_progress is not None:
            names = list(self.SHARES)
            before = sum(self.SHARES[name] for name in names[: names.index(stage)])
            self._on_progress(int(1000 * (before + min(share, 1) * self.SHARES[stage])), 1000 * self._total)


def measure(
    made: Report,
    given: Mapping[str, Any],
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Figures:
    """Measure what quantize() did.

    Args:
        made: its result; checkpoint and file must still be there.
        given: its arguments that say what the original is: lora, lora_alpha, pissa_init, gn_eps.
        threads: default: the physical cores. on_progress: called with (work done, work in all).

    Files for comparison are written beside the target and removed.
    Raises: whatever quantize() raises; Cancelled.
    """
    began = time.perf_counter()
    stages = _Stages(on_progress, cancel)
    given = {**given, "tokenizer": "none", "source_digest": False, "threads": threads, "cancel": cancel}
    exact = "f32" if 4 * made.parameters <= _MAX_EXACT_BYTES else "f16"
    with _temporary(made.target) as path:
        quantize(made.source, path, format=exact, on_progress=_within(stages, "reference"), **given)
        reference = Reference(path, threads, cancel)
    with reference:
        sequences = _held_out(reference, stages)
        tensors = list(_tensor_figures(reference, made, stages))
        measured = made.sensitivity or _sensitivity(reference, sequences, stages)
        formats = _formats(reference, sequences, made, given, stages)
    with ModelFile(made.target) as file:
        metadata = dict(file.metadata)
    return Figures(
        version=__version__,
        made=made,
        metadata=metadata,
        reference=exact,
        held_out_tokens=sum(len(tokens) - 1 for tokens in sequences),
        quantiles=_QUANTILES,
        tensors=tensors,
        sensitivity=tuple(measured),
        measured_for_mixture=bool(made.sensitivity),
        formats=formats,
        machine=_machine(threads),
        seconds=time.perf_counter() - began,
    )


def _machine(threads: int | None) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "isa": engine.default_isa(),
        "threads": threads or engine.default_threads(),
        "load_average": load_average(),
    }


class _temporary:  # noqa: N801 (a context manager, used like a function)
    """A name beside *target* for a file that is gone at the end."""

    def __init__(self, target: Path) -> None:
        self._path = target.with_name(f".rwkv_cpu-{secrets.token_hex(8)}.part")

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def _within(stages: _Stages, stage: str, first: float = 0.0, last: float = 1.0) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        stages.tell(stage, first + (last - first) * done / max(total, 1))

    return tell


def _held_out(reference: Reference, stages: _Stages) -> list[NDArray[np.uint32]]:
    """What the original writes by itself, with other random numbers than for calibration."""
    most = max(1024, _LOGITS_BYTES // (4 * reference.n_vocab))
    n, length = _SAMPLES, _SAMPLE_TOKENS
    while n * length > most:
        n, length = (n // 2, length) if n > 8 else (n, length // 2)
    done = 0

    def ran(tokens: int) -> None:
        nonlocal done
        done += tokens
        stages.tell("samples", done / (n * length))

    return sample(reference, ran, seed=_HELD_OUT_SEED, n=n, length=length)


def _tensor_figures(reference: Reference, made: Report, stages: _Stages) -> Iterator[TensorFigures]:
    with ModelFile(made.target) as file:
        opened = engine.OpenModel(file.buffer, str(made.target))
        raw = np.frombuffer(file.buffer, np.uint8)
        try:
            infos = [info for info in opened.tensors() if info.kind != engine.KIND_BYTES]
            for i, info in enumerate(infos):
                at = file.info.data_offset + info.offset
                exact = reference.weights(info.name)
                stored = engine.unpack(info, raw[at : at + info.size_bytes])
                square = float(np.vdot(exact, exact))
                stored -= exact
                lost = float(np.vdot(stored, stored))
                yield TensorFigures(
                    info.name,
                    info.name if info.layer is None else info.name.split(".", 2)[2],
                    info.layer,
                    info.rows,
                    info.cols,
                    engine.format_name(info.format),
                    info.size_bytes,
                    8 * info.size_bytes / (info.rows * info.cols),
                    lost / square if square else 0.0,
                )
                stages.tell("errors", (i + 1) / len(infos))
        finally:
            del raw
            opened.close()


def _sensitivity(reference: Reference, sequences: list[NDArray[np.uint32]], stages: _Stages) -> tuple[Sensitivity, ...]:
    weights = mixture.integer_tensors([info.with_format(engine.FORMAT_Q4) for info in reference.infos.values()])
    total = mixture.tokens_to_run(reference, sequences, weights)
    done = 0

    def ran(tokens: int) -> None:
        nonlocal done
        done += tokens
        stages.tell("sensitivity", done / total)

    return tuple(mixture.measure(reference, sequences, weights, ran))


def _formats(
    reference: Reference,
    sequences: list[NDArray[np.uint32]],
    made: Report,
    given: Mapping[str, Any],
    stages: _Stages,
) -> list[FormatFigures]:
    """The file that was made, then each format without calibration, but for the one that it is itself."""
    exact = [reference.run(batch, logits=True) for batch in reference.batches(sequences)]
    judge = _Judge(list(reference.batches(sequences)), exact, given["threads"], stages.cancel)
    found = [judge.figures(made.target, made, chosen=True)]
    others = [name for name in LADDER if made.calibration or name != made.format]
    for i, name in enumerate(others, 1):
        stages.tell("formats", i / (len(others) + 1))
        with _temporary(made.target) as path:
            report = quantize(made.source, path, format=name, **given)
            found.append(judge.figures(path, report, chosen=False))
    stages.tell("formats", 1)
    return found


@dataclass(frozen=True)
class _Judge:
    """Runs files over the held-out sequences beside the original's logits."""

    batches: list[list[NDArray[np.uint32]]]
    exact: list[NDArray[np.float32]]
    threads: int | None
    cancel: CancelToken | None

    def figures(self, path: Path, report: Report, *, chosen: bool) -> FormatFigures:
        parts: list[Comparison] = []
        with Model(path, threads=self.threads) as model:
            for batch, exact in zip(self.batches, self.exact, strict=True):
                found, _ = model.forward_batch(batch, logits="all", cancel=self.cancel)
                begin = 0
                for tokens, logits in zip(batch, found, strict=True):
                    if logits is not None:
                        own = slice(begin, begin + len(tokens) - 1)
                        parts.append(compare_rows(exact[own], logits[:-1], tokens[1:]))
                    begin += len(tokens)
        rows = Comparison(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        kl = np.maximum(rows.kl, 0)
        speed = benchmark.run(
            path,
            prompt=_SPEED_PROMPT,
            tokens=_SPEED_TOKENS,
            repeats=_SPEED_REPEATS,
            threads=self.threads,
            cancel=self.cancel,
        )
        return FormatFigures(
            name=report.format,
            chosen=chosen,
            calibration=report.calibration,
            bits_per_weight=report.bits_per_weight,
            file_bytes=report.target_bytes,
            kl_mean=float(kl.mean()),
            kl_error=float(np.std([part.kl.mean() for part in parts]) / np.sqrt(len(parts))),
            kl_median=float(np.median(kl)),
            kl_99=float(np.quantile(kl, 0.99)),
            kl_quantiles=[float(x) for x in np.quantile(kl, _QUANTILES)],
            top1=float(rows.same.mean()),
            perplexity_ratio=float(np.exp((rows.loss - rows.reference_loss).mean())),
            decode=speed.decode_tokens_per_s,
            prefill=speed.prefill_tokens_per_s,
        )
