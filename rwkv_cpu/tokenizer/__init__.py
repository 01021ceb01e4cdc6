# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: text to ids and back."""

from __future__ import annotations

import re

from rwkv_cpu.errors import FormatError, UnsupportedModelError
from rwkv_cpu.tokenizer.base import Tokenizer
from rwkv_cpu.tokenizer.stream import DecodeStream

__all__ = ["KINDS", "DecodeStream", "Tokenizer", "from_bytes", "kind_of_bytes", "world_vocabulary"]

KINDS = ("world", "sentencepiece", "huggingface")

WORLD_VOCABULARY_FILE = "rwkv_vocab_v20230424.txt"


def from_bytes(kind: str, data: bytes) -> Tokenizer:
    """The tokenizer that a model file holds.

    Args:
        kind: "world" (data: the text of rwkv_vocab_v20230424.txt), "sentencepiece" (a .model file) or "huggingface"
            (a tokenizer.json).
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
    if kind == "huggingface":
        from rwkv_cpu.tokenizer.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer(data)
    raise UnsupportedModelError(f"unknown kind of tokenizer {kind!r}", hint="a newer version of rwkv_cpu may know it")


def kind_of_bytes(data: bytes) -> str:
    """Which kind of tokenizer a file is, judged by its first bytes: one of KINDS.

    Raises:
        FormatError: none of them.
    """
    if re.match(rb"\s*\{\s*[\"}]", data):
        return "huggingface"
    if re.match(rb"\s*\d+ b?['\"]", data):
        return "world"
    if data.startswith(b"\x0a"):  # field 1, pieces, of sentencepiece's protobuf message
        return "sentencepiece"
    raise FormatError("not a tokenizer of a known kind")


def world_vocabulary() -> bytes:
    """The World vocabulary that this package brings (text, CRLF line ends, as released): what a released model without
    a tokenizer of its own uses.
    """
    from importlib import resources

    return (resources.files("rwkv_cpu") / "data" / WORLD_VOCABULARY_FILE).read_bytes()
