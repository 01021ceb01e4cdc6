# SPDX-License-Identifier: Apache-2.0
"""Results as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rwkv_cpu.evaluation.divergence import Divergence
    from rwkv_cpu.evaluation.perplexity import Perplexity
    from rwkv_cpu.evaluation.positions import Positions
    from rwkv_cpu.evaluation.recall import Recall
    from rwkv_cpu.evaluation.statistics import Estimate
    from rwkv_cpu.evaluation.tasks import Score, TaskResult

__all__ = ["positions_text", "recall_text", "task_text", "text_text"]

_TASKS = {"last_word": "last words", "multiple_choice": "questions with choices"}
_SCORES = {"acc": "accuracy", "acc_norm": "accuracy by byte", "perplexity": "perplexity of the word"}


def text_text(where: str, own: Perplexity, found: Divergence | None, reference: Perplexity | None) -> str:
    """Perplexity, and divergence if there is a reference."""
    how = "one stream" if own.window is None else f"windows of {own.window}"
    beside = "" if reference is None else f" beside {reference.model}"
    rows: list[tuple[str, ...]] = [("", "", "95 %", "reference" if reference else "")]
    rows.append(_row("perplexity", own.perplexity, "{:.4f}", reference.perplexity if reference else None))
    if own.bits_per_byte is not None:
        other = reference.bits_per_byte if reference else None
        rows.append(_row("bits per byte", own.bits_per_byte, "{:.4f}", other))
    rows.append(_row("loss, nats a token", own.loss, "{:.4f}", reference.loss if reference else None))
    if found is not None:
        rows += [
            _row("perplexity / reference's", found.perplexity_ratio, "{:.5f}"),
            _row("KL divergence, mean", found.kl_mean, "{:.3g}"),
            _row("  median", found.kl_median, "{:.3g}"),
            _row("  99 % quantile", found.kl_99, "{:.3g}"),
            _row("top-1 agreement", found.top1, "{:.2%}"),
        ]
    size = "" if not own.text_bytes else f", {own.text_bytes:,} bytes"
    head = f"{own.model}{beside} on {where}: {own.tokens:,} tokens{size}, {how}"
    notes = [] if own.loss.low is not None else ["The text is too short for confidence intervals."]
    return "\n".join([head, "", *_table(rows), *notes, f"{own.seconds:.1f} seconds"])


def task_text(where: str, own: TaskResult, reference: TaskResult | None, beside: Mapping[str, Score] | None) -> str:
    """Accuracy, beside a reference's if there is one."""
    rows: list[tuple[str, ...]] = [("", "", "95 %", "standard error", "reference" if reference else "")]
    for name, score in own.scores.items():
        other = None if reference is None else reference.scores[name].estimate
        rows.append(_task_row(_SCORES[name], score, "{:.4f}" if name == "perplexity" else "{:.2%}", other))
    if own.chance:
        rows.append(("by guessing", f"{own.chance:.2%}", "", "", ""))
    if beside is not None:
        rows.append(_task_row("the same answer", beside["agreement"], "{:.2%}", None))
        rows.append(_task_row("accuracy - reference's", beside["acc_difference"], "{:+.2%}", None))
    against = "" if reference is None else f" beside {reference.model}"
    head = f"{own.model}{against} on {where}: {own.items:,} {_TASKS[own.kind]}"
    return "\n".join([head, "", *_table(rows), f"{own.seconds:.1f} seconds"])


def recall_text(found: Recall) -> str:
    """Accuracy over distance."""
    rows: list[tuple[str, ...]] = [("distance", "asked", "answered", "95 %", "likeliest", "95 %")]
    for row in found.rows:
        answered, likeliest = ((f"{e.value:.0%}", _interval(e, "{:.0%}")) for e in (row.answered, row.likeliest))
        rows.append((f"{row.distance:,}", f"{row.asked}", *answered, *likeliest))
    example = next((e for e in reversed(found.examples) if e["answered"]), found.examples[0])
    return "\n".join(
        [
            f"{found.model}: {len(found.facts)} facts, {found.seeds} texts, {found.style} style, {found.filler} filler",
            f"answered: the greedy answer holds the fact; likeliest: of all candidates (guessing: {found.chance:.0%})",
            "",
            *_table(rows, right=True),
            f"{found.verdict[0].upper()}{found.verdict[1:]}.",
            f"At {example['distance']:,} tokens: {example['question']} ({example['value']}) “{example['answer']}”",
            f"{found.seconds:.1f} seconds",
        ]
    )


def positions_text(where: str, found: Positions) -> str:
    """Loss by position."""
    rows: list[tuple[str, ...]] = [("position", "loss", f"last {found.short} only", "gain", "95 %", "state RMS")]
    for at in found.bins:
        gain = ("", "") if at.gain is None else (f"{at.gain.value:+.4f}", _interval(at.gain, "{:+.4f}"))
        losses = (f"{at.loss.value:.4f}", f"{at.short_loss.value:.4f}")
        rows.append((f"{at.first:,} to {at.last:,}", *losses, *gain, f"{at.state_rms:.3f}"))
    head = f"{found.model} on {where}: {found.tokens:,} tokens; loss and gain in nats a token"
    verdict = f"{found.verdict[0].upper()}{found.verdict[1:]}."
    return "\n".join([head, "", *_table(rows, right=True), verdict, f"{found.seconds:.1f} seconds"])


def _row(name: str, found: Estimate, how: str, other: Estimate | None = None) -> tuple[str, ...]:
    return (name, how.format(found.value), _interval(found, how), "" if other is None else how.format(other.value))


def _task_row(name: str, score: Score, how: str, other: Estimate | None) -> tuple[str, ...]:
    value, between, beside = _row(name, score.estimate, how, other)[1:]
    error = "" if score.stderr is None else how.replace("+", "").format(score.stderr)
    return (name, value, between, error, beside)


def _interval(found: Estimate, how: str) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{how.format(found.low)} … {how.format(found.high)}"


def _table(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Columns in line: names to the left and figures to the right, or all to the right; an empty line behind."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right or i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return [*lines, ""]
