# SPDX-License-Identifier: Apache-2.0
"""The boundary to the C engine: statuses become exceptions, arrays become pointers, here and nowhere else.

src/rwkv_cpu.h documents what the functions do; names here are the same without their prefix.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import _cffi_backend  # noqa: F401  the extension loads it at run time; named here, freezers find it
import numpy as np

from . import errors
from .config import ModelConfig
from .errors import ArgumentError

try:
    from ._engine import ffi, lib
except ModuleNotFoundError as missing:
    raise ImportError(
        "the engine of rwkv_cpu is not built in this folder: run `make engine` or `pip install -e .` there,"
        " or start Python elsewhere to use the installed package"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "FORMAT_BYTES",
    "FORMAT_F16",
    "FORMAT_F32",
    "FORMAT_Q4",
    "FORMAT_Q5",
    "FORMAT_Q6",
    "FORMAT_Q8",
    "KIND_BYTES",
    "KIND_EMBEDDING",
    "KIND_HEAD",
    "KIND_LOW_RANK",
    "KIND_MATRIX",
    "KIND_VALUE",
    "KIND_VECTOR",
    "Config",
    "Context",
    "GroupChoice",
    "IsaInfo",
    "OpenModel",
    "PartCost",
    "SequenceRun",
    "StatePart",
    "TensorInfo",
    "ValueReads",
    "abi_version",
    "bits_per_weight",
    "check",
    "default_isa",
    "default_threads",
    "detect_config",
    "ffi",
    "format_by_name",
    "format_for",
    "format_name",
    "isas",
    "layout",
    "lib",
    "pack",
    "pack_integers",
    "packed_panels",
    "plan",
    "prefault",
    "quantised_formats",
    "read_ahead",
    "set_group_norm_epsilon",
    "table_bytes",
    "unpack",
    "version",
    "write_table",
]

KIND_VECTOR: int = lib.RWKVC_KIND_VECTOR
KIND_MATRIX: int = lib.RWKVC_KIND_MATRIX
KIND_LOW_RANK: int = lib.RWKVC_KIND_LOW_RANK
KIND_VALUE: int = lib.RWKVC_KIND_VALUE
KIND_EMBEDDING: int = lib.RWKVC_KIND_EMBEDDING
KIND_HEAD: int = lib.RWKVC_KIND_HEAD
KIND_BYTES: int = lib.RWKVC_KIND_BYTES
FORMAT_F32: int = lib.RWKVC_FORMAT_F32
FORMAT_F16: int = lib.RWKVC_FORMAT_F16
FORMAT_Q8: int = lib.RWKVC_FORMAT_Q8
FORMAT_Q6: int = lib.RWKVC_FORMAT_Q6
FORMAT_Q5: int = lib.RWKVC_FORMAT_Q5
FORMAT_Q4: int = lib.RWKVC_FORMAT_Q4
FORMAT_BYTES: int = lib.RWKVC_FORMAT_BYTES

_NO_LAYER = 0xFFFFFFFF
_DTYPES = {"f32": (lib.RWKVC_DTYPE_F32, 4), "f16": (lib.RWKVC_DTYPE_F16, 2), "bf16": (lib.RWKVC_DTYPE_BF16, 2)}
# GGML blocks of 32 values: dtype and bytes of a block
_BLOCKS = {
    "q8_0": (lib.RWKVC_DTYPE_Q8_0, 34),
    "q4_0": (lib.RWKVC_DTYPE_Q4_0, 18),
    "q5_0": (lib.RWKVC_DTYPE_Q5_0, 22),
}
_RANKS = {letter: getattr(lib, f"RWKVC_SIZE_RANK_{letter.upper()}") for letter in "wavgms"}
Dtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q5_0"]
LogitsChoice = Literal["last", "all", "none"]
_LOGITS = {"none": lib.RWKVC_LOGITS_NONE, "last": lib.RWKVC_LOGITS_LAST, "all": lib.RWKVC_LOGITS_ALL}

_ERRORS: dict[int, tuple[type[errors.RwkvError], str]] = {
    lib.RWKVC_E_ARGUMENT: (errors.ArgumentError, ""),
    lib.RWKVC_E_FORMAT: (errors.FormatError, "Make or download the file again."),
    lib.RWKVC_E_UNSUPPORTED: (errors.UnsupportedModelError, ""),
    lib.RWKVC_E_SHAPE: (errors.ShapeError, "The checkpoint is incomplete or damaged, or not an RWKV model."),
    lib.RWKVC_E_TOKEN: (errors.TokenError, "Encode text with the model's own tokenizer."),
    lib.RWKVC_E_STATE: (errors.StateError, ""),
    lib.RWKVC_E_NONFINITE: (errors.NonFiniteError, "The checkpoint is damaged or was saved after training diverged."),
    lib.RWKVC_E_NOMEM: (errors.OutOfMemory, "Close other programs, or use a smaller model or format."),
    lib.RWKVC_E_CANCELLED: (errors.Cancelled, ""),
    lib.RWKVC_E_FORKED: (errors.ForkedError, "Load the model in the child process."),
}


def check(status: int, where: str = "") -> None:
    """Raise the error that *status* stands for, with the engine's text; *where* names a file."""
    if status == lib.RWKVC_OK:
        return
    text = ffi.string(lib.rwkvc_last_error()).decode("utf-8", "replace")
    kind, hint = _ERRORS[status]
    raise kind(f"{where}: {text}" if where else text, hint=hint)


