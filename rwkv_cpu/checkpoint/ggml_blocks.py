# SPDX-License-Identifier: Apache-2.0
"""How ggml stores numbers: the types found in GGUF and ggmf files, and their values as float32.

A quantised row is a sequence of blocks; a block holds 32 or 256 consecutive values and their scales. All decoders
here take blocks as bytes [n, bytes of a block] and give float32 [n, values of a block]. Little endian throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import FormatError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = [
    "BLOCKS",
    "F32",
    "Q4_0",
    "Q5_0",
    "Q8_0",
    "TYPES",
    "GgmlType",
    "can_decode",
    "dequantise",
    "scale_blocks",
    "type_of",
]

# Values decoded at a time: temporaries stay in the megabytes whatever the tensor's size.
_SLICE_VALUES = 1 << 18

# The 16 values of a 4-bit "non-linear" integer, ggml's kvalues_iq4nl.
_NON_LINEAR: NDArray[np.float32] = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # fmt: skip
_TWO_BIT_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_BIT_SHIFTS = np.arange(8, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A storage type. *number*: ggml's id. *values* per block of *size_bytes*. *dtype*: numpy's, for plain floats.

    name: as llama.cpp prints it; checkpoint.base's names are in *plain* ("" for quantised ones).
    """

    name: str
    number: int
    values: int
    size_bytes: int
    plain: str = ""

    def bytes_of(self, elements: int) -> int:
        """What *elements* values take; they must be whole blocks."""
        return elements // self.values * self.size_bytes


def _types() -> dict[int, GgmlType]:
    rows = [
        ("F32", 0, 1, 4, "f32"), ("F16", 1, 1, 2, "f16"), ("F64", 28, 1, 8, "f64"), ("BF16", 30, 1, 2, "bf16"),
        ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20), ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34),
        ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210), ("IQ4_NL", 20, 32, 18), ("IQ4_XS", 23, 256, 136),
        # Decoded by the gguf package, if it is installed: their code books are thousands of numbers.
        ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74), ("IQ3_XXS", 18, 256, 98), ("IQ1_S", 19, 256, 50),
        ("IQ3_S", 21, 256, 110), ("IQ2_S", 22, 256, 82), ("IQ1_M", 29, 256, 56), ("TQ1_0", 34, 256, 54),
        ("TQ2_0", 35, 256, 66), ("MXFP4", 39, 32, 17),
    ]  # fmt: skip
    return {row[1]: GgmlType(*row) for row in rows}  # type: ignore[misc, arg-type]


TYPES = _types()
F32, Q4_0, Q5_0, Q8_0 = TYPES[0], TYPES[2], TYPES[6], TYPES[8]
BLOCKS = {"q8_0": Q8_0, "q5_0": Q5_0, "q4_0": Q4_0}  # those that the engine takes as they are

# Known by name only: removed from llama.cpp, or never written to files.
_OTHER_NAMES = {
    4: "Q4_2, removed from ggml in 2023", 5: "Q4_3, removed from ggml in 2023", 9: "Q8_1", 15: "Q8_K",
    24: "I8", 25: "I16", 26: "I32", 27: "I64",
    31: "Q4_0_4_4, removed from ggml in 2024", 32: "Q4_0_4_8, removed from ggml in 2024",
    33: "Q4_0_8_8, removed from ggml in 2024", 36: "IQ4_NL_4_4, removed from ggml in 2024",
    37: "IQ4_NL_4_8, removed from ggml in 2024", 38: "IQ4_NL_8_8, removed from ggml in 2024",
}  # fmt: skip


def type_of(number: int, where: str) -> GgmlType:
    """The type with ggml's id *number*; *where* names file and tensor in errors.

    Raises: UnsupportedModelError: a known type that is not for weights; FormatError: no such type.
    """
    found = TYPES.get(number)
    if found is not None:
        return found
    if number in _OTHER_NAMES:
        raise UnsupportedModelError(
            f"{where} is stored as {_OTHER_NAMES[number]} (ggml type {number}), which is not read",
            hint="Use a file in another format: Q8_0, Q4_K_M, F16.",
        )
    raise FormatError(f"{where} has the unknown ggml type {number}", hint="Is the file damaged, or newer than this?")


