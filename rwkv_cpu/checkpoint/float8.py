# SPDX-License-Identifier: Apache-2.0
"""The two 8 bit floats of safetensors, widened exactly. OCP OFP8 (2023), arXiv:2209.05433."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_float8"]

_CODES = 256
_SLICE = 1 << 20


def from_float8(codes: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Values of *codes*, f32 of the same shape.

    Args:
        codes: any shape.
        dtype: "F8_E4M3" (bias 7; no infinities, S.1111.111 is NaN) or "F8_E5M2" (bias 15; IEEE 754's infinities, NaN).
    """
    table, flat = _table(dtype), codes.reshape(-1)
    values = np.empty(flat.size, np.float32)
    for first in range(0, flat.size, _SLICE):  # numpy takes eight bytes for each index
        values[first : first + _SLICE] = table[flat[first : first + _SLICE]]
    return values.reshape(codes.shape)


@functools.lru_cache(maxsize=2)
def _table(dtype: str) -> NDArray[np.float32]:
    exponent_bits, bias = {"F8_E4M3": (4, 7), "F8_E5M2": (5, 15)}[dtype]
    mantissa_bits = 7 - exponent_bits
    code = np.arange(_CODES)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    # Subnormals have the lowest normal exponent and no leading one.
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = sign * np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if dtype == "F8_E4M3":
        values[code & 0x7F == 0x7F] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        values[top & (mantissa == 0)] = (sign * np.inf)[top & (mantissa == 0)]
        values[top & (mantissa > 0)] = np.nan
    table: NDArray[np.float32] = values.astype(np.float32)
    table.flags.writeable = False
    return table