def version() -> str:
    """The package version that the extension was built from."""
    return str(ffi.string(lib.rwkvc_version()).decode())


def abi_version() -> int:
    """The C interface's version."""
    return int(lib.rwkvc_abi_version())


# ------------------------------------------------------------------------------------------------ hardware


@dataclass(frozen=True)
class IsaInfo:
    """An instruction set that the engine was compiled for."""

    name: str
    usable: bool
    needs: str


def isas() -> list[IsaInfo]:
    """Instruction sets compiled in, best first."""
    found: list[IsaInfo] = []
    while (name := lib.rwkvc_isa_name(len(found))) != ffi.NULL:
        needs = ffi.string(lib.rwkvc_isa_needs(name)).decode()
        found.append(IsaInfo(ffi.string(name).decode(), bool(lib.rwkvc_isa_usable(name)), needs))
    return found


def default_isa() -> str:
    """The instruction set that is used when none is asked for (RWKV_CPU_ISA, else the best)."""
    name = ffi.new("const char **")
    check(lib.rwkvc_isa_default(name))
    return str(ffi.string(name[0]).decode())


def default_threads() -> int:
    """Physical cores that this process may use."""
    return int(lib.rwkvc_default_threads())


# ------------------------------------------------------------------------------------- versions and formats


class Config:
    """An ``rwkvc_config``: version and sizes, opaque to everything but the engine."""

    def __init__(self) -> None:
        self.raw: Any = ffi.new("rwkvc_config *")

    def public(self) -> ModelConfig:
        """The same for people."""
        raw, size = self.raw, self.raw.size
        ranks = {letter: size[index] for letter, index in _RANKS.items()}
        return ModelConfig(
            version="7a" if raw.version == lib.RWKVC_RWKV7A else f"{raw.version >> 8}.{raw.version & 0xFF}",
            name=ffi.string(lib.rwkvc_version_name(raw.version)).decode(),
            n_layer=raw.n_layer,
            n_embd=size[lib.RWKVC_SIZE_EMBD],
            n_vocab=size[lib.RWKVC_SIZE_VOCAB],
            n_ffn=size[lib.RWKVC_SIZE_FFN],
            n_head=size[lib.RWKVC_SIZE_HEADS],
            head_size=size[lib.RWKVC_SIZE_HEAD],
            ln_eps=raw.ln_eps,
            gn_eps=raw.gn_eps,
            ranks={letter: rank for letter, rank in ranks.items() if rank},
        )


