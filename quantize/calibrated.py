# SPDX-License-Identifier: Apache-2.0
"""Packing tensors by what calibration found: which ones, in which order, with which Hessians."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.memory import available_bytes
from rwkv_cpu.quantize.error_feedback import Feedback, choose, factor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.quantize.calibration import Clusters, Reference

__all__ = ["BOOK", "INTEGERS", "PRODUCTS", "Calibrator", "expected_work", "pack_calibrated", "tensor_work"]

# The 16 values that lose least of a normal distribution whose groups of 32 are scaled by their largest member: fixed
# point of Lloyd's algorithm with the search for scales that follows here. Books of a tensor's own gained 1 to 3 %.
BOOK: NDArray[np.int8] = np.array([-127, -101, -81, -64, -49, -35, -22, -10, 1, 13, 25, 38, 51, 66, 85, 109], np.int8)
_MIN_BUDGET_BYTES = 1 << 30
_ROWS = 8192  # rows that are rounded together: bounds the memory of an embedding
PRODUCTS = frozenset({engine.KIND_MATRIX, engine.KIND_VALUE, engine.KIND_HEAD})
_CHOSEN = PRODUCTS | {engine.KIND_EMBEDDING}
INTEGERS = frozenset({engine.FORMAT_Q8, engine.FORMAT_Q6, engine.FORMAT_Q5, engine.FORMAT_Q4})
# What reads the residual stream through a layer norm: these say which errors of the embedding matter.
_READERS = {
    "att.receptance.weight": "ln1.weight",
    "att.key.weight": "ln1.weight",
    "att.value.weight": "ln1.weight",
    "att.gate.weight": "ln1.weight",
    "ffn.key.weight": "ln2.weight",
    "ffn.receptance.weight": "ln2.weight",
}


def expected_work(weights: Sequence[engine.TensorInfo], n_layer: int, token_work: int, tokens: int) -> int:
    """What calibrating *weights* with so many tokens takes, in terms of bytes packed; *token_work*: running one."""
    to_pack = sum(tensor_work(info) for info in weights if info.format in INTEGERS and info.kind in _CHOSEN)
    return to_pack + tokens * sum(_work_per_token(group, n_layer, token_work) for group in _plan_passes(weights))


def _work_per_token(group: Sequence[engine.TensorInfo], n_layer: int, token_work: int) -> int:
    """Running up to the last of them, and the products of their inputs."""
    last = max(n_layer if info.layer is None else info.layer + 1 for info in group)
    return token_work * last // n_layer + sum(info.cols**2 for info in group) // 330


def _plan_passes(weights: Sequence[engine.TensorInfo]) -> list[list[engine.TensorInfo]]:
    """Tensors whose Hessians are collected together: as many as a quarter of the free memory holds."""
    budget = max(_MIN_BUDGET_BYTES, (available_bytes() or 0) // 4)
    groups: list[list[engine.TensorInfo]] = [[]]
    used = 0
    for info in weights:
        if info.format not in INTEGERS or info.kind not in PRODUCTS:
            continue
        size = 4 * info.cols**2
        if groups[-1] and used + size > budget:
            groups.append([])
            used = 0
        groups[-1].append(info)
        used += size
    return groups if groups[0] else []


class Calibrator:
    """Chooses the integers of a plan's tensors.

    Args:
        reference: the model. sequences: tokens to run.
        weights: what the file consists of. on_work: called with the work done so far,
            in terms of bytes packed.
    """

    def __init__(
        self,
        reference: Reference,
        sequences: Sequence[NDArray[np.uint32]],
        weights: Sequence[engine.TensorInfo],
        on_work: Callable[[int], None],
    ) -> None:
        self._reference = reference
        self._sequences = sequences
        self._on_work = on_work
        self._metric: NDArray[np.float32] | None = None
        self._calibrated = [info for info in weights if info.format in INTEGERS and info.kind in PRODUCTS]
        self._embeddings = [info for info in weights if info.format in INTEGERS and info.kind == engine.KIND_EMBEDDING]
        self._others = [info for info in weights if not (info.format in INTEGERS and info.kind in _CHOSEN)]
        self._passes = _plan_passes(self._calibrated)
        n_layer = reference.model.config.public().n_layer
        self._token_work = [_work_per_token(group, n_layer, reference.token_work) for group in self._passes]

    def tensors(self) -> Iterator[tuple[engine.TensorInfo, NDArray[np.float32] | Clusters | None]]:
        """Every tensor of the plan with the Hessian of its inputs (None: is packed as it is). Embeddings come last."""
        for info in self._others:
            yield info, None
        for group, work in zip(self._passes, self._token_work, strict=True):
            names = [info.name for info in group]
            done = partial(self._ran, work)
            found, head = self._reference.hessians(self._sequences, names, done)
            for info in group:
                self._see(info)
                if info.kind == engine.KIND_HEAD and head is not None:
                    yield info, head
                else:
                    yield info, found.pop(info.name)
        for info in self._embeddings:
            if self._metric is None or info.name != "emb.weight":
                yield info, np.eye(info.cols, dtype=np.float32)
            else:
                norm = self._reference.weights("blocks.0.ln0.weight")
                yield info, self._metric * norm * norm.T

    def _ran(self, work: int, n: int) -> None:
        self._on_work(n * work)

    def _see(self, info: engine.TensorInfo) -> None:
        """Add a reader of the residual stream to the metric of the embedding's errors."""
        if not any(emb.name == "emb.weight" and emb.cols == info.cols for emb in self._embeddings):
            return
        if info.kind == engine.KIND_HEAD:
            norm, share = "ln_out.weight", float(self._reference.model.config.public().n_layer)
        elif info.layer is not None and (role := info.name.split(".", 2)[2]) in _READERS:
            norm, share = f"blocks.{info.layer}.{_READERS[role]}", 0.25
        else:
            return
        weights = self._reference.weights(info.name) * self._reference.weights(norm)
        product = weights.T @ weights
        product *= share / max(float(product.trace(dtype=np.float64)), 1e-30)
        self._metric = product if self._metric is None else self._metric + product


