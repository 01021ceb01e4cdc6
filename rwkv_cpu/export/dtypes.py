# SPDX-License-Identifier: Apache-2.0
"""Between the number formats of files: float32, float16, bfloat16 (as uint16) and ggml's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.checkpoint.ggml_blocks import BLOCKS, Q8_0, dequantise
from rwkv_cpu.errors import FormatError, NonFiniteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCKS", "blocks_of_q8", "converted", "float32_of"]


def float32_of(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The values of any dtype; blocks [rows, bytes] become [rows, values]."""
    if dtype in BLOCKS:
        kind = BLOCKS[dtype]
        values = array.size // kind.size_bytes * kind.values
        return dequantise(kind, np.ascontiguousarray(array).reshape(-1), values).reshape(*array.shape[:-1], -1)
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # Inf is reported where the values are used
        return array.astype(np.float32, copy=False)


def converted(name: str, piece: NDArray[Any], dtype: str, wanted: str) -> NDArray[Any]:
    """*piece* as another dtype, rounded to the nearest.

    Raises: NonFiniteError: a value that float16 cannot hold, or that is NaN or Inf already.
    """
    if dtype == wanted:
        return piece
    values = float32_of(piece, dtype)
    if wanted == "f32":
        return values
    if wanted == "bf16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
        result: NDArray[Any] = rounded.astype(np.uint16)
        finite = np.all((result & 0x7F80) != 0x7F80)
    else:
        with np.errstate(over="ignore"):
            result = values.astype(np.float16)
        finite = np.all(np.isfinite(result))
    if not finite:
        raise NonFiniteError(
            f"{name} holds values as large as {np.abs(values).max():g}, which {wanted} cannot hold",
            hint="Use --dtype f32 or bf16.",
        )
    return result


def blocks_of_q8(name: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Q8_0 blocks uint8 [rows, bytes] of values that are float16 scales times integers: exactly these values.

    values: float32 [rows, 32 n], decoded from q8. Which scale and integers they came from is not unique (all integers
    even, half the scale); any that give the same products will do.

    Raises: FormatError: values that did not come from q8.
    """
    groups = values.reshape(-1, Q8_0.values).astype(np.float64)
    largest = np.abs(groups).max(axis=1)
    blocks = np.zeros((len(groups), Q8_0.size_bytes), np.uint8)
    waiting = np.flatnonzero(largest)
    # The largest integer is 127 in nearly every group; -128 may come from llama.cpp.
    for integer in (127, 128, *range(126, 0, -1)):
        if not waiting.size:
            break
        scale = largest[waiting] / integer
        with np.errstate(over="ignore"):
            half = scale.astype(np.float16)
        fitting = np.flatnonzero(half.astype(np.float64) == scale)
        quotient = groups[waiting[fitting]] / scale[fitting, None]
        whole = np.rint(quotient)
        good = np.all((whole == quotient) & (whole < 128), axis=1)
        rows = waiting[fitting[good]]
        blocks[rows, :2] = half[fitting[good], None].view(np.uint8)
        blocks[rows, 2:] = whole[good].astype(np.int8).view(np.uint8)
        left = np.ones(waiting.size, bool)
        left[fitting[good]] = False
        waiting = waiting[left]
    if waiting.size:
        raise FormatError(f"{name}: values that are no multiples of a float16 scale")
    return blocks.reshape(len(values), -1)
