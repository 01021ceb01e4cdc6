# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's GGUF files of RWKV-6 and RWKV-7, versions 2 and 3 of the format.

    "GGUF", u32 version, u64 tensors, u64 keys | keys | tensor infos | padding | data

Every count and length is checked against what is left of the file before anything is done with it. Long arrays (the
vocabulary) are only walked over; the tokenizer is made when someone asks for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rwkv_cpu.checkpoint.ggml_blocks import type_of
from rwkv_cpu.checkpoint.ggml_file import MAX_TENSORS, GgmlFile, Source, StoredTensor, is_matrix
from rwkv_cpu.checkpoint.gguf_names import ARCHITECTURES, OUTSIDE, REFUSED, Architecture
from rwkv_cpu.checkpoint.gguf_text import (
    is_standard,
    standard_vocabulary,
    template_from_jinja,
    vocabulary_from_tokens,
)
from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.errors import FormatError, ShapeError, UnsupportedModelError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["GgufCheckpoint"]

_MAX_KEYS = 1 << 16
_MAX_NAME_BYTES = 256
_MAX_STRING_BYTES = 1 << 24
_MAX_STRINGS = 1 << 21  # in an array: no vocabulary comes near
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20
_MAX_LAYERS = 4096
_MAX_RESCALES = 64  # more halvings than float32 has exponents for would say nothing
_LAYER_NORM_EPSILON = 1e-5
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_INTEGERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})


@dataclass(frozen=True, slots=True)
class _Array:
    """Where an array's elements begin, and what they are."""

    kind: int
    count: int
    offset: int
    end: int


class _Cursor:
    """Reads forward through the file; every step is checked."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data, self.where, self.at, self.size = data, where, 0, len(data)

    def bad(self, what: str) -> FormatError:
        return FormatError(f"{self.where}: {what}", hint=DOWNLOAD_AGAIN)

    def scalar(self, layout: struct.Struct) -> Any:
        if self.at + layout.size > self.size:
            raise self.bad(f"cut short: its header goes on behind byte {self.size}")
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def count(self, what: str, each_bytes: int, most: int) -> int:
        """A number of things that follow and take at least *each_bytes* each."""
        value = int(self.scalar(_U64))
        if value > min((self.size - self.at) // each_bytes, most):
            raise self.bad(f"announces {value} {what}, more than the file can hold or any model has")
        return value

    def text_bytes(self, what: str, most: int) -> bytes:
        size = self.count(f"bytes of {what}", 1, most)
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self, what: str, most: int = _MAX_STRING_BYTES) -> str:
        return self.text_bytes(what, most).decode("utf-8", "backslashreplace")

    def value(self, key: str) -> Any:
        """A key's value: a number, a bool, a str, or an _Array that is not read yet."""
        kind = self.scalar(_U32)
        if kind in _SCALARS:
            found = self.scalar(_SCALARS[kind])
            return bool(found) if kind == 7 else found
        if kind == _STRING:
            return self.text(shown(key))
        if kind == _ARRAY:
            return self._array(key)
        raise self.bad(f"key {shown(key)} has the unknown type {kind}")

    def _array(self, key: str) -> _Array:
        kind = self.scalar(_U32)
        if kind in _SCALARS:
            width = _SCALARS[kind].size
            count = self.count(f"values of {shown(key)}", width, 1 << 62)
            self.at += count * width
            return _Array(kind, count, self.at - count * width, self.at)
        if kind != _STRING:
            raise self.bad(f"key {shown(key)} is an array of the unknown or nested type {kind}")
        count = self.count(f"strings of {shown(key)}", _U64.size, _MAX_STRINGS)
        start = at = self.at
        data, size, unpack = self.data, self.size, _U64.unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise self.bad(f"cut short inside {shown(key)}")
            (length,) = unpack(data, at)
            at += 8 + length
        if at > size:
            raise self.bad(f"cut short inside {shown(key)}")
        self.at = at
        return _Array(kind, count, start, at)

    def strings(self, array: _Array) -> Iterator[bytes]:
        """The elements of an array of strings, whose extent was checked when it was passed over."""
        at = array.offset
        for _ in range(array.count):
            (length,) = _U64.unpack_from(self.data, at)
            yield self.data[at + 8 : at + 8 + length]
            at += 8 + length


