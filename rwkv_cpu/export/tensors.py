# SPDX-License-Identifier: Apache-2.0
"""A model's tensors under their canonical names, piece by piece, whatever file they are in.

Canonical: BlinkDL's names, orientations and untransformed values, as in the checkpoints that are released. A .rwkv file
and rwkv.cpp's files hold decays already put through exp(); here that is undone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.checkpoint import kind_of, open_checkpoint
from rwkv_cpu.errors import FormatError, NonFiniteError
from rwkv_cpu.export.dtypes import BLOCKS, blocks_of_q8, float32_of
from rwkv_cpu.memory import give_back
from rwkv_cpu.modelfile import ModelFile
from rwkv_cpu.quantize.plan import recognise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.checkpoint import Checkpoint
    from rwkv_cpu.config import ModelConfig

__all__ = ["ExportTensor", "ModelTensors", "open_tensors"]

_PIECE_BYTES = 8 << 20
# Inverse transforms of what has underflowed or reached 1 are infinite; beyond these nothing changes in float32.
_MOST_LOG_DECAY = 5.0  # exp(-exp(5)) is 0
_LEAST_LOG_DECAY = -30.0  # exp(-exp(-30)) is 1
_DONE = "att.time_decay_done"


@dataclass(frozen=True)
class ExportTensor:
    """*dtype*: "f32", "f16", "bf16", or "q8_0", "q5_0" and "q4_0" for rows of blocks. *shape*: canonical.

    matrix: one of the big ones, y = W x. low_rank: one of the pairs stored [in, out]. exact: the values are the
    source's own, not computed back from others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    matrix: bool = False
    low_rank: bool = False
    exact: bool = True

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


