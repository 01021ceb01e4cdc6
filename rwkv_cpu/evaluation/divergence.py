# SPDX-License-Identifier: Apache-2.0
"""How far a model's predictions are from another's, of which it is a smaller copy, say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.evaluation.perplexity import Perplexity, perplexity_of
from rwkv_cpu.evaluation.statistics import Bootstrap, Estimate
from rwkv_cpu.evaluation.streaming import predictions
from rwkv_cpu.evaluation.texts import check_same_vocabulary, stream_of, tokenizer_of
from rwkv_cpu.softmax import Comparison, compare_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model

__all__ = ["Divergence", "divergence", "joined", "summary"]


@dataclass(frozen=True)
class Divergence:
    """Predictions of a model beside a reference's, on the same text.

    Attributes:
        tokens: that were predicted.
        kl_mean, kl_median, kl_99: of KL(reference‖model), nats a token: mean, median, 99 % quantile.
        top1: share of tokens for which both have the same likeliest one.
        perplexity_ratio: model's perplexity / reference's.
        kl: of each token, nats, f64 [tokens].
    """

    tokens: int
    kl_mean: Estimate
    kl_median: Estimate
    kl_99: Estimate
    top1: Estimate
    perplexity_ratio: Estimate
    kl: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the single divergences."""
        names = ("kl_mean", "kl_median", "kl_99", "top1", "perplexity_ratio")
        return {"tokens": self.tokens, **{name: getattr(self, name).to_dict() for name in names}}


def divergence(
    model: Model,
    reference: Model,
    text: str | Sequence[int] | NDArray[Any],
    *,
    window: int | None = None,
    max_tokens: int | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Divergence, Perplexity, Perplexity]:
    """Compare *model* with *reference* on *text*; also the model's perplexity and the reference's.

    Args and errors as perplexity(); also ArgumentError: different vocabularies.
    """
    began = time.perf_counter()
    check_same_vocabulary(model, reference)
    tokenizer = tokenizer_of(model, reference)
    ids = stream_of(tokenizer, text, max_tokens)
    pieces = predictions([reference, model], ids, window=window, cancel=cancel, progress=progress)
    rows = joined(
        compare_rows(piece.logits[0], piece.logits[1], piece.targets, threads=model.threads) for piece in pieces
    )
    seconds = time.perf_counter() - began
    own = perplexity_of(model.path.name, rows.loss, ids[1:], tokenizer, window, seconds)
    exact = perplexity_of(reference.path.name, rows.reference_loss, ids[1:], tokenizer, window, seconds)
    return summary(rows, window), own, exact


def joined(parts: Iterable[Comparison]) -> Comparison:
    """Comparisons of successive rows as one."""
    return Comparison(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def summary(rows: Comparison, block: int | None = None) -> Divergence:
    """The figures of compared rows. *block*: as of Bootstrap."""
    bootstrap = Bootstrap(len(rows.kl), block)
    return Divergence(
        len(rows.kl),
        bootstrap.mean(rows.kl),
        bootstrap.quantile(rows.kl, 0.5),
        bootstrap.quantile(rows.kl, 0.99),
        bootstrap.mean(rows.same),
        bootstrap.mean(rows.loss - rows.reference_loss).map(_exp_of_difference),
        rows.kl,
    )


def _exp_of_difference(x: float) -> float:
    return float(np.exp(x))
