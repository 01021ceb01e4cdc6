# SPDX-License-Identifier: Apache-2.0
"""How likely a model finds some continuations of a context: many questions in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_cpu.evaluation.streaming import piece_tokens
from rwkv_cpu.evaluation.texts import END
from rwkv_cpu.softmax import token_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["Likelihood", "Question", "encode_pair", "likelihoods", "question"]

_PASS_TOKENS = 1024
_PASS_STATE_BYTES = 1 << 28


class Likelihood(NamedTuple):
    """Of one continuation: natural log of its probability, and whether greedy decoding would write it."""

    logprob: float
    greedy: bool


@dataclass(frozen=True)
class Question:
    """Continuations of one context.

    Attributes:
        context: ids, at least one. continuations: ids of each, at least one.
        state: read before the context, left as it is; None: a new one.
    """

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    state: State | None = None

    @property
    def n_tokens(self) -> int:
        """That a model runs for it."""
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what follows it.

    Spaces at the end of the context belong to the continuation. Both are encoded as one text and divided behind the
    context's own ids, as lm-evaluation-harness does; where these are not the text's beginning (a token would reach over
    the border), one by one, as BlinkDL's LAMBADA test does.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before, whole = tokenizer.encode(kept), tokenizer.encode(kept + continuation)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, tokenizer.encode(continuation)


def question(tokenizer: Tokenizer, context: str, continuations: Sequence[str]) -> Question:
    """Of texts, at the beginning of a document: token 0 stands first."""
    pairs = [encode_pair(tokenizer, context, text) for text in continuations]
    return Question((END, *pairs[0][0]), tuple(tuple(ids) for _, ids in pairs))


def likelihoods(
    model: Model,
    questions: Sequence[Question],
    *,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Likelihood]]:
    """Of every question's continuations, in order; each context is read once. progress: (questions done, of all)."""
    done = 0
    for batch in _batches(questions, model.state_bytes):
        last, states = model.forward_batch(
            [q.context for q in batch], [q.state for q in batch], logits="last", cancel=cancel
        )
        first_rows = [row for row in last if row is not None]
        yield from _of_batch(model, batch, first_rows, states, cancel)
        done += len(batch)
        if progress is not None:
            progress(done, len(questions))


def _batches(questions: Sequence[Question], state_bytes: int) -> Iterator[list[Question]]:
    most = max(1, _PASS_STATE_BYTES // state_bytes)
    batch: list[Question] = []
    tokens, states = 0, 0
    for asked in questions:
        n_states = 1 + len(asked.continuations)
        if batch and (tokens + asked.n_tokens > _PASS_TOKENS or states + n_states > most):
            yield batch
            batch, tokens, states = [], 0, 0
        batch.append(asked)
        tokens += asked.n_tokens
        states += n_states
    if batch:
        yield batch


def _of_batch(
    model: Model,
    batch: Sequence[Question],
    first_rows: Sequence[NDArray[np.float32]],
    states: Sequence[State],
    cancel: CancelToken | None,
) -> list[list[Likelihood]]:
    found = [
        [_likelihood(row[None], ids[:1]) for ids in asked.continuations]
        for asked, row in zip(batch, first_rows, strict=True)
    ]
    longer = [
        (i, j, np.asarray(ids, np.uint32))
        for i, asked in enumerate(batch)
        for j, ids in enumerate(asked.continuations)
        if len(ids) > 1
    ]
    size = piece_tokens(model.n_vocab)
    while longer:
        part = [longer.pop(0)]
        while longer and sum(len(ids) - 1 for _, _, ids in part) + len(longer[0][2]) - 1 <= size:
            part.append(longer.pop(0))
        inputs, before = [ids[:-1] for _, _, ids in part], [states[i] for i, _, _ in part]
        rows, _ = model.forward_batch(inputs, before, logits="all", cancel=cancel)
        for (i, j, ids), logits in zip(part, rows, strict=True):
            if logits is not None:
                more = _likelihood(logits, ids[1:])
                found[i][j] = Likelihood(found[i][j].logprob + more.logprob, found[i][j].greedy and more.greedy)
    return found


def _likelihood(logits: NDArray[np.float32], ids: Sequence[int] | NDArray[np.uint32]) -> Likelihood:
    targets = np.asarray(ids, np.uint32)
    greedy = bool((logits.argmax(1) == targets).all())
    return Likelihood(-float(token_losses(logits, targets).sum()), greedy)
