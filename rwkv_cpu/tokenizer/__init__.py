# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: text to ids and back."""

from __future__ import annotations

from importlib import resources

from rwkv_cpu.errors import UnsupportedModelError
from rwkv_cpu.tokenizer.base import Tokenizer
from rwkv_cpu.tokenizer.stream import DecodeStream

__all__ = ["DecodeStream", "Tokenizer", "from_bytes", "world_vocabulary"]

WORLD_VOCABULARY_FILE = "rwkv_vocab_v20230424.txt"


def from_bytes(kind: str, data: bytes) -> Tokenizer:
    """The tokenizer that a model file holds.

    Args:
        kind: "world" (data: the text of rwkv_vocab_v20230424.txt) or "sentencepiece" (data: a .model file).
        data: what Tokenizer.to_bytes() gave.

    Raises:
        FormatError: damaged data.
        UnsupportedModelError: a kind this version does not know, or its package is not installed.
    """
    if kind == "world":
        from rwkv_cpu.tokenizer.world import WorldTokenizer

        return WorldTokenizer(data)
    if kind == "sentencepiece":
        from rwkv_cpu.tokenizer.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(data)
    raise UnsupportedModelError(f"unknown kind of tokenizer {kind!r}", hint="a newer version of rwkv_cpu may know it")


def world_vocabulary() -> bytes:
    """The World vocabulary that this package brings (text, CRLF line ends, as released): what a released model without
    a tokenizer of its own uses.
    """
    return (resources.files("rwkv_cpu") / "data" / WORLD_VOCABULARY_FILE).read_bytes()
