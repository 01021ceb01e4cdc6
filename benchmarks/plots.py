# SPDX-License-Identifier: Apache-2.0
"""Results as SVG: transparent, in colours that read on white and on black. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["bars", "comparison", "context", "quantisation"]

INK = "#7d838c"  # text and axes: a contrast above 3.5 on white and on black
COLOURS = {"rwkv_cpu": "#2f81f7", "llama.cpp": "#e08a2e", "rwkv": "#8a63d2", "limit": "#d1495b"}
TITLES = {"decode": "Decode", "prefill": "Prefill", "batch": "Eight conversations at once"}


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as missing:
        raise SystemExit("plots need matplotlib: pip install 'rwkv-cpu[bench]'") from missing
    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "svg.hashsalt": "rwkv_cpu",  # the same file from the same figures
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
        }
    )
    return plt


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    _pyplot().close(figure)


def bars(path: Path, title: str, panels: Sequence[tuple[str, Sequence[tuple[str, str, dict[str, float]]]]]) -> None:
    """Panels of horizontal bars: (panel's name, [(program, family, spread of a rate)])."""
    from benchmarks.tables import number

    plt = _pyplot()
    heights = [len(rows) for _, rows in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(7.2, 0.9 + sum(0.34 * height + 0.5 for height in heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": [height + 0.6 for height in heights]},
        layout="constrained",
    )
    for axis, (name, rows) in zip(axes[:, 0], panels, strict=True):
        middle = [spread["median"] for _, _, spread in rows]
        errors = [
            [spread["median"] - spread["min"] for _, _, spread in rows],
            [spread["max"] - spread["median"] for _, _, spread in rows],
        ]
        colours = [COLOURS[family] for _, family, _ in rows]
        axis.barh(range(len(rows)), middle, color=colours, height=0.72)
        axis.errorbar(middle, range(len(rows)), xerr=errors, fmt="none", ecolor=INK, elinewidth=1)
        furthest = max(spread["max"] for _, _, spread in rows)
        for y, (_, _, spread) in enumerate(rows):
            axis.text(spread["max"] + 0.012 * furthest, y, number(spread["median"]), va="center", fontsize=9)
        axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axis.invert_yaxis()
        axis.set_xlim(0, 1.12 * furthest)
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set_xlabel("tokens per second (median; the line spans all rounds)")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    _save(figure, path)


def comparison(result: dict[str, Any], folder: Path) -> list[Path]:
    """A figure per kind of work (compare.py's result); returns the files."""
    written = []
    for work, title in TITLES.items():
        panels = []
        for run in result["runs"]:
            rows = [
                (name, group["programs"][name]["family"], group["work"][work][name]["rate"])
                for group in run["groups"]
                for name in group["programs"]
                if name in group["work"].get(work, {})
            ]
            if rows:
                panels.append((run["label"], rows))
        if panels:
            path = folder / f"{work}.svg"
            threads = result["settings"]["threads"]
            bars(path, f"{title}, {threads} threads, {result['machine']['cpu']}", panels)
            written.append(path)
    return written


def context(result: dict[str, Any], path: Path) -> None:
    """Time per token and memory against the length of the conversation (context.py's result)."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    rows = result["rows"]
    lengths = [row["tokens"] for row in rows]
    left.plot(lengths, [row["ms"] for row in rows], "o-", color=COLOURS["rwkv_cpu"], label="rwkv_cpu, measured")
    transformer = result.get("transformer", [])
    measured = [row for row in transformer if row.get("ms")]
    if measured:
        at = [row["tokens"] for row in measured]
        left.plot(at, [row["ms"] for row in measured], "s-", color=COLOURS["llama.cpp"], label="Transformer, llama.cpp")
    at = [row["tokens"] for row in transformer]
    left.plot(
        at, [row["ms_formula"] for row in transformer], "--", color=COLOURS["llama.cpp"], label="Transformer, at best"
    )
    left.set_ylabel("ms per token")
    right.plot(lengths, [row["memory_bytes"] / 1e6 for row in rows], "o-", color=COLOURS["rwkv_cpu"])
    right.plot(at, [row["kv_bytes"] / 1e6 for row in transformer], "--", color=COLOURS["llama.cpp"])
    right.set_ylabel("MB per conversation")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("tokens so far")
        axis.grid(visible=True, color=INK, alpha=0.2, linewidth=0.6)
    left.legend(fontsize=9, labelcolor=INK)
    title = f"A longer conversation costs nothing more ({result['model']})"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    _save(figure, path)


def _best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no smaller one beats, from the smallest on."""
    found: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bits_per_weight"], row["kl"])):
        if not found or row["kl"] < found[-1]["kl"]:
            found.append(row)
    return found


def _name_points(axis: Any, rows: Sequence[dict[str, Any]], colour: str, side: str) -> None:
    """Each row's name at its point, on this side of it: "lower left", "upper right"…"""
    left, below = "left" in side, "lower" in side
    for row in rows:
        axis.annotate(
            row["name"],
            (row["bits_per_weight"], row["kl"]),
            (-5 if left else 5, -3 if below else 3),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if below else "bottom",
            fontsize=8,
            color=colour,
        )


def quantisation(results: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Divergence over bits per weight, a panel for each model (quality.py's rows)."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(results), figsize=(4.6 * len(results), 4.2), squeeze=False, layout="constrained")
    for axis, (model, rows) in zip(axes[0], results.items(), strict=True):
        # ours are named by format or option: "q4 --no-calibration", "--bits 5.6"
        ours, theirs = ([row for row in rows if (row["name"][0] in "q-") == own] for own in (True, False))
        plain = [row for row in theirs if "(imatrix)" not in row["name"]]
        calibrated = [row for row in ours if "--no-calibration" not in row["name"]]
        blue, orange = COLOURS["rwkv_cpu"], COLOURS["llama.cpp"]
        for label, own, style, fill in (
            ("rwkv_cpu, calibrated", calibrated, "o", blue),
            ("rwkv_cpu --no-calibration", [row for row in ours if row not in calibrated], "o", "none"),
            ("llama.cpp, importance matrix", [row for row in theirs if row not in plain], "s", orange),
            ("llama.cpp", plain, "s", "none"),
        ):
            colour = blue if style == "o" else orange
            at, kl = [row["bits_per_weight"] for row in own], [row["kl"] for row in own]
            axis.plot(at, kl, style, color=colour, markerfacecolor=fill, markersize=5.5, label=label, zorder=3)
        best = _best(calibrated)
        axis.plot([row["bits_per_weight"] for row in best], [row["kl"] for row in best], color=blue)
        named = [row for row in calibrated if row["name"][0] == "q"]
        _name_points(axis, [row for row in named if row in best], blue, "lower left")
        _name_points(axis, [row for row in named if row not in best], blue, "lower right")
        _name_points(axis, [row for row in plain if row["name"][0] == "I"], orange, "upper left")
        _name_points(axis, [row for row in plain if row["name"][0] == "Q"], orange, "upper right")
        axis.set_yscale("log")
        axis.set_xlim(3.9, 9.1)
        axis.set_xlabel("bits per weight")
        axis.set_title(model, loc="left", fontsize=10, fontweight="bold")
        axis.grid(visible=True, color=INK, alpha=0.2, linewidth=0.6)
    axes[0, 0].set_ylabel("KL divergence from f32, nats a token")
    axes[0, -1].legend(fontsize=9, labelcolor=INK)
    _save(figure, path)
