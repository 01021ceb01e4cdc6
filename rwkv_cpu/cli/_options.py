# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, with the names people know from llama.cpp and the RWKV scripts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

Command = TypeVar("Command", bound="Callable[..., Any]")

_UNIT = click.FloatRange(0.0, 1.0)
_PENALTY = click.FloatRange(-10.0, 10.0)

# Option → field of SamplingParams, with what click shows and checks.
_SAMPLING: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--temperature", "--temp"), {"type": click.FloatRange(0.0, 100.0), "help": "0: always the most likely token."}),
    (("--top-p",), {"type": _UNIT, "help": "Choose among the likeliest tokens that together reach this probability."}),
    (("--top-k",), {"type": click.IntRange(min=0), "help": "Choose among this many tokens; 0: all."}),
    (("--min-p",), {"type": _UNIT, "help": "Drop tokens less likely than this times the likeliest."}),
    (("--presence-penalty",), {"type": _PENALTY, "help": "Against tokens that occurred."}),
    (("--frequency-penalty",), {"type": _PENALTY, "help": "Against tokens, by how often they occurred."}),
    (("--penalty-decay",), {"type": _UNIT, "help": "How much of the penalties is left after each token."}),
    (("--seed", "-s"), {"type": click.IntRange(0, 2**64 - 1), "help": "Same seed, same text. Default: another each time."}),
]


def sampling_options(command: Command) -> Command:
    """All of SamplingParams, --max-tokens and --stop.

    The command receives ``sampling``: a dict with only what the user gave, so that the library's defaults hold.
    """

    @functools.wraps(command)
    def collect(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _names()}
        stop = kwargs.pop("stop")
        sampling = {name: value for name, value in given.items() if value is not None}
        if stop:
            sampling["stop"] = tuple(unescape(s) for s in stop)
        return command(*args, sampling=sampling, **kwargs)

    wrapped: Any = collect
    wrapped = click.option("--stop", "-r", multiple=True, metavar="TEXT", help="End before this text (\\n: new line). Repeatable.")(
        wrapped
    )
    for names, settings in reversed(_SAMPLING):
        wrapped = click.option(*names, default=None, **{**settings, "help": _with_default(names, settings["help"])})(wrapped)
    wrapped = click.option(
        "--max-tokens", "-n", type=click.IntRange(min=1), default=None, help="Longest answer, in tokens."
    )(wrapped)
    return wrapped  # type: ignore[no-any-return]


def model_argument(command: Command) -> Command:
    """MODEL, or -m MODEL; the command receives ``model``, "demo" if there was neither."""

    @functools.wraps(command)
    def choose(*args: Any, **kwargs: Any) -> Any:
        by_option = kwargs.pop("model_option")
        by_argument = kwargs.pop("model")
        if by_option is not None and by_argument is not None:
            raise click.UsageError("MODEL is given twice", click.get_current_context())
        return command(*args, model=by_argument or by_option or "demo", **kwargs)

    wrapped: Any = click.option("--model", "-m", "model_option", metavar="MODEL", default=None, help="The same as MODEL.")(choose)
    return click.argument("model", metavar="[MODEL]", required=False, default=None)(wrapped)  # type: ignore[no-any-return]


def load_options(command: Command) -> Command:
    """--threads and --format."""
    wrapped: Any = click.option(
        "--threads",
        "-t",
        type=click.IntRange(1, 1024),
        default=None,
        help="Threads to compute with. Default: the physical cores this process may use.",
    )(command)
    return click.option(  # type: ignore[no-any-return]
        "--format",
        "weight_format",
        type=click.Choice(["q8", "f16", "f32"]),
        default=None,
        help="How to store the weights of a checkpoint that is opened directly. Default: q8.",
    )(wrapped)


def json_option(command: Command) -> Command:
    """--json; the command receives ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def unescape(text: str) -> str:
    r"""``\n``, ``\t`` and ``\\`` as typed in a shell; everything else stays."""
    for typed, meant in (("\\\\", "\0"), ("\\n", "\n"), ("\\t", "\t"), ("\0", "\\")):
        text = text.replace(typed, meant)
    return text


def _names() -> list[str]:
    return ["max_tokens", *(names[0].lstrip("-").replace("-", "_") for names, _ in _SAMPLING)]


def _with_default(names: tuple[str, ...], text: str) -> str:
    from rwkv_cpu.generation.sampling import SamplingParams

    field = names[0].lstrip("-").replace("-", "_")
    default = getattr(SamplingParams(), field)
    return text if default is None else f"{text}  [default: {default:g}]"
