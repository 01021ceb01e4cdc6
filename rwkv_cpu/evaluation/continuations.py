# SPDX-License-Identifier: Apache-2.0
"""How two models go on from the same prompt: where they part, and how far apart they are on the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation.texts import END, check_same_vocabulary, tokenizer_of
from rwkv_cpu.softmax import kl_divergence, log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.tokenizer import Tokenizer

__all__ = ["Alternative", "Continuations", "Token", "compare_continuations"]


@dataclass(frozen=True)
class Alternative:
    """A token that a model might have taken, and its probability there."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """A token of the first model's continuation.

    Attributes:
        text: what it adds; "" while a character is incomplete.
        kl: KL(first‖second) where it was chosen, nats.
        first, second: both models' likeliest tokens there, where they would choose differently; else empty.
    """

    token: int
    text: str
    kl: float
    first: tuple[Alternative, ...] = ()
    second: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations of a prompt by two models.

    Attributes:
        tokens: the first model's, with the second's divergence on the same text (teacher-forced).
        other_ids, other_texts: the second model's own.
        divergence: index of the first token that differs; None: none does.
        kl_mean, kl_max: over *tokens*, nats. top1: share of *tokens* that the second would have chosen, too.
    """

    prompt: str
    tokens: tuple[Token, ...]
    other_ids: tuple[int, ...]
    other_texts: tuple[str, ...]
    divergence: int | None
    kl_mean: float
    kl_max: float
    top1: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_continuations(
    first: Model,
    second: Model,
    prompt: str,
    *,
    tokens: int = 64,
    alternatives: int = 3,
    cancel: CancelToken | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Continuations:
    """Let both models go on greedily from *prompt*, and compare their predictions along the first one's text.

    Args:
        tokens: at most so many; the end of a document ends a continuation before.
        alternatives: how many of the likeliest tokens are kept where the models would choose differently.
        on_progress: called with (tokens run, tokens to run).

    Raises: ArgumentError: different vocabularies, no tokenizer, tokens below 1. Cancelled.
    """
    if tokens < 1:
        raise ArgumentError(f"tokens is {tokens}: at least 1 is needed")
    check_same_vocabulary(first, second)
    tokenizer = tokenizer_of(first, second)
    if tokenizer is None:
        raise ArgumentError("neither model has a tokenizer", hint="Convert a checkpoint with --tokenizer FILE.")
    ids = tokenizer.encode(prompt) or [END]
    total = 3 * tokens

    def tell(done: int) -> None:
        if on_progress is not None:
            on_progress(done, total)

    own, rows = _greedy(first, tokenizer, ids, tokens, cancel, tell)
    state = second.new_state()
    judged = [second.advance(ids, state, cancel=cancel)[None]]
    if len(own) > 1:
        judged.append(second.advance(own[:-1], state, logits="all", cancel=cancel))
    forced = np.concatenate(judged)
    tell(2 * tokens)
    other, _ = _greedy(second, tokenizer, ids, tokens, cancel, lambda n: tell(2 * tokens + n))
    tell(total)
    kl = np.maximum(kl_divergence(rows, forced), 0)
    same = rows.argmax(1) == forced.argmax(1)
    texts, other_texts = _texts(tokenizer, own), _texts(tokenizer, other)
    found = [
        Token(token, texts[i], float(kl[i]))
        if same[i]
        else Token(
            token, texts[i], float(kl[i]), *(_likeliest(tokenizer, one[i], alternatives) for one in (rows, forced))
        )
        for i, token in enumerate(own)
    ]
    parted = [i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b]
    at = parted[0] if parted else None if len(own) == len(other) else min(len(own), len(other))
    return Continuations(
        prompt,
        tuple(found),
        tuple(other),
        tuple(other_texts),
        at,
        float(kl.mean()),
        float(kl.max()),
        float(same.mean()),
    )


def _greedy(
    model: Model,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    n: int,
    cancel: CancelToken | None,
    on_tokens: Callable[[int], None],
) -> tuple[list[int], NDArray[np.float32]]:
    """The likeliest tokens after *ids*, up to the end of the document, and the logits that each was chosen from."""
    state = model.new_state()
    logits = model.advance(ids, state, cancel=cancel)
    found, rows = [int(logits.argmax())], [logits]
    ends = tokenizer.end_ids | {END}
    while len(found) < n and found[-1] not in ends:
        logits = model.advance(found[-1:], state, cancel=cancel)
        found.append(int(logits.argmax()))
        rows.append(logits)
        on_tokens(len(found))
    return found, np.stack(rows)


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    ends = tokenizer.end_ids | {END}
    stream = tokenizer.stream(continuing=True)
    texts = ["" if token in ends else stream.step(token) for token in ids]
    if texts:
        texts[-1] += stream.flush()
    return texts


def _likeliest(tokenizer: Tokenizer, logits: NDArray[np.float32], n: int) -> tuple[Alternative, ...]:
    probabilities = np.exp(log_softmax(logits[None].astype(np.float64))[0])
    best = np.argsort(-probabilities, kind="stable")[:n]
    ends = tokenizer.end_ids | {END}
    return tuple(
        Alternative(int(token), "<end>" if int(token) in ends else _text(tokenizer, int(token)), float(p))
        for token, p in zip(best, probabilities[best], strict=True)
    )


def _text(tokenizer: Tokenizer, token: int) -> str:
    if token >= tokenizer.n_vocab:
        return f"<{token}>"
    return tokenizer.decode_bytes([token]).decode("utf-8", "replace")
