# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu generate``."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkv_cpu.cli._errors import EXIT_INTERRUPTED, WrongUse, warn
from rwkv_cpu.cli._options import (
    GroupedCommand,
    cache_prompt_option,
    cached_prompts,
    form_options,
    json_option,
    load_options,
    preload_option,
    sampling_options,
    state_option,
    unescape,
)
from rwkv_cpu.textfile import check_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from rwkv_cpu.batch import BatchProgress
    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.loop import Reply
    from rwkv_cpu.generation.structured import Grammar
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

_HOW = "give it as -p TEXT, -f FILE, or - for stdin"


@click.command(name="generate", cls=GroupedCommand)
@click.argument("arguments", metavar="[MODEL] [-]", nargs=-1)
@click.option("--model", "-m", "model_option", metavar="MODEL", default=None, help="The same as MODEL.")
@click.option("--prompt", "-p", default=None, metavar="TEXT", help="The text to continue (\\n: new line).")
@click.option("--file", "-f", "file", default=None, metavar="FILE", help="Take it from a file; -: from stdin.")
@click.option(
    "--batch", metavar="FILE", default=None, help="Continue every line of this file; see docs/python.md for its form."
)
@click.option("--output", "-o", metavar="FILE", default=None, help="With --batch: add the results to this file.")
@click.option(
    "--parallel", metavar="N", type=click.IntRange(1, 256), default=8, help="With --batch: how many at a time. [8]"
)
@sampling_options
@form_options
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    default=None,
    metavar="N",
    help="In --json: each token's log-probability, and the N likeliest at its place.",
)
@click.option("--no-speculative", is_flag=True, help="Never check drafts of several tokens in one pass.")
@click.option(
    "--draft-model", default=None, metavar="MODEL", help="A smaller model of the same vocabulary writes drafts."
)
@load_options
@preload_option
@state_option
@cache_prompt_option
@json_option
@click.option("--show-speed", is_flag=True, help="Print speed and times to stderr at the end.")
@click.pass_context
def command(
    ctx: click.Context,
    arguments: tuple[str, ...],
    model_option: str | None,
    prompt: str | None,
    file: str | None,
    batch: str | None,
    output: str | None,
    parallel: int,
    sampling: dict[str, Any],
    grammar: Grammar | None,
    logprobs: int | None,
    no_speculative: bool,
    draft_model: str | None,
    threads: int | None,
    weight_format: str | None,
    preload: bool,
    state: str | None,
    cache_prompt: str | None,
    as_json: bool,
    show_speed: bool,
) -> None:
    """Continue a text with MODEL and print the continuation.

    The text is used as it is, without a chat template. From a file or stdin (-), one line end at its very end is
    left out. MODEL is a .rwkv file or a checkpoint; without it, the demonstration model that came along.

    With --batch FILE -o OUT, each line of FILE is a JSON object with a "prompt" (or "messages", in the manner of a
    chat) and options of its own, and OUT gets a line for each. Started again after an interruption, it goes on. The
    exit code is 1 if a line could not be answered; its line in OUT says why.
    """
    from rwkv_cpu.terminal.loading import open_model

    if batch is not None:
        if output is None or prompt is not None or file is not None or state is not None:
            raise WrongUse("--batch goes with -o OUT, and without -p, -f and --state", ctx)
        if grammar is not None or logprobs is not None or draft_model is not None:
            raise WrongUse("--batch goes without a form of the answer, --logprobs and --draft-model", ctx)
        if len(arguments) + (model_option is not None) > 1:
            raise WrongUse("one MODEL is expected", ctx)
        model_name = arguments[0] if arguments else model_option or "demo"
        with (
            open_model(model_name, weight_format=weight_format, threads=threads, preload=preload, warn=warn) as model,
            cached_prompts(model, cache_prompt),
        ):
            ctx.exit(_batch(model, batch, output, parallel, sampling, as_json=as_json))
    if output is not None:
        raise WrongUse("-o goes with --batch", ctx, hint="A continuation is printed: write > FILE behind the command.")
    name, prompt_bytes = _what(ctx, arguments, model_option, prompt, file)
    with (
        open_model(name, weight_format=weight_format, threads=threads, preload=preload, warn=warn) as model,
        cached_prompts(model, cache_prompt),
        _drafting(draft_model, threads) as drafter,
    ):
        options = {
            **sampling,
            "grammar": grammar,
            "speculative": not no_speculative,
            "draft_model": drafter,
            "logprobs": logprobs is not None,
            "top_logprobs": logprobs or 0,
        }
        start = None if state is None else model.load_state(state)
        reply = _generate(model, prompt_bytes, start, options, show=not as_json)
        if as_json:
            result: dict[str, Any] = {
                "text": reply.text,
                "tokens": list(reply.tokens),
                "finish_reason": reply.finish_reason,
                "stats": {**asdict(reply.stats), "tokens_per_second": reply.stats.tokens_per_second},
                "model": str(model.path),
            }
            if logprobs is not None:
                result["logprobs"] = _logprobs(model, reply)
            click.echo(json.dumps(result, ensure_ascii=False))
        if grammar is not None and reply.finish_reason in ("length", "stop"):
            warn("the answer was cut short, so it is only the beginning of the form that was asked for")
        if show_speed:
            from rwkv_cpu.terminal.session import speed_line

            click.echo(speed_line(reply.stats), err=True)
        ctx.exit(EXIT_INTERRUPTED if reply.finish_reason == "cancelled" else 0)


