# SPDX-License-Identifier: Apache-2.0
"""Vocabulary and chat template in the notation of GGUF files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rwkv_cpu.checkpoint.gguf_text import CONTROL, NORMAL, UNUSED
from rwkv_cpu.errors import FormatError, RwkvError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["jinja_from_template", "tokens_from_vocabulary"]


def tokens_from_vocabulary(vocabulary: bytes, n_vocab: int) -> tuple[list[bytes], list[int]]:
    """Escaped tokens and their types for a GGUF file, both [n_vocab], from a World vocabulary.

    Raises: FormatError: damaged, or more tokens than *n_vocab*.
    """
    pieces = _pieces(vocabulary)
    if max(pieces, default=0) >= n_vocab:
        raise FormatError(f"the vocabulary has token {max(pieces)}, the model only {n_vocab}")
    tokens, kinds = [b"<s>"], [CONTROL]
    for token_id in range(1, n_vocab):
        piece = pieces.get(token_id)
        tokens.append(b"[PAD%d]" % token_id if piece is None else repr(piece)[2:-1].encode("ascii"))
        kinds.append(UNUSED if piece is None else NORMAL)
    return tokens, kinds


def _pieces(vocabulary: bytes) -> Mapping[int, bytes]:
    """The bytes of every token of a World vocabulary, by id."""
    from rwkv_cpu.tokenizer.world import WorldTokenizer

    tokenizer = WorldTokenizer(vocabulary)
    # The tokenizer has checked that every line is "id literal length".
    lines = [line.rstrip(b"\r") for line in vocabulary.split(b"\n")]
    sizes = {int(line.split(b" ", 1)[0]): int(line.rsplit(b" ", 1)[1]) for line in lines if line}
    everything = tokenizer.decode_bytes(sizes)
    pieces: dict[int, bytes] = {}
    at = 0
    for token_id, size in sizes.items():
        pieces[token_id] = everything[at : at + size]
        at += size
    return pieces


def jinja_from_template(data: bytes | None) -> str:
    """A Jinja text: the one that the model came with, else one that writes what chat.ChatTemplate does."""
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
    words = (template.system, template.user, template.assistant, template.separator)
    system, user, assistant, separator = (json.dumps(text) for text in words)
    return (
        "{%- for message in messages -%}"
        f"{{%- if message['role'] == 'system' -%}}{{{{- {system} -}}}}"
        f"{{%- elif message['role'] == 'user' -%}}{{{{- {user} -}}}}"
        f"{{%- else -%}}{{{{- {assistant} -}}}}{{%- endif -%}}"
        f"{{{{- ': ' + message['content'] | trim + {separator} -}}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {assistant} + ':' -}}}}{{%- endif -%}}"
    )
