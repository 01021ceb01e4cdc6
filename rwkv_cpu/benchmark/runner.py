# SPDX-License-Identifier: Apache-2.0
"""Measure a model: load, prefill, decode, and between them the machine's own limits.

Machines drift, shared ones most of all. So each repeat measures everything once, in turn, and what is reported is
the median with the extremes; shares are taken within a repeat, never across.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu._version import __version__
from rwkv_cpu.benchmark import traffic
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.memory import available_bytes
from rwkv_cpu.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rwkv_cpu.cancel import CancelToken

__all__ = ["BenchmarkResult", "Spread", "run"]

log = logging.getLogger("rwkv_cpu")

# Far beyond any cache, so that reading it is reading memory; less where memory is short.
READ_BYTES = 512 << 20

# Ordinary prose: how many inputs of the channel mix are zero, and so the speed, depends on the text making sense.
PROSE = """The river rises in the hills above the town, a narrow stream that a child can step across in summer. By the
time it reaches the old mill it is wide enough for boats, and in spring, when the snow melts, it covers the meadows on
both sides. People here have always lived with the water. They build their houses on the higher bank, they know which
path stays dry, and they tell each other every year that the flood was worse when they were young. The mill no longer
grinds corn; its wheel turns for visitors on Sundays. But the baker next door still buys flour from the farm across the
bridge, and the bread is as good as it ever was. Ask anyone why they stay, and they will talk about the light on the
water in the evening. """


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one measurement."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything `rwkv-cpu bench` reports; units are in the names, rates are per second.

    Attributes:
        weight_bytes_per_token: what decoding one token reads with no zero input skipped.
        multiply_adds_per_token: of the matrix products of prefill (the head runs for the last token only).
        read_bytes_per_token: what it did read: without the columns that zeros skipped, with the state, each once.
        skipped_share: of the channel mix's inputs, those whose column was not read.
        decode_bandwidth_share: read_bytes_per_token x decode rate / read bandwidth. Beyond 1 where the weights fit
            into a cache.
        prefill_int8_share: 2 x multiply_adds_per_token x prefill rate / int8 peak.
        peak_memory_bytes: most this process ever held, mapped weights included, before the limits were measured.
    """

    model: str
    version: str
    isa: str
    threads: int
    cpu: str
    load_average: float | None
    repeats: int
    prompt_tokens: int
    generated_tokens: int
    load_seconds: Spread
    first_token_seconds: Spread
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    read_bandwidth_gbs: Spread
    int8_tops: Spread
    decode_bandwidth_share: Spread
    prefill_int8_share: Spread
    weight_bytes_per_token: int
    read_bytes_per_token: int
    skipped_share: float
    multiply_adds_per_token: int
    state_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class _Pass:
    """One repeat; rates per second."""

    load_seconds: float
    first_token_seconds: float
    prefill_rate: float
    decode_rate: float
    read_rate: float
    int8_rate: float


