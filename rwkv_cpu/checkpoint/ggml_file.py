# SPDX-License-Identifier: Apache-2.0
"""What the two file formats of ggml (GGUF and ggmf) share: a mapped file whose tensors are read under other names.

A reader says for every canonical tensor where its bytes lie and how they have to be turned (Source); reading, memory
and the rule which blocks are passed on undecoded are here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.checkpoint.base import NUMPY_DTYPES, TensorMeta
from rwkv_cpu.checkpoint.ggml_blocks import GgmlType, can_decode, dequantise, scale_blocks
from rwkv_cpu.checkpoint.mapped import MappedFile
from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.errors import FormatError, ShapeError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["MAX_TENSORS", "GgmlFile", "Source", "StoredTensor", "is_matrix"]

# The largest released models have some 2,200; a bound keeps damaged counts from filling the memory.
MAX_TENSORS = 1 << 16
_MAX_ELEMENTS = 1 << 48
# Blocks that the engine takes as they are: ggml's id → the checkpoint's name for it.
_PASSED_ON = {8: "q8_0", 2: "q4_0", 6: "q5_0"}
_BYTE = np.dtype("u1")
_MATRICES = re.compile(
    r"emb\.weight|head\.weight|blocks\.\d+\.(att\.(receptance|key|value|gate|output)|ffn\.(key|value|receptance))"
    r"\.weight"
)


def is_matrix(name: str) -> bool:
    """Whether the tensor of this canonical name is one of the big matrices, applied as y = W x."""
    return _MATRICES.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the file has it: *shape* in numpy's order (slowest first), *offset* from the file's begin."""

    name: str
    kind: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What they take in the file."""
        return self.kind.bytes_of(self.elements)


@dataclass(frozen=True, slots=True)
class Source:
    """How a canonical tensor comes out of a stored one.

    shape: the canonical one. transposed: the last two dimensions are stored the other way round.
    part, parts: it is the part-th of so many equal pieces. power: its values are 2**power times the stored ones.
    """

    stored: StoredTensor
    shape: tuple[int, ...]
    transposed: bool = False
    part: int = 0
    parts: int = 1
    power: int = 0

    @property
    def plain(self) -> bool:
        """Values in the stored order, nothing split off."""
        return not self.transposed and self.parts == 1


class GgmlFile:
    """See checkpoint.base.Checkpoint; a subclass reads the header and calls _present()."""

    kind = "ggml"
    tokenizer: tuple[str, bytes] | None = None
    chat_template: bytes | None = None

    def __init__(self, path: Path) -> None:
        """Raises: FormatError, UnsupportedModelError, RwkvError (cannot be read)."""
        self.path = path
        self._where = str(path)
        self._sources: dict[str, Source] = {}
        self.tensors: Mapping[str, TensorMeta] = {}
        self._file = MappedFile(path)
        try:
            self._present(self._open())
        except BaseException:
            self.close()
            raise

    def _open(self) -> dict[str, Source]:
        """Read and check the header; the canonical tensors in the order of the file."""
        raise NotImplementedError

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; q8_0, q5_0 and q4_0 as uint8 [rows, bytes of a row], what has to be decoded as new f32."""
        source, dtype = self._sources[name], self.tensors[name].dtype
        stored = source.stored
        step = stored.size_bytes // source.parts
        at = stored.offset + source.part * step
        if dtype in _PASSED_ON.values():
            raw = self._file.array(_BYTE, step, at)
            return (self._scaled(name, source, raw) if source.power else raw).reshape(source.shape[0], -1)
        if dtype == stored.kind.plain:
            flat = self._file.array(NUMPY_DTYPES[dtype], stored.elements // source.parts, at)
        else:
            flat = dequantise(stored.kind, self._file.array(_BYTE, step, at), stored.elements // source.parts)
        if source.power:
            flat = flat * np.float32(2.0**source.power)
        if not source.transposed:
            return flat.reshape(source.shape)
        swapped = (*source.shape[:-2], source.shape[-1], source.shape[-2])
        turned: NDArray[Any] = flat.reshape(swapped).swapaxes(-1, -2)
        return turned

    def close(self) -> None:
        """Arrays that were read stay valid; the mapping goes with the last of them."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------- for readers

    def _bad(self, what: str, hint: str = "") -> FormatError:
        return FormatError(f"{self._where}: {what}", hint=hint)

    def _checked_shape(self, name: str, kind: GgmlType, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """*sizes* as stored (fastest first) → numpy's order, if such a tensor can be.

        Raises: FormatError.
        """
        if not all(1 <= size <= _MAX_ELEMENTS for size in sizes) or math.prod(sizes) > _MAX_ELEMENTS:
            raise self._bad(f"tensor {shown(name)} has impossible sizes {list(sizes)}", DOWNLOAD_AGAIN)
        if sizes[0] % kind.values:
            raise self._bad(
                f"tensor {shown(name)}: rows of {sizes[0]} values cannot be stored as {kind.name}, "
                f"whose blocks hold {kind.values}"
            )
        return sizes[::-1]

    def _check_inside(self, stored: StoredTensor) -> None:
        end = stored.offset + stored.size_bytes
        if end > len(self._file.map):
            raise self._bad(
                f"tensor {shown(stored.name)} of shape {list(stored.shape)} as {stored.kind.name} ends at byte {end}, "
                f"but the file has {len(self._file.map)}",
                DOWNLOAD_AGAIN,
            )

    def _shaped(self, stored: StoredTensor, shape: tuple[int, ...], **how: Any) -> Source:
        """*stored* as a canonical tensor of *shape*.

        Raises: ShapeError: it has another number of values.
        """
        source = Source(stored, shape, **how)
        if math.prod(shape) * source.parts != stored.elements:
            raise ShapeError(
                f"{self._where}: tensor {shown(stored.name)} has shape {list(stored.shape)}, "
                f"which does not fit {list(shape)}" + (f" x {source.parts}" if source.parts > 1 else ""),
                hint=DOWNLOAD_AGAIN,
            )
        return source

    # ------------------------------------------------------------------------------------- internal

    def _present(self, sources: dict[str, Source]) -> None:
        self._sources = sources
        metas = {}
        for name, source in sources.items():
            kind = source.stored.kind
            if not can_decode(kind):
                raise UnsupportedModelError(
                    f"{self._where}: {shown(source.stored.name)} is stored as {kind.name}, "
                    "which needs the gguf package",
                    hint="pip install gguf, or use a file in another format: Q8_0, Q4_K_M, F16.",
                )
            if kind.number in _PASSED_ON and source.plain and len(source.shape) == 2 and is_matrix(name):
                dtype = _PASSED_ON[kind.number]
            else:
                # A float16 times a power of two may leave its range: only float32 is sure to hold it.
                dtype = "f32" if source.power else kind.plain or "f32"
            stored = kind.name if dtype == "f32" != kind.plain else ""
            metas[name] = TensorMeta(name, dtype, source.shape, stored)
        self.tensors = MappingProxyType(metas)

    def _scaled(self, name: str, source: Source, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            return scale_blocks(source.stored.kind, raw, source.power)
        except FormatError as error:
            raise self._bad(f"tensor {shown(name)}: {error}") from error
