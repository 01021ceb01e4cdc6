# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.models import BITS, EQUAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["comparison", "number", "ratios", "spread", "table", "target"]

TITLES = {"decode": "decode, tokens/s", "prefill": "prefill, tokens/s", "batch": "8 at once, tokens/s"}
OURS, PEER = "rwkv_cpu", "llama.cpp"


def number(value: float) -> str:
    """Three significant digits, no exponent, thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: dict[str, float], factor: float = 1, unit: str = "") -> str:
    """Median, and the extremes in brackets."""
    median, low, high = (number(factor * values[key]) for key in ("median", "min", "max"))
    return f"{median}{unit} ({low} … {high})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells that hold a bar are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def target(work: str, run: dict[str, Any]) -> float | None:
    """What a ratio to llama.cpp's equal format should be at least; None where nothing was promised."""
    if work == "prefill":
        return 5.0
    if work != "decode" or run["zeros"] not in (0, 87):
        return None
    sparse = run["zeros"] == 87
    if run["size"] in ("0.1B", "0.4B"):
        return 2.0 if sparse else 1.5
    return {True: 1.6, False: 1.25}[sparse] if run["size"] == "1.5B" else None


def ratios(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours beside each equal of llama.cpp, round by round; and ours beside its fastest format in prefill."""
    found = []
    for group in run["groups"]:
        about = group["programs"]
        for work, rates in group["rates"].items():
            for mine, theirs in ((m, t) for m in rates for t in rates):
                if about[mine]["family"] != OURS or about[theirs]["family"] != PEER:
                    continue
                if EQUAL[about[mine]["format"]] == about[theirs]["format"]:
                    found.append(_ratio(work, mine, theirs, rates, target(work, run)))
        prefill = group["rates"].get("prefill", {})
        by_speed = sorted(prefill, key=lambda name: statistics.median(prefill[name]), reverse=True)
        mine, theirs = ([name for name in by_speed if about[name]["family"] == family] for family in (OURS, PEER))
        if mine and theirs:
            found.append(_ratio("prefill, fastest", mine[0], theirs[0], prefill, 3.0))
        decode, batch = group["rates"].get("decode", {}), group["rates"].get("batch", {})
        for name in batch:
            if about[name]["family"] == OURS and name in decode:
                wanted = 4.0 if run["size"] == "0.4B" and about[name]["format"] == "q8" else None
                pairs = {name: batch[name], f"{name}, one": decode[name]}
                found.append(_ratio("8 at once", name, f"{name}, one", pairs, wanted))
    return found


def _ratio(work: str, mine: str, theirs: str, rates: dict[str, list[float]], wanted: float | None) -> dict[str, Any]:
    each = [a / b for a, b in zip(rates[mine], rates[theirs], strict=True)]
    values = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return {"work": work, "ours": mine, "peer": theirs, "ratio": values, "target": wanted}


def comparison(result: dict[str, Any]) -> str:
    """The whole report of compare.py."""
    about, setting = result["machine"], result["settings"]
    where = f"{about['cpu']}, {about['cores']} cores, load {about['load_average']:.1f}, commit {about['commit']}"
    how = f"{setting['threads']} threads, prompt {setting['prompt']}, {setting['tokens']} tokens decoded"
    parts = [f"{where}; {how}, median of {setting['rounds']} rounds (min … max)."]
    for run in result["runs"]:
        parts += ["", f"### {run['label']}", ""]
        for group in run["groups"]:
            parts += [_group(group, run.get("startup", {})), ""]
        parts.append(_ratio_table(run))
        parts += [f"\nNot run: {reason}" for reason in run["left_out"]]
    return "\n".join(parts)


def _group(group: dict[str, Any], startup: dict[str, dict[str, float]]) -> str:
    works = list(group["work"])
    head = ["program", "bits"]
    for work in works:
        head.append(TITLES[work])
        head += {"decode": ["GB/s", "of the limit", "zeros skipped"], "prefill": ["of the int8 peak"]}.get(work, [])
    head += ["start to first token, ms"] if startup else []
    rows = []
    for name, about in group["programs"].items():
        row = [name, f"{BITS[about['format']]:g}"]
        for work in works:
            one = group["work"][work].get(name, {})
            row.append(spread(one["rate"]) if one else "")
            share = f"{100 * one['share']['median']:.0f} %" if "share" in one else ""
            if work == "decode":
                row += [spread(one["gbs"]) if "gbs" in one else "", share]
                row.append(f"{100 * one['zeros']:.0f} %" if "zeros" in one else "")
            elif work == "prefill":
                row.append(share)
        row += [spread(startup[name], 1e3)] if startup else []
        rows.append(row)
    limits = []
    reads = [one["read_gbs"] for one in group["work"].get("decode", {}).values() if "read_gbs" in one]
    if reads:
        limits.append(f"read bandwidth {spread(reads[0])} GB/s")
    if "int8_tops" in group:
        limits.append(f"int8 peak {spread(group['int8_tops'])} TOPS")
    return table(head, rows) + ("\n\nLimits in the same rounds: " + ", ".join(limits) + "." if limits else "")


def _ratio_table(run: dict[str, Any]) -> str:
    rows = []
    for one in ratios(run):
        wanted = "" if one["target"] is None else f"≥ {one['target']:g}×"
        rows.append([one["work"], one["ours"], one["peer"], f"**{spread(one['ratio'], 1, '×')}**", wanted])
    return table(["work", "ours", "beside", "ratio", "target"], rows) if rows else ""