def run(
    model: str | os.PathLike[str] = "demo",
    *,
    prompt: int = 512,
    tokens: int = 64,
    threads: int | None = None,
    isa: str | None = None,
    format: str | None = None,  # noqa: A002 (its name everywhere)
    repeats: int = 5,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> BenchmarkResult:
    """Measure *model* (a bundled name, a .rwkv file or a checkpoint, which is converted before the clock starts).

    Args:
        prompt: tokens of the prompt, at least 1.
        tokens: tokens to generate after it, at least 1, greedily.
        threads, isa, format: as Model.load has them.
        repeats: how often everything is measured, at least 1, after one pass that warms up.
        on_progress: called with (passes done, passes to do).
        cancel: stops between passes and inside a forward.

    Raises:
        ArgumentError: a count below 1.
        Cancelled: *cancel* was set.
        RwkvError: whatever opening the model raises.
    """
    for name, value in (("prompt", prompt), ("tokens", tokens), ("repeats", repeats)):
        if value < 1:
            raise ArgumentError(f"{name} is {value}: it must be at least 1")
    load: dict[str, Any] = {"format": format, "threads": threads, "isa": isa}

    def report(done: int) -> None:
        if on_progress is not None:
            on_progress(done, repeats + 1)

    report(0)
    passes: list[_Pass] = []
    with Model.load(model, cancel=cancel, **load) as opened:  # converts a checkpoint once
        ids = _prompt_ids(opened, prompt)
        _measure(opened, ids, tokens, cancel)  # reads the pages once
        peak = peak_memory_bytes()
        report(1)
        before = opened.context.value_reads
        for repeat in range(repeats):
            read = opened.context.measure_read(_read_bytes())
            start = time.perf_counter()
            Model.load(opened.path, **load).close()
            loaded = time.perf_counter() - start
            first_token, prefill, decode = _measure(opened, ids, tokens, cancel)
            passes.append(_Pass(loaded, first_token, prefill, decode, read, opened.context.measure_int8()))
            log.debug("benchmark pass %d: %s", repeat, passes[-1])
            report(repeat + 2)
        reads = opened.context.value_reads.since(before)
        token_bytes = traffic.bytes_per_token(opened, reads, repeats * tokens)
        weight_bytes, multiply_adds = opened.token_bytes, traffic.multiply_adds_per_token(opened)
        threads_used, isa_used, state_bytes = opened.threads, opened.isa, opened.state_bytes

    return BenchmarkResult(
        model=str(model),
        version=__version__,
        isa=isa_used,
        threads=threads_used,
        cpu=cpu_name(),
        load_average=load_average(),
        repeats=repeats,
        prompt_tokens=prompt,
        generated_tokens=tokens,
        load_seconds=Spread.of([p.load_seconds for p in passes]),
        first_token_seconds=Spread.of([p.first_token_seconds for p in passes]),
        prefill_tokens_per_s=Spread.of([p.prefill_rate for p in passes]),
        decode_tokens_per_s=Spread.of([p.decode_rate for p in passes]),
        read_bandwidth_gbs=Spread.of([p.read_rate / 1e9 for p in passes]),
        int8_tops=Spread.of([p.int8_rate / 1e12 for p in passes]),
        decode_bandwidth_share=Spread.of([token_bytes * p.decode_rate / p.read_rate for p in passes]),
        prefill_int8_share=Spread.of([2 * multiply_adds * p.prefill_rate / p.int8_rate for p in passes]),
        weight_bytes_per_token=weight_bytes,
        read_bytes_per_token=round(token_bytes),
        skipped_share=traffic.zero_share(reads),
        multiply_adds_per_token=multiply_adds,
        state_bytes=state_bytes,
        peak_memory_bytes=peak,
    )


def _measure(model: Model, prompt: list[int], tokens: int, cancel: CancelToken | None) -> tuple[float, float, float]:
    """(seconds to the first token, prefill rate, decode rate)."""
    state = model.new_state()
    start = time.perf_counter()
    logits = model.advance(prompt, state, cancel=cancel)
    prefilled = time.perf_counter()
    token = int(logits.argmax())
    first = time.perf_counter()
    for _ in range(tokens):
        token = int(model.advance([token], state, cancel=cancel).argmax())
    end = time.perf_counter()
    return first - start, len(prompt) / (prefilled - start), tokens / (end - first)


def _prompt_ids(model: Model, n: int) -> list[int]:
    """n tokens of prose, or of the vocabulary in turn where the model has no tokenizer."""
    ids = model.tokenizer.encode(PROSE) if model.has_tokenizer else []
    if not ids:
        ids = [(token * 31 + 7) % model.n_vocab for token in range(min(n, 4096))]
    return [ids[i % len(ids)] for i in range(n)]


def _read_bytes() -> int:
    available = available_bytes()
    return READ_BYTES if available is None else max(min(READ_BYTES, available // 4), 1 << 20)


def peak_memory_bytes() -> int:
    """The most memory this process held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """Programs that want a processor, over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
