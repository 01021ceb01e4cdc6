# SPDX-License-Identifier: Apache-2.0
"""safetensors files: a JSON header that names tensors, then their bytes. Own reader, on a mapping of the file.

Names are those of the file; checkpoint.names turns them into BlinkDL's.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.checkpoint.base import ITEM_BYTES, NUMPY_DTYPES, TensorMeta
from rwkv_cpu.checkpoint.float8 import from_float8
from rwkv_cpu.checkpoint.mapped import MappedFile
from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.errors import FormatError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["SafetensorsCheckpoint"]

_LENGTH = struct.Struct("<Q")
# Parsed JSON takes some twenty times its text. Real headers have 100 bytes for each of at most some thousand tensors.
_MAX_HEADER_BYTES = 8 << 20
_MAX_TENSORS = 100_000
_MAX_DIMS = 8
_MAX_SIZE = 1 << 62

_DTYPES = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U64": "u64",
    "U32": "u32",
    "U16": "u16",
    "U8": "u8",
    "BOOL": "bool",
}
_FLOAT8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class _Entry:
    dtype: str  # the file's word
    begin: int  # from the start of the file
    end: int


class SafetensorsCheckpoint:
    """See checkpoint.base.Checkpoint. float8 tensors are f32 here.

    Attributes:
        metadata: the header's ``__metadata__``.
    """

    kind = "safetensors"
    tokenizer = None
    chat_template = None

    def __init__(self, path: Path) -> None:
        """Raises: FormatError, RwkvError (cannot be read)."""
        self.path = path
        self._file = MappedFile(path)
        try:
            header, start = self._header()
            self.metadata: Mapping[str, str] = _texts(header.pop("__metadata__", {}))
            self._entries: dict[str, _Entry] = {}
            metas: dict[str, TensorMeta] = {}
            for name, about in header.items():
                metas[name], self._entries[name] = self._checked(name, about, start)
            self.tensors: Mapping[str, TensorMeta] = MappingProxyType(metas)
            self._check_overlaps()
            self._check_scales()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, a read-only view of the file; float8 widened to f32."""
        entry, meta = self._entries[name], self.tensors[name]
        if entry.dtype in _FLOAT8:
            codes = self._file.array(np.dtype(np.uint8), meta.elements, entry.begin)
            return from_float8(codes, entry.dtype).reshape(meta.shape)
        return self._file.array(NUMPY_DTYPES[meta.dtype], meta.elements, entry.begin).reshape(meta.shape)

    def close(self) -> None:
        """Arrays that were read stay valid; the mapping goes with the last of them."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -------------------------------------------------------------------------------------- checks

    def _bad(self, what: str, hint: str = "") -> FormatError:
        return FormatError(f"{self.path}: {what}", hint=hint)

    def _header(self) -> tuple[dict[str, Any], int]:
        """The header and where the data begins."""
        mapped = self._file.map
        if len(mapped) < _LENGTH.size + 2:
            raise self._bad(f"{len(mapped)} bytes are too few for a safetensors file", DOWNLOAD_AGAIN)
        (length,) = _LENGTH.unpack_from(mapped)
        if length > len(mapped) - _LENGTH.size:
            raise self._bad(f"its header of {length} bytes is longer than the file", DOWNLOAD_AGAIN)
        if length > _MAX_HEADER_BYTES:
            raise self._bad(f"its header of {length} bytes is longer than any model needs")
        text = bytes(mapped[_LENGTH.size : _LENGTH.size + length])
        if text.count(b"{") > _MAX_TENSORS:
            raise self._bad("its header lists too many tensors")
        try:
            found = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        except _DuplicateError as error:
            raise self._bad(f"{shown(str(error))} stands twice in its header") from error
        except (ValueError, RecursionError) as error:
            raise self._bad("its header is damaged: no valid JSON", DOWNLOAD_AGAIN) from error
        if not isinstance(found, dict):
            raise self._bad("its header is damaged: no JSON object")
        return found, _LENGTH.size + length

    def _checked(self, name: str, about: Any, start: int) -> tuple[TensorMeta, _Entry]:
        what = f"tensor {shown(name)}"
        if not isinstance(about, dict):
            raise self._bad(f"{what}: its entry in the header is damaged")
        dtype, shape, offsets = about.get("dtype"), about.get("shape"), about.get("data_offsets")
        if not isinstance(dtype, str) or (dtype not in _DTYPES and dtype not in _FLOAT8):
            raise self._bad(f"{what}: unknown dtype {shown(str(dtype)[:200])}")
        if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(_is_size, shape)):
            raise self._bad(f"{what}: its shape is damaged")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
            raise self._bad(f"{what}: its data_offsets are damaged")
        begin, end = offsets
        if begin > end:
            raise self._bad(f"{what}: it ends (byte {end}) before it begins (byte {begin})")
        needed = math.prod(shape) * (1 if dtype in _FLOAT8 else ITEM_BYTES[_DTYPES[dtype]])
        if end - begin != needed:
            raise self._bad(f"{what}: {dtype} of shape {shape} takes {needed} bytes, its place has {end - begin}")
        room = len(self._file.map) - start
        if end > room:
            raise self._bad(f"{what}: it ends at byte {end}, the file has only {room} bytes of data", DOWNLOAD_AGAIN)
        stored = dtype if dtype in _FLOAT8 else ""
        meta = TensorMeta(name, _DTYPES.get(dtype, "f32"), tuple(shape), stored)
        return meta, _Entry(dtype, start + begin, start + end)

    def _check_overlaps(self) -> None:
        """That no byte belongs to two tensors."""
        last, last_end = "", 0
        for name, entry in sorted(self._entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin == entry.end:
                continue
            if entry.begin < last_end:
                raise self._bad(f"tensors {shown(last)} and {shown(name)} overlap")
            last, last_end = name, entry.end

    def _check_scales(self) -> None:
        """float8 with scales in tensors of their own would silently give other weights."""
        if not any(entry.dtype in _FLOAT8 for entry in self._entries.values()):
            return
        for name in self._entries:
            if name.endswith(("_scale", "_scale_inv", ".scale", ".scale_weight", ".scale_input")):
                raise UnsupportedModelError(
                    f"{self.path}: its float8 weights are scaled by {shown(name)}, in a way of its own",
                    hint="Use the checkpoint it was made from.",
                )


class _DuplicateError(ValueError):
    """A name that stands twice in one JSON object."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        raise _DuplicateError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return found


def _texts(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        return {}
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE
