# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu eval``: what a model is worth on a text or on questions, and what it costs to make it smaller."""

from __future__ import annotations

from typing import Any

import click

from rwkv_cpu.cli._evaluate import Request, run
from rwkv_cpu.cli._options import GroupedCommand, GroupedOption, json_option, load_options, model_argument

_TEXT, _RECALL = "About a text", "About recall"


@click.command(name="eval", cls=GroupedCommand)
@model_argument
@click.option("--text", metavar="FILE", help="Perplexity and bits per byte of this text (UTF-8; -: stdin).")
@click.option(
    "--jsonl", metavar="FILE", help="Last words (LAMBADA), multiple choice, or samples of lm-evaluation-harness."
)
@click.option("--recall", is_flag=True, help="Plant facts, ask for them later: accuracy over distance.")
@click.option("--reference", metavar="MODEL", help="Compare with this one; a checkpoint is opened exactly, in f32.")
@click.option("--plot", metavar="OUT.png", help="Draw it (.png, .svg, .pdf). Needs matplotlib: rwkv-cpu[plot].")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    cls=GroupedOption,
    group=_TEXT,
    help="A new state after N tokens. Default: one stream. By position: the short context.  [256]",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", cls=GroupedOption, group=_TEXT, help="Only the first N."
)
@click.option(
    "--perplexity-by-position",
    "by_position",
    is_flag=True,
    cls=GroupedOption,
    group=_TEXT,
    help="Does the model still profit from what it read long ago?",
)
@click.option(
    "--max-items",
    type=click.IntRange(min=1),
    metavar="N",
    cls=GroupedOption,
    group="About questions",
    help="Only the first N lines.",
)
@click.option(
    "--distances",
    metavar="N,N,…",
    cls=GroupedOption,
    group=_RECALL,
    help="Tokens between fact and question.  [64,128,…,16384]",
)
@click.option(
    "--seeds", type=click.IntRange(1, 1000), metavar="N", cls=GroupedOption, group=_RECALL, help="Texts to read.  [4]"
)
@click.option(
    "--filler", metavar="FILE", cls=GroupedOption, group=_RECALL, help="A text to read in between. Default: built in."
)
@click.option(
    "--style",
    type=click.Choice(["chat", "plain"]),
    cls=GroupedOption,
    group=_RECALL,
    help="Turns of the model's chat template (default), or sentences.",
)
@load_options
@json_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """What MODEL is worth: perplexity of a text, accuracy on questions, recall over distance.

    With --reference also how far its predictions are from another model's, of which it is a smaller copy, say: KL
    divergence and top-1 agreement. Figures come with 95 % intervals. docs/evaluation.md says how all is computed.
    """
    run(ctx, Request(**options))
