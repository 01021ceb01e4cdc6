# SPDX-License-Identifier: Apache-2.0
"""What every tokenizer offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from rwkv_cpu.errors import TokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rwkv_cpu.tokenizer.stream import DecodeStream

__all__ = ["Tokenizer", "decode_each", "text_bytes"]

_Piece = TypeVar("_Piece", str, bytes)


class Tokenizer(Protocol):
    """Text to token ids and back. Tokenizers do not change after creation: threads may share one.

    Encode a text as a whole: ids of two halves are often not those of the whole, and a prompt may well end inside a
    word ("<think").
    """

    @property
    def kind(self) -> str:
        """Which tokenizer a model file holds: one of rwkv_cpu.tokenizer.KINDS."""
        ...

    @property
    def n_vocab(self) -> int:
        """Highest id + 1. A model's n_vocab may be larger; the ids beyond mean nothing."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a document: generation stops there."""
        ...

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of *text*. Bytes need not be UTF-8.

        Time O(len(text)).
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of *ids*: what encode() was given, where the tokenizer keeps everything. Invalid UTF-8 → U+FFFD.

        Raises:
            TokenError: an id outside the vocabulary; names its position.
        """
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that *ids* stand for, one token's after the other's: exact, and the same however ids are divided.

        Raises:
            TokenError: an id outside the vocabulary; names its position.
        """
        ...

    def stream(self, *, continuing: bool = False) -> DecodeStream:
        """A decoder that takes ids one at a time.

        Args:
            continuing: the ids go on from earlier text (an answer after its prompt), so that a space at their start
                is text. Matters only for tokenizers that put a space before every text.
        """
        ...

    def to_bytes(self) -> bytes:
        """What a model file stores; rwkv_cpu.tokenizer.from_bytes() reads it."""
        ...


def text_bytes(text: str | bytes) -> bytes:
    """*text* as the bytes to encode.

    A str may hold surrogates, which UTF-8 has no bytes for: undecodable bytes of an argument or a file name
    ("surrogateescape") become those bytes again, pairs of surrogates (from JSON) the character they mean, others
    U+FFFD.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        pass
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")


def decode_each(ids: Iterable[int], decode: Callable[[int], _Piece]) -> list[_Piece]:
    """decode() of every id, in order.

    Raises:
        TokenError: from decode, with the id's position put in front.
    """
    pieces: list[_Piece] = []
    try:
        pieces.extend(map(decode, ids))
    except TokenError as error:
        raise TokenError(f"at position {len(pieces)}: {error}", hint=error.hint) from None
    return pieces