@dataclass
class TensorInfo:
    """One tensor of a version or of a model file; fields as in ``rwkvc_tensor_info``.

    source: what the checkpoint calls it. transform: what packing does to its values.
    shape: as in the checkpoint, without singleton dimensions; rows, cols: as stored, [out, in].
    layer: None outside the layers. offset: from the start of the file's data section.
    """

    name: str
    kind: int
    format: int
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool
    rows: int
    cols: int
    offset: int = 0
    size_bytes: int = 0
    crc32: int = 0
    source: str = ""
    transform: int = 0

    def raw(self) -> Any:
        """As the C struct."""
        info = ffi.new("rwkvc_tensor_info *")
        name = self.name.encode()
        if len(name) >= lib.RWKVC_MAX_NAME:
            raise errors.ArgumentError(f"the tensor name {self.name!r} is too long")
        info.name = name
        info.kind, info.format, info.transposed = self.kind, self.format, self.transposed
        info.transform = self.transform
        info.layer = _NO_LAYER if self.layer is None else self.layer
        info.n_dims = len(self.shape)
        info.shape[0 : len(self.shape)] = self.shape
        info.rows, info.cols = self.rows, self.cols
        info.offset, info.size_bytes, info.crc32 = self.offset, self.size_bytes, self.crc32
        return info

    @classmethod
    def from_raw(cls, info: Any) -> TensorInfo:
        """From the C struct."""
        return cls(
            name=ffi.string(info.name).decode("utf-8", "replace"),
            kind=info.kind,
            format=info.format,
            layer=None if info.layer == _NO_LAYER else info.layer,
            shape=tuple(info.shape[0 : info.n_dims]),
            transposed=bool(info.transposed),
            rows=info.rows,
            cols=info.cols,
            offset=info.offset,
            size_bytes=info.size_bytes,
            crc32=info.crc32,
            source=ffi.string(info.source).decode("utf-8", "replace"),
            transform=info.transform,
        )

    @classmethod
    def of_bytes(cls, name: str, length: int) -> TensorInfo:
        """A tensor of *length* bytes: a tokenizer, a template."""
        return cls(name, KIND_BYTES, FORMAT_BYTES, None, (length,), False, 1, length)

    def with_format(self, code: int) -> TensorInfo:
        """The same tensor, to be stored in another format."""
        return replace(self, format=code)


