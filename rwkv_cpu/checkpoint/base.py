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

__all__ = ["FLOAT_DTYPES", "ITEM_BYTES", "NUMPY_DTYPES", "Checkpoint", "TensorMeta", "open_checkpoint", "shown"]

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
    "u8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
ITEM_BYTES: Mapping[str, int] = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
FLOAT_DTYPES = frozenset({"f64", "f32", "f16", "bf16"})


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """A tensor as its checkpoint declares it; *dtype* is a key of NUMPY_DTYPES."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What its values take in its own dtype, wherever they are stored."""
        return self.elements * ITEM_BYTES[self.dtype]


class Checkpoint(Protocol):
    """An open checkpoint file. Opening reads names and shapes, never weights; use as a context manager."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def kind(self) -> str:
        """Container: "pth"."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorMeta]:
        """By name, in the order of the file."""
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
    """Open a trained checkpoint, whatever its name: the content decides which reader gets it.

    Raises: ModelNotFoundError, FormatError (damaged, or no checkpoint at all), UnsupportedModelError (a kind of
    file that this version does not read, named).
    """
    path = Path(path)
    kind = kind_of(path)
    if kind in ("pth", "pth-legacy"):
        from rwkv_cpu.checkpoint.pth import PthCheckpoint

        return PthCheckpoint(path)
    description, hint = KINDS[kind]
    raise UnsupportedModelError(f"{path}: this is {description}, which cannot be read as a checkpoint", hint=hint)
