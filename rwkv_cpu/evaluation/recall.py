# SPDX-License-Identifier: Apache-2.0
"""How far back a model remembers: facts are planted, filler is read, and at growing distances they are asked for.

One pass reads the text of a seed; wherever a fact is due the state is forked, and the fork answers. So the cost is that
of the longest distance, whatever the number of questions.
"""

from __future__ import annotations

import heapq
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation.facts import FACTS, Chat, Fact, Plain, chat_filler, text_filler
from rwkv_cpu.evaluation.likelihood import Question, encode_pair, likelihoods
from rwkv_cpu.evaluation.statistics import Estimate, proportion
from rwkv_cpu.evaluation.texts import END

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["DISTANCES", "Recall", "RecallRow", "recall"]

DISTANCES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ANSWER_TOKENS = 24
_TOGETHER, _TOGETHER_BYTES = 24, 1 << 28  # questions asked in one pass, and the memory of their states
_GOOD = 0.8


@dataclass(frozen=True)
class RecallRow:
    """Facts asked for at one distance.

    Attributes:
        distance: tokens between a fact and its question, at least. tokens: their mean in truth.
        asked: questions. answered: share whose greedy answer holds the value (in style "plain": is it).
        likeliest: share whose value is likelier than all other candidates, after the beginning of an answer.
    """

    distance: int
    tokens: float
    asked: int
    answered: Estimate
    likeliest: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "distance": self.distance,
            "tokens": self.tokens,
            "asked": self.asked,
            "answered": self.answered.to_dict(),
            "likeliest": self.likeliest.to_dict(),
        }


@dataclass(frozen=True)
class Recall:
    """Accuracy over distance.

    Attributes:
        style: "chat" or "plain". seeds: texts that were read. facts: kinds of facts in each.
        chance: of the likeliest candidate by guessing. examples: a question and its greedy answer at each distance.
    """

    model: str
    style: str
    filler: str
    seeds: int
    facts: tuple[str, ...]
    chance: float
    rows: tuple[RecallRow, ...]
    verdict: str
    examples: tuple[dict[str, Any], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "style": self.style,
            "filler": self.filler,
            "seeds": self.seeds,
            "facts": list(self.facts),
            "chance": self.chance,
            "rows": [row.to_dict() for row in self.rows],
            "verdict": self.verdict,
            "examples": list(self.examples),
            "seconds": self.seconds,
        }


class _Due(NamedTuple):
    """A question whose state is ready. tokens: between fact and question."""

    fact: Fact
    value: str
    distance: int
    tokens: int
    state: State


class _Answer(NamedTuple):
    due: _Due
    text: str
    answered: bool
    likeliest: bool


