# SPDX-License-Identifier: Apache-2.0
"""A format for each tensor, so that the file has the size that is wanted and loses as little as possible.

Divergences of parts add up as long as they are small. What a part costs in q4 is measured: the model runs with this
part in q4 and all else unquantised. What it costs in more bits follows from the squared error of the formats.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.memory import aligned_zeros, human_bytes
from rwkv_cpu.quantize.calibrated import INTEGERS, PRODUCTS
from rwkv_cpu.quantize.report import Sensitivity
from rwkv_cpu.softmax import kl_divergence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.quantize.calibration import Reference

__all__ = [
    "LADDER",
    "allocate",
    "check_room",
    "integer_tensors",
    "measure",
    "parts",
    "tokens_to_run",
]

# Formats from the smallest on, and the divergence of a tensor relative to q4: squared errors of normally distributed
# weights after the search for scales (measured on the two trained checkpoints: 0.30, 0.073, 0.0048).
LADDER: tuple[tuple[int, float], ...] = (
    (engine.FORMAT_Q4, 1.0),
    (engine.FORMAT_Q5, 0.30),
    (engine.FORMAT_Q6, 0.073),
    (engine.FORMAT_Q8, 0.0048),
)
_DEPTHS = 3  # parts of a role: the first, the middle and the last layers
_TOKENS = 4096
_LOGITS_BYTES = 1 << 28
# Error feedback leaves so much of a product's divergence, of an embedding's.
_PRODUCT_LEFT, _EMBEDDING_LEFT = 0.65, 0.85


def parts(weights: Sequence[engine.TensorInfo], n_layer: int) -> dict[str, list[engine.TensorInfo]]:
    """Tensors that can be integers, by role and depth."""
    found: dict[str, list[engine.TensorInfo]] = {}
    for info in weights:
        if info.kind not in PRODUCTS | {engine.KIND_EMBEDDING}:
            continue
        name = info.name
        if info.layer is not None:
            depth = info.layer * _DEPTHS // n_layer
            name = f"{name.split('.', 2)[2]} {('early', 'middle', 'late')[depth]}"
        found.setdefault(name, []).append(info)
    return found


def measure(
    reference: Reference,
    sequences: Sequence[NDArray[np.uint32]],
    weights: Sequence[engine.TensorInfo],
    on_tokens: Callable[[int], None],
) -> list[Sensitivity]:
    """What each part costs in q4. Runs the model once for each part, over a few thousand tokens."""
    chosen = _probe(reference, sequences)
    batches = list(reference.batches(chosen))
    exact = [reference.run(batch, logits=True) for batch in batches]
    found = []
    for name, infos in parts(weights, reference.model.config.public().n_layer).items():
        with reference.replaced([info.name for info in infos], _as_q4(reference)):
            sums = 0.0
            for batch, logits in zip(batches, exact, strict=True):
                sums += float(kl_divergence(logits, reference.run(batch, logits=True)).sum())
                on_tokens(len(logits))
        left = _EMBEDDING_LEFT if infos[0].kind == engine.KIND_EMBEDDING else _PRODUCT_LEFT
        tensors = tuple(info.name for info in infos)
        found.append(Sensitivity(name, tensors, left * sums / sum(map(len, exact))))
    return found


def _probe(reference: Reference, sequences: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.uint32]]:
    """Sequences to measure with: their logits are kept. From the end, where a text stands behind the samples."""
    most = max(1024, min(_TOKENS, _LOGITS_BYTES // (4 * reference.n_vocab)))
    chosen: list[NDArray[np.uint32]] = []
    for tokens in (*sequences[1::2], *sequences[::2]):
        if sum(map(len, chosen)) + len(tokens) <= most:
            chosen.append(tokens)
    return chosen


def tokens_to_run(
    reference: Reference, sequences: Sequence[NDArray[np.uint32]], weights: Sequence[engine.TensorInfo]
) -> int:
    """How many measure() runs."""
    n = len(parts(weights, reference.model.config.public().n_layer))
    return n * sum(map(len, _probe(reference, sequences)))


def check_room(weights: Sequence[engine.TensorInfo], room_bytes: int, rest_bytes: int | None) -> None:
    """Whether all fit in q4, before anything is measured. rest_bytes: of a file's size, all else that is in it.

    Raises: ArgumentError.
    """
    least = sum(engine.packed_bytes(info.with_format(LADDER[0][0])) for info in weights)
    if room_bytes >= least:
        return
    numbers = sum(info.rows * info.cols for info in weights)
    if rest_bytes is None:
        wanted, possible = f"{8 * room_bytes / numbers:.2f} bits per weight", f"{8 * least / numbers:.2f}"
    else:
        wanted, possible = human_bytes(room_bytes + rest_bytes), human_bytes(least + rest_bytes)
    raise ArgumentError(
        f"this model cannot be made as small as {wanted}: with every matrix in q4 it has {possible}",
        hint="Ask for more, or use a smaller model.",
    )


def _as_q4(reference: Reference) -> Callable[[str, NDArray[np.float32]], NDArray[np.float32]]:
    def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        info = reference.infos[name].with_format(engine.FORMAT_Q4)
        packed = aligned_zeros(engine.packed_bytes(info))
        source = np.ascontiguousarray(values.T) if info.transposed else values
        engine.pack(info, source.reshape(info.shape), "f32", 0, engine.packed_panels(info), packed)
        return engine.unpack(info, packed)

    return change


def allocate(
    sensitivities: Sequence[Sensitivity], weights: Mapping[str, engine.TensorInfo], room_bytes: int
) -> dict[str, int]:
    """A format for each tensor of *sensitivities*: all together at most *room_bytes*.

    Every step takes the tensor that gains most for each byte more. check_room() was asked before.
    """
    level: dict[str, int] = {}
    cost: dict[str, float] = {}
    for part in sensitivities:
        total = sum(weights[name].rows * weights[name].cols for name in part.tensors)
        for name in part.tensors:
            level[name] = 0
            cost[name] = part.divergence * weights[name].rows * weights[name].cols / total

    def size(name: str, step: int) -> int:
        return engine.packed_bytes(weights[name].with_format(LADDER[step][0]))

    used = sum(size(name, 0) for name in level)
    heap: list[tuple[float, int, str]] = []

    def offer(name: str) -> None:
        step = level[name] + 1
        if step < len(LADDER):
            gain = cost[name] * (LADDER[step - 1][1] - LADDER[step][1])
            heapq.heappush(heap, (-gain / (size(name, step) - size(name, step - 1)), step, name))

    for name in level:
        offer(name)
    while heap:
        _, step, name = heapq.heappop(heap)
        more = size(name, step) - size(name, step - 1)
        if used + more <= room_bytes:
            used += more
            level[name] = step
            offer(name)
    return {name: LADDER[step][0] for name, step in level.items()}


def integer_tensors(weights: Sequence[engine.TensorInfo]) -> list[engine.TensorInfo]:
    """Those that an integer format is for."""
    return [info for info in weights if info.kind in PRODUCTS | {engine.KIND_EMBEDDING} and info.format in INTEGERS]