class GgufCheckpoint(GgmlFile):
    """See checkpoint.base.Checkpoint. Tensors have BlinkDL's names and orientation, whatever the file calls them.

    Q8_0, Q5_0 and Q4_0 matrices are given as blocks; other quantised types are decoded to f32. Where the file's weights
    are divided for float16 arithmetic (rescale_every_n_layers), that is undone, exactly.

    Attributes:
        keys: the file's metadata; arrays are not in it.
    """

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(path)
        self.keys = {key: value for key, value in self._values.items() if not isinstance(value, _Array)}

    @cached_property
    def tokenizer(self) -> tuple[str, bytes] | None:  # type: ignore[override]
        """("world", vocabulary) from the file's tokens; None if it has none.

        Raises: UnsupportedModelError: a tokenizer of another kind. FormatError: damaged tokens.
        """
        model = self._values.get("tokenizer.ggml.model", "none")
        if model in ("none", "no_vocab"):
            return None
        tokens = self._values.get("tokenizer.ggml.tokens")
        if model != "rwkv" or not isinstance(tokens, _Array) or tokens.kind != _STRING:
            raise UnsupportedModelError(
                f"{self._where}: its tokenizer is of the kind {shown(str(model))}, which is not read from GGUF files",
                hint="Give the model's tokenizer as a file of its own: --tokenizer FILE.",
            )
        kinds: list[int] = []
        types = self._values.get("tokenizer.ggml.token_type")
        if isinstance(types, _Array) and types.kind in _INTEGERS:
            layout = struct.Struct(f"<{min(types.count, tokens.count)}{_SCALARS[types.kind].format[1:]}")
            kinds = list(layout.unpack_from(self._file.map, types.offset))
        try:
            if is_standard(memoryview(self._file.map)[tokens.offset : tokens.end], kinds):
                return "world", standard_vocabulary()
            return "world", vocabulary_from_tokens(list(self._cursor().strings(tokens)), kinds)
        except FormatError as error:
            raise self._bad(f"its tokenizer: {error}", error.hint) from error

    @cached_property
    def chat_template(self) -> bytes | None:  # type: ignore[override]
        """The file's template as chat.ChatTemplate reads it, with the original text kept inside."""
        text = self._values.get("tokenizer.chat_template")
        return template_from_jinja(text) if isinstance(text, str) and text else None

    # --------------------------------------------------------------------------------------- header

    def _cursor(self) -> _Cursor:
        return _Cursor(self._file.map, self._where)

    def _open(self) -> dict[str, Source]:
        cursor = self._cursor()
        cursor.at = 4
        version = cursor.scalar(_U32)
        if version not in (2, 3):
            raise self._refused_version(version)
        n_tensors = cursor.count("tensors", 8 + 1 + 4 + 8 + 4 + 8, MAX_TENSORS)
        n_keys = cursor.count("keys", 8 + 1 + 4 + 1, _MAX_KEYS)
        for _ in range(n_keys):
            key = cursor.text("a key's name", _MAX_NAME_BYTES)
            if key in self._values:
                raise self._bad(f"key {shown(key)} occurs twice")
            self._values[key] = cursor.value(key)
        architecture = self._architecture()
        return self._sources_of(architecture, self._stored(cursor, n_tensors))

    def _refused_version(self, version: int) -> UnsupportedModelError | FormatError:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
            return UnsupportedModelError(f"{self._where}: a GGUF file for big-endian machines", hint=_OTHER_FILE)
        if version == 1:
            return UnsupportedModelError(f"{self._where}: a GGUF file of version 1 of the format", hint=_OTHER_FILE)
        return self._bad(f"version {version} of GGUF is not known; 2 and 3 are", "Is the file damaged, or very new?")

    def _architecture(self) -> Architecture:
        name = self._values.get("general.architecture")
        if not isinstance(name, str):
            raise self._bad("does not say which architecture it is")
        kind = self._values.get("general.type", "model")
        if kind != "model":
            raise UnsupportedModelError(
                f"{self._where}: this GGUF file holds no model but {shown(repr(kind))}", hint=_OTHER_FILE
            )
        parts = self._integer("split.count", 1, 1 << 16)
        if parts > 1:
            raise UnsupportedModelError(
                f"{self._where}: one of {parts} pieces of a model",
                hint="Join them first: llama-gguf-split --merge FIRST-PIECE OUT.gguf",
            )
        if name in REFUSED:
            raise UnsupportedModelError(
                f"{self._where}: the architecture {name!r} is not run by this version: it is {REFUSED[name]}",
                hint="llama.cpp runs it.",
            )
        if name not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{self._where}: a GGUF file of the architecture {shown(name)!r}, which is not RWKV",
                hint=f"Architectures that are read: {', '.join(ARCHITECTURES)}.",
            )
        epsilon = self._values.get(f"{name}.attention.layer_norm_epsilon", _LAYER_NORM_EPSILON)
        if not isinstance(epsilon, float):
            raise self._bad("its epsilon of the layer norms is no floating point number")
        if not abs(epsilon / _LAYER_NORM_EPSILON - 1) < 1e-3:
            raise UnsupportedModelError(
                f"{self._where}: its layer norms add {epsilon:g} to the variance, RWKV's {_LAYER_NORM_EPSILON}",
                hint=_OTHER_FILE,
            )
        return ARCHITECTURES[name]

    def _integer(self, key: str, default: int, most: int) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self._bad(f"key {shown(key)} is {shown(repr(value))}, expected a number from 0 to {most}")
        return value

    def _stored(self, cursor: _Cursor, n_tensors: int) -> dict[str, StoredTensor]:
        """Read the tensor infos and check where their data lie."""
        alignment = self._integer("general.alignment", 32, _MAX_ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"its alignment of {alignment} bytes is no power of two")
        found: dict[str, StoredTensor] = {}
        for _ in range(n_tensors):
            name = cursor.text("a tensor's name", _MAX_NAME_BYTES)
            if name in found:
                raise self._bad(f"tensor {shown(name)} occurs twice")
            n_dims = cursor.scalar(_U32)
            if not 1 <= n_dims <= _MAX_DIMS:
                raise self._bad(f"tensor {shown(name)} has {n_dims} dimensions; 1 to {_MAX_DIMS} are possible")
            sizes = tuple(cursor.scalar(_U64) for _ in range(n_dims))
            kind = type_of(cursor.scalar(_U32), f"{self._where}: tensor {shown(name)}")
            offset = cursor.scalar(_U64)
            if offset % alignment:
                raise self._bad(f"tensor {shown(name)} lies at byte {offset}, not a multiple of {alignment}")
            found[name] = StoredTensor(name, kind, self._checked_shape(name, kind, sizes), offset)
        start = -(-cursor.at // alignment) * alignment
        found = {t.name: StoredTensor(t.name, t.kind, t.shape, t.offset + start) for t in found.values()}
        end, before = start, ""
        for tensor in sorted(found.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._bad(f"tensors {shown(before)} and {shown(tensor.name)} overlap")
            self._check_inside(tensor)
            end, before = tensor.offset + tensor.size_bytes, tensor.name
        return found

    # ---------------------------------------------------------------------------------------- names

    def _sources_of(self, architecture: Architecture, stored: dict[str, StoredTensor]) -> dict[str, Source]:
        prefix = architecture.name
        every = self._integer(f"{prefix}.rescale_every_n_layers", 0, 1 << 31)
        head_size = self._integer(f"{prefix}.wkv.head_size", 64, 1 << 16)
        rows = {row.gguf: row for row in architecture.rows}
        sources: dict[str, Source] = {}

        def add(name: str, source: Source) -> None:
            if name in sources:
                raise self._bad(f"{source.stored.name} and {sources[name].stored.name} are the same tensor")
            sources[name] = source

        for gguf_name, tensor in stored.items():
            if gguf_name in OUTSIDE:
                add(OUTSIDE[gguf_name], self._as_is(OUTSIDE[gguf_name], tensor, 0))
                continue
            layer, leaf = self._layer_of(gguf_name, architecture)
            block = f"blocks.{layer}."
            if leaf == architecture.fused.gguf:
                names = architecture.fused.names
                for part, name in enumerate(names):
                    shape = (1, 1, tensor.shape[-1])
                    add(block + name, self._shaped(tensor, shape, part=part, parts=len(names)))
                continue
            row = rows.get(leaf)
            if row is None:
                raise UnsupportedModelError(
                    f"{self._where}: tensor {shown(gguf_name)} does not belong to {prefix}: "
                    "a variant that would be computed wrongly",
                    hint=_OTHER_FILE,
                )
            name = block + row.name
            if layer == 0 and row.name in ("att.v0", "att.v1", "att.v2"):
                continue  # there is no earlier layer's value to mix with: llama.cpp wants something to be there
            if row.change == "heads":
                add(name, self._as_heads(tensor, head_size))
            elif row.change == "transposed":
                if len(tensor.shape) < 2:
                    raise self._bad(f"tensor {shown(gguf_name)} of shape {list(tensor.shape)} is no matrix")
                turned = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
                add(name, self._shaped(tensor, turned, transposed=True))
            else:
                power = layer // every if every and row.name in ("att.output.weight", "ffn.value.weight") else 0
                if power > _MAX_RESCALES:
                    raise self._bad(f"layer {layer} with weights halved every {every} layers")
                add(name, self._as_is(name, tensor, power))
        return sources

    def _layer_of(self, name: str, architecture: Architecture) -> tuple[int, str]:
        prefix, _, rest = name.partition(".")
        number, _, leaf = rest.partition(".")
        if prefix != "blk" or not (number.isascii() and number.isdigit() and len(number) <= 4):
            raise UnsupportedModelError(
                f"{self._where}: tensor {shown(name)} does not belong to {architecture.name}: "
                "a variant that would be computed wrongly",
                hint=_OTHER_FILE,
            )
        if (layer := int(number)) >= _MAX_LAYERS or number != str(layer):
            raise self._bad(f"tensor {shown(name)} is in an impossible layer")
        return layer, leaf

    def _as_is(self, name: str, tensor: StoredTensor, power: int) -> Source:
        """Without the dimensions of size 1 that ggml may have lost or added."""
        shape = tensor.shape
        if is_matrix(name):
            shape = tuple(size for size in shape if size != 1) if len(shape) > 2 else shape
            if len(shape) != 2:
                raise ShapeError(
                    f"{self._where}: tensor {shown(tensor.name)} of shape {list(tensor.shape)} is no matrix"
                )
        return self._shaped(tensor, shape, power=power)

    def _as_heads(self, tensor: StoredTensor, head_size: int) -> Source:
        """[n_head, head_size], which r_k is stored without."""
        shape = tuple(size for size in tensor.shape if size != 1)
        if len(shape) != 2:
            if head_size == 0 or tensor.elements % head_size:
                raise ShapeError(
                    f"{self._where}: tensor {shown(tensor.name)} of {tensor.elements} values does not divide into "
                    f"heads of {head_size}"
                )
            shape = (tensor.elements // head_size, head_size)
        return self._shaped(tensor, shape)


_OTHER_FILE = "Use another file of the same model: a .pth checkpoint, or a GGUF file that llama.cpp runs."