def recall(
    model: Model,
    *,
    distances: Sequence[int] = DISTANCES,
    seeds: int = 4,
    filler: str | None = None,
    filler_name: str = "built-in",
    style: str | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recall:
    """Plant facts and ask for them at *distances* (tokens).

    Args:
        seeds: how many texts, each with its own values, order of facts and filler; each has 6 questions at a distance.
        filler: text to read between; None: small talk (chat), the calibration text (plain).
        style: "chat" (with the model's template) or "plain"; None: chat, but plain for a raw template.
        progress: called with (tokens read, of all).

    Raises: ArgumentError: no distances, no tokenizer, an unknown style. Cancelled.
    """
    began = time.perf_counter()
    wanted = sorted(set(distances))
    if not wanted or wanted[0] < 1 or seeds < 1:
        raise ArgumentError(f"distances {list(distances)} and {seeds} seeds", hint="Both must be at least 1.")
    template = ChatTemplate.from_bytes(model.chat_template)
    written = _style(style, template)
    answers: list[_Answer] = []
    waiting: list[_Due] = []
    most = max(1, min(_TOGETHER, _TOGETHER_BYTES // model.state_bytes))
    total = seeds * (wanted[-1] + 100 * len(FACTS))
    for seed in range(seeds):

        def told(n: int, done: int = seed * total // seeds) -> None:
            if progress is not None:
                progress(min(done + n, total), total)

        for due in _one_text(model, written, _filler(written, filler, seed), wanted, seed, cancel, told):
            waiting.append(due)
            if len(waiting) >= most:
                answers += _ask(model, written, waiting, cancel)
                waiting = []
    answers += _ask(model, written, waiting, cancel)
    rows = tuple(_row(distance, [a for a in answers if a.due.distance == distance]) for distance in wanted)
    examples = tuple(_example(next(a for a in answers if a.due.distance == distance)) for distance in wanted)
    if progress is not None:
        progress(total, total)
    return Recall(
        model.path.name,
        written.name,
        filler_name,
        seeds,
        tuple(fact.name for fact in FACTS),
        sum(1 / len(fact.values) for fact in FACTS) / len(FACTS),
        rows,
        _verdict(rows),
        examples,
        time.perf_counter() - began,
    )


def _style(name: str | None, template: ChatTemplate) -> Chat | Plain:
    if name not in (None, "chat", "plain"):
        raise ArgumentError(f"style={name!r}: choose 'chat' or 'plain'")
    return Plain() if name == "plain" or (name is None and template.raw) else Chat(template)


def _filler(style: Chat | Plain, text: str | None, seed: int) -> Iterator[str]:
    if text is not None:
        return text_filler(style, text, seed)
    if isinstance(style, Chat):
        return chat_filler(style, seed)
    from rwkv_cpu.quantize.calibration import default_text

    return text_filler(style, default_text().partition("\n\n")[2].partition("\n\n")[2], seed)


def _one_text(
    model: Model,
    style: Chat | Plain,
    filler: Iterator[str],
    distances: Sequence[int],
    seed: int,
    cancel: CancelToken | None,
    told: Callable[[int], None],
) -> Iterator[_Due]:
    """Read the text of a seed; a question whenever it is due. Facts are planted one after the other, filler between."""
    draw = random.Random(1_000_003 * seed + 17)  # noqa: S311 (values, not secrets)
    encode = model.tokenizer.encode
    facts = draw.sample(FACTS, len(FACTS))
    state = model.new_state()
    due: list[tuple[int, int, int]] = []  # where, number of the fact, distance
    planted: list[tuple[Fact, str, int]] = []
    model.advance([END, *encode(style.opening())], state, logits="none", cancel=cancel)
    while len(planted) < len(facts) or due:
        if len(planted) < len(facts):
            fact = facts[len(planted)]
            value = draw.choice(fact.values)
            model.advance(encode(style.plant(fact, value)), state, logits="none", cancel=cancel)
            planted.append((fact, value, state.n_tokens))
            for distance in distances:
                heapq.heappush(due, (state.n_tokens + distance, len(planted) - 1, distance))
        # Filler up to the next question, in one call; at least one piece between two facts.
        ids = encode(next(filler))
        while len(planted) == len(facts) and due and state.n_tokens + len(ids) < due[0][0]:
            ids += encode(next(filler))
        for at in range(0, len(ids), 1024):
            model.advance(ids[at : at + 1024], state, logits="none", cancel=cancel)
            told(state.n_tokens)
        while due and due[0][0] <= state.n_tokens:
            _, number, distance = heapq.heappop(due)
            fact, value, where = planted[number]
            yield _Due(fact, value, distance, state.n_tokens - where, state.copy())


def _ask(model: Model, style: Chat | Plain, waiting: Sequence[_Due], cancel: CancelToken | None) -> list[_Answer]:
    """Both ways, many at a time."""
    if not waiting:
        return []
    tokenizer = model.tokenizer
    asked = [style.ask(due.fact) for due in waiting]
    questions = []
    for due, (prompt, lead) in zip(waiting, asked, strict=True):
        pairs = [encode_pair(tokenizer, prompt + lead, f" {value}") for value in due.fact.values]
        questions.append(Question(tuple(pairs[0][0]), tuple(tuple(ids) for _, ids in pairs), due.state))
    found = list(likelihoods(model, questions, cancel=cancel))
    texts = _greedy(model, [tokenizer.encode(prompt) for prompt, _ in asked], waiting, style.stops(), cancel)
    answers = []
    for due, likely, text in zip(waiting, found, texts, strict=True):
        right = due.fact.values.index(due.value)
        likeliest = max(range(len(likely)), key=lambda i: likely[i].logprob) == right
        answers.append(_Answer(due, text, _holds(text, due.value, begins=isinstance(style, Plain)), likeliest))
    return answers


def _greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    waiting: Sequence[_Due],
    stops: Sequence[str],
    cancel: CancelToken | None,
) -> list[str]:
    """Answers at temperature 0, of at most _ANSWER_TOKENS."""
    tokenizer = model.tokenizer
    rows, states = model.forward_batch(prompts, [due.state for due in waiting], cancel=cancel)
    ids: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    going = list(range(len(prompts)))
    for _ in range(_ANSWER_TOKENS):
        still = []
        for i, row in zip(going, rows, strict=True):
            token = int(row.argmax()) if row is not None else END
            if token in tokenizer.end_ids | {END}:
                continue
            ids[i].append(token)
            texts[i] = tokenizer.decode(ids[i])
            ends = [at for stop in stops if (at := texts[i].find(stop)) >= 0]
            if ends:
                texts[i] = texts[i][: min(ends)]
            else:
                still.append(i)
        if not still:
            break
        states = [states[going.index(i)] for i in still]
        rows = model.advance_batch([ids[i][-1:] for i in still], states, cancel=cancel)
        going = still
    return texts


def _holds(text: str, value: str, *, begins: bool) -> bool:
    """Whether the value stands in an answer as a word of its own (*begins*: as its first)."""
    pattern = rf"\b{re.escape(value)}\b"
    found = re.match(rf"\s*{pattern}", text, re.IGNORECASE) if begins else re.search(pattern, text, re.IGNORECASE)
    return found is not None


def _row(distance: int, answers: Sequence[_Answer]) -> RecallRow:
    return RecallRow(
        distance,
        sum(a.due.tokens for a in answers) / len(answers),
        len(answers),
        proportion(sum(a.answered for a in answers), len(answers)),
        proportion(sum(a.likeliest for a in answers), len(answers)),
    )


def _example(answer: _Answer) -> dict[str, Any]:
    due = answer.due
    return {
        "distance": due.distance,
        "question": due.fact.asks,
        "value": due.value,
        "answer": answer.text.strip(),
        "answered": answer.answered,
        "likeliest": answer.likeliest,
    }


def _verdict(rows: Sequence[RecallRow]) -> str:
    """In words, with the numbers behind it. What counts is the greedy answer: that is what a user sees."""
    good = [row for row in rows if row.answered.value >= _GOOD]
    first = rows[0]
    if not good:
        return (
            f"recall fails already at {first.distance} tokens: {first.answered.value:.0%} of the answers hold the fact"
        )
    reach = next((i for i, row in enumerate(rows) if row.answered.value < _GOOD), len(rows))
    if reach == len(rows):
        last = rows[-1]
        return f"recall holds at every distance, up to {last.distance} tokens ({last.answered.value:.0%})"
    if reach == 0:
        return (
            f"recall is uneven: {first.answered.value:.0%} at {first.distance} tokens, {_GOOD:.0%} and more only later"
        )
    last, beyond = rows[reach - 1], rows[reach]
    return (
        f"recall holds up to {last.distance} tokens ({last.answered.value:.0%}) and falls to "
        f"{beyond.answered.value:.0%} at {beyond.distance}, {rows[-1].answered.value:.0%} at {rows[-1].distance}"
    )
