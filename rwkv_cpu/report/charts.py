# SPDX-License-Identifier: Apache-2.0
"""Where everything in a plot stands. The page's template draws what is computed here; colours are the page's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rwkv_cpu.memory import human_bytes
from rwkv_cpu.report.figures import LADDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rwkv_cpu.benchmark import Spread
    from rwkv_cpu.quantize import Sensitivity
    from rwkv_cpu.report.figures import Figures, FormatFigures, TensorFigures

__all__ = [
    "Axis",
    "Bar",
    "Curve",
    "Grid",
    "Plot",
    "divergence_over_bits",
    "sensitivity_bars",
    "size_parts",
    "small",
    "speed_bars",
    "tails",
    "tensor_grid",
]

WIDTH, HEIGHT = 480.0, 290.0
PHONE_LETTERS = 17.0  # page.css, where the plot is drawn small
LEFT, RIGHT, TOP, BOTTOM = 64.0, 18.0, 16.0, 52.0  # labels are up to PHONE_LETTERS high
_LEAST = 1e-9  # below that a divergence is rounding
_LEAST_SEEN = 1e-7  # of single tokens


class Tick(NamedTuple):
    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from *first* to *last*, drawn from *begin* to *end*."""

    first: float
    last: float
    begin: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where *value* stands; outside values at the ends."""
        low, high, x = self.first, self.last, min(max(value, self.first), self.last)
        if self.logarithmic:
            low, high, x = math.log10(low), math.log10(high), math.log10(x)
        return round(self.begin + (self.end - self.begin) * (x - low) / (high - low), 2)

    def decades(self) -> list[Tick]:
        """Powers of ten inside."""
        first, last = math.ceil(math.log10(self.first) - 1e-9), math.floor(math.log10(self.last) + 1e-9)
        return [
            Tick(self.at(10.0**power), f"10{_superscript(power)}" if power else "1") for power in range(first, last + 1)
        ]


class Point(NamedTuple):
    x: float
    y: float
    label: str
    text: str  # shown when pointed at
    chosen: bool
    label_below: bool


class Curve(NamedTuple):
    """A line through all of a format's points."""

    label: str
    path: str
    key: str  # the page's colour
    chosen: bool
    text: str = ""  # shown when pointed at


