# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, with the names people know from llama.cpp and the RWKV scripts."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rwkv_cpu.model import Model

Command = TypeVar("Command", bound="Callable[..., Any]")
# What click's ranges share; their element types differ.
_Kind: TypeAlias = "click.ParamType[Any]"

_UNIT = click.FloatRange(0.0, 1.0)
_PENALTY = click.FLOAT

# Names (the first is the field of SamplingParams) → what click checks and shows.
_SAMPLING: list[tuple[tuple[str, ...], _Kind, str]] = [
    (("--temperature", "--temp"), click.FloatRange(min=0.0), "0: always the most likely token."),
    (("--top-p",), _UNIT, "Choose among the likeliest tokens that together have this probability."),
    (("--top-k",), click.IntRange(min=0), "Choose among this many tokens; 0: all."),
    (("--min-p",), _UNIT, "Drop tokens less likely than this times the likeliest."),
    (("--presence-penalty",), _PENALTY, "Against tokens that occurred already."),
    (("--frequency-penalty",), _PENALTY, "Against tokens, by how often they occurred."),
    (("--penalty-decay",), _UNIT, "What is left of the penalties after each token."),
    (("--seed", "-s"), click.IntRange(min=0), "The same seed gives the same text. Default: another each time."),
]


_REPETITION: list[tuple[tuple[str, ...], _Kind, str]] = [
    (("--repetition-penalty", "--repeat-penalty"), _PENALTY, "Divide the logits of tokens that occurred; 1: off."),
    (("--dry-multiplier",), click.FloatRange(min=0.0), "DRY, against repeated sequences; 0: off, 0.8 is usual."),
    (("--dry-base",), click.FloatRange(min=1.0), "How fast that grows with what is repeated."),
    (("--dry-allowed-length",), click.IntRange(min=0), "Tokens that may be repeated freely."),
    (("--dry-range",), click.IntRange(min=0), "How many tokens it looks back."),
]
_MORE_SAMPLING: list[tuple[tuple[str, ...], _Kind, str]] = [
    (("--top-a",), _UNIT, "Drop tokens less likely than this times the square of the likeliest."),
    (("--typical-p",), _UNIT, "Keep the tokens of most usual surprise, up to this probability."),
    (("--xtc-probability",), _UNIT, "How often the top choices are excluded but for the last."),
    (("--xtc-threshold",), _UNIT, "From which probability on a token is a top choice."),
    (("--mirostat-tau",), click.FloatRange(min=0.0), "Surprise to aim at in bits, in place of all cuts; 0: off."),
    (("--mirostat-eta",), _UNIT, "How fast mirostat corrects itself."),
]
_ALL_SAMPLING = [*_SAMPLING, *_REPETITION, *_MORE_SAMPLING]


