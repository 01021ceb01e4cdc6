# SPDX-License-Identifier: Apache-2.0
"""What every checkpoint reader offers, and the one function that picks the right reader."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rwkv_cpu.checkpoint.recognise import KINDS, kind_of, shown
from rwkv_cpu.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = [
    "BLOCK_BYTES",
    "BLOCK_VALUES",
    "FLOAT_DTYPES",
    "ITEM_BYTES",
    "NUMPY_DTYPES",
    "Checkpoint",
    "TensorMeta",
    "files_of",
    "open_checkpoint",
    "open_container",
    "shown",
]

# numpy has no bfloat16: its bits travel as uint16.
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "i16": np.dtype("<i2"),
    "i8": np.dtype("i1"),
    "u64": np.dtype("<u8"),
    "u32": np.dtype("<u4"),
    "u16": np.dtype("<u2"),
    "u8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
ITEM_BYTES: Mapping[str, int] = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
FLOAT_DTYPES = frozenset({"f64", "f32", "f16", "bf16"})
# ggml's blocks of 32 values that the engine takes undecoded: a matrix is read as uint8 [rows, bytes of its blocks].
BLOCK_VALUES = 32
BLOCK_BYTES: Mapping[str, int] = {"q8_0": 34, "q5_0": 22, "q4_0": 18}


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """A tensor as its reader gives it; *dtype* is a key of NUMPY_DTYPES or BLOCK_BYTES.

    *stored*: the container's own word for the dtype where the reader converts it ("F8_E4M3"), else "".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: str = ""

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What its values take in its own dtype, wherever they are stored."""
        if self.dtype in BLOCK_BYTES:
            return self.elements // BLOCK_VALUES * BLOCK_BYTES[self.dtype]
        return self.elements * ITEM_BYTES[self.dtype]


class Checkpoint(Protocol):
    """An open checkpoint file. Opening reads names and shapes, never weights; use as a context manager."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def kind(self) -> str:
        """Container: "pth", "safetensors"."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorMeta]:
        """By name, in the order of the file."""
        ...

    @property
    def tokenizer(self) -> tuple[str, bytes] | None:
        """(kind, data) as tokenizer.from_bytes takes them, if the container or its directory brings one."""
        ...

    @property
    def chat_template(self) -> bytes | None:
        """A template that chat.ChatTemplate reads, if the container or its directory brings one."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """One tensor in its declared shape and dtype (bf16 as uint16), read-only, as a rule without a copy.

        It may be strided, as stored. The memory behind it belongs to the file's mapping, which stays as long as
        the array does. Raises: KeyError, FormatError.
        """
        ...

    def close(self) -> None:
        """Let go of the file. Arrays that were read stay valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a trained checkpoint, whatever its name: the content decides which reader gets it. Tensors have BlinkDL's
    names and orientation, whichever the container has.

    Args:
        path: a file, or a directory as Hugging Face lays it out (config.json, *.safetensors, tokenizer files).

    Raises: ModelNotFoundError, FormatError (damaged, or no checkpoint at all), UnsupportedModelError (a kind of
    file or a naming of tensors that this version does not read, named).
    """
    from rwkv_cpu.checkpoint.directory import open_directory
    from rwkv_cpu.checkpoint.names import canonical

    path = Path(path)
    directory = open_directory(path)
    return canonical(open_container(path) if directory is None else directory)


def files_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files that hold the weights: [checkpoint.path], or the parts of a model that comes in parts."""
    files: tuple[Path, ...] = getattr(checkpoint, "files", (checkpoint.path,))
    return files


def open_container(path: str | Path) -> Checkpoint:
    """As open_checkpoint(), for one file, with the names that stand in it: adapters and states come in these too."""
    path = Path(path)
    kind = kind_of(path)
    if kind in ("pth", "pth-legacy"):
        from rwkv_cpu.checkpoint.pth import PthCheckpoint

        return PthCheckpoint(path)
    if kind == "safetensors":
        from rwkv_cpu.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    if kind == "gguf":
        from rwkv_cpu.checkpoint.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if kind == "ggmf":
        from rwkv_cpu.checkpoint.ggmf import GgmfCheckpoint

        return GgmfCheckpoint(path)
    description, hint = KINDS[kind]
    raise UnsupportedModelError(f"{path}: this is {description}, not a checkpoint that can be read", hint=hint)