def tensor_work(info: engine.TensorInfo) -> int:
    """Choosing the integers of a tensor, in terms of bytes packed."""
    return info.rows * info.cols * (100 + info.cols // 330) + info.cols**3 // 500


def pack_calibrated(
    info: engine.TensorInfo,
    weights: NDArray[np.float32],
    hessian: NDArray[np.float32] | Clusters,
    packed: NDArray[np.uint8],
    run: Callable[[Callable[[int, int], Any], int], None],
) -> None:
    """Choose integers for *weights* [rows, cols] and pack them; run(function, n) covers 0..n in ranges, in threads."""
    book = BOOK if info.format == engine.FORMAT_Q4 else None
    integers: NDArray[np.int8] = np.zeros(weights.shape, np.int8)
    scales: NDArray[np.float16] = np.zeros((len(weights), -(-info.cols // 32)), np.float16)

    def solve(rows: NDArray[np.intp], feedback: Feedback) -> None:
        for at in range(0, len(rows), _ROWS):
            own = rows[at : at + _ROWS]
            chosen = choose(info, weights[own], feedback, book, run)
            integers[own], scales[own] = chosen.integers, chosen.scales

    if isinstance(hessian, np.ndarray):
        solve(np.arange(len(weights)), factor(hessian))
    else:
        for c, own_hessian in enumerate(hessian.hessians):
            rows = np.flatnonzero(hessian.cluster == c)
            if len(rows):
                solve(rows, factor(own_hessian))

    def pack(first: int, last: int) -> None:
        engine.pack_integers(info, integers, scales, first, last, packed, book)

    run(pack, engine.packed_panels(info))
