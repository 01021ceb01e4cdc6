# SPDX-License-Identifier: Apache-2.0
"""Versions of RWKV, the tensors they consist of, and weight formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rwkv_cpu import errors
from rwkv_cpu.config import ModelConfig

from .boundary import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
_RANKS = {letter: getattr(lib, f"RWKVC_SIZE_RANK_{letter.upper()}") for letter in "wavgms"}


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