class ModelTensors(Protocol):
    """An open model file. Use as a context manager."""

    path: Path
    kind: str
    config: ModelConfig
    tensors: dict[str, ExportTensor]

    @property
    def tokenizer(self) -> tuple[str, bytes] | None:
        """(kind, data) as tokenizer.from_bytes takes them."""
        ...

    @property
    def chat_template(self) -> bytes | None:
        """As chat.ChatTemplate reads it."""
        ...

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """The values in the tensor's order, a few megabytes at a time: contiguous, bf16 as uint16, blocks as uint8."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_tensors(path: str | Path) -> ModelTensors:
    """Open a .rwkv file or a checkpoint of any kind.

    Raises: ModelNotFoundError, FormatError, UnsupportedModelError, ShapeError (incomplete).
    """
    path = Path(path)
    if not path.is_dir() and kind_of(path) == "rwkv":
        return _FromModelFile(path)
    return _FromCheckpoint(path)


class _FromCheckpoint:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoint: Checkpoint = open_checkpoint(path)
        try:
            self.kind = self._checkpoint.kind
            config = recognise(self._checkpoint)
            self.config = config.public()
            self._sources: dict[str, engine.TensorInfo] = {}
            self.tensors: dict[str, ExportTensor] = {}
            for info in engine.plan(config):
                # A tied head gets a copy; all else keeps the name it has.
                name = info.name if info.name == "head.weight" else info.source.replace(_DONE, "att.time_decay")
                meta = self._checkpoint.tensors[info.source]
                shape = meta.shape
                if info.kind not in (engine.KIND_VECTOR, engine.KIND_BYTES):
                    shape = info.shape
                exact = meta.dtype != "f64" and not info.source.endswith(_DONE)
                self.tensors[name] = _described(name, meta.dtype if exact else "f32", shape, info, exact)
                self._sources[name] = info
        except BaseException:
            self._checkpoint.close()
            raise

    @cached_property
    def tokenizer(self) -> tuple[str, bytes] | None:
        return self._checkpoint.tokenizer

    @property
    def chat_template(self) -> bytes | None:
        return self._checkpoint.chat_template

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        info = self._sources[name]
        array, dtype = self._checkpoint.read(info.source), self._checkpoint.tensors[info.source].dtype
        if info.source.endswith(_DONE):
            yield _inverse(name, self.config.version, float32_of(array, dtype))
            return
        if dtype == "f64":
            array = array.astype(np.float32)
        if array.ndim != len(self.tensors[name].shape) and dtype not in BLOCKS:
            array = array.reshape(self.tensors[name].shape)
        for first, last in _ranges(array.shape[0] if array.ndim else 1, array.nbytes):
            yield np.ascontiguousarray(array[first:last] if array.ndim else array)

    def close(self) -> None:
        self._checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _FromModelFile:
    kind = "rwkv"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ModelFile(path)
        try:
            self._model = engine.OpenModel(self._file.buffer, str(path))
        except BaseException:
            self._file.close()
            raise
        self.config = self._model.config.public()
        transforms = {info.name: info.transform for info in engine.plan(self._model.config)}
        self._infos: dict[str, engine.TensorInfo] = {}
        self._transformed = {name for name, transform in transforms.items() if transform}
        self.tensors: dict[str, ExportTensor] = {}
        for info in self._model.tensors():
            if info.kind != engine.KIND_BYTES:
                self._infos[info.name] = info
                shape = info.shape[:1] if self._per_head(info) else info.shape
                exact = info.name not in self._transformed
                self.tensors[info.name] = _described(info.name, self._dtype(info), shape, info, exact)

    @cached_property
    def tokenizer(self) -> tuple[str, bytes] | None:
        for info in self._model.tensors():
            if info.name.startswith("tokenizer."):
                return info.name.removeprefix("tokenizer."), bytes(self._bytes(info)[: info.cols])
        return None

    @property
    def chat_template(self) -> bytes | None:
        data = self._model.bytes_of("chat_template")
        return None if data is None else bytes(data)

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        info = self._infos[name]
        yield from self._unpacked(info, self.tensors[name].dtype)
        self._release(info)

    def _unpacked(self, info: engine.TensorInfo, dtype: str) -> Iterator[NDArray[Any]]:
        name, packed = info.name, self._bytes(info)
        if info.kind == engine.KIND_VECTOR or info.transposed:
            values = engine.unpack(info, packed)
            if info.transposed:
                *stack, inputs, outputs = info.shape
                values = np.ascontiguousarray(values.reshape(*stack, outputs, inputs).swapaxes(-1, -2))
            values = values.reshape(info.shape)
            if self._per_head(info):
                values = np.ascontiguousarray(values[:, 0])
            if name in self._transformed:
                values = _inverse(name, self.config.version, values)
            yield values.astype(np.float16) if dtype == "f16" else values
            return
        for first, last in _ranges(info.rows, 4 * info.rows * info.cols):
            values = engine.unpack(info, packed, first, last)
            if dtype == "q8_0":
                yield blocks_of_q8(name, values)
            else:
                yield values.astype(np.float16) if dtype == "f16" else values

    def close(self) -> None:
        self._model.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _dtype(self, info: engine.TensorInfo) -> str:
        if info.format == engine.FORMAT_Q8 and info.cols % 32 == 0 and not info.transposed:
            return "q8_0"
        return "f16" if info.format == engine.FORMAT_F16 else "f32"

    def _per_head(self, info: engine.TensorInfo) -> bool:
        """5.0 and 5.1 have one decay and one bonus a head, which the file repeats for every channel."""
        return self.config.version in ("5.0", "5.1") and info.name.endswith((".att.time_decay", ".att.time_faaaa"))

    def _release(self, info: engine.TensorInfo) -> None:
        """Give the pages of a tensor back, so that the process holds one at a time."""
        start = self._file.info.data_offset + info.offset
        give_back(self._file.buffer, start, start + info.size_bytes)

    def _bytes(self, info: engine.TensorInfo) -> memoryview:
        data = self._model.bytes_of(info.name)
        if data is None:
            raise FormatError(f"{self.path}: tensor {info.name} is missing")
        return data


def _described(name: str, dtype: str, shape: tuple[int, ...], info: engine.TensorInfo, exact: bool) -> ExportTensor:
    low_rank = info.transposed or info.kind == engine.KIND_LOW_RANK
    matrix = info.kind != engine.KIND_VECTOR and not low_rank
    return ExportTensor(name, dtype, shape, matrix, low_rank, exact)


def _ranges(rows: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, rows * _PIECE_BYTES // max(size_bytes, 1))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _inverse(name: str, version: str, done: NDArray[np.float32]) -> NDArray[np.float32]:
    """time_decay from what the recurrence uses: −exp(x) in RWKV-4, exp(−exp(x)) in RWKV-5.

    Raises: NonFiniteError: a value that no time_decay gives.
    """
    wide = done.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if version.startswith("4"):
            found = np.maximum(np.log(-wide), -100.0)  # exp(-100) vanishes beside any exponent
        else:
            found = np.clip(np.log(-np.log(wide)), _LEAST_LOG_DECAY, _MOST_LOG_DECAY)
    if not np.all(np.isfinite(found)):
        raise NonFiniteError(f"{name}: a decay that is none")
    return found.astype(np.float32)
