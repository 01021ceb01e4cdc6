# SPDX-License-Identifier: Apache-2.0
"""rwkv.cpp's model files (.bin), versions 100 and 101 of its format, RWKV-4 to RWKV-7.

    i32 magic, version, n_vocab, n_embd, n_layer, data type | records
    record: i32 dimensions, key length, data type; i32 sizes, fastest first; key; values

Names are BlinkDL's, but its converter has already applied some functions and transposed some matrices. What is
transformed gets a name that says so: time_decay becomes time_decay_done, an exponentiated time_first time_faaaa.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rwkv_cpu.checkpoint.ggml_blocks import TYPES, GgmlType
from rwkv_cpu.checkpoint.ggml_file import MAX_TENSORS, GgmlFile, Source, StoredTensor
from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.errors import ShapeError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GgmfCheckpoint"]

_HEADER = struct.Struct("<6i")
_RECORD = struct.Struct("<3i")
_VERSIONS = (100, 101)
_QUANTISED_SINCE = 101
_MAX_NAME_BYTES = 256
_MAX_DIMS = 3
# rwkv.cpp's data types: their place in its own list → ggml's id.
_TYPES = {0: 0, 1: 1, 2: 2, 3: 3, 7: 6, 8: 7, 9: 8}
_REMOVED = {4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3"}
_LOW_RANK_7 = frozenset({"w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"})
_LOW_RANK_6 = frozenset({"time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"})


class GgmfCheckpoint(GgmlFile):
    """See checkpoint.base.Checkpoint. Tensors have BlinkDL's names and orientation.

    Q8_0, Q5_0 and Q4_0 matrices are given as blocks; other quantised types are decoded to f32.
    """

    kind = "ggmf"

    def _open(self) -> dict[str, Source]:
        if len(self._file.map) < _HEADER.size:
            raise self._bad("cut short inside its header", DOWNLOAD_AGAIN)
        _, version, n_vocab, n_embd, n_layer, data_type = _HEADER.unpack_from(self._file.map, 0)
        if version not in _VERSIONS:
            raise self._bad(f"version {version} of rwkv.cpp's format is not known; 100 and 101 are")
        main = self._type(data_type, "the file")
        if main.plain == "" and version < _QUANTISED_SINCE:
            raise UnsupportedModelError(
                f"{self._where}: quantised by rwkv.cpp before May 2023, in a layout that was given up",
                hint="Convert and quantise it again, or use the .pth file that it was made from.",
            )
        stored: dict[str, StoredTensor] = {}
        for tensor in self._records():
            if tensor.name in stored:
                raise self._bad(f"tensor {shown(tensor.name)} occurs twice")
            stored[tensor.name] = tensor
        embedding = stored.get("emb.weight")
        if embedding is None:
            raise ShapeError(f"{self._where}: tensor emb.weight is missing", hint=DOWNLOAD_AGAIN)
        if embedding.shape != (n_vocab, n_embd) or f"blocks.{n_layer - 1}.ln1.weight" not in stored:
            raise self._bad(
                f"its header says {n_layer} layers and an embedding of [{n_vocab}, {n_embd}], its tensors something "
                f"else: {list(embedding.shape)}",
                DOWNLOAD_AGAIN,
            )
        sources: dict[str, Source] = {}
        for name, source in self._canonical(stored):
            if name in sources:
                raise self._bad(f"{shown(source.stored.name)} and {shown(name)} are the same tensor")
            sources[name] = source
        return sources

    def _type(self, number: int, what: str) -> GgmlType:
        if number in _TYPES:
            return TYPES[_TYPES[number]]
        if number in _REMOVED:
            raise UnsupportedModelError(
                f"{self._where}: {what} is stored as {_REMOVED[number]} (type {number}), which rwkv.cpp has removed",
                hint="Convert and quantise it again, or use the .pth file that it was made from.",
            )
        raise self._bad(f"{what} has the unknown data type {number}", DOWNLOAD_AGAIN)

    def _records(self) -> Iterator[StoredTensor]:
        data, at, n = self._file.map, _HEADER.size, 0
        while at < len(data):
            n += 1
            if n > MAX_TENSORS:
                raise self._bad(f"more than {MAX_TENSORS} tensors")
            where = f"at byte {at}"
            if at + _RECORD.size > len(data):
                raise self._bad(f"cut short {where}", DOWNLOAD_AGAIN)
            n_dims, key_bytes, data_type = _RECORD.unpack_from(data, at)
            if not 1 <= n_dims <= _MAX_DIMS:
                raise self._bad(f"a tensor {where} has {n_dims} dimensions; 1 to {_MAX_DIMS} are possible")
            if not 1 <= key_bytes <= _MAX_NAME_BYTES:
                raise self._bad(f"a tensor {where} has a name of {key_bytes} bytes")
            at += _RECORD.size
            if at + 4 * n_dims + key_bytes > len(data):
                raise self._bad(f"cut short {where}", DOWNLOAD_AGAIN)
            sizes = struct.unpack_from(f"<{n_dims}i", data, at)
            at += 4 * n_dims
            name = data[at : at + key_bytes].decode("utf-8", "backslashreplace")
            at += key_bytes
            kind = self._type(data_type, f"tensor {shown(name)}")
            tensor = StoredTensor(name, kind, self._checked_shape(name, kind, sizes), at)
            self._check_inside(tensor)
            at += tensor.size_bytes
            yield tensor

    # ---------------------------------------------------------------------------------------- names

    def _canonical(self, stored: dict[str, StoredTensor]) -> Iterator[tuple[str, Source]]:
        if "blocks.0.att.r_k" in stored:
            return self._version_7(stored)
        if "blocks.0.att.time_maa_x" in stored:
            return self._version_6(stored)
        return self._version_4_or_5(stored)

    def _version_4_or_5(self, stored: dict[str, StoredTensor]) -> Iterator[tuple[str, Source]]:
        is_5 = "blocks.0.att.ln_x.weight" in stored
        for name, tensor in stored.items():
            prefix, _, leaf = name.rpartition(".")
            shape = tensor.shape
            if leaf == "time_decay":
                name = f"{prefix}.time_decay_done"
            elif leaf == "time_first" and is_5:
                name = f"{prefix}.time_faaaa"
            if is_5 and leaf in ("time_decay", "time_first", "time_faaaa"):
                shape = self._per_head(tensor)
            yield name, self._shaped(tensor, shape)

    def _per_head(self, tensor: StoredTensor) -> tuple[int, ...]:
        """[H, N, 1] as BlinkDL has it: [H, N], or [H] where all channels of a head share a value."""
        heads = tensor.shape[0]
        width = tensor.elements // heads
        return (heads,) if width == 1 else (heads, width)

    def _version_6(self, stored: dict[str, StoredTensor]) -> Iterator[tuple[str, Source]]:
        for name, tensor in stored.items():
            leaf = name.rpartition(".")[2]
            if leaf in _LOW_RANK_6:
                yield name, self._turned(tensor)
            elif leaf == "time_decay":
                yield name, self._shaped(tensor, (1, 1, tensor.elements))
            elif leaf == "time_faaaa":
                yield name, self._shaped(tensor, self._per_head(tensor))
            else:
                yield name, self._shaped(tensor, tensor.shape)

    def _version_7(self, stored: dict[str, StoredTensor]) -> Iterator[tuple[str, Source]]:
        for name, tensor in stored.items():
            prefix, _, leaf = name.rpartition(".")
            if leaf == "x_rwkvag":
                for part, letter in enumerate("rwkvag"):
                    shape = (1, 1, tensor.shape[-1])
                    yield f"{prefix}.x_{letter}", self._shaped(tensor, shape, part=part, parts=6)
            elif prefix == "blocks.0.att" and leaf in ("v0", "v1", "v2"):
                continue  # without meaning in the first layer, and of any shape
            elif leaf in _LOW_RANK_7:
                yield name, self._turned(tensor)
            else:
                yield name, self._shaped(tensor, tensor.shape)

    def _turned(self, tensor: StoredTensor) -> Source:
        if len(tensor.shape) < 2:
            raise self._bad(f"tensor {shown(tensor.name)} of shape {list(tensor.shape)} is no matrix")
        *front, rows, cols = tensor.shape
        return self._shaped(tensor, (*front, cols, rows), transposed=True)