class GroupedOption(click.Option):
    """An option that --help lists under a heading of its own (GroupedCommand)."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose --help shows GroupedOptions apart from the others."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click.Command's, by groups."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def sampling_options(command: Command) -> Command:
    """All of SamplingParams, --max-tokens and --stop.

    The command receives ``sampling``: a dict with only what the user gave, so that the library's defaults hold.
    """

    @functools.wraps(command)
    def collect(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _names()}
        stop, biases, banned = kwargs.pop("stop"), kwargs.pop("logit_bias"), kwargs.pop("banned")
        sampling = {name: value for name, value in given.items() if value is not None}
        if biases:
            sampling["logit_bias"] = dict(_bias(text) for text in biases)
        if banned:
            sampling["banned"] = tuple(banned)
        _check(sampling)
        if stop:
            sampling["stop"] = tuple(unescape(s) for s in stop)
        return command(*args, sampling=sampling, **kwargs)

    options = [
        _number("--max-tokens", "-n", type=click.IntRange(min=1), help="The longest answer, in tokens."),
        *(_number(*names, type=kind, help=_with_default(names, text)) for names, kind, text in _SAMPLING),
        click.option(
            "--stop", "-r", multiple=True, metavar="TEXT", help="End before this text (\\n: new line). Repeatable."
        ),
        *_group("Against repetition", _REPETITION),
        *_group("More about choosing tokens", _MORE_SAMPLING),
        click.option(
            "--logit-bias",
            multiple=True,
            metavar="ID=X",
            help="Add X to the logit of token ID. Repeatable.",
            cls=GroupedOption,
            group="More about choosing tokens",
        ),
        click.option(
            "--ban",
            "banned",
            multiple=True,
            type=click.IntRange(min=0),
            metavar="ID",
            help="Never choose this token. Repeatable.",
            cls=GroupedOption,
            group="More about choosing tokens",
        ),
    ]
    return _decorated(collect, options)  # type: ignore[return-value]


def model_argument(command: Command) -> Command:
    """MODEL, or -m MODEL; the command receives ``model``, "demo" if there was neither."""

    @functools.wraps(command)
    def choose(*args: Any, **kwargs: Any) -> Any:
        by_option = kwargs.pop("model_option")
        by_argument = kwargs.pop("model")
        if by_option is not None and by_argument is not None:
            raise click.UsageError("MODEL is given twice", click.get_current_context())
        chosen = by_argument if by_argument is not None else by_option
        return command(*args, model="demo" if chosen is None else chosen, **kwargs)

    options = [
        click.argument("model", metavar="[MODEL]", required=False, default=None),
        click.option("--model", "-m", "model_option", metavar="MODEL", default=None, help="The same as MODEL."),
    ]
    return _decorated(choose, options)  # type: ignore[return-value]


def load_options(command: Command) -> Command:
    """--threads and --format."""
    options = [
        _number(
            "--threads",
            "-t",
            type=click.IntRange(min=1),
            help="Threads to compute with. Default: the physical cores this process may use.",
        ),
        click.option(
            "--format",
            "weight_format",
            type=click.Choice(["q8", "q6", "q5", "q4", "f16", "f32"]),
            default=None,
            help="How to store the weights of a checkpoint that is opened directly. Default: q8.",
        ),
    ]
    return _decorated(command, options)  # type: ignore[return-value]


def preload_option(command: Command) -> Command:
    """--preload/--no-preload; the command receives ``preload``."""
    return click.option(
        "--preload/--no-preload",
        default=True,
        show_default=True,
        help="Bring the weights into memory in the background, from the start on.",
    )(command)


def state_option(command: Command) -> Command:
    """--state; the command receives ``state``: a path or None."""
    return click.option(
        "--state",
        type=click.Path(),
        default=None,
        metavar="FILE",
        help="Begin with this state: of state tuning (.pth, .st), or one that was saved.",
    )(command)


def cache_prompt_option(command: Command) -> Command:
    """--cache-prompt; the command receives ``cache_prompt``: a path or None, for cached_prompts()."""
    return click.option(
        "--cache-prompt",
        type=click.Path(),
        default=None,
        metavar="FILE",
        help="Keep what was read of long prompts in FILE, and read only what is new in the next run.",
    )(command)


@contextlib.contextmanager
def cached_prompts(model: Model, path: str | None) -> Iterator[None]:
    """While in the block, *model* has the prefix cache of the file *path*, which is written at its end."""
    if path is None:
        yield
        return
    from rwkv_cpu.prefix_cache import PrefixCache

    model.prefix_cache = cache = PrefixCache.open(path, model)
    try:
        yield
    finally:
        if len(cache):
            cache.save(path)


def json_option(command: Command) -> Command:
    """--json; the command receives ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def unescape(text: str) -> str:
    r"""``\n``, ``\t`` and ``\\`` as typed in a shell; everything else stays."""
    for typed, meant in (("\\\\", "\0"), ("\\n", "\n"), ("\\t", "\t"), ("\0", "\\")):
        text = text.replace(typed, meant)
    return text


