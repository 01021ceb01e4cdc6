# SPDX-License-Identifier: Apache-2.0
"""Questions in JSONL files: LAMBADA's, multiple choice, and the samples that lm-evaluation-harness logs.

What a line is, its keys say:

    {"text": "… the last word"}                                       the last word is predicted
    {"query" | "context" | "question": …, "choices": […], "gold" | "answer": …}   the likeliest choice is the answer
    {"arguments": [[context, continuation], …], "target": …}          a logged sample; its newer form is {"gen_args_0":
                                                                      {"arg_0": context, "arg_1": continuation}, …}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ChoiceItem", "LastWordItem", "parse_items"]

_HINT = (
    'A line is {"text": …} for the last word, {"query": …, "choices": […], "gold": …} for multiple choice, or a sample '
    'logged by lm-evaluation-harness (with "arguments" and "target").'
)
_QUERIES = ("query", "context", "question", "ctx", "prompt")
_CHOICES = ("choices", "endings", "options")
_GOLDS = ("gold", "answer", "answerKey", "label", "target")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class LastWordItem:
    """A text without its last word, and a space with that word."""

    context: str
    target: str


@dataclass(frozen=True)
class ChoiceItem:
    """Contexts and their continuations, one of which is right.

    Attributes:
        pairs: (context, continuation) of each choice. gold: the right ones' numbers.
        sizes: bytes of each choice, without the space before it.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each choice, without the space before it; at least 1."""
        return tuple(max(1, len(text.removeprefix(" ").encode())) for _, text in self.pairs)


Item = LastWordItem | ChoiceItem


def parse_items(text: str, where: str, limit: int | None = None) -> list[LastWordItem] | list[ChoiceItem]:
    """The items of a JSONL text, all of one kind.

    Args: where: its name, for errors. limit: only so many.
    Raises: ArgumentError, which names the line.
    """
    last_words: list[LastWordItem] = []
    choices: list[ChoiceItem] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if limit is not None and len(last_words) + len(choices) >= limit:
            break
        fail = _failure(where, number)
        item = _item(line, fail)
        if isinstance(item, LastWordItem):
            last_words.append(item)
        else:
            choices.append(item)
        if last_words and choices:
            fail("another kind of item than the lines before")
    if not last_words and not choices:
        raise ArgumentError(f"{where}: there is no item in it", hint=_HINT)
    return last_words or choices


def _failure(where: str, number: int) -> Callable[[str], NoReturn]:
    def fail(what: str) -> NoReturn:
        raise ArgumentError(f"{where}, line {number}: {what}", hint=_HINT)

    return fail


def _item(line: str, fail: Callable[[str], NoReturn]) -> Item:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        fail(f"this is not JSON ({error})")
    if not isinstance(found, dict):
        fail(f"a JSON {type(found).__name__}, expected an object")
    if "arguments" in found:
        return _sample(found, fail)
    if any(key in found for key in _CHOICES):
        return _choice(found, fail)
    if "text" not in found:
        fail(f"unknown keys: {', '.join(map(repr, found)) or 'none'}")
    return _last_word(found["text"], fail)


def _last_word(text: Any, fail: Callable[[str], NoReturn]) -> LastWordItem:
    """LAMBADA: the target is a space and what follows the text's last space."""
    if not isinstance(text, str):
        fail('"text" is not a text')
    context, space, word = text.rstrip().rpartition(" ")
    if not space or not context.strip():
        fail('"text" has only one word: there is nothing to predict it from')
    return LastWordItem(context, f" {word}")


def _choice(found: Mapping[str, Any], fail: Callable[[str], NoReturn]) -> ChoiceItem:
    key = next(name for name in _CHOICES if name in found)
    query = next((found[name] for name in _QUERIES if name in found), None)
    gold = next((found[name] for name in _GOLDS if name in found), None)
    choices: Any = found[key]
    labels: Any = None
    if isinstance(choices, Mapping):  # ARC: {"text": […], "label": […]}
        choices, labels = choices.get("text"), choices.get("label")
    if not isinstance(query, str):
        fail(f"no text under any of {', '.join(map(repr, _QUERIES))}")
    if not _texts(choices) or len(choices) < 2:
        fail(f'"{key}" must be a list of at least two texts')
    pairs = tuple((query, choice if choice[:1].isspace() else f" {choice}") for choice in choices)
    if not isinstance(labels, list) or len(labels) != len(choices):
        labels = None
    return ChoiceItem(pairs, _gold(gold, choices, labels, fail))


def _sample(found: Mapping[str, Any], fail: Callable[[str], NoReturn]) -> Item:
    arguments = found["arguments"]
    if isinstance(arguments, Mapping):
        arguments = [list(pair.values()) if isinstance(pair, Mapping) else pair for pair in arguments.values()]
    if not isinstance(arguments, Sequence) or isinstance(arguments, str) or not arguments:
        fail('"arguments" must be a list of [context, continuation]')
    if not all(_texts(pair) and len(pair) == 2 for pair in arguments):
        fail('"arguments" are not pairs of texts: only samples of loglikelihood and multiple_choice tasks can be used')
    pairs = tuple((str(context), str(continuation)) for context, continuation in arguments)
    if not all(continuation for _, continuation in pairs):
        fail("an empty continuation")
    if len(pairs) == 1:
        return LastWordItem(*pairs[0])
    doc = found.get("doc")
    gold = found.get("target")
    if gold is None and isinstance(doc, Mapping):
        gold = next((doc[name] for name in _GOLDS if name in doc), None)
    return ChoiceItem(pairs, _gold(gold, [text.strip() for _, text in pairs], None, fail))


def _texts(found: Any) -> bool:
    return isinstance(found, Sequence) and not isinstance(found, str) and all(isinstance(x, str) for x in found)


def _gold(
    gold: Any, choices: Sequence[str], labels: Sequence[Any] | None, fail: Callable[[str], NoReturn]
) -> tuple[int, ...]:
    """Numbers of the right choices, from a number, a list of them, a label, a letter or the choice itself."""
    if isinstance(gold, str) and gold.startswith("["):  # a list, as the harness logs it
        with contextlib.suppress(json.JSONDecodeError):
            gold = json.loads(gold)
    wanted = gold if isinstance(gold, list) else [gold]
    found = tuple(_place(one, choices, labels) for one in wanted)
    if not found or any(place is None or not 0 <= place < len(choices) for place in found):
        fail(f"the answer {gold!r} is none of the {len(choices)} choices")
    return tuple(place for place in found if place is not None)


def _place(gold: Any, choices: Sequence[str], labels: Sequence[Any] | None) -> int | None:
    if isinstance(gold, bool):
        return None
    if isinstance(gold, int):
        return gold
    if not isinstance(gold, str):
        return None
    for names in (labels or (), choices):
        if gold in names:
            return list(names).index(gold)
    if gold.strip().isdigit():
        return int(gold)
    return _LETTERS.index(gold.strip()) if len(gold.strip()) == 1 and gold.strip() in _LETTERS else None
