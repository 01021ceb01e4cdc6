# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE in Hugging Face's tokenizer.json (the RWKV-4 Pile models' 20B, Qwen's), through their package."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import FormatError, TokenError, UnsupportedModelError
from rwkv_cpu.tokenizer.base import decode_each, text_bytes
from rwkv_cpu.tokenizer.stream import DecodeStream

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HuggingFaceTokenizer"]

# What the special token that ends a document is called in the families that use byte-level BPE.
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>")
_ESCAPED_BYTES = re.compile("([\udc80-\udcff]+)")  # how "surrogateescape" decodes bytes that are no UTF-8


class HuggingFaceTokenizer:
    """A tokenizer.json with a byte-level BPE model: any bytes can be encoded, and decoding gives exact bytes.

    Whether decode(encode(text)) is the text again depends on its normaliser (20B: Unicode's NFC). As in the original,
    the spelling of a special token ("<|endoftext|>") in a text becomes that token, and that token the spelling.

    Args:
        definition: the bytes of tokenizer.json.

    Raises:
        FormatError: damaged, or no tokenizer.json.
        UnsupportedModelError: the tokenizers package is not installed, or a tokenizer that is not byte-level BPE.
    """

    kind = "huggingface"

    def __init__(self, definition: bytes) -> None:
        self._definition = bytes(definition)
        self._tokenizer = _load(self._definition)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added: dict[int, bytes] = {token: entry.content.encode("utf-8") for token, entry in added.items()}
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.n_vocab: int = max(ids.values(), default=-1) + 1
        specials = {entry.content: token for token, entry in added.items() if entry.special}
        self.end_ids = frozenset(specials[name] for name in _END_NAMES if name in specials)
        self._byte_ids: dict[int, int] = {
            byte: ids[letter] for letter, byte in _BYTE_OF_LETTER.items() if letter in ids
        }
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of *text*, normalised as the file asks; bytes need not be UTF-8.

        Valid text between invalid bytes is encoded on its own, and each of those bytes becomes its own token.

        Raises:
            TokenError: the vocabulary has no token for an invalid byte.
        """
        parts = _ESCAPED_BYTES.split(text_bytes(text).decode("utf-8", "surrogateescape"))
        found = self._encode_text(parts[0])
        for invalid, valid in zip(parts[1::2], parts[2::2], strict=True):
            found += [self._byte_id(ord(character) - 0xDC00) for character in invalid]
            found += self._encode_text(valid)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of *ids*; invalid UTF-8 becomes U+FFFD.

        Raises:
            TokenError: an id outside the vocabulary; names its position.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of *ids*.

        Raises:
            TokenError: an id outside the vocabulary; names its position.
        """
        return b"".join(decode_each(ids, self._piece))

    def stream(self, *, continuing: bool = False) -> DecodeStream:
        """A decoder that takes ids one at a time; *continuing* makes no difference here."""
        del continuing
        return DecodeStream(self._piece)

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return self._definition

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            # No post-processor: it would put a beginning-of-text token before every piece of a conversation.
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except BaseException as error:  # noqa: BLE001 (a panic of the package is no Exception)
            raise _as_format_error(error, "the tokenizer fails on this text") from None

    def _byte_id(self, byte: int) -> int:
        token = self._byte_ids.get(byte)
        if token is None:
            raise TokenError(f"the vocabulary has no token for the byte 0x{byte:02x}")
        return token

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        letters = self._tokenizer.id_to_token(int(token)) if 0 <= token < self.n_vocab else None
        if letters is None:
            raise TokenError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        try:
            return bytes(_BYTE_OF_LETTER[letter] for letter in letters)
        except KeyError:  # not of the byte-level alphabet: a token that only stands for itself
            return str(letters).encode("utf-8")


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: a visible letter for each byte. Printable bytes stand for themselves, the others, in order,
    for U+0100 and on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF_LETTER = _byte_letters()


def _load(definition: bytes) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UnsupportedModelError(
            f"this model's tokenizer needs the tokenizers package ({error})", hint="pip install 'rwkv-cpu[hf]'"
        ) from None
    try:
        found = tokenizers.Tokenizer.from_buffer(definition)
    except BaseException as error:  # noqa: BLE001 (a panic of the package is no Exception)
        raise _as_format_error(error, "the tokenizer is no tokenizer.json that the tokenizers package reads") from None
    model = type(found.model).__name__
    if model != "BPE" or not _is_byte_level(found):
        raise UnsupportedModelError(
            f"this tokenizer.json holds a tokenizer of another kind than byte-level BPE ({model}, decoder "
            f"{'/'.join(_types(found.decoder)) or 'none'})",
            hint="Use the model's sentencepiece .model file if it has one.",
        )
    # Settings for training, which would cut prompts short or make encoding a matter of luck.
    found.no_truncation()
    found.no_padding()
    found.model.dropout = None
    return found


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether text becomes letters that stand for bytes before the merges, and bytes again after them."""
    to_letters = [*_types(tokenizer.pre_tokenizer), *_types(tokenizer.normalizer)]
    return "ByteLevel" in to_letters and _types(tokenizer.decoder) == ["ByteLevel"]


def _types(part: Any) -> list[str]:
    """The types of a step of the tokenizer, or of the steps of a sequence."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    if state.get("type") != "Sequence":
        return [str(state.get("type"))]
    steps = next((value for value in state.values() if isinstance(value, list)), [])
    return [str(step.get("type")) for step in steps]


def _as_format_error(error: BaseException, what: str) -> BaseException:
    """What the package raises for bad input: ValueError, plain Exception, or a panic, which is no Exception at all."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return FormatError(f"{what}: {error}")
    return error
