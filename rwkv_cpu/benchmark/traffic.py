# SPDX-License-Identifier: Apache-2.0
"""What a token costs by count: bytes of memory when decoding, multiply-adds when prefilling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_cpu import engine

if TYPE_CHECKING:
    from rwkv_cpu.engine import TensorInfo, ValueReads
    from rwkv_cpu.model import Model

__all__ = ["bytes_per_token", "multiply_adds_per_token", "value_bytes_read", "zero_share"]

_GROUP = 32  # inputs that share a scale
_SCALE = 2  # bytes of it, for each row


def zero_share(reads: ValueReads) -> float:
    """Share of the channel mix's inputs whose column was not read: zeros of relu(k)², and what int8 rounds to zero."""
    return 1 - reads.columns / reads.inputs if reads.inputs else 0.0


def value_bytes_read(value: TensorInfo, reads: ValueReads) -> float:
    """Bytes that *reads* took from value matrices like *value*: whole columns, and the scales of groups with any."""
    bits = int(engine.format_name(value.format).removeprefix("q"))
    groups = -(-value.cols // _GROUP)
    rows = value.size_bytes // groups // (_GROUP * bits // 8 + _SCALE)  # padded
    return rows * (reads.columns * bits / 8 + reads.groups * _SCALE)


def bytes_per_token(model: Model, reads: ValueReads, n_tokens: int) -> float:
    """Memory that decoding a token reads: weights and scales in whole cache lines and the state, once each.

    reads: what the context counted over *n_tokens* decoded tokens; columns that it skipped are not in the sum. Models
    with f16 or f32 weights count none: theirs are in the sum whole.
    """
    total = float(model.token_bytes + model.state_bytes)
    if not reads.inputs:
        return total
    values = [info for info in model.tensors() if info.kind == engine.KIND_VALUE]
    return total - sum(info.size_bytes for info in values) + value_bytes_read(values[0], reads) / n_tokens


def multiply_adds_per_token(model: Model) -> int:
    """Of all matrix products for one token of a long prompt (the head runs for the last token only)."""
    products = {engine.KIND_MATRIX, engine.KIND_LOW_RANK, engine.KIND_VALUE}
    return sum(info.rows * info.cols for info in model.tensors() if info.kind in products)
