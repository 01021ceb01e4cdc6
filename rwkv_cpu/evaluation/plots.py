# SPDX-License-Identifier: Apache-2.0
"""Results as pictures: light background, colours that people see who see few (Okabe and Ito). Needs matplotlib."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from rwkv_cpu.errors import ArgumentError, UnsupportedModelError
from rwkv_cpu.state import write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rwkv_cpu.evaluation.divergence import Divergence
    from rwkv_cpu.evaluation.perplexity import Perplexity
    from rwkv_cpu.evaluation.positions import Positions
    from rwkv_cpu.evaluation.recall import Recall
    from rwkv_cpu.evaluation.statistics import Estimate
    from rwkv_cpu.evaluation.tasks import TaskResult

__all__ = ["check", "plot_divergence", "plot_perplexity", "plot_positions", "plot_recall", "plot_task"]

_P = ParamSpec("_P")

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98", "#30343b"
_KINDS = (".png", ".svg", ".pdf")
_POINTS = 150  # of a line along a text
_STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "white",
    "legend.fontsize": 9,
    "svg.hashsalt": "rwkv_cpu",
}


def _styled(plot: Callable[_P, None]) -> Callable[_P, None]:
    """Everything in it looks alike; the host program's own settings stay."""

    @functools.wraps(plot)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with _matplotlib().rc_context(_STYLE):
            plot(*args, **kwargs)

    return styled


def check(path: str | os.PathLike[str]) -> None:
    """Whether a plot can be written to *path*, asked before the work begins.

    Raises: UnsupportedModelError: matplotlib is not installed. ArgumentError: no such kind of picture, or no folder.
    """
    path = Path(path)
    if path.suffix.lower() not in _KINDS:
        raise ArgumentError(
            f"{path}: a plot's name ends in {', '.join(_KINDS)}", hint="The ending says what it becomes."
        )
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"{path.parent}: no such folder", hint="Make it first.")
    _matplotlib()


@_styled
def plot_perplexity(found: Perplexity, path: str | os.PathLike[str]) -> None:
    """The loss along the text."""
    figure, (axis,) = _figure(1, f"Loss along the text: {found.model}", height=3.8)
    _along(axis, found.losses, BLUE)
    _level(axis, found.loss, BLUE, f"mean {found.loss.value:.4f}: perplexity {found.perplexity.value:.4f}")
    axis.set_ylabel("loss, nats a token")
    axis.set_xlabel("tokens")
    axis.legend(loc="upper right")
    _save(figure, path)


