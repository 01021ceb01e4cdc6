# SPDX-License-Identifier: Apache-2.0
"""GGUF for llama.cpp: RWKV-6 and RWKV-7, with the tokenizer inside, World's or sentencepiece.

Matrices keep the blocks or floats that they are stored in, vectors are f32, low-rank pairs are turned round. What keys
mean: llama.cpp src/models/rwkv6.cpp and rwkv7.cpp.
"""

from __future__ import annotations

import functools
import logging
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.checkpoint.ggml_blocks import TYPES, GgmlType
from rwkv_cpu.checkpoint.gguf_names import ARCHITECTURES, OUTSIDE, Architecture, Row
from rwkv_cpu.errors import UnsupportedModelError
from rwkv_cpu.export.dtypes import converted
from rwkv_cpu.export.gguf_text import jinja_from_template, tokens_from_vocabulary
from rwkv_cpu.export.layout import Output, parts_of
from rwkv_cpu.export.sentencepiece_model import sentencepiece_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

    from rwkv_cpu.export.tensors import ExportTensor, ModelTensors

__all__ = ["GgufLayout"]

_log = logging.getLogger("rwkv_cpu")

_VERSION = 3
_ALIGN_BYTES = 32
_VERSIONS = {"6.0": "rwkv6", "7.0": "rwkv7"}
_GGML = {"f32": TYPES[0], "f16": TYPES[1], "bf16": TYPES[30], "q8_0": TYPES[8], "q5_0": TYPES[6], "q4_0": TYPES[2]}
# llama.cpp's name for a file by what most of its matrices are (LLAMA_FTYPE_*).
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q5_0": 8, "bf16": 32}
_CONTEXT_TOKENS = 1 << 20  # there is no limit, but the key is required
_QUANTISATION_VERSION = 2
_BLANK_LINE = 261  # "\n\n" in World's vocabulary ends a turn
_LAYER_0_VALUE = {"att.v0": "att.a0", "att.v1": "att.a1", "att.v2": "att.a2"}


