# SPDX-License-Identifier: Apache-2.0
"""Vocabulary and chat template of GGUF files, in this package's own notation."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from importlib import resources
from typing import TYPE_CHECKING

from rwkv_cpu.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = [
    "CONTROL",
    "NORMAL",
    "UNUSED",
    "is_standard",
    "standard_vocabulary",
    "template_from_jinja",
    "vocabulary_from_tokens",
]

_log = logging.getLogger("rwkv_cpu")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_TEXT = frozenset({NORMAL, USER_DEFINED, BYTE})
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|x|.|\Z)", re.DOTALL)
_SIMPLE = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_MAX_TEMPLATE_CHARACTERS = 20_000
_STANDARD_SHA256 = "109c427a9711c47cedc56c9b38725337b83283314f7a1093fb601ad94cb72101"


# --------------------------------------------------------------------------------------- vocabulary


def vocabulary_from_tokens(tokens: Sequence[bytes], kinds: Sequence[int]) -> bytes:
    """A World vocabulary, lines "id literal length", from the tokens of a GGUF file.

    Args:
        tokens: by id, Python-escaped bytes.
        kinds: llama.cpp's token types by id; [] if the file has none.

    Only what is text can match text: control tokens, unused entries and id 0 get no line. The vocabulary that this
    package brings is given back unchanged where the tokens are its own.

    Raises: FormatError.
    """
    pieces: dict[int, bytes] = {}
    for token_id, escaped in enumerate(tokens):
        kind = kinds[token_id] if token_id < len(kinds) else NORMAL
        if token_id == 0 or kind not in _TEXT or (not kinds and escaped == b"[PAD%d]" % token_id):
            continue
        piece = _unescaped(token_id, escaped)
        if piece:
            pieces[token_id] = piece
    if not pieces:
        raise FormatError("it has no tokens")
    text = "".join(f"{token_id} {_literal(piece)} {len(piece)}\n" for token_id, piece in pieces.items()).encode()
    standard = standard_vocabulary()
    return standard if text == standard.replace(b"\r\n", b"\n") else text


def standard_vocabulary() -> bytes:
    """The vocabulary of the released World models, as this package brings it."""
    return (resources.files("rwkv_cpu") / "data" / "rwkv_vocab_v20230424.txt").read_bytes()


def is_standard(strings: Buffer, kinds: Sequence[int]) -> bool:
    """Whether an array of strings, as its bytes stand in a GGUF file, is the standard vocabulary as llama.cpp's
    converter writes it for 65536 tokens. What vocabulary_from_tokens() would find, without taking 65536 tokens apart.
    """
    usual = [CONTROL, *[NORMAL] * 65529, *[UNUSED] * 6]
    return kinds in ([], usual) and hashlib.sha256(strings).hexdigest() == _STANDARD_SHA256


def _unescaped(token_id: int, escaped: bytes) -> bytes:
    if b"\\" not in escaped:
        return escaped

    def plain(match: re.Match[bytes]) -> bytes:
        found = match[1]
        if found[:1] == b"x" and len(found) == 3:
            return bytes([int(found[1:], 16)])
        if found in (b"x", b""):
            raise FormatError(f"token {token_id} ends inside an escape sequence")
        return _SIMPLE.get(found, found)

    return _ESCAPE.sub(plain, escaped)


def _literal(piece: bytes) -> str:
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)


# ---------------------------------------------------------------------------------------- template


def template_from_jinja(text: str) -> bytes:
    """A template that chat.ChatTemplate reads, with the file's own text in the field "jinja".

    What that text writes is looked at when a chat begins; here nothing of a stranger's file is run.
    """
    if len(text) > _MAX_TEMPLATE_CHARACTERS:
        _log.warning("the file's chat template is too long to be one; the World format takes its place")
        return b"world"
    is_world = text.strip() == "rwkv-world" or ("User" in text and "Assistant" in text)
    return json.dumps({"name": "world" if is_world else "jinja", "jinja": text}, ensure_ascii=False).encode()