@_styled
def plot_divergence(found: Divergence, own: Perplexity, reference: Perplexity, path: str | os.PathLike[str]) -> None:
    """How the divergence is distributed, and where in the text it is."""
    title = f"KL divergence: {own.model} beside {reference.model}"
    figure, (left, right) = _figure(2, title, width=10.5, height=4)
    floor = 1e-9
    seen = np.maximum(found.kl, floor)
    left.hist(np.log10(seen), bins=80, color=BLUE, alpha=0.75)
    marks = (("median", found.kl_median, GREEN), ("mean", found.kl_mean, ORANGE), ("99 %", found.kl_99, RED))
    for name, figure_of, colour in marks:
        value = max(figure_of.value, floor)
        left.axvline(np.log10(value), color=colour, linewidth=2, label=f"{name} {figure_of.value:.2e}")
    low, high = (int(np.floor(x)) for x in (np.log10(seen.min()), np.log10(seen.max()) + 1))
    ticks = range(low, high + 1, max(1, (high - low) // 6))
    left.set_xticks(list(ticks), [f"$10^{{{tick}}}$" for tick in ticks])
    left.set_xlabel("KL(reference‖model), nats a token")
    left.set_ylabel("tokens")
    left.legend(loc="upper left")
    _along(right, found.kl, BLUE)
    _level(right, found.kl_mean, ORANGE, f"mean {found.kl_mean.value:.2e}, top-1 agreement {found.top1.value:.2%}")
    right.set_yscale("log" if found.kl_mean.value > 0 else "linear")
    right.set_xlabel("tokens")
    right.set_ylabel("mean KL of a stretch of text")
    right.legend(loc="upper right")
    _save(figure, path)


@_styled
def plot_task(own: TaskResult, reference: TaskResult | None, path: str | os.PathLike[str]) -> None:
    """Accuracies as bars."""
    results = [own] if reference is None else [own, reference]
    names = [name for name in own.scores if name.startswith("acc")]
    figure, (axis,) = _figure(1, f"Accuracy, {own.items:,} items", height=1.5 + 0.5 * len(names) * len(results))
    labels = []
    for i, (result, name) in enumerate((result, name) for name in names for result in results):
        found = result.scores[name].estimate
        colour = BLUE if result is own else ORANGE
        axis.barh(i, 100 * found.value, color=colour, height=0.55)
        if found.low is not None and found.high is not None:
            axis.plot([100 * found.low, 100 * found.high], [i, i], color=INK, linewidth=1.4)
        labels.append(f"{result.model}, {name}")
        at = 100 * (found.value if found.high is None else found.high)
        axis.text(at + 1, i, f"{found.value:.1%}", va="center")
    if own.chance:
        axis.axvline(100 * own.chance, color=GREY, linestyle="--", linewidth=1.4, label=f"guessing {own.chance:.1%}")
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(0, 112)
    axis.set_xlabel("right, % (the line: 95 % interval)")
    _save(figure, path)


@_styled
def plot_recall(found: Recall, path: str | os.PathLike[str]) -> None:
    """Accuracy over distance."""
    figure, (axis,) = _figure(1, f"Recall over distance: {found.model}", height=4.2)
    at = [row.distance for row in found.rows]
    lines = (
        ("answered", BLUE, "o", "greedy answer holds the fact"),
        ("likeliest", ORANGE, "s", "likeliest of the candidates"),
    )
    for name, colour, marker, label in lines:
        values: list[Estimate] = [getattr(row, name) for row in found.rows]
        axis.plot(at, [100 * e.value for e in values], marker=marker, color=colour, linewidth=2, label=label)
        low = [100 * (e.value if e.low is None else e.low) for e in values]
        high = [100 * (e.value if e.high is None else e.high) for e in values]
        axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(100 * found.chance, color=GREY, linestyle="--", linewidth=1.4, label=f"guessing {found.chance:.0%}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(at, [f"{x:,}" for x in at])
    axis.minorticks_off()
    axis.set_ylim(-3, 103)
    axis.set_xlabel("tokens between the fact and its question")
    axis.set_ylabel("right, % (bands: 95 % interval)")
    axis.legend(loc="best")
    _save(figure, path)


@_styled
def plot_positions(found: Positions, path: str | os.PathLike[str]) -> None:
    """Loss with a long and a short context, the gain, and the size of the state."""
    figure, (loss, gain, size) = _figure(
        3, f"Loss by position: {found.model}", width=8, height=8, rows=True, heights=(3, 2, 2)
    )
    at = [float(np.sqrt(b.first * b.last)) for b in found.bins]
    loss.plot(at, [b.loss.value for b in found.bins], "o-", color=BLUE, linewidth=2, label="everything read")
    label = f"only the last {found.short // 2} to {found.short} tokens"
    loss.plot(at, [b.short_loss.value for b in found.bins], "s--", color=ORANGE, linewidth=2, label=label)
    loss.set_ylabel("loss, nats a token")
    loss.legend(loc="upper right")
    far = [(x, b.gain) for x, b in zip(at, found.bins, strict=True) if b.gain is not None]
    for x, estimate in far:
        if estimate.low is not None and estimate.high is not None:
            gain.plot([x, x], [estimate.low, estimate.high], color=GREEN, linewidth=1.6)
    gain.plot([x for x, _ in far], [e.value for _, e in far], "o-", color=GREEN, linewidth=2)
    gain.axhline(0, color=GREY, linewidth=1.2)
    gain.set_ylabel("gain, nats a token\n(bars: 95 %)")
    size.plot([b.last for b in found.bins], [b.state_rms for b in found.bins], "o-", color=RED, linewidth=2)
    size.set_ylim(bottom=0)
    size.set_ylabel("state, RMS")
    size.set_xlabel("position in the text, tokens")
    for axis in (loss, gain, size):
        axis.set_xscale("log")
    size.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    _save(figure, path)


def _along(axis: Any, values: NDArray[np.float64], colour: str) -> None:
    """Means of stretches of the text."""
    step = max(1, -(-len(values) // _POINTS))
    edges = np.arange(0, len(values), step)
    sizes = np.diff([*edges, len(values)])
    means = np.add.reduceat(values, edges) / sizes
    axis.plot(edges + sizes / 2, means, color=colour, linewidth=1.2, label=f"mean of {step} tokens")
    axis.set_xlim(0, len(values))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def _level(axis: Any, found: Estimate, colour: str, label: str) -> None:
    axis.axhline(found.value, color=colour, linewidth=1.6, linestyle="--", label=label)
    if found.low is not None and found.high is not None:
        axis.axhspan(found.low, found.high, color=colour, alpha=0.15, linewidth=0)


def _figure(
    n: int, title: str, *, width: float = 7.6, height: float = 4, rows: bool = False, heights: tuple[int, ...] = ()
) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    shape = (n, 1) if rows else (1, n)
    ratios = {"height_ratios": heights} if heights else {}
    axes = figure.subplots(*shape, sharex=rows, squeeze=False, gridspec_kw=ratios)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, tuple(axes.ravel())


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise UnsupportedModelError(
            "plots need matplotlib, which is not installed", hint="pip install 'rwkv-cpu[plot]'"
        ) from None
    return mpl


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Written to a temporary name and renamed."""
    path = Path(path)
    written = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    figure.savefig(written, format=kind, dpi=150, facecolor="white")
    write_whole(path, lambda file: file.write(written.getvalue()))
