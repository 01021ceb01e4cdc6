# SPDX-License-Identifier: Apache-2.0
"""The checksum of a whole from those of its parts, which threads have taken apart from each other.

A CRC is the remainder of a polynomial over GF(2). Bytes that follow multiply it by x^8 each (zlib's crc32_combine).
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["joined_crc32"]

_POLYNOMIAL = 0xEDB88320  # CRC-32, the highest power in the lowest bit
_ONE = 1 << 31


def joined_crc32(first: int, second: int, second_bytes: int) -> int:
    """zlib.crc32(a + b) of zlib.crc32(a), zlib.crc32(b) and len(b)."""
    return _product(_power(8 * second_bytes), first) ^ second


def _product(a: int, b: int) -> int:
    """a * b modulo the polynomial."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result


@lru_cache(maxsize=256)
def _power(n: int) -> int:
    """x^n modulo the polynomial."""
    result, square = _ONE, _ONE >> 1
    while n:
        if n & 1:
            result = _product(square, result)
        square = _product(square, square)
        n >>= 1
    return result
