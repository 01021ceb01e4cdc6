# SPDX-License-Identifier: Apache-2.0
"""What ``rwkv-cpu eval`` does with its options."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import click

from rwkv_cpu.cli._errors import WrongUse, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model

_T = TypeVar("_T")


@dataclass(frozen=True)
class Request:
    """The options, as click names them."""

    model: str
    text: str | None
    jsonl: str | None
    recall: bool
    reference: str | None
    plot: str | None
    window: int | None
    max_tokens: int | None
    by_position: bool
    max_items: int | None
    distances: str | None
    seeds: int | None
    filler: str | None
    style: str | None
    threads: int | None
    weight_format: str | None
    as_json: bool


class _Shown(NamedTuple):
    """A result: as JSON, as text, and how to draw it."""

    found: dict[str, Any]
    text: str
    draw: Callable[[str], None]


# Options → what they go with.
_GO_WITH = {
    "window": ("text",),
    "max_tokens": ("text",),
    "by_position": ("text",),
    "reference": ("text", "jsonl"),
    "max_items": ("jsonl",),
    "distances": ("recall",),
    "seeds": ("recall",),
    "filler": ("recall",),
    "style": ("recall",),
}
_FLAGS = {"by_position": "--perplexity-by-position"}


def run(ctx: click.Context, request: Request) -> None:
    """Check, open, evaluate, print."""
    kind = _checked(ctx, request)
    if request.plot is not None:
        from rwkv_cpu.evaluation.plots import check

        check(request.plot)
    shown = {"text": _text, "jsonl": _jsonl, "recall": _recall}[kind](ctx, request)
    if request.plot is not None:
        shown.draw(request.plot)
    click.echo(json.dumps(shown.found) if request.as_json else shown.text)
    if request.plot is not None and not request.as_json:
        click.echo(f"plot: {request.plot}")


def _checked(ctx: click.Context, request: Request) -> str:
    kinds = [name for name in ("text", "jsonl", "recall") if getattr(request, name)]
    if len(kinds) != 1:
        what = " and ".join(f"--{name}" for name in kinds) + " are given" if kinds else "nothing to evaluate on"
        raise WrongUse(f"{what}: give one of --text FILE, --jsonl FILE and --recall", ctx)
    for name, partners in _GO_WITH.items():
        if getattr(request, name) not in (None, False) and kinds[0] not in partners:
            flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
            raise WrongUse(f"{flag} goes with {' or '.join('--' + partner for partner in partners)}", ctx)
    if request.by_position and request.reference is not None:
        raise WrongUse("--perplexity-by-position looks at one model, without --reference", ctx)
    return kinds[0]


def _read(name: str) -> tuple[str, str]:
    """A file's text and its name for people; "-": stdin."""
    from rwkv_cpu import textfile

    if name == "-":
        return textfile.decoded(sys.stdin.buffer.read(), "stdin"), "stdin"
    return textfile.read_text(name), Path(name).name


@contextlib.contextmanager
def _opened(request: Request) -> Iterator[tuple[Model, Model | None]]:
    from rwkv_cpu.terminal.loading import open_model

    with contextlib.ExitStack() as stack:
        threads, weight_format = request.threads, request.weight_format
        reference = None
        if request.reference is not None:
            exact = _exact_format(request.reference)
            reference = stack.enter_context(
                open_model(request.reference, weight_format=exact, threads=threads, warn=warn)
            )
        model = stack.enter_context(open_model(request.model, weight_format=weight_format, threads=threads, warn=warn))
        yield model, reference


def _exact_format(name: str) -> str | None:
    """How a reference is opened: a .rwkv file as it is; a checkpoint is the original, and nothing of it is rounded."""
    from rwkv_cpu.checkpoint.recognise import kind_of
    from rwkv_cpu.errors import ModelNotFoundError
    from rwkv_cpu.places import DEMO

    try:
        return None if name == DEMO or kind_of(Path(name).expanduser()) == "rwkv" else "f32"
    except ModelNotFoundError:
        return None  # opening it says what is there instead


def _label(name: str | None) -> str:
    """A model as the user named it: a converted checkpoint has another name in the cache."""
    return Path(name or "").name


def _with_progress(what: str, work: Callable[[Callable[[int, int], None], CancelToken], _T]) -> _T:
    from rwkv_cpu.terminal.progress import run_with_progress

    return run_with_progress(what, work)


