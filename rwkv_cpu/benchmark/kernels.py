# SPDX-License-Identifier: Apache-2.0
"""The engine's kernels by themselves, each beside what this machine could do at best in the same second.

Decoding waits for memory, so its products are measured in bytes read per second beside the read bandwidth; a prompt's
products multiply integers, so they are measured in operations per second beside the int8 peak of the same instruction
set. Shapes are those of a 1.5-billion-parameter model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_cpu import engine
from rwkv_cpu.benchmark.runner import READ_BYTES, Spread
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["KernelResult", "run_kernels"]

_WIDTH, _FFN, _HEADS, _HEAD = 2048, 8192, 32, 64
_MANY = 256  # tokens of a pass
_COPIES = 24  # as many layers: together far beyond any cache


@dataclass(frozen=True)
class KernelResult:
    """One kernel on one instruction set.

    Attributes:
        zeros: share of the inputs that are 0. tokens: columns at once.
        gbs: 10^9 bytes of weights or state read per second; None where memory is not what it waits for.
        tops: 10^12 operations per second, two per multiply-add.
        share: of the read bandwidth, or of the int8 peak; None where no such limit applies.
    """

    isa: str
    kernel: str
    weight_format: str
    tokens: int
    zeros: float
    seconds: Spread
    gbs: Spread | None
    tops: Spread
    share: Spread | None


@dataclass(frozen=True)
class _Case:
    kernel: str
    weight_format: str
    tokens: int
    measure: Callable[[engine.Context], engine.PartCost]
    zeros: float = 0.0
    limit: str | None = None  # "read" or "int8"


def _product(
    kernel: str, kind: int, name: str, rows: int, cols: int, tokens: int, limit: str | None, zeros: float = 0.0
) -> _Case:
    code = engine.format_by_name(name)
    copies = _COPIES if tokens == 1 else 1
    return _Case(
        kernel,
        name,
        tokens,
        lambda context: context.measure_product(kind, code, rows, cols, tokens, copies=copies, zeros=zeros),
        zeros,
        limit,
    )


def _cases(formats: Sequence[str]) -> list[_Case]:
    found = []
    for name in formats:
        integer = name.startswith("q")
        peak = "int8" if integer else None
        found.append(_product("matrix", engine.KIND_MATRIX, name, _WIDTH, _WIDTH, 1, "read"))
        found.append(_product("matrix", engine.KIND_MATRIX, name, _WIDTH, _WIDTH, 8, None))
        found.append(_product("matrix", engine.KIND_MATRIX, name, _WIDTH, _WIDTH, _MANY, peak))
        if integer:
            found += [
                _product("value", engine.KIND_VALUE, name, _WIDTH, _FFN, 1, "read", zeros) for zeros in (0.0, 0.5, 0.87)
            ]
            found.append(_product("value", engine.KIND_VALUE, name, _WIDTH, _FFN, _MANY, peak))
    for tokens in (1, _MANY):
        copies = _COPIES if tokens == 1 else 1
        found.append(
            _Case(
                "recurrence",
                "f32",
                tokens,
                lambda context, tokens=tokens, copies=copies: context.measure_recurrence(  # type: ignore[misc]
                    _HEADS, _HEAD, tokens, copies=copies
                ),
            )
        )
    return found


def run_kernels(
    *,
    threads: int | None = None,
    isas: Sequence[str] | None = None,
    formats: Sequence[str] | None = None,
    repeats: int = 3,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[KernelResult]:
    """Measure every kernel on every instruction set that this machine has, *repeats* times by turns.

    Args:
        threads: None: one per physical core that this process may use.
        isas: names of instruction sets; None: all usable ones, best first.
        formats: names of weight formats; None: all quantised ones and f16.
        on_progress: called with (measurements done, to do).

    Raises:
        ArgumentError: an unknown format, or repeats below 1.
        UnsupportedModelError: an instruction set that is not here.
    """
    if repeats < 1:
        raise ArgumentError(f"repeats is {repeats}: it must be at least 1")
    names = list(isas) if isas is not None else [info.name for info in engine.isas() if info.usable]
    cases = _cases(formats if formats is not None else [*engine.quantised_formats(), "f16"])
    done, total = 0, len(names) * len(cases) * repeats
    found = []
    for name in names:
        context = engine.Context(threads, name)
        try:
            costs: list[list[engine.PartCost]] = [[] for _ in cases]
            limits: list[list[float | None]] = [[] for _ in cases]
            for _ in range(repeats):
                read, int8 = context.measure_read(READ_BYTES), context.measure_int8()
                for i, case in enumerate(cases):
                    costs[i].append(case.measure(context))
                    limits[i].append({"read": read, "int8": int8, None: None}[case.limit])
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
            found += [_result(name, *each) for each in zip(cases, costs, limits, strict=True)]
        finally:
            context.close()
    return found


def _result(isa: str, case: _Case, costs: list[engine.PartCost], limits: list[float | None]) -> KernelResult:
    bytes_rates = [cost.bytes / cost.seconds for cost in costs]
    operation_rates = [2 * cost.multiply_adds / cost.seconds for cost in costs]
    rates = bytes_rates if case.limit == "read" else operation_rates
    shares = [rate / limit for rate, limit in zip(rates, limits, strict=True) if limit]
    return KernelResult(
        isa=isa,
        kernel=case.kernel,
        weight_format=case.weight_format,
        tokens=case.tokens,
        zeros=case.zeros,
        seconds=Spread.of([cost.seconds for cost in costs]),
        gbs=Spread.of([rate / 1e9 for rate in bytes_rates]) if case.tokens == 1 else None,
        tops=Spread.of([rate / 1e12 for rate in operation_rates]),
        share=Spread.of(shares) if shares else None,
    )
