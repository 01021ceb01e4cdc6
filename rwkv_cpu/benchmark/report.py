# SPDX-License-Identifier: Apache-2.0
"""A benchmark's result as JSON and as text."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from rwkv_cpu.memory import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rwkv_cpu.benchmark.kernels import KernelResult
    from rwkv_cpu.benchmark.runner import BenchmarkResult, Spread

__all__ = ["as_json", "as_text", "kernels_as_json", "kernels_as_text"]


def as_json(result: BenchmarkResult) -> str:
    """One object; what was measured is {"median": …, "min": …, "max": …}."""
    return json.dumps(dataclasses.asdict(result), indent=2)


def as_text(result: BenchmarkResult) -> str:
    """A table for people: median, and in brackets the extremes."""
    rows = [
        ("load", _spread(result.load_seconds, 1e3, "ms")),
        ("prefill", _spread(result.prefill_tokens_per_s, 1, "tokens/s")),
        ("decode", _spread(result.decode_tokens_per_s, 1, "tokens/s")),
        ("first token", _spread(result.first_token_seconds, 1e3, "ms")),
        ("read bandwidth", _spread(result.read_bandwidth_gbs, 1, "GB/s")),
        ("int8 peak", _spread(result.int8_tops, 1, "TOPS")),
        ("decode / bandwidth", _spread(result.decode_bandwidth_share, 100, "%")),
        ("prefill / int8 peak", _spread(result.prefill_int8_share, 100, "%")),
        ("weights per token", human_bytes(result.weight_bytes_per_token)),
        ("read per token", f"{human_bytes(result.read_bytes_per_token)}, {100 * result.skipped_share:.0f} % skipped"),
        ("state", human_bytes(result.state_bytes)),
        ("peak memory", human_bytes(result.peak_memory_bytes)),
    ]
    width = max(len(name) for name, _ in rows)
    load = "" if result.load_average is None else f", load average {result.load_average:.1f}"
    counts = f"{result.prompt_tokens} tokens of prompt, {result.generated_tokens} generated"
    head = [
        f"{result.model}: {counts}, median of {result.repeats} (min … max)",
        f"rwkv_cpu {result.version}, {result.isa}, {result.threads} threads on {result.cpu}{load}",
        "",
    ]
    return "\n".join([*head, *(f"{name:<{width}}  {value}" for name, value in rows)])


def kernels_as_json(results: Sequence[KernelResult]) -> str:
    """A list of objects, one per kernel and instruction set."""
    return json.dumps([dataclasses.asdict(result) for result in results], indent=2)


def kernels_as_text(results: Sequence[KernelResult]) -> str:
    """A table for people: medians."""
    rows = [("isa", "kernel", "format", "tokens", "zeros", "time", "GB/s", "TOPS", "of the limit")]
    for result in results:
        gbs = "" if result.gbs is None else _number(result.gbs.median)
        share = "" if result.share is None else f"{100 * result.share.median:.0f} %"
        zeros = f"{100 * result.zeros:.0f} %" if result.kernel == "value" else ""
        took = f"{_number(1e6 * result.seconds.median)} µs"
        tops = _number(result.tops.median)
        names = (result.isa, result.kernel, result.weight_format, str(result.tokens), zeros)
        rows.append((*names, took, gbs, tops, share))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, figures to the right."""
    names = 3
    return [
        cell.ljust(width) if i < names else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _spread(spread: Spread, factor: float, unit: str) -> str:
    median, low, high = (_number(factor * value) for value in (spread.median, spread.min, spread.max))
    return f"{median} {unit} ({low} … {high})"


def _number(value: float) -> str:
    """Three significant digits without an exponent."""
    for digits, limit in ((0, 100), (1, 10), (2, 1)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"