def can_decode(kind: GgmlType) -> bool:
    """Whether dequantise() has what it needs for this type."""
    return bool(kind.plain) or kind.number in _DECODERS or util.find_spec("gguf") is not None


def dequantise(kind: GgmlType, raw: NDArray[np.uint8], elements: int) -> NDArray[np.float32]:
    """The values of whole blocks.

    Args:
        kind: how they are stored.
        raw: their bytes, uint8 [kind.bytes_of(elements)].
        elements: how many values.

    Returns: float32 [elements]. Memory: that and a few megabytes.

    Raises: UnsupportedModelError: a type that needs the gguf package, which is missing.
    """
    values = np.empty(elements, np.float32)
    if kind.plain:
        _widen(kind.plain, raw, values)
        return values
    decode = _DECODERS.get(kind.number) or _decoder_of_gguf(kind)
    blocks = raw[: kind.bytes_of(elements)].reshape(-1, kind.size_bytes)
    targets = values.reshape(-1, kind.values)
    step = _SLICE_VALUES // kind.values
    # Damaged scales may be Inf or NaN; whoever uses the values checks them.
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), step):
            part = decode(blocks[first : first + step])
            targets[first : first + step] = part.reshape(-1, kind.values)
    return values


def scale_blocks(kind: GgmlType, blocks: NDArray[np.uint8], power: int) -> NDArray[np.uint8]:
    """Q8_0, Q5_0 or Q4_0 blocks [..., bytes] of 2**power times the values of *blocks*: exact, as only scales change.

    Raises: FormatError: a scale would leave float16's range.
    """
    scaled: NDArray[np.uint8] = blocks.copy()
    scales = scaled.reshape(-1, kind.size_bytes)[:, :2]
    with np.errstate(all="ignore"):
        wanted = _halves(scales).astype(np.float64) * 2.0**power
        stored = wanted.astype(np.float16)
    if np.any((stored.astype(np.float64) != wanted) & np.isfinite(_halves(scales))):
        raise FormatError(f"a scale times {2.0**power:g} does not fit into float16")
    scales[:] = stored.view(np.uint8).reshape(-1, 2)
    return scaled


# ------------------------------------------------------------------------------------------- helpers


