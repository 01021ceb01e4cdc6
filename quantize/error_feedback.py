# SPDX-License-Identifier: Apache-2.0
"""Calibrated rounding: the error of each input is made up for by the inputs that follow it (GPTQ, LDLQ).

With H = E[x xᵀ] the error of a row's product is (w - q) H (w - q)ᵀ. H = U D Uᵀ with U unit upper triangular turns it
into a sum of squares, D[k] · (target[k] - q[k])² with target[k] = w[k] + Σ_{j<k} (w[j] - q[j]) · U[j, k]: inputs are
rounded in order, each to the best of its own target.

Sources: Frantar et al., "GPTQ", arXiv:2210.17323; Chee et al., "QuIP", arXiv:2307.13304 (this form of it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rwkv_cpu import engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Chosen", "Feedback", "choose", "factor"]

_GROUP = 32
_BLOCK = 256  # columns whose targets are brought up to date by one product
_DAMPING = 0.01  # of the mean diagonal: as usual; a hundredth and ten times that gave the same quality
_MAX_DAMPING = 1.0


@dataclass(frozen=True)
class Feedback:
    """A factored Hessian: *upper* [n, n] is used above its diagonal, *importance* [n]."""

    upper: NDArray[np.float32]
    importance: NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """A tensor as the file holds it: *integers* int8 [rows, cols], *scales* f16 [rows, groups]; *errors* f32 are what
    the stored weights lack.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float16]
    errors: NDArray[np.float32]


def factor(hessian: NDArray[np.float32]) -> Feedback:
    """H = U D Uᵀ, with more damping where H is (nearly) singular. *hessian* [n, n] is changed."""
    n = len(hessian)
    mean = float(hessian.diagonal().mean(dtype=np.float64)) or 1.0
    hessian *= 1 / mean
    damping, added = _DAMPING, 0.0
    while True:
        hessian.flat[:: n + 1] += damping - added
        added = damping
        try:
            # The last input first: Cholesky's lower factor is then our upper one. As a copy: it takes a view's columns
            # apart one by one, for as long again as a third of the factoring.
            upper = np.linalg.cholesky(np.ascontiguousarray(hessian[::-1, ::-1]))[::-1, ::-1]
            break
        except np.linalg.LinAlgError:
            if damping >= _MAX_DAMPING:
                raise
            damping *= 10
    diagonal = upper.diagonal().copy()
    feedback: NDArray[np.float32] = np.ascontiguousarray(upper / diagonal)
    return Feedback(feedback, np.square(diagonal))


def choose(
    info: engine.TensorInfo,
    weights: NDArray[np.float32],
    feedback: Feedback,
    book: NDArray[np.int8] | None,
    run_rows: Callable[[Callable[[int, int], None], int], None],
) -> Chosen:
    """Integers and scales of a tensor of *info*'s format.

    Args:
        weights: f32 [rows, cols]. feedback: of its inputs.
        run_rows: calls a function with ranges (first, last) that cover so many rows, in several threads if it likes.
    Raises: NonFiniteError; whatever run_rows raises.
    """
    rows, cols = weights.shape
    integers: NDArray[np.int8] = np.zeros((rows, cols), np.int8)
    scales: NDArray[np.float16] = np.zeros((rows, -(-cols // _GROUP)), np.float16)
    errors: NDArray[np.float32] = np.zeros((rows, cols), np.float32)
    for begin in range(0, cols, _BLOCK):
        end = min(begin + _BLOCK, cols)
        targets = weights[:, begin:end].copy()
        if begin:
            targets += errors[:, :begin] @ feedback.upper[:begin, begin:end]
        for at in range(begin, end, _GROUP):
            own = slice(at, min(at + _GROUP, cols))
            inside = targets[:, own.start - begin : own.stop - begin]
            if at > begin:
                inside += errors[:, begin:at] @ feedback.upper[begin:at, own]
            group = engine.GroupChoice(
                format=info.format,
                book=book,
                weights=weights[:, own],
                targets=inside,
                feedback=feedback.upper[own, own],
                importance=feedback.importance[own],
                integers=integers[:, own],
                scales=scales[:, at // _GROUP],
                errors=errors[:, own],
            )
            run_rows(group.run, rows)
    return Chosen(integers, scales, errors)
