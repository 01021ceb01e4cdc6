# SPDX-License-Identifier: Apache-2.0
"""What GGUF files say of a sentencepiece model, read from its protobuf message without that package.

ModelProto      1: pieces, repeated {1: text, 2: score, 3: type}   2: trainer   3: normaliser
TrainerSpec     3: model type (1 unigram, 2 BPE)   40, 41, 42, 43: ids of unknown, begin, end, padding
NormalizerSpec  2: character map   3: space before every text   4: extra spaces removed
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from rwkv_cpu.checkpoint.gguf_text import NORMAL, UNUSED
from rwkv_cpu.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["sentencepiece_keys"]

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_UNIGRAM, _BPE = 1, 2
# llama.cpp's names of the two algorithms.
_MODELS = {_UNIGRAM: "t5", _BPE: "llama"}
_PADDING_SCORE = -10000.0
_IDS = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}


def sentencepiece_keys(data: bytes, n_vocab: int) -> Iterator[tuple[str, Any]]:
    """The keys "tokenizer.ggml.…" and their values for the bytes of a .model file.

    Raises: FormatError: damaged, of a kind that llama.cpp has not, or more pieces than *n_vocab*.
    """
    tokens: list[bytes] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            tokens.append(piece.get(1, b""))
            scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
            kinds.append(piece.get(3, NORMAL))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normaliser = dict(_fields(value))
    model = _MODELS.get(trainer.get(3, _UNIGRAM))
    if model is None or not 0 < len(tokens) <= n_vocab:
        raise FormatError(f"a sentencepiece model of {len(tokens)} pieces for {n_vocab} tokens, or of an unknown kind")
    for token_id in range(len(tokens), n_vocab):
        tokens.append(b"[PAD%d]" % token_id)
        scores.append(_PADDING_SCORE)
        kinds.append(UNUSED)
    yield "tokenizer.ggml.model", model
    yield "tokenizer.ggml.tokens", tokens
    yield "tokenizer.ggml.scores", scores
    yield "tokenizer.ggml.token_type", kinds
    for name, (field, default) in _IDS.items():
        token_id = _signed(trainer.get(field, default))
        if 0 <= token_id < n_vocab:
            yield f"tokenizer.ggml.{name}_token_id", token_id
    yield "tokenizer.ggml.add_bos_token", False
    yield "tokenizer.ggml.add_eos_token", False
    yield "tokenizer.ggml.add_space_prefix", bool(normaliser.get(3, 1))
    yield "tokenizer.ggml.remove_extra_whitespaces", bool(normaliser.get(4, 1))
    if model == "t5" and normaliser.get(2):
        yield "tokenizer.ggml.precompiled_charsmap", normaliser[2]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: integers, or bytes that are not interpreted.

    Raises: FormatError.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise FormatError("the sentencepiece model is damaged")
        if at + size > len(data):
            raise FormatError("the sentencepiece model is cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    raise FormatError("the sentencepiece model is cut short")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