@dataclass(frozen=True)
class Plot:
    """Ticks, points and curves on WIDTH × HEIGHT."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    curves: list[Curve]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


class Bar(NamedTuple):
    """A bar of *share* of the width; *low*, *high*: of a spread, as shares."""

    label: str
    share: float
    text: str
    key: str
    low: float = 0.0
    high: float = 0.0
    note: str = ""


class Cell(NamedTuple):
    text: str
    detail: str
    heat: float  # 0 … 1: how much of the tensor was lost, on a logarithmic scale


class GridRow(NamedTuple):
    role: str
    cells: list[Cell | None]


class Grid(NamedTuple):
    """Tensors by role and layer, with the powers of ten that their errors lie between."""

    layers: list[int]
    rows: list[GridRow]
    least: float
    most: float


def divergence_over_bits(formats: Sequence[FormatFigures]) -> Plot:
    """The formats without calibration as a curve, the file as a point (on the curve, if it is one of them)."""
    bits = [one.bits_per_weight for one in formats]
    divergences = [max(one.kl_mean, _LEAST) for one in formats]
    x = Axis(math.floor(2 * min(bits) - 0.2) / 2, math.ceil(2 * max(bits) + 0.2) / 2, LEFT, WIDTH - RIGHT)
    y = _decade_axis(divergences)
    points = []
    for one, divergence in zip(formats, divergences, strict=True):
        text = f"{_title(one)}: {one.bits_per_weight:.2f} bits per weight, KL {small(one.kl_mean, 2)}"
        label = "this file" if one.chosen else one.name
        points.append(Point(x.at(one.bits_per_weight), y.at(divergence), label, text, one.chosen, one.chosen))
    plain = [one.calibration is None and one.name in LADDER for one in formats]
    line = sorted((point.x, point.y) for point, on_it in zip(points, plain, strict=True) if on_it)
    first, last = int(2 * x.first), int(2 * x.last)
    ticks = [Tick(x.at(half / 2), f"{half / 2:g}") for half in range(first, last + 1, 2 * -(-(last - first) // 16))]
    points.sort(key=lambda point: point.chosen)  # the file is drawn last, over the others
    return Plot(ticks, y.decades(), points, [Curve("without calibration", _path(line), "q8", False)])


def tails(figures: Figures) -> Plot:
    """For every format: which share of the tokens diverges more than so much."""
    shares = [round(1 - q, 9) for q in figures.quantiles]
    every = [max(kl, _LEAST_SEEN) for one in figures.formats for kl in one.kl_quantiles]
    x = _decade_axis(every, begin=LEFT, end=WIDTH - RIGHT)
    y = Axis(min(shares), 1.0, HEIGHT - BOTTOM, TOP, logarithmic=True)
    curves = []
    for one in figures.formats:
        seen = [(kl, share) for kl, share in zip(one.kl_quantiles, shares, strict=True) if kl >= _LEAST_SEEN]
        line = [(x.at(kl), y.at(share)) for kl, share in seen or [(_LEAST_SEEN, shares[-1])]]
        label = "this file" if one.chosen else one.name
        text = f"{_title(one)}: half of the tokens above {small(one.kl_median)}, one in 100 above {small(one.kl_99)}"
        curves.append(Curve(label, _path(line), _key(one.name), one.chosen, text))
    curves.sort(key=lambda curve: curve.chosen)
    y_ticks = [Tick(y.at(share), f"{100 * share:g} %") for share in (1.0, 0.1, 0.01, 0.001) if share >= y.first]
    return Plot(x.decades(), y_ticks, [], curves)


def tensor_grid(tensors: Sequence[TensorFigures]) -> Grid:
    """Roles × layers, with what each tensor lost."""
    lossy = [one for one in tensors if one.relative_error > 0 and one.cols > 1 and one.format != "f32"]
    layers = sorted({one.layer for one in lossy if one.layer is not None})
    errors = [one.relative_error for one in lossy] or [1e-6]
    scale = _decade_axis(errors, begin=0.0, end=1.0)
    rows: dict[str, dict[int | None, Cell]] = {}
    for one in lossy:
        detail = (
            f"{one.name} [{one.rows} × {one.cols}]: {one.format}, {one.bits_per_weight:.2f} bits per weight, "
            f"relative squared error {small(one.relative_error, 2)}"
        )
        rows.setdefault(one.role, {})[one.layer] = Cell(one.format, detail, scale.at(one.relative_error))
    # What lies outside the layers stands in the first column.
    found = [
        GridRow(role, [cells[None]] if None in cells else [cells.get(layer) for layer in layers])
        for role, cells in rows.items()
    ]
    return Grid(layers, found, scale.first, scale.last)


def sensitivity_bars(sensitivity: Sequence[Sensitivity], tensors: Sequence[TensorFigures]) -> list[Bar]:
    """What each part costs in q4, most first, with the formats that it got."""
    formats = {one.name: one.format for one in tensors}
    most = max((part.divergence for part in sensitivity), default=1.0) or 1.0
    total = sum(max(part.divergence, 0.0) for part in sensitivity) or 1.0
    bars = []
    for part in sorted(sensitivity, key=lambda part: -part.divergence):
        got = sorted({formats[name] for name in part.tensors if name in formats})
        share = max(part.divergence, 0.0)
        label, key = part.name.replace(".weight", ""), got[0] if len(got) == 1 else "mixed"
        note = f"{100 * share / total:.0f} % of all, " + ", ".join(got)
        bars.append(Bar(label, share / most, small(part.divergence), key, note=note))
    return bars


def speed_bars(formats: Sequence[FormatFigures], which: str) -> list[Bar]:
    """*which*: "decode" or "prefill"; tokens a second, with their spreads."""
    spreads: list[Spread] = [getattr(one, which) for one in formats]
    most = max(spread.max for spread in spreads)
    return [
        Bar(
            _title(one),
            spread.median / most,
            _number(spread.median),
            _key(one.name) if not one.chosen else "chosen",
            spread.min / most,
            spread.max / most,
        )
        for one, spread in zip(formats, spreads, strict=True)
    ]


def size_parts(tensors: Sequence[TensorFigures], target_bytes: int) -> list[Bar]:
    """What the file's bytes are spent on."""
    parts = {"embedding": 0, "head": 0, "time mix": 0, "channel mix": 0, "other tensors": 0}
    for one in tensors:
        if one.role == "emb.weight":
            name = "embedding"
        elif one.role == "head.weight":
            name = "head"
        elif one.role.startswith("att."):
            name = "time mix"
        elif one.role.startswith("ffn."):
            name = "channel mix"
        else:
            name = "other tensors"
        parts[name] += one.size_bytes
    parts["tokenizer, header"] = max(0, target_bytes - sum(parts.values()))
    return [
        Bar(name, size / target_bytes, human_bytes(size), "plain", note=f"{100 * size / target_bytes:.1f} %")
        for name, size in parts.items()
        if size
    ]


def _decade_axis(values: Sequence[float], begin: float = HEIGHT - BOTTOM, end: float = TOP) -> Axis:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Axis(10.0**low, 10.0 ** max(high, low + 1), begin, end, logarithmic=True)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)


def small(number: float, digits: int = 1) -> str:
    """5.6×10⁻⁴."""
    mantissa, _, power = f"{number:.{digits}e}".partition("e")
    return f"{mantissa}×10{_superscript(int(power))}" if number else "0"


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _title(one: FormatFigures) -> str:
    return f"this file ({one.name})" if one.chosen else one.name


def _key(name: str) -> str:
    return name if name in LADDER else "mixed"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