def _widen(plain: str, raw: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
    if plain == "bf16":
        np.left_shift(raw.view("<u2"), 16, out=values.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(over="ignore"):
            values[:] = raw.view({"f32": "<f4", "f16": "<f2", "f64": "<f8"}[plain])


def _halves(two_bytes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[n, 2] bytes of float16 → float32 [n, 1]."""
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., m] bytes → [..., 2 m] four-bit integers: all low halves, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _non_linear(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., m] bytes → [..., 2 m] values of the code book, in the order of _nibbles()."""
    return _NON_LINEAR[_nibbles(packed)].astype(np.float32, copy=False)


def _two_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., 32] bytes → [..., 4, 32] two-bit integers, lowest plane first."""
    return (packed[..., None, :] >> _TWO_BIT_SHIFTS[:, None] & 3).astype(np.uint8, copy=False)


def _bit_planes(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, 32] bytes → [n, 8, 32]: bit j of every byte in row j."""
    return (packed[:, None, :] >> _BIT_SHIFTS[:, None] & 1).astype(np.uint8, copy=False)


# ------------------------------------------------------------------------------- blocks of 32 values


def _q4_0(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _halves(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _halves(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _halves(b[:, 2:4])


def _five_bits(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Four bytes of fifth bits, one per value, and 16 bytes of nibbles."""
    return (_nibbles(low) | np.unpackbits(high, axis=1, bitorder="little") << 4).astype(np.float32)


def _q5_0(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _halves(b[:, :2]) * (_five_bits(b[:, 2:6], b[:, 6:]) - 16)


def _q5_1(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _halves(b[:, :2]) * _five_bits(b[:, 4:8], b[:, 8:]) + _halves(b[:, 2:4])


def _q8_0(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _halves(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _halves(b[:, :2]) * _non_linear(b[:, 2:])


# ------------------------------------------------------------------------------ blocks of 256 values


def _q2_k(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """16 x (scale | min << 4), 2 x 32 bytes of 2-bit planes, d, dmin. Groups of 16."""
    q = _two_bits(b[:, 16:80].reshape(-1, 2, 32)).reshape(-1, 16, 16).astype(np.float32)
    scale = _halves(b[:, 80:82]) * (b[:, :16] & 15).astype(np.float32)
    low = _halves(b[:, 82:84]) * (b[:, :16] >> 4).astype(np.float32)
    return scale[:, :, None] * q - low[:, :, None]


def _q3_k(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """32 bytes of third bits, 2 x 32 bytes of 2-bit planes, 16 six-bit scales in 12 bytes, d. Groups of 16."""
    q = _two_bits(b[:, 32:96].reshape(-1, 2, 32)).reshape(-1, 8, 32).astype(np.int8)
    q += (_bit_planes(b[:, :32]) << 2).astype(np.int8) - 4
    six = _nibbles(b[:, 96:104]) | _two_bits(b[:, 104:108]).reshape(-1, 16) << 4
    scale = _halves(b[:, 108:110]) * (six.astype(np.float32) - 32)
    return scale[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)


def _six_bit_pairs(s: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The 12 bytes of Q4_K and Q5_K → 8 scales and 8 minima, float32 [n, 8] each."""
    first, second, rest = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scaled_pairs(b: NDArray[np.uint8], q: NDArray[Any]) -> NDArray[np.float32]:
    """d · scale · q − dmin · minimum for 8 groups of 32: *q* [n, 8, 32]; b begins with d, dmin and the 12 bytes."""
    scales, minima = _six_bit_pairs(b[:, 4:16])
    scales *= _halves(b[:, :2])
    minima *= _halves(b[:, 2:4])
    return scales[:, :, None] * q.astype(np.float32) - minima[:, :, None]


def _q4_k(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _scaled_pairs(b, _nibbles(b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    low = _nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _scaled_pairs(b, low | _bit_planes(b[:, 16:48]) << 4)


def _q6_k(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """2 x 64 bytes of low nibbles, 2 x 32 of upper 2-bit planes, 16 int8 scales, d. Groups of 16."""
    low = _nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    q = (low | _two_bits(b[:, 128:192].reshape(-1, 2, 32)) << 4).astype(np.float32) - 32
    scale = _halves(b[:, 208:210]) * b[:, 192:208].view(np.int8).astype(np.float32)
    return scale[:, :, None] * q.reshape(-1, 16, 16)


def _iq4_xs(b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """d, 8 x 2 upper bits of the scales, 8 x 4 lower bits, 8 x 16 bytes of nibbles. Groups of 32."""
    lower = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    upper = (b[:, 2:4, None] >> _TWO_BIT_SHIFTS & 3).reshape(-1, 8)
    scale: NDArray[np.float32] = _halves(b[:, :2]) * ((lower | upper << 4).astype(np.float32) - 32)
    return scale[:, :, None] * _non_linear(b[:, 8:].reshape(-1, 8, 16))


_DECODERS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    2: _q4_0, 3: _q4_1, 6: _q5_0, 7: _q5_1, 8: _q8_0, 10: _q2_k, 11: _q3_k, 12: _q4_k, 13: _q5_k, 14: _q6_k,
    20: _iq4_nl, 23: _iq4_xs,
}  # fmt: skip


def _decoder_of_gguf(kind: GgmlType) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedModelError(
            f"weights in {kind.name} need the gguf package",
            hint="pip install gguf, or use a file in another format: Q8_0, Q4_K_M, F16.",
        ) from error
    number: Any = gguf.GGMLQuantizationType(kind.number)
    return lambda blocks: np.asarray(gguf.quants.dequantize(np.ascontiguousarray(blocks), number), np.float32)
