# SPDX-License-Identifier: Apache-2.0
"""Last words and multiple choice: how often a model is right."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation.items import ChoiceItem, LastWordItem
from rwkv_cpu.evaluation.likelihood import Likelihood, likelihoods, question
from rwkv_cpu.evaluation.statistics import Estimate, mean_of_items, proportion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model

__all__ = ["Score", "TaskResult", "compare_tasks", "run_task"]


@dataclass(frozen=True)
class Score:
    """A figure over all items, its 95 % interval and its standard error (None for a single item)."""

    estimate: Estimate
    stderr: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.estimate.to_dict(), "stderr": self.stderr}


@dataclass(frozen=True)
class TaskResult:
    """What a model made of the items.

    Attributes:
        kind: "last_word" or "multiple_choice". model: file name. items: how many.
        scores: last_word: "acc" (greedy decoding writes the whole word) and "perplexity" (exp of the mean of -ln p of
            the word). multiple_choice: "acc" (the likeliest choice is right) and "acc_norm" (the likeliest per byte).
        chance: mean accuracy of guessing; 0 for last words.
        correct: by "acc", bool [items]. chosen: number of the choice by "acc" ("last_word": 1 if right), i64 [items].
    """

    kind: str
    model: str
    items: int
    scores: dict[str, Score]
    chance: float
    seconds: float
    correct: NDArray[np.bool_]
    chosen: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the single items."""
        return {
            "kind": self.kind,
            "model": self.model,
            "items": self.items,
            "chance": self.chance,
            **{name: score.to_dict() for name, score in self.scores.items()},
            "seconds": self.seconds,
        }


def run_task(
    model: Model,
    items: Sequence[LastWordItem] | Sequence[ChoiceItem],
    *,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResult:
    """Ask *model* all items, of one kind. Contexts begin with token 0. progress: (questions done, of all).

    Raises: ArgumentError: no items, or no tokenizer. NonFiniteError. Cancelled.
    """
    began = time.perf_counter()
    if not items:
        raise ArgumentError("there is nothing to ask")
    pairs = [_pairs(item) for item in items]
    questions, places = [], []
    for i, of_item in enumerate(pairs):
        for context, numbers in _by_context(of_item).items():
            questions.append(question(model.tokenizer, context, [of_item[j][1] for j in numbers]))
            places.append((i, numbers))
    found: list[list[Likelihood]] = [[Likelihood(math.nan, False)] * len(of_item) for of_item in pairs]
    asked = likelihoods(model, questions, cancel=cancel, progress=progress)
    for (i, numbers), answers in zip(places, asked, strict=True):
        for j, answer in zip(numbers, answers, strict=True):
            found[i][j] = answer
    words = [item for item in items if isinstance(item, LastWordItem)]
    kind = "last_word" if words else "multiple_choice"
    scored = _last_words(found) if words else _choices([i for i in items if isinstance(i, ChoiceItem)], found)
    return TaskResult(kind, model.path.name, len(items), *scored[:2], time.perf_counter() - began, *scored[2:])


def compare_tasks(model: TaskResult, reference: TaskResult) -> dict[str, Score]:
    """Two models' answers to the same items: "agreement" (the same choice), "acc_difference" (paired)."""
    same = model.chosen == reference.chosen
    difference, error = mean_of_items(model.correct.astype(float) - reference.correct.astype(float))
    return {"agreement": _share(same), "acc_difference": Score(difference, _known(error))}


def _pairs(item: LastWordItem | ChoiceItem) -> tuple[tuple[str, str], ...]:
    return ((item.context, item.target),) if isinstance(item, LastWordItem) else item.pairs


def _by_context(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for j, (context, _) in enumerate(pairs):
        found.setdefault(context, []).append(j)
    return found


Scored = tuple[dict[str, Score], float, "NDArray[np.bool_]", "NDArray[np.int64]"]


def _last_words(found: Sequence[Sequence[Likelihood]]) -> Scored:
    right = np.array([answers[0].greedy for answers in found])
    loss, error = mean_of_items([-answers[0].logprob for answers in found])
    surprise = loss.map(lambda x: math.exp(min(x, 700.0)))
    # d exp(x) = exp(x) dx
    perplexity = Score(surprise, _known(surprise.value * error))
    return {"acc": _share(right), "perplexity": perplexity}, 0.0, right, right.astype(np.int64)


def _choices(items: Sequence[ChoiceItem], found: Sequence[Sequence[Likelihood]]) -> Scored:
    chosen, right, right_by_byte = [], [], []
    for item, answers in zip(items, found, strict=True):
        logprobs = np.array([answer.logprob for answer in answers])
        chosen.append(int(logprobs.argmax()))
        right.append(chosen[-1] in item.gold)
        right_by_byte.append(int((logprobs / np.array(item.sizes)).argmax()) in item.gold)
    chance = float(np.mean([len(set(item.gold)) / len(item.pairs) for item in items]))
    scores = {"acc": _share(np.array(right)), "acc_norm": _share(np.array(right_by_byte))}
    return scores, chance, np.array(right), np.array(chosen)


def _share(right: NDArray[np.bool_]) -> Score:
    return Score(proportion(int(right.sum()), len(right)), _known(mean_of_items(right)[1]))


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error
