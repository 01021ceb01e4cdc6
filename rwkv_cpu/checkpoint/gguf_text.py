# SPDX-License-Identifier: Apache-2.0
"""Vocabulary and chat template as llama.cpp keeps them in GGUF files, and as this package does: both directions."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING

from rwkv_cpu.errors import FormatError, RwkvError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CONTROL",
    "NORMAL",
    "UNUSED",
    "jinja_from_template",
    "template_from_jinja",
    "tokens_from_vocabulary",
    "vocabulary_from_tokens",
]

_log = logging.getLogger("rwkv_cpu")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_TEXT = frozenset({NORMAL, USER_DEFINED, BYTE})
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|x|.|\Z)", re.DOTALL)
_SIMPLE = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_MAX_TEMPLATE_CHARACTERS = 20_000


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
    from rwkv_cpu.tokenizer import world_vocabulary

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
    standard = world_vocabulary()
    if pieces == vocabulary_pieces(standard):
        return standard
    return "".join(f"{token_id} {_literal(piece)} {len(piece)}\n" for token_id, piece in pieces.items()).encode()


def tokens_from_vocabulary(vocabulary: bytes, n_vocab: int) -> tuple[list[bytes], list[int]]:
    """Tokens and their types for a GGUF file, both [n_vocab], from a World vocabulary.

    Raises: FormatError: damaged, or more tokens than *n_vocab*.
    """
    pieces = vocabulary_pieces(vocabulary)
    if max(pieces, default=0) >= n_vocab:
        raise FormatError(f"the vocabulary has token {max(pieces)}, the model only {n_vocab}")
    tokens, kinds = [b"<s>"], [CONTROL]
    for token_id in range(1, n_vocab):
        piece = pieces.get(token_id)
        tokens.append(b"[PAD%d]" % token_id if piece is None else _escaped(piece))
        kinds.append(UNUSED if piece is None else NORMAL)
    return tokens, kinds


def vocabulary_pieces(vocabulary: bytes) -> Mapping[int, bytes]:
    """The bytes of every token of a World vocabulary, by id.

    Raises: FormatError.
    """
    from rwkv_cpu.tokenizer.world import WorldTokenizer

    tokenizer = WorldTokenizer(vocabulary)
    # Checked by the tokenizer: every line is "id literal length".
    ends = [(line.split(b" ", 1)[0], line.rsplit(b" ", 1)[1]) for line in vocabulary.split(b"\n") if line]
    sizes = {int(first): int(last) for first, last in ends}
    everything = tokenizer.decode_bytes(sizes)
    pieces: dict[int, bytes] = {}
    at = 0
    for token_id, size in sizes.items():
        pieces[token_id] = everything[at : at + size]
        at += size
    return pieces


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


def _escaped(piece: bytes) -> bytes:
    # Quotes stay bare in both of Python's notations; the backslash before one says nothing to a reader.
    return repr(piece)[2:-1].encode("ascii")


def _literal(piece: bytes) -> str:
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)


# ---------------------------------------------------------------------------------------- template


def template_from_jinja(text: str) -> bytes:
    """A template that chat.ChatTemplate reads, with the file's own text in the field "jinja".

    RWKV's World format is what all released models speak and is not computed from the text; a template that looks
    otherwise is kept, with a warning.
    """
    if text.strip() != "rwkv-world" and not ("User" in text and "Assistant" in text):
        _log.warning("the file's chat template is not the World format, which will be used nevertheless")
    if len(text) > _MAX_TEMPLATE_CHARACTERS:
        return b"world"
    return json.dumps({"name": "world", "jinja": text}, ensure_ascii=False).encode()


def jinja_from_template(data: bytes | None) -> str:
    """A Jinja text for a GGUF file: the one the model came with, else one that writes what ChatTemplate does."""
    from rwkv_cpu.chat.template import ChatTemplate

    try:
        found = json.loads(data.rstrip(b"\0")) if data else None
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("jinja"), str):
        return str(found["jinja"])
    try:
        template = ChatTemplate.from_bytes(data)
    except RwkvError:
        template = ChatTemplate()
    labels = {"system": template.system, "user": template.user, "assistant": template.assistant}
    system, user, assistant, separator = (json.dumps(text) for text in (*labels.values(), template.separator))
    return (
        "{%- for message in messages -%}"
        f"{{%- if message['role'] == 'system' -%}}{{{{- {system} -}}}}"
        f"{{%- elif message['role'] == 'user' -%}}{{{{- {user} -}}}}"
        f"{{%- else -%}}{{{{- {assistant} -}}}}{{%- endif -%}}"
        f"{{{{- ': ' + message['content'] | trim + {separator} -}}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {assistant} + ':' -}}}}{{%- endif -%}}"
    )
