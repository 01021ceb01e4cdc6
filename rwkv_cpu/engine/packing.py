# SPDX-License-Identifier: Apache-2.0
"""Weights become packed tensors, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rwkv_cpu import errors
from rwkv_cpu.errors import ArgumentError

from .boundary import check, ffi, lib
from .tensors import KIND_EMBEDDING, KIND_HEAD, KIND_MATRIX, KIND_VALUE, KIND_VECTOR, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_DTYPES = {"f32": (lib.RWKVC_DTYPE_F32, 4), "f16": (lib.RWKVC_DTYPE_F16, 2), "bf16": (lib.RWKVC_DTYPE_BF16, 2)}
# GGML blocks of 32 values: dtype and bytes of a block
_BLOCKS = {
    "q8_0": (lib.RWKVC_DTYPE_Q8_0, 34),
    "q4_0": (lib.RWKVC_DTYPE_Q4_0, 18),
    "q5_0": (lib.RWKVC_DTYPE_Q5_0, 22),
}
Dtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q5_0"]


def packed_panels(info: TensorInfo) -> int:
    """Units of work that packing this tensor consists of."""
    return int(lib.rwkvc_packed_panels(info.kind, info.format, info.rows, info.cols))


def packed_bytes(info: TensorInfo) -> int:
    """Its size when packed, padding included; 0 if the format cannot hold it."""
    return int(lib.rwkvc_packed_bytes(info.kind, info.format, info.rows, info.cols))


def bits_per_weight(infos: Iterable[TensorInfo]) -> float:
    """Of embedding, head and matrices together, padding included. Vectors and low-rank pairs are f32 and q8 always."""
    kinds = (KIND_EMBEDDING, KIND_HEAD, KIND_MATRIX, KIND_VALUE)
    own = [info for info in infos if info.kind in kinds]
    return 8 * sum(info.size_bytes for info in own) / sum(info.rows * info.cols for info in own)


def pack(
    info: TensorInfo,
    source: NDArray[Any],
    dtype: Dtype,
    first: int,
    last: int,
    dst: Any,
    *,
    book: NDArray[np.int8] | None = None,
) -> None:
    """Pack panels *first*..*last* - 1 of *source* into *dst*; ranges may run in several threads at once.

    Args: source: the tensor as the checkpoint has it, its elements in the order of info.shape: any strides; bf16 as
        uint16; q8_0, q4_0 and q5_0 as uint8 [rows, blocks * block size]; [n_head] where a value stands for a whole
        head. dst: writable buffer of the whole packed tensor, zeroed, 64-byte aligned.
        book: the 16 ascending values of a q4 tensor; None: the engine's own.
    Raises: NonFiniteError naming row and column; ShapeError: the array does not fit; ArgumentError.
    """
    raw, _kept = _described(info, source, dtype)
    _pack(info, raw, first, last, dst, book)


def packed_offset(info: TensorInfo, panel: int) -> int:
    """Where a panel begins in the packed tensor; of an embedding only for multiples of 64."""
    whole = 1 << 16
    rows = panel * (whole // int(lib.rwkvc_packed_panels(info.kind, info.format, whole, info.cols)))
    return int(lib.rwkvc_packed_bytes(info.kind, info.format, rows, info.cols)) if panel else 0


def pack_part(info: TensorInfo, source: NDArray[Any], dtype: Dtype, first: int, last: int, dst: Any) -> None:
    """As pack(), of a tensor of which *dst* is only the part from packed_offset(first) to packed_offset(last) or, with
    the last panel, to its end.
    """
    raw, _kept = _described(info, source, dtype)
    begin = packed_offset(info, first)
    end = packed_offset(info, last) if last < packed_panels(info) else packed_bytes(info)
    part = ffi.from_buffer("uint8_t[]", dst, require_writable=True)
    address = int(ffi.cast("uintptr_t", part))
    if len(part) < end - begin or address % 64:
        raise errors.ArgumentError(f"{info.name}: panels {first} to {last} need {end - begin} aligned bytes")
    check(lib.rwkvc_pack(info.raw(), raw, first, last, ffi.cast("void *", address - begin)))


def crc32(data: Any, before: int = 0) -> int:
    """zlib.crc32 of a buffer, several times as fast where the processor has instructions for it."""
    view = ffi.from_buffer("uint8_t[]", data)
    return int(lib.rwkvc_crc32(before, view, len(view)))


def pack_integers(
    info: TensorInfo,
    integers: NDArray[np.int8],
    scales: NDArray[np.float16],
    first: int,
    last: int,
    dst: Any,
    book: NDArray[np.int8] | None = None,
) -> None:
    """Pack integers that were chosen elsewhere, exactly; otherwise as pack().

    Args: integers: int8 [rows, cols] as stored, [out, in]: within -128..127 for q8, -32..31 for q6, -16..15 for q5,
        -8..7 for q4. scales: f16 [rows, groups of 32 inputs]. A weight is scale * q, in q4 scale * book[q + 8].
        book: int8 [16], any; None: -8..7.
    Raises: ShapeError; ArgumentError: an integer outside of the format; NonFiniteError: a scale that is not finite.
    """
    groups = -(-info.cols // 32)
    if integers.dtype != np.int8 or integers.shape != (info.rows, info.cols):
        raise _misfit(info, integers, "int8")
    if scales.dtype != np.float16 or scales.shape != (info.rows, groups):
        raise errors.ShapeError(f"{info.name}: scales {scales.dtype}{list(scales.shape)}, not f16{[info.rows, groups]}")
    raw = ffi.new("rwkvc_source *")
    raw.dtype = lib.RWKVC_DTYPE_INTEGERS
    kept_integers, kept_scales = np.ascontiguousarray(integers), np.ascontiguousarray(scales)
    raw.data = ffi.cast("void *", kept_integers.ctypes.data)
    raw.scales = ffi.cast("uint16_t *", kept_scales.ctypes.data)
    _pack(info, raw, first, last, dst, book)


class GroupChoice:
    """One group of at most 32 inputs of a matrix whose integers and scales are to be chosen; see ``rwkvc_choice``.

    Args: weights, targets: f32 [rows, n]. feedback: f32 [n, n], used above the diagonal. importance: f32 [n].
        integers: int8 [rows, n], scales: f16 [rows], errors: f32 [rows, n]: written. All may be slices of larger arrays
        whose last axis is contiguous (scales: any).
    """

    def __init__(
        self,
        *,
        format: int,  # noqa: A002  its name everywhere
        book: NDArray[np.int8] | None,
        weights: NDArray[np.float32],
        targets: NDArray[np.float32],
        feedback: NDArray[np.float32],
        importance: NDArray[np.float32],
        integers: NDArray[np.int8],
        scales: NDArray[np.float16],
        errors: NDArray[np.float32],
    ) -> None:
        raw = ffi.new("rwkvc_choice *")
        raw.struct_size, raw.format, raw.n_inputs = ffi.sizeof("rwkvc_choice"), format, weights.shape[1]
        self._kept = (raw, book, weights, targets, feedback, importance, integers, scales, errors)
        for name, array, kind in (
            ("weights", weights, "float *"),
            ("targets", targets, "float *"),
            ("feedback", feedback, "float *"),
            ("integers", integers, "int8_t *"),
            ("scales", scales, "uint16_t *"),
            ("errors", errors, "float *"),
        ):
            if array.ndim == 2 and array.strides[1] != array.itemsize:
                raise ArgumentError(f"{name}: rows must be contiguous")
            setattr(raw, name, ffi.cast(kind, array.ctypes.data))
            setattr(raw, f"ld_{name}", array.strides[0] // array.itemsize)
        raw.importance = ffi.cast("float *", importance.ctypes.data)
        raw.book = ffi.NULL if book is None else ffi.cast("int8_t *", book.ctypes.data)
        self._raw = raw

    def run(self, first: int, last: int) -> None:
        """Choose for rows *first*..*last* - 1; ranges may run in several threads at once. Raises: NonFiniteError."""
        check(lib.rwkvc_choose_group(self._raw, first, last))


def _pack(info: TensorInfo, raw: Any, first: int, last: int, dst: Any, book: NDArray[np.int8] | None) -> None:
    target = ffi.from_buffer("uint8_t[]", dst, require_writable=True)
    if len(target) < packed_bytes(info) or int(ffi.cast("uintptr_t", target)) % 64:
        raise errors.ArgumentError(f"{info.name}: the packed tensor needs {packed_bytes(info)} aligned bytes")
    if book is not None:
        if book.dtype != np.int8 or book.shape != (16,):
            raise errors.ArgumentError(f"{info.name}: a book is 16 int8, not {book.dtype}{list(book.shape)}")
        kept_book = np.ascontiguousarray(book)
        raw.book = ffi.cast("int8_t *", kept_book.ctypes.data)
    check(lib.rwkvc_pack(info.raw(), raw, first, last, target))


def _misfit(info: TensorInfo, source: NDArray[Any], dtype: str) -> errors.ShapeError:
    return errors.ShapeError(f"{info.name}: {source.dtype}{list(source.shape)} is not {dtype}{list(info.shape)}")


def _described(info: TensorInfo, source: NDArray[Any], dtype: str) -> tuple[Any, NDArray[Any]]:
    """The source as C takes it, and what must live as long."""
    raw = ffi.new("rwkvc_source *")
    kept = _describe_blocks(raw, info, source, dtype) if dtype in _BLOCKS else _describe(raw, info, source, dtype)
    raw.data = ffi.cast("void *", kept.ctypes.data)
    return raw, kept


def _describe(raw: Any, info: TensorInfo, source: NDArray[Any], dtype: str) -> NDArray[Any]:
    raw.dtype, item = _DTYPES[dtype]
    elements = info.rows * info.cols
    repeat = elements // source.size if source.size else 0
    if source.dtype.itemsize != item or source.size * repeat != elements or (repeat > 1 and info.kind != KIND_VECTOR):
        raise _misfit(info, source, dtype)
    if info.kind == KIND_VECTOR:
        matrix: NDArray[Any] = source.reshape(1, -1)
        raw.repeat = repeat
    else:
        matrix = source.reshape(info.shape)
        if matrix.ndim == 3:  # a stack of matrices [n, in, out], stored one below the other as [n * out, in]
            raw.block_rows, raw.block_stride = info.shape[2], matrix.strides[0] // item
            matrix = matrix[0]
        if info.transposed:
            matrix = matrix.T
    raw.row_stride, raw.col_stride = (stride // item for stride in matrix.strides)
    return matrix


def _describe_blocks(raw: Any, info: TensorInfo, source: NDArray[Any], dtype: str) -> NDArray[Any]:
    raw.dtype, block = _BLOCKS[dtype]
    if source.dtype != np.uint8 or source.size * 32 != info.rows * info.cols * block or info.transposed:
        raise _misfit(info, source, dtype)
    return np.ascontiguousarray(source)


def unpack(info: TensorInfo, packed: Any, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
    """The stored values of rows *first*..*last* - 1: f32 [rows, cols]."""
    last = info.rows if last is None else last
    source = ffi.from_buffer("uint8_t[]", packed)
    if len(source) < packed_bytes(info) or not 0 <= first <= last <= info.rows:
        raise errors.ArgumentError(f"{info.name}: too few bytes, or rows {first} to {last} of {info.rows}")
    values: NDArray[np.float32] = np.empty((last - first, info.cols), np.float32)
    if values.size:
        check(lib.rwkvc_unpack(info.raw(), source, first, last, ffi.from_buffer("float[]", values)))
    return values