def _number(*names: str, type: _Kind, help: str, **more: Any) -> Callable[[Any], Any]:  # noqa: A002 (click's words)
    """An optional number, None if it is not given."""
    metavar = "N" if isinstance(type, click.IntRange) else "X"
    return click.option(*names, type=type, metavar=metavar, default=None, help=help, **more)


def _decorated(command: Callable[..., Any], options: list[Callable[[Any], Any]]) -> Callable[..., Any]:
    """*command* with all *options*, which --help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _names() -> list[str]:
    return ["max_tokens", *(names[0].lstrip("-").replace("-", "_") for names, _, _ in _ALL_SAMPLING)]


def _check(sampling: dict[str, Any]) -> None:
    """What the ranges above let through and the library does not: a wrong command line too, and told before loading."""
    from rwkv_cpu.errors import ArgumentError
    from rwkv_cpu.generation.sampling import SamplingParams

    try:
        SamplingParams(**{name: value for name, value in sampling.items() if name != "max_tokens"})
    except ArgumentError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def _group(title: str, rows: list[tuple[tuple[str, ...], _Kind, str]]) -> list[Callable[[Any], Any]]:
    return [
        _number(*names, type=kind, help=_with_default(names, text), cls=GroupedOption, group=title)
        for names, kind, text in rows
    ]


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise click.UsageError(
            f"--logit-bias {text}: write it as ID=X, say 261=-2.5", click.get_current_context()
        ) from None


def form_options(command: Command) -> Command:
    """--json-mode, --json-schema, --regex and --grammar; the command receives ``grammar``: a Grammar or None."""

    @functools.wraps(command)
    def collect(*args: Any, **kwargs: Any) -> Any:
        names = ("json_mode", "json_schema", "regex", "grammar")
        given = {name: value for name in names if (value := kwargs.pop(name)) not in (None, False)}
        if len(given) > 1:
            options = " and ".join("--" + name.replace("_", "-") for name in given)
            raise click.UsageError(f"{options} do not go together", click.get_current_context())
        return command(*args, grammar=_grammar(*next(iter(given.items()))) if given else None, **kwargs)

    title = "Form of the answer (pip install 'rwkv-cpu[structured]')"
    file = click.Path(exists=True, dir_okay=False)
    options = [
        click.option("--json-mode", is_flag=True, help="A JSON object.", cls=GroupedOption, group=title),
        click.option(
            "--json-schema", type=file, metavar="FILE", help="JSON of this schema.", cls=GroupedOption, group=title
        ),
        click.option(
            "--regex", metavar="PATTERN", help="What this expression matches.", cls=GroupedOption, group=title
        ),
        click.option(
            "--grammar", type=file, metavar="FILE", help="A GBNF or Lark grammar.", cls=GroupedOption, group=title
        ),
    ]
    return _decorated(collect, options)  # type: ignore[return-value]


def _grammar(name: str, value: Any) -> Any:
    """Checked at once: a wrong one is told before a model is loaded."""
    from pathlib import Path

    from rwkv_cpu.errors import ArgumentError
    from rwkv_cpu.generation.structured import Grammar

    try:
        if name == "json_mode":
            grammar = Grammar.json()
        elif name == "regex":
            grammar = Grammar.regex(value)
        else:
            text = Path(value).read_text("utf-8")
            grammar = Grammar.json_schema(text) if name == "json_schema" else Grammar.read(text)
        grammar.check()
    except (ArgumentError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--{name.replace('_', '-')}: {error}", click.get_current_context()) from None
    return grammar


def _with_default(names: tuple[str, ...], text: str) -> str:
    from rwkv_cpu.generation.sampling import SamplingParams

    field = names[0].lstrip("-").replace("-", "_")
    default = getattr(SamplingParams(), field)
    return text if default is None else f"{text}  [default: {default:g}]"
