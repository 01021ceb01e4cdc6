# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of the released RWKV World and G1 models: longest match over 65,529 byte strings, in C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.errors import TokenError
from rwkv_cpu.tokenizer.base import decode_each, text_bytes
from rwkv_cpu.tokenizer.stream import DecodeStream

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WorldTokenizer"]


class WorldTokenizer:
    """Greedy longest match over any bytes: no normalisation, no special tokens in text, every text comes back exactly.

    Args:
        vocabulary: text of lines "id literal length"; None: the one this package brings.

    Raises:
        FormatError: a damaged vocabulary; names the line.
    """

    kind = "world"
    end_ids = frozenset({0})

    def __init__(self, vocabulary: bytes | None = None) -> None:
        if vocabulary is None:
            from rwkv_cpu.tokenizer import world_vocabulary

            vocabulary = world_vocabulary()
        self._vocabulary = bytes(vocabulary)
        ffi, lib = engine.ffi, engine.lib
        made = ffi.new("rwkvc_world **")
        text = ffi.from_buffer("uint8_t[]", self._vocabulary)
        engine.check(lib.rwkvc_world_create(text, len(self._vocabulary), made))
        self._handle: Any = ffi.gc(made[0], lib.rwkvc_world_destroy)
        self.n_vocab: int = lib.rwkvc_world_vocab(self._handle)
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of *text*; bytes need not be UTF-8. [] for "".

        Raises:
            TokenError: a vocabulary of someone's own has no token for a byte.
        """
        data = text_bytes(text)
        ids = np.empty(len(data), np.uint32)
        ffi = engine.ffi
        n_ids = ffi.new("uint64_t *")
        status = engine.lib.rwkvc_world_encode(
            self._handle,
            ffi.from_buffer("uint8_t[]", data),
            len(data),
            ffi.from_buffer("uint32_t[]", ids, require_writable=True),
            len(ids),
            n_ids,
        )
        engine.check(status)
        result: list[int] = ids[: n_ids[0]].tolist()
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """The text of *ids*; id 0 (end of text) gives nothing, invalid UTF-8 U+FFFD.

        Raises:
            TokenError: an unused id; names its position.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of *ids*.

        Raises:
            TokenError: an unused id; names its position.
        """
        return b"".join(decode_each(ids, self._piece))

    def stream(self, *, continuing: bool = False) -> DecodeStream:
        """A decoder that takes ids one at a time; *continuing* makes no difference here."""
        del continuing
        return DecodeStream(self._piece)

    def to_bytes(self) -> bytes:
        """The vocabulary's text."""
        return self._vocabulary

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            if not 0 <= token < self.n_vocab:
                raise TokenError(f"token {token} is outside the vocabulary of {self.n_vocab}")
            ffi = engine.ffi
            data = ffi.new("const uint8_t **")
            size_bytes = ffi.new("uint64_t *")
            engine.check(engine.lib.rwkvc_world_bytes(self._handle, token, data, size_bytes))
            piece = self._pieces[token] = bytes(ffi.buffer(data[0], size_bytes[0]))
        return piece
