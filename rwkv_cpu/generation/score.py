# SPDX-License-Identifier: Apache-2.0
"""What a model expected of a text, and what it makes of it: log-probabilities per token, and one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.sampling import logprobs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Score", "embed", "score"]

# Logits of a piece are kept at once: 32 MB at 65,536 entries.
_PIECE = 128
# Hidden states of a piece, which are small.
_EMBED_PIECE = 4096


@dataclass(frozen=True)
class Score:
    """What a model expected of a text, token by token.

    Attributes:
        tokens: ids that were scored.
        logprobs: natural log of each one's probability given all before it, float32 [T].
        ranks: how many tokens were likelier there, uint32 [T]; 0: the model's own first choice.
    """

    tokens: tuple[int, ...]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.uint32]

    @property
    def total(self) -> float:
        """Natural log of the probability of the whole text."""
        return math.fsum(self.logprobs.tolist())

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise of a token."""
        return math.exp(-self.total / len(self.tokens))

    @property
    def greedy(self) -> bool:
        """Whether the model at temperature 0 would write exactly this."""
        return not self.ranks.any()


def score(
    model: Model,
    text: str | bytes | Sequence[int],
    *,
    context: str | bytes | Sequence[int] | None = None,
    state: State | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Log-probabilities of the tokens of *text*; memory does not depend on its length.

    Args:
        context: what stands before it (not scored). None: the start of a document, where the model has read token 0.
            The context and the text are encoded one by one.
        state: read before the context; left as it is. With a state and no context, the text follows on the state's own
            logits.
        progress: called with (tokens read, of all).

    Raises:
        ArgumentError: an empty text; a state without logits and no context. TokenError. NonFiniteError. Cancelled.
    """
    tokens, before = _ids(model, text), [] if context is None else _ids(model, context)
    if not tokens:
        raise ArgumentError("there is nothing to score: the text is empty")
    if state is None:
        state = model.new_state()
        before = before or [0]
    else:
        state = state.copy()
    total = len(before) + len(tokens) - 1
    done = 0
    if before:
        last = model.advance(before, state, cancel=cancel)
        done = len(before)
    elif state.logits is not None:
        last = state.logits.copy()
    else:
        raise ArgumentError("this state does not know what comes next", hint="Give a context of at least one token.")
    ids = np.asarray(tokens, np.int64)
    logprobs, ranks = np.empty(len(tokens), np.float32), np.empty(len(tokens), np.uint32)
    logprobs[:1], ranks[:1] = logprobs_of(last[None], _checked(model, ids[:1]))
    for start in range(1, len(tokens), _PIECE):
        piece = _checked(model, ids[start : start + _PIECE])
        logits = model.advance(tokens[start - 1 : start - 1 + len(piece)], state, logits="all", cancel=cancel)
        logprobs[start : start + len(piece)], ranks[start : start + len(piece)] = logprobs_of(logits, piece)
        done += len(piece)
        if progress is not None:
            progress(done, total)
    return Score(tuple(tokens), logprobs, ranks)


def embed(
    model: Model,
    text: str | bytes | Sequence[int],
    *,
    pooling: Literal["mean", "last"] = "mean",
    normalize: bool = True,
    cancel: CancelToken | None = None,
) -> NDArray[np.float32]:
    """A vector for *text*, f32 [n_embd]: its hidden states, pooled. Experimental.

    Language models are not trained for this: similar texts are near each other, but a model made for embeddings does it
    better. Vectors of different models do not compare.

    Args:
        pooling: "mean" of the hidden state (what the head multiplies) over all tokens, or that of the "last".
        normalize: to length 1, so that a dot product is the cosine.

    Raises:
        ArgumentError: an empty text, an unknown pooling. TokenError. NonFiniteError. Cancelled.
    """
    if pooling not in ("mean", "last"):
        raise ArgumentError(f"pooling={pooling!r}: choose 'mean' or 'last'")
    tokens = _ids(model, text)
    if not tokens:
        raise ArgumentError("there is nothing to embed: the text is empty")
    state = model.new_state()
    total = np.zeros(model.config.n_embd)
    for start in range(0, len(tokens), _EMBED_PIECE):
        hidden = model.hidden_states(tokens[start : start + _EMBED_PIECE], state, cancel=cancel)
        total += hidden.sum(axis=0, dtype=np.float64)
    vector = total / len(tokens) if pooling == "mean" else hidden[-1].astype(np.float64)
    if normalize:
        vector /= max(float(np.sqrt(np.square(vector).sum())), 1e-30)
    return vector.astype(np.float32)


def _ids(model: Model, text: str | bytes | Sequence[int]) -> list[int]:
    return model.tokenizer.encode(text) if isinstance(text, (str, bytes)) else list(text)


def _checked(model: Model, ids: NDArray[Any]) -> NDArray[np.uint32]:
    """As the engine takes them; an id outside the vocabulary gets the first that is not, which it then names."""
    return np.where((ids >= 0) & (ids < model.n_vocab), ids, model.n_vocab).astype(np.uint32)