def detect_config(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Config:
    """Recognise version and sizes from names and shapes.

    Raises: UnsupportedModelError, ShapeError (naming tensor and shapes).
    """
    listed = list(tensors)
    raw = ffi.new("rwkvc_named_shape[]", len(listed))
    keep = []
    for entry, (name, shape) in zip(raw, listed, strict=True):
        text = ffi.new("char[]", name.encode("utf-8", "replace"))
        keep.append(text)
        entry.name = text
        entry.n_dims = min(len(shape), lib.RWKVC_MAX_DIMS)
        entry.shape[0 : entry.n_dims] = shape[: entry.n_dims]
    config = Config()
    check(lib.rwkvc_config_detect(raw, len(listed), config.raw))
    return config


def set_group_norm_epsilon(config: Config, epsilon: float) -> None:
    """Use another epsilon in the group norm after the recurrence than the version's own."""
    if not 0 < epsilon < 1:
        raise errors.ArgumentError(
            f"a group norm epsilon of {epsilon} makes no sense", hint="Usual are 64e-5 and 1e-5."
        )
    config.raw.gn_eps = epsilon


def plan(config: Config) -> list[TensorInfo]:
    """The tensors that a model of these sizes consists of, in the file's order, in format f32."""
    found: list[TensorInfo] = []
    info = ffi.new("rwkvc_tensor_info *")
    for i in range(lib.rwkvc_config_tensors(config.raw)):
        check(lib.rwkvc_config_tensor(config.raw, i, info))
        found.append(TensorInfo.from_raw(info))
    return found


def format_by_name(name: str) -> int:
    """FORMAT_Q8 for q8, and so on. Raises ArgumentError."""
    code = int(lib.rwkvc_format_by_name(name.encode()))
    if code < 0:
        raise errors.ArgumentError(f"unknown weight format {name!r}", hint="Formats are q4, q5, q6, q8, f16 and f32.")
    return code


def quantised_formats() -> list[str]:
    """Names of the integer weight formats of this engine, most bits first."""
    names = (lib.rwkvc_format_name(code) for code in range(FORMAT_BYTES))
    found = [str(ffi.string(name).decode()) for name in names if name != ffi.NULL]
    return [name for name in found if name.startswith("q")]


def format_name(code: int) -> str:
    """FORMAT_Q8 → "q8"."""
    name = lib.rwkvc_format_name(code)
    if name == ffi.NULL:
        raise errors.ArgumentError(f"unknown weight format {code}")
    return str(ffi.string(name).decode())


def format_for(preset: int, kind: int) -> int:
    """The format in which a file of format *preset* stores tensors of *kind*."""
    return int(lib.rwkvc_format_for(preset, kind))


# --------------------------------------------------------------------------------------- making model files


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
    raw = ffi.new("rwkvc_source *")
    keep = _describe_blocks(raw, info, source, dtype) if dtype in _BLOCKS else _describe(raw, info, source, dtype)
    raw.data = ffi.cast("void *", keep.ctypes.data)
    _pack(info, raw, first, last, dst, book)


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


def table_bytes(n: int) -> int:
    """Size of the binary table of a file with *n* tensors."""
    return int(lib.rwkvc_table_bytes(n))


def _raw_infos(infos: Sequence[TensorInfo]) -> Any:
    raw = ffi.new("rwkvc_tensor_info[]", len(infos))
    for entry, info in zip(raw, infos, strict=True):
        ffi.memmove(ffi.addressof(entry), info.raw(), ffi.sizeof("rwkvc_tensor_info"))
    return raw


def layout(config: Config, infos: Sequence[TensorInfo]) -> int:
    """Fill in every tensor's offset and size_bytes; returns the size of the data section."""
    raw, total = _raw_infos(infos), ffi.new("uint64_t *")
    check(lib.rwkvc_table_layout(config.raw, raw, len(infos), total))
    for entry, info in zip(raw, infos, strict=True):
        info.offset, info.size_bytes = entry.offset, entry.size_bytes
    return int(total[0])


def write_table(config: Config, infos: Sequence[TensorInfo]) -> bytes:
    """The binary table of a laid out file."""
    out = ffi.new("uint8_t[]", table_bytes(len(infos)))
    check(lib.rwkvc_table_write(config.raw, _raw_infos(infos), len(infos), out))
    return bytes(ffi.buffer(out))


# ------------------------------------------------------------------------------------------------- models


def read_ahead(buffer: Any) -> None:
    """Ask the system to read the file that *buffer* maps; maps nothing, waits for nothing but a disk's full queue."""
    with ffi.from_buffer("uint8_t[]", buffer) as raw:
        lib.rwkvc_read_ahead(raw, len(raw))


def prefault(buffer: Any, cancel: Any) -> None:
    """Map every page of *buffer* (any size) before it is used; returns when done, without the interpreter's lock.

    cancel: an ``int32_t *``; a value other than 0 ends it.
    Raises: Cancelled; FormatError: the file became shorter, or the disk cannot be read.
    """
    with ffi.from_buffer("uint8_t[]", buffer) as raw:
        check(lib.rwkvc_prefault(raw, len(raw), cancel))


@dataclass(frozen=True)
class StatePart:
    """One part of every layer's state: ``shape`` floats at ``offset + layer * layer_stride``."""

    name: str
    offset: int
    layer_stride: int
    shape: tuple[int, ...]


class OpenModel:
    """An ``rwkvc_model`` bound to the bytes of a .rwkv file.

    Args: buffer: the whole file, 64-byte aligned; kept alive until close(). where: its name, for errors.
    Raises: FormatError, UnsupportedModelError, ShapeError, OutOfMemory.
    """

    def __init__(self, buffer: Any, where: str = "") -> None:
        self._owner = ffi.from_buffer("uint8_t[]", buffer)
        handle = ffi.new("rwkvc_model **")
        check(lib.rwkvc_model_open(self._owner, len(self._owner), handle), where)
        self.raw: Any = handle[0]
        self.config = Config()
        lib.rwkvc_model_config(self.raw, self.config.raw)
        self.state_floats = int(lib.rwkvc_state_floats(self.raw))
        self.token_bytes = int(lib.rwkvc_model_token_bytes(self.raw))

    def tensors(self) -> list[TensorInfo]:
        """Every tensor of the file."""
        found: list[TensorInfo] = []
        info = ffi.new("rwkvc_tensor_info *")
        for i in range(lib.rwkvc_model_tensors(self.raw)):
            check(lib.rwkvc_model_tensor(self.raw, i, info))
            found.append(TensorInfo.from_raw(info))
        return found

    def bytes_of(self, name: str) -> memoryview | None:
        """A tensor's bytes in the mapping, None if there is no such tensor. Not to be kept past close()."""
        size = ffi.new("uint64_t *")
        data = lib.rwkvc_model_bytes(self.raw, name.encode(), size)
        if data == ffi.NULL:
            return None
        return memoryview(ffi.buffer(data, size[0])).toreadonly()

    def state_parts(self) -> list[StatePart]:
        """The layout of a state."""
        found: list[StatePart] = []
        part = ffi.new("rwkvc_state_part *")
        while lib.rwkvc_state_part_info(self.raw, len(found), part) == lib.RWKVC_OK:
            shape = tuple(part.shape[0 : part.n_dims])
            found.append(StatePart(ffi.string(part.name).decode(), part.offset, part.layer_stride, shape))
        return found

    def init_state(self, state: NDArray[np.float32]) -> None:
        """Write the state before the first token."""
        lib.rwkvc_state_init(self.raw, ffi.from_buffer("float[]", state, require_writable=True))

    def close(self) -> None:
        """Free the handle and let go of the bytes."""
        if self.raw is not None:
            lib.rwkvc_model_close(self.raw)
            self.raw = None
            ffi.release(self._owner)


@dataclass
class SequenceRun:
    """One sequence of a forward call; see ``rwkvc_sequence``.

    state_in, state_out: f32 [state_floats] (state_in None: before the first token; state_out [T, state_floats] with
    every_state). hidden: None, or f32 [T, n_embd] to receive the last layer norm's output after each token. n_done is
    written by the call.
    """

    tokens: NDArray[np.uint32]
    state_in: NDArray[np.float32] | None
    state_out: NDArray[np.float32]
    logits: LogitsChoice = "last"
    every_state: bool = False
    n_done: int = 0
    hidden: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ValueReads:
    """Inputs of the channel mixes' integer value matrices in passes of one token: ``rwkvc_value_reads``.

    inputs: all of them. columns: those that were not zero. groups: of 32 inputs, with at least one that was not.
    """

    inputs: int
    columns: int
    groups: int

    def since(self, before: ValueReads) -> ValueReads:
        """What came after *before*."""
        return ValueReads(self.inputs - before.inputs, self.columns - before.columns, self.groups - before.groups)


@dataclass(frozen=True)
class PartCost:
    """A part of a forward measured by itself: ``rwkvc_part_cost``.

    seconds: of the fastest pass. bytes: of weights or state that it read. multiply_adds: that it did.
    """

    seconds: float
    bytes: float
    multiply_adds: float


_progress_callbacks: dict[int, Callable[[int, int], None]] = {}
_progress_failures: dict[int, Callable[[BaseException], None]] = {}
_progress_lock = threading.Lock()


def _progress_failed(_kind: Any, error: BaseException, trace: Any) -> None:
    """Ctrl-C may arrive in _progress before it calls anything: hand it to forward() all the same."""
    _progress_failures[int(ffi.cast("uintptr_t", trace.tb_frame.f_locals["user"]))](error)


@ffi.def_extern(name="rwkvc_py_progress", onerror=_progress_failed)  # type: ignore[untyped-decorator]
def _progress(user: Any, done: int, total: int) -> None:
    _progress_callbacks[int(ffi.cast("uintptr_t", user))](done, total)


_input_callbacks: dict[int, Callable[[str, NDArray[np.float32]], None]] = {}


@ffi.def_extern(name="rwkvc_py_inputs")  # type: ignore[untyped-decorator]
def _inputs(user: Any, tensor: Any, x: Any, n: int, cols: int, ld: int) -> None:
    rows = np.frombuffer(ffi.buffer(x, 4 * ((n - 1) * ld + cols)), np.float32)
    view = np.lib.stride_tricks.as_strided(rows, (n, cols), (4 * ld, 4), writeable=False)
    _input_callbacks[int(ffi.cast("uintptr_t", user))](ffi.string(tensor).decode(), view)


class Context:
    """An ``rwkvc_context``: threads, scratch memory, instruction set. One call at a time."""

    def __init__(self, threads: int | None = None, isa: str | None = None, chunk: int | None = None) -> None:
        options = ffi.new("rwkvc_context_options *")
        lib.rwkvc_context_defaults(options)
        for name, value in (("threads", threads), ("chunk", chunk)):
            if value is not None and not 1 <= value <= 65536:
                raise errors.ArgumentError(f"{name} is {value}: it must be at least 1, and not absurdly large")
        options.threads, options.chunk = threads or 0, chunk or 0
        name = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
        options.isa = name
        handle = ffi.new("rwkvc_context **")
        check(lib.rwkvc_context_create(options, handle))
        self.raw: Any = handle[0]

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(ffi.string(lib.rwkvc_context_isa(self.raw)).decode())

    @property
    def threads(self) -> int:
        """Threads that work, the caller's included."""
        return int(lib.rwkvc_context_threads(self.raw))

    @property
    def scratch_bytes(self) -> int:
        """Working memory held now."""
        return int(lib.rwkvc_context_bytes(self.raw))

    @property
    def value_reads(self) -> ValueReads:
        """What decoding has met in the channel mixes' value matrices so far."""
        raw = ffi.new("rwkvc_value_reads *")
        lib.rwkvc_context_value_reads(self.raw, raw)
        return ValueReads(int(raw.inputs), int(raw.columns), int(raw.groups))

    def forward(
        self,
        model: OpenModel,
        runs: Sequence[SequenceRun],
        *,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        out: NDArray[np.float32] | None = None,
        inputs: Callable[[str, NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """Advance every sequence by its tokens in one call; returns logits f32 [rows wanted, n_vocab], *out* if given.

        cancel: an ``int32_t *`` (CancelToken.pointer). progress(done, total) between chunks, on this thread; an
        exception in it ends the call after the chunk (it sets cancel) and is raised here. inputs(tensor's name,
        x f32 [T, cols]) before each matrix product, likewise; x is gone when it returns.
        Raises: TokenError, NonFiniteError, OutOfMemory, ForkedError, Cancelled; runs[i].n_done says how far each got.
        """
        raw = ffi.new("rwkvc_sequence[]", len(runs))
        keep = []
        rows = 0
        for entry, run in zip(raw, runs, strict=True):
            tokens = ffi.from_buffer("uint32_t[]", _checked(run.tokens, np.uint32))
            state_out = ffi.from_buffer("float[]", _checked(run.state_out, np.float32), require_writable=True)
            need = model.state_floats * (len(run.tokens) if run.every_state else 1)
            if len(state_out) != need or (run.state_in is not None and run.state_in.size != model.state_floats):
                raise errors.StateError(f"a state of {len(state_out)} numbers, this model's have {need}")
            entry.tokens, entry.n_tokens, entry.state_out = tokens, len(run.tokens), state_out
            if run.state_in is not None:
                entry.state_in = ffi.from_buffer("float[]", _checked(run.state_in, np.float32))
            entry.logits, entry.every_state = _LOGITS[run.logits], run.every_state
            if run.hidden is not None:
                if run.hidden.shape != (len(run.tokens), model.config.raw.size[lib.RWKVC_SIZE_EMBD]):
                    raise errors.ArgumentError(f"hidden states {list(run.hidden.shape)} of {len(run.tokens)} tokens")
                hidden = _checked(run.hidden, np.float32)
                entry.hidden = ffi.from_buffer("float[]", hidden, require_writable=True)
            keep.append((tokens, state_out, entry.state_in, entry.hidden))
            rows += {"none": 0, "last": 1, "all": len(run.tokens)}[run.logits]
        n_vocab = model.config.raw.size[lib.RWKVC_SIZE_VOCAB]
        logits = np.empty((rows, n_vocab), np.float32) if out is None else _checked(out, np.float32)
        if logits.shape != (rows, n_vocab):
            raise errors.ArgumentError(f"logits go into [{rows}, {n_vocab}], not {list(logits.shape)}")
        options = ffi.new("rwkvc_forward_options *")
        options.struct_size = ffi.sizeof("rwkvc_forward_options")
        flag = cancel if cancel is not None else ffi.new("int32_t *", 0)
        options.cancel = flag
        failure: list[BaseException] = []
        if progress is None and threading.current_thread() is threading.main_thread():
            progress = _nothing  # Python looks at signals only when it runs: Ctrl-C then ends the call after a chunk
        if progress is not None:
            _listen(options, flag, progress, failure)
        if inputs is not None:
            _watch(options, flag, inputs, failure)
        target = ffi.from_buffer("float[]", logits, require_writable=True) if rows else ffi.NULL
        try:
            status = lib.rwkvc_forward(self.raw, model.raw, raw, len(runs), target, options)
        finally:
            with _progress_lock:
                _progress_callbacks.pop(id(options), None)
                _progress_failures.pop(id(options), None)
                _input_callbacks.pop(id(options), None)
        for entry, run in zip(raw, runs, strict=True):
            run.n_done = entry.n_done
        if failure:
            raise failure[0]
        check(status)
        return logits

    def measure_read(self, size_bytes: int = 1 << 30) -> float:
        """Bytes per second of a sequential read over that much memory."""
        rate = ffi.new("double *")
        check(lib.rwkvc_measure_read(self.raw, size_bytes, rate))
        return float(rate[0])

    def measure_int8(self) -> float:
        """int8 operations (2 per multiply-add) per second with operands in registers."""
        rate = ffi.new("double *")
        check(lib.rwkvc_measure_int8(self.raw, rate))
        return float(rate[0])

    def measure_product(
        self, kind: int, weight_format: int, rows: int, cols: int, tokens: int, *, copies: int = 1, zeros: float = 0.0
    ) -> PartCost:
        """A matrix product by itself: made-up weights [rows, cols] of a KIND_* and FORMAT_*, times *tokens* inputs.

        copies: of the weights, used in turn, so that caches do not hold them. zeros: share of the inputs that are 0.
        Takes about half a second. Raises: ArgumentError, OutOfMemory.
        """
        part = {"part": lib.RWKVC_PART_PRODUCT, "kind": kind, "format": weight_format, "zeros": zeros}
        return self._measure_part({**part, "rows": rows, "cols": cols, "tokens": tokens, "copies": copies})

    def measure_recurrence(self, heads: int, head_size: int, tokens: int, *, copies: int = 1) -> PartCost:
        """RWKV-7's recurrence by itself, *tokens* after one another; the bytes are the state's, once."""
        part = {"part": lib.RWKVC_PART_RECURRENCE, "rows": heads, "cols": head_size}
        return self._measure_part({**part, "tokens": tokens, "copies": copies})

    def _measure_part(self, part: dict[str, Any]) -> PartCost:
        for name in ("rows", "cols", "tokens", "copies"):
            if not 0 < part[name] < 1 << 31:
                raise errors.ArgumentError(f"{name} is {part[name]}: it must be at least 1, and not absurdly large")
        cost = ffi.new("rwkvc_part_cost *")
        check(lib.rwkvc_measure_part(self.raw, ffi.new("rwkvc_part *", part), cost))
        return PartCost(float(cost.seconds), float(cost.bytes), float(cost.multiply_adds))

    def close(self) -> None:
        """End the threads and free the scratch memory."""
        if self.raw is not None:
            lib.rwkvc_context_destroy(self.raw)
            self.raw = None

    def __del__(self) -> None:
        # lib is None at the end of the interpreter; raw, if it was never made, or closed.
        if lib is not None and getattr(self, "raw", None) is not None:
            self.close()


def _listen(options: Any, flag: Any, progress: Callable[[int, int], None], failure: list[BaseException]) -> None:
    """Route the engine's progress to *progress*; its exception stops the call through the cancel flag."""

    def report(done: int, total: int) -> None:
        if not failure:
            progress(done, total)

    def failed(error: BaseException) -> None:
        failure.append(error)
        flag[0] = 1

    key = id(options)
    with _progress_lock:
        _progress_callbacks[key], _progress_failures[key] = report, failed
    options.progress, options.user = lib.rwkvc_py_progress, ffi.cast("void *", key)


def _watch(
    options: Any, flag: Any, inputs: Callable[[str, NDArray[np.float32]], None], failure: list[BaseException]
) -> None:
    """Route the engine's inputs of products to *inputs*; its exception stops the call through the cancel flag."""

    def show(name: str, x: NDArray[np.float32]) -> None:
        try:
            if not failure:
                inputs(name, x)
        except BaseException as error:  # noqa: BLE001  raised where the call was made
            failure.append(error)
            flag[0] = 1

    with _progress_lock:
        _input_callbacks[id(options)] = show
    options.inputs, options.user = lib.rwkvc_py_inputs, ffi.cast("void *", id(options))


def _nothing(_done: int, _total: int) -> None:
    """A progress callback that does nothing but let Python look at its signals."""


def _checked(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise errors.ArgumentError(f"expected contiguous {np.dtype(dtype)}, got {array.dtype}")
    return array