def _text(ctx: click.Context, request: Request) -> _Shown:
    del ctx
    text, where = _read(request.text or "")
    with _opened(request) as (model, reference):
        if request.by_position:
            return _positions(request, model, text, where)
        from rwkv_cpu.evaluation import divergence, perplexity, plots, report

        options = {"window": request.window, "max_tokens": request.max_tokens}
        if reference is None:
            own = _with_progress(
                where, lambda told, cancel: perplexity(model, text, progress=told, cancel=cancel, **options)
            )
            own = replace(own, model=_label(request.model))
            found = {"kind": "text", "text": where, "model": own.to_dict(), "reference": None, "divergence": None}
            return _Shown(found, report.text_text(where, own, None, None), lambda to: plots.plot_perplexity(own, to))
        other = reference
        apart, own, exact = _with_progress(
            where, lambda told, cancel: divergence(model, other, text, progress=told, cancel=cancel, **options)
        )
        own, exact = replace(own, model=_label(request.model)), replace(exact, model=_label(request.reference))
        found = {
            "kind": "text",
            "text": where,
            "model": own.to_dict(),
            "reference": exact.to_dict(),
            "divergence": apart.to_dict(),
        }
        shown = report.text_text(where, own, apart, exact)
        return _Shown(found, shown, lambda to: plots.plot_divergence(apart, own, exact, to))


def _positions(request: Request, model: Model, text: str, where: str) -> _Shown:
    from rwkv_cpu.evaluation import plots, report
    from rwkv_cpu.evaluation.positions import SHORT, by_position

    short, limit = request.window or SHORT, request.max_tokens
    found = _with_progress(
        where,
        lambda told, cancel: by_position(model, text, short=short, max_tokens=limit, progress=told, cancel=cancel),
    )
    found = replace(found, model=_label(request.model))
    shown = report.positions_text(where, found)
    return _Shown(
        {"kind": "position", "text": where, **found.to_dict()}, shown, lambda to: plots.plot_positions(found, to)
    )


def _jsonl(ctx: click.Context, request: Request) -> _Shown:
    del ctx
    from rwkv_cpu.evaluation import plots, report
    from rwkv_cpu.evaluation.items import parse_items
    from rwkv_cpu.evaluation.tasks import compare_tasks, run_task

    text, where = _read(request.jsonl or "")
    items = parse_items(text, where, request.max_items)
    with _opened(request) as (model, reference):
        own = _with_progress(where, lambda told, cancel: run_task(model, items, progress=told, cancel=cancel))
        exact = None
        if reference is not None:
            other = reference
            exact = _with_progress(
                f"{where}, reference", lambda told, cancel: run_task(other, items, progress=told, cancel=cancel)
            )
    own = replace(own, model=_label(request.model))
    exact = None if exact is None else replace(exact, model=_label(request.reference))
    beside = None if exact is None else compare_tasks(own, exact)
    found = {
        "kind": own.kind,
        "items": where,
        "model": own.to_dict(),
        "reference": None if exact is None else exact.to_dict(),
        "comparison": None if beside is None else {name: score.to_dict() for name, score in beside.items()},
    }
    return _Shown(found, report.task_text(where, own, exact, beside), lambda to: plots.plot_task(own, exact, to))


def _recall(ctx: click.Context, request: Request) -> _Shown:
    from rwkv_cpu.evaluation import plots, report
    from rwkv_cpu.evaluation.recall import DISTANCES, recall

    distances = DISTANCES if request.distances is None else _distances(ctx, request.distances)
    filler, name = (None, "built-in") if request.filler is None else _read(request.filler)
    with _opened(request) as (model, _):
        found = _with_progress(
            "recall",
            lambda told, cancel: recall(
                model,
                distances=distances,
                seeds=request.seeds or 4,
                filler=filler,
                filler_name=name,
                style=request.style,
                progress=told,
                cancel=cancel,
            ),
        )
    found = replace(found, model=_label(request.model))
    return _Shown(
        {"kind": "recall", **found.to_dict()}, report.recall_text(found), lambda to: plots.plot_recall(found, to)
    )


def _distances(ctx: click.Context, text: str) -> tuple[int, ...]:
    def wrong() -> NoReturn:
        raise WrongUse(f"--distances {text}: write numbers of tokens, say 64,256,1024 or 1k,4k", ctx)

    found = []
    for part in text.split(","):
        digits, factor = part.strip().lower(), 1
        if digits.endswith("k"):
            digits, factor = digits[:-1], 1024
        if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) * factor <= 10_000_000:
            wrong()
        found.append(int(digits) * factor)
    return tuple(found)