def _batch(model: Model, source: str, target: str, parallel: int, sampling: dict[str, Any], *, as_json: bool) -> int:
    """Run the file; the exit code: 1 where a line ended with an error."""
    from rwkv_cpu.batch import run_batch
    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.terminal.worker import cancel_on_ctrl_c, events_of

    token = CancelToken()
    end: list[BatchProgress] = []

    def work(emit: Callable[[BatchProgress], None]) -> None:
        end.append(
            run_batch(model, source, target, parallel=parallel, options=sampling, on_progress=emit, cancel=token)
        )

    with cancel_on_ctrl_c(token):
        for progress in events_of(work):
            if progress is not None and sys.stderr.isatty():
                click.echo(f"\r{_so_far(progress)}  ", err=True, nl=False)
    (progress,) = end
    if as_json:
        click.echo(json.dumps({**asdict(progress), "output": target}))
    else:
        click.echo(f"{chr(13) if sys.stderr.isatty() else ''}{_so_far(progress)}  ", err=True)
    return EXIT_INTERRUPTED if token.cancelled else int(progress.failed > 0)


def _so_far(progress: BatchProgress) -> str:
    failed = f", {progress.failed} with an error" if progress.failed else ""
    return f"{progress.done} of {progress.total} lines{failed}, {progress.generated_tokens} tokens"


def _drafting(name: str | None, threads: int | None) -> AbstractContextManager[Model | None]:
    from rwkv_cpu.terminal.loading import open_model

    return nullcontext() if name is None else open_model(name, weight_format=None, threads=threads, warn=warn)


def _logprobs(model: Model, reply: Reply) -> list[dict[str, Any]]:
    """An entry for each token, as JSON has it."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": model.tokenizer.decode([token]), "id": token, "logprob": logprob}

    return [
        {**entry(token, logprob), "top": [entry(*one) for one in top]}
        for token, logprob, top in zip(reply.tokens, reply.logprobs, reply.top_logprobs, strict=True)
    ]


def _what(
    ctx: click.Context, arguments: tuple[str, ...], model_option: str | None, prompt: str | None, file: str | None
) -> tuple[str, bytes]:
    """The model's name and the prompt."""
    models = [a for a in arguments if a != "-"] + ([model_option] if model_option is not None else [])
    sources = arguments.count("-") + (prompt is not None) + (file is not None)
    if len(models) > 1:
        raise WrongUse(
            f"one MODEL is expected, not {len(models)}", ctx, hint='a text to continue is given as -p "TEXT"'
        )
    if sources != 1:
        what = "no text to continue" if sources == 0 else "the text to continue is given more than once"
        raise WrongUse(what, ctx, hint=_HOW)
    if prompt is not None:
        data = unescape(prompt).encode("utf-8", "surrogateescape")
    else:
        data = sys.stdin.buffer.read() if file in (None, "-") else Path(str(file)).read_bytes()
        check_text(data, "standard input" if file in (None, "-") else str(file))
        # An editor ends every file with a line end; a model would take it for the end of the paragraph.
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not data:
        raise WrongUse("the text to continue is empty", ctx, hint=_HOW)
    return (models[0] if models else "demo"), data


def _generate(model: Model, prompt: bytes, state: State | None, sampling: dict[str, Any], *, show: bool) -> Reply:
    from rwkv_cpu.terminal.render import harmless
    from rwkv_cpu.terminal.streaming import stream

    clean = harmless if sys.stdout.isatty() else str

    def start(cancel: CancelToken, on_progress: Callable[[int, int], None]) -> Reply:
        return model.generate(prompt, state=state, cancel=cancel, on_progress=on_progress, **sampling)

    def write(piece: str) -> None:
        if show:
            sys.stdout.write(clean(piece))
            sys.stdout.flush()

    reply = stream(start, write)
    if show and not reply.text.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    return reply