class GgufLayout:
    """See export.layout.Layout. *dtype* for matrices and low-rank pairs; None: each as it is stored.

    Raises: UnsupportedModelError: a version of RWKV that llama.cpp does not run.
    """

    def __init__(self, model: ModelTensors, dtype: str | None) -> None:
        name = _VERSIONS.get(model.config.version)
        if name is None:
            raise UnsupportedModelError(
                f"{model.path}: {model.config.name} has no place in GGUF: llama.cpp runs RWKV-6 and RWKV-7 only",
                hint="Write OUT.safetensors instead.",
            )
        self._model, self._dtype = model, dtype
        self._architecture = ARCHITECTURES[name]
        self.dtypes: list[str] = []
        self.exact = True
        self.tokenizer = "none"
        self._matrices: Counter[str] = Counter()
        self._outputs: list[Output] = []
        self._end = 0
        self._plan()
        header = _Header()
        for key, value in self._keys():
            header.key(key, value)
        self._header = header.finished(self._outputs)
        self.size_bytes = len(self._header) + self._end
        self._outputs = [
            Output(o.name, o.dtype, o.shape, o.offset + len(self._header), o.size_bytes, o.pieces)
            for o in self._outputs
        ]

    def parts(self) -> Iterator[tuple[int, Buffer]]:
        """(offset, bytes) of the whole file."""
        return parts_of(self._header, self._outputs, self.size_bytes)

    # -------------------------------------------------------------------------------------- tensors

    def _plan(self) -> None:
        fused = self._architecture.fused
        rows = [row for row in self._architecture.rows if row.name not in fused.names]
        for gguf_name, name in OUTSIDE.items():
            self._add_row(gguf_name, name, Row(gguf_name, name))
        for layer in range(self._model.config.n_layer):
            for row in rows:
                # llama.cpp wants the unused value residual of layer 0 to be there; its own converter copies too.
                leaf = _LAYER_0_VALUE.get(row.name, row.name) if layer == 0 else row.name
                self._add_row(f"blk.{layer}.{row.gguf}", f"blocks.{layer}.{leaf}", row)
            names = [f"blocks.{layer}.{name}" for name in fused.names]
            tensors = [self._model.tensors[name] for name in names]
            self._add(
                f"blk.{layer}.{fused.gguf}",
                "f32",
                (len(names), 1, 1, tensors[0].elements),
                functools.partial(self._vectors, tensors),
                tensors,
            )

    def _add_row(self, gguf_name: str, name: str, row: Row) -> None:
        tensor = self._model.tensors[name]
        if not tensor.matrix and not tensor.low_rank:
            shape = tuple(size for size in tensor.shape if size != 1) or (1,)
            flat = row.name == "att.r_k" or row.change != "heads"
            self._add(
                gguf_name,
                "f32",
                (tensor.elements,) if flat else shape,
                functools.partial(self._vectors, [tensor]),
                [tensor],
            )
            return
        wanted = self._dtype or tensor.dtype
        if tensor.matrix:
            self._matrices[wanted] += tensor.elements
        if row.change == "transposed":
            shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
            pieces = functools.partial(self._transposed, tensor, wanted)
        else:
            shape = tensor.shape
            pieces = functools.partial(self._as_is, tensor, wanted)
        self._add(gguf_name, wanted, shape, pieces, [tensor])

    def _add(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        pieces: Callable[[], Iterator[Buffer]],
        sources: Sequence[ExportTensor],
    ) -> None:
        kind: GgmlType = _GGML[dtype]
        elements = int(np.prod(shape, dtype=np.int64))
        self._outputs.append(Output(name, dtype, shape, self._end, kind.bytes_of(elements), pieces))
        self._end += -(-kind.bytes_of(elements) // _ALIGN_BYTES) * _ALIGN_BYTES
        self.dtypes.append(dtype)
        self.exact &= all(tensor.exact and dtype in (tensor.dtype, "f32") for tensor in sources)

    def _as_is(self, tensor: ExportTensor, wanted: str) -> Iterator[Buffer]:
        for piece in self._model.pieces(tensor.name):
            yield converted(tensor.name, piece, tensor.dtype, wanted).data

    def _vectors(self, tensors: Sequence[ExportTensor]) -> Iterator[Buffer]:
        for tensor in tensors:
            yield from self._as_is(tensor, "f32")

    def _transposed(self, tensor: ExportTensor, wanted: str) -> Iterator[Buffer]:
        whole = np.concatenate([piece.reshape(-1) for piece in self._model.pieces(tensor.name)]).reshape(tensor.shape)
        yield converted(tensor.name, np.ascontiguousarray(whole.swapaxes(-1, -2)), tensor.dtype, wanted).data

    # ----------------------------------------------------------------------------------------- keys

    def _keys(self) -> Iterator[tuple[str, Any]]:
        config, name = self._model.config, self._architecture.name
        yield "general.architecture", name
        yield "general.type", "model"
        yield "general.name", self._model.path.stem
        yield f"{name}.context_length", _CONTEXT_TOKENS
        yield f"{name}.embedding_length", config.n_embd
        yield f"{name}.block_count", config.n_layer
        yield f"{name}.feed_forward_length", config.n_ffn
        yield f"{name}.attention.head_count", 0
        yield f"{name}.attention.layer_norm_epsilon", config.ln_eps
        yield f"{name}.wkv.head_size", config.head_size
        yield f"{name}.token_shift_count", 2
        if name == "rwkv6":
            yield f"{name}.rescale_every_n_layers", 0
        for key, rank in self._ranks(self._architecture):
            yield f"{name}.{key}", rank
        yield "general.file_type", _FILE_TYPES[self._matrices.most_common(1)[0][0]]
        yield "general.quantization_version", _QUANTISATION_VERSION
        yield from self._tokenizer_keys(name)

    def _ranks(self, architecture: Architecture) -> Iterator[tuple[str, int]]:
        for key, (name, dimension) in architecture.ranks.items():
            for layer in range(self._model.config.n_layer):
                tensor = self._model.tensors.get(f"blocks.{layer}.{name}")
                if tensor is not None:
                    yield key, tensor.shape[dimension]
                    break
            else:  # one layer has no value residual; what stands in its place is a copy of this
                yield key, self._model.tensors["blocks.0.att.a1"].shape[1]

    def _tokenizer_keys(self, name: str) -> Iterator[tuple[str, Any]]:
        n_vocab = self._model.config.n_vocab
        found = self._model.tokenizer
        if found is None and self._model.kind != "rwkv":
            from rwkv_cpu.quantize.embed import OPTIONAL, find_tokenizer

            beside = find_tokenizer(self._model.path, n_vocab, OPTIONAL)
            found = (beside.kind, beside.data)
        if found is not None and found[0] == "sentencepiece":
            self.tokenizer = found[0]
            yield from sentencepiece_keys(found[1], n_vocab)
            yield "tokenizer.chat_template", jinja_from_template(self._model.chat_template)
            return
        if found is None or found[0] != "world":
            if found is not None and found[0] != "none":
                _log.warning("the %s tokenizer is not written: the file takes token ids only", found[0])
            yield f"{name}.vocab_size", n_vocab
            yield "tokenizer.ggml.model", "none"
            return
        self.tokenizer = "world"
        tokens, kinds = tokens_from_vocabulary(found[1], n_vocab)
        yield "tokenizer.ggml.model", "rwkv"
        yield "tokenizer.ggml.tokens", tokens
        yield "tokenizer.ggml.token_type", kinds
        yield "tokenizer.ggml.bos_token_id", 0
        yield "tokenizer.ggml.eos_token_id", 0
        if tokens[_BLANK_LINE : _BLANK_LINE + 1] == [b"\\n\\n"]:
            yield "tokenizer.ggml.eot_token_id", _BLANK_LINE
        yield "tokenizer.chat_template", jinja_from_template(self._model.chat_template)


class _Header:
    """Keys and tensor infos as bytes."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []

    def key(self, key: str, value: Any) -> None:
        """A string, a bool, an integer, a float, bytes, or a list of strings as bytes, of floats or of integers."""
        self._keys.append(_string(key.encode()) + _value(value))

    def finished(self, outputs: Sequence[Output]) -> bytes:
        """The bytes before the data; outputs' offsets count from their end."""
        infos = [
            _string(output.name.encode())
            + struct.pack("<I", len(output.shape))
            + struct.pack(f"<{len(output.shape)}Q", *reversed(output.shape))
            + struct.pack("<IQ", _GGML[output.dtype].number, output.offset)
            for output in outputs
        ]
        start = b"GGUF" + struct.pack("<IQQ", _VERSION, len(outputs), len(self._keys))
        raw = start + b"".join(self._keys) + b"".join(infos)
        return raw + bytes(-len(raw) % _ALIGN_BYTES)


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value.encode())
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, bytes):
        return struct.pack("<IIQ", 9, 0, len(value)) + value
    if isinstance(value[0], bytes):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if isinstance(value[0], float):
        return struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
