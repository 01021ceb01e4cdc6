# SPDX-License-Identifier: Apache-2.0
"""Tokenizers in sentencepiece's .model files, through its package (imported when the first one is made)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import FormatError, TokenError, UnsupportedModelError
from rwkv_cpu.tokenizer.base import decode_each, text_bytes
from rwkv_cpu.tokenizer.stream import DecodeStream

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SentencePieceTokenizer"]

_SPACE = "\u2581"  # what stands for a space inside pieces
_UNKNOWN = " \u2047 ".encode()  # what sentencepiece decodes the unknown piece to
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # how "surrogateescape" decodes a byte that is no UTF-8


class SentencePieceTokenizer:
    """A sentencepiece model, unigram or BPE.

    Its normaliser decides whether decode(encode(text)) is the text again. Bytes that are not UTF-8 are kept exactly by
    models with byte pieces; in others they become U+FFFD.

    Args:
        model: the bytes of the .model file.

    Raises:
        FormatError: not a sentencepiece model.
        UnsupportedModelError: the sentencepiece package is not installed.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self._model = bytes(model)
        self._processor = _load(self._model)
        self.n_vocab: int = self._processor.get_piece_size()
        end = int(self._processor.eos_id())
        self.end_ids = frozenset({end} if end >= 0 else ())
        self._pieces: dict[int, bytes] = {}
        self._byte_ids = self._find_byte_ids()
        self._drops_first_space = self._finds_first_space_dropped()

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of *text*, normalised as the model asks; bytes need not be UTF-8."""
        data = text_bytes(text)
        try:
            return self._encode_text(data.decode("utf-8"))
        except UnicodeDecodeError:
            return self._encode_invalid(data)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of *ids*, without the space that the normaliser may have put first; unknown pieces are " ⁇ ".

        Raises:
            TokenError: an id outside the vocabulary; names its position.
        """
        stream = self.stream()
        return "".join(decode_each(ids, stream.step)) + stream.flush()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of *ids*; a space that the normaliser put first is among them.

        Raises:
            TokenError: an id outside the vocabulary; names its position.
        """
        return b"".join(decode_each(ids, self._piece))

    def stream(self, *, continuing: bool = False) -> DecodeStream:
        """A decoder that takes ids one at a time; *continuing*: a space at their start belongs to the text."""
        if continuing or not self._drops_first_space:
            return DecodeStream(self._piece)
        return DecodeStream(self._piece, self._first_piece)

    def to_bytes(self) -> bytes:
        """The .model file's bytes."""
        return self._model

    def _encode_text(self, text: str) -> list[int]:
        return [int(i) for i in self._processor.encode(text, out_type=int)]

    def _encode_invalid(self, data: bytes) -> list[int]:
        """Encode bytes that are not UTF-8 as a whole, so that what is valid in them becomes the usual ids.

        Each invalid byte passes through sentencepiece as a private-use character that occurs nowhere else in the text.
        Models know no such character: it comes back as its four bytes, which then make room for the one.
        """
        text = data.decode("utf-8", "surrogateescape")
        base = _unused_range(text) if self._byte_ids else None
        if base is not None:
            marked, n_marks = _ESCAPED_BYTE.subn(lambda m: chr(base + ord(m[0]) - 0xDC00), text)
            ids, n_found = self._unmark(self._encode_text(marked), base)
            if n_found == n_marks:
                return ids
        return self._encode_text(data.decode("utf-8", "replace"))

    def _unmark(self, ids: list[int], base: int) -> tuple[list[int], int]:
        """(ids with the byte pieces of each chr(base + byte) replaced by that byte's, how many there were)."""
        byte_of = {token: byte for byte, token in enumerate(self._byte_ids)}
        result: list[int] = []
        n_found = i = 0
        while i < len(ids):
            four = bytes(byte_of.get(token, 0) for token in ids[i : i + 4])
            character = four.decode("utf-8", "replace")
            if len(four) == 4 and len(character) == 1 and base <= ord(character) < base + 0x100:
                result.append(self._byte_ids[ord(character) - base])
                n_found += 1
                i += 4
            else:
                result.append(ids[i])
                i += 1
        return result, n_found

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _first_piece(self, token: int) -> bytes:
        """The bytes of *token* at the start of a text; only a space that is part of a piece's text is dropped there."""
        piece = self._piece(token)
        sp = self._processor
        if sp.is_byte(token) or sp.is_unknown(token) or not self._spelling(token).startswith(_SPACE):
            return piece
        return piece[1:]

    def _read_piece(self, token: int) -> bytes:
        sp = self._processor
        if not 0 <= token < self.n_vocab:
            raise TokenError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        token = int(token)
        if sp.is_control(token):
            return b""
        if sp.is_unknown(token):
            return _UNKNOWN
        piece = self._spelling(token)
        if sp.is_byte(token):
            if not _BYTE_PIECE.fullmatch(piece):
                raise FormatError(f"the sentencepiece model is damaged: piece {token} is no byte")
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode("utf-8")

    def _find_byte_ids(self) -> list[int]:
        """Ids of the byte pieces, by byte; [] if the model lacks any."""
        sp = self._processor
        ids = [int(sp.piece_to_id(f"<0x{byte:02X}>")) for byte in range(256)]
        return ids if all(sp.is_byte(token) for token in ids) else []

    def _finds_first_space_dropped(self) -> bool:
        """Whether the model's normaliser puts a space before every text: then decoding takes it away again."""
        sp = self._processor
        for token in range(self.n_vocab):
            if self._spelling(token).startswith(_SPACE) and not (sp.is_control(token) or sp.is_unknown(token)):
                try:
                    return not sp.decode([token]).startswith(" ")
                except UnicodeDecodeError:
                    raise FormatError(f"the sentencepiece model is damaged: piece {token} is not UTF-8") from None
        return False

    def _spelling(self, token: int) -> str:
        try:
            return str(self._processor.id_to_piece(token))
        except UnicodeDecodeError:
            raise FormatError(f"the sentencepiece model is damaged: piece {token} is not UTF-8") from None


def _unused_range(text: str) -> int | None:
    """The first of 256 private-use characters that do not occur in *text*."""
    used = {ord(character) >> 8 for character in set(text)}
    return next((row << 8 for row in range(0x10F0, 0x1000, -1) if row not in used), None)


def _load(model: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UnsupportedModelError(
            f"this model's tokenizer needs the sentencepiece package ({error})", hint="pip install sentencepiece"
        ) from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if not model:
            raise RuntimeError("it is empty")
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter: its message quotes a piece that is not UTF-8
        raise FormatError(f"the tokenizer is no sentencepiece model: {error}") from None
    return processor
