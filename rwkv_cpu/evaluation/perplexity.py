# SPDX-License-Identifier: Apache-2.0
"""How surprised a model is by a text."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.evaluation.statistics import Bootstrap, Estimate
from rwkv_cpu.evaluation.streaming import predictions
from rwkv_cpu.evaluation.texts import stream_of, token_bytes, tokenizer_of
from rwkv_cpu.softmax import token_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["Perplexity", "perplexity", "perplexity_of"]


@dataclass(frozen=True)
class Perplexity:
    """A model's surprise at a text.

    Attributes:
        model: file name. tokens: that were predicted. text_bytes: what they stand for.
        window: tokens after which the state was reset; None: one stream.
        loss: mean of -ln p, nats a token. perplexity: exp of it. bits_per_byte: the loss in bits over the text's bytes,
            which compares between tokenizers; None where there is no tokenizer.
        losses: of each token, nats, f64 [tokens].
    """

    model: str
    tokens: int
    text_bytes: int | None
    window: int | None
    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate | None
    seconds: float
    losses: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the single losses."""
        return {
            "model": self.model,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "window": self.window,
            "loss": self.loss.to_dict(),
            "perplexity": self.perplexity.to_dict(),
            "bits_per_byte": None if self.bits_per_byte is None else self.bits_per_byte.to_dict(),
            "seconds": self.seconds,
        }


def perplexity(
    model: Model,
    text: str | Sequence[int] | NDArray[Any],
    *,
    window: int | None = None,
    max_tokens: int | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Perplexity and bits per byte of *text* (or token ids of one document).

    Args:
        window: None: one stream, whose state is carried through. Else a new state after so many tokens.
        max_tokens: predict only so many. progress: called with (tokens done, of all).

    Raises: ArgumentError: nothing to predict. TokenError. NonFiniteError. Cancelled.
    """
    began = time.perf_counter()
    tokenizer = tokenizer_of(model)
    ids = stream_of(tokenizer, text, max_tokens)
    losses = np.empty(len(ids) - 1)
    for piece in predictions([model], ids, window=window, cancel=cancel, progress=progress):
        losses[piece.begin : piece.begin + len(piece.targets)] = token_losses(
            piece.logits[0], piece.targets, threads=model.threads
        )
    return perplexity_of(model.path.name, losses, ids[1:], tokenizer, window, time.perf_counter() - began)


def perplexity_of(
    model: str,
    losses: NDArray[np.float64],
    targets: NDArray[np.uint32],
    tokenizer: Tokenizer | None,
    window: int | None,
    seconds: float,
) -> Perplexity:
    """The figures of *losses* [T] of the tokens *targets* [T]."""
    bootstrap = Bootstrap(len(losses), window)
    loss = bootstrap.mean(losses)
    per_byte, n_bytes = None, None
    if tokenizer is not None:
        sizes = token_bytes(tokenizer, targets)
        n_bytes = int(sizes.sum())
        if n_bytes:
            per_byte = bootstrap.ratio(losses / math.log(2), sizes)
    return Perplexity(model, len(losses), n_bytes, window, loss, loss.map(_exp), per_byte, seconds, losses)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
