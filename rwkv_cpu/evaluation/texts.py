# SPDX-License-Identifier: Apache-2.0
"""A text as the tokens that a model shall predict."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.model import Model
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["END", "check_same_vocabulary", "stream_of", "token_bytes", "tokenizer_of"]

END = 0  # the token before and after every document, in all RWKV tokenizers
_SEPARATOR = re.compile(r"^(?:<\|eod\|>|<\|endoftext\|>)[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_FIRST_CHARACTERS = 16  # a token, at first guess


def stream_of(
    tokenizer: Tokenizer | None, text: str | Sequence[int] | NDArray[Any], max_tokens: int | None = None
) -> NDArray[np.uint32]:
    """Ids of a text, with token 0 before it: what is predicted are all but the first.

    Lines that hold nothing but ``<|eod|>`` or ``<|endoftext|>`` divide it into documents: token 0 stands for them.

    Args: text: or the ids of one document. max_tokens: so many of the tokens to predict, from the beginning.
    Raises: ArgumentError: nothing to predict.
    """
    if not isinstance(text, str):
        ids = [END, *(int(token) for token in text)]
    elif tokenizer is None:
        raise ArgumentError("this model has no tokenizer", hint="Convert the checkpoint with --tokenizer FILE.")
    elif max_tokens is None:
        ids = _encode(tokenizer, text)
    else:
        # Only as much of a long text is encoded as is needed.
        size = _FIRST_CHARACTERS * (max_tokens + 1)
        while len(ids := _encode(tokenizer, text[:size])) <= max_tokens and size < len(text):
            size *= 2
    if len(ids) < 2:
        raise ArgumentError("there is nothing to predict: the text is empty")
    return np.asarray(ids if max_tokens is None else ids[: max_tokens + 1], np.uint32)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = []
    for document in _SEPARATOR.split(text):
        if document.strip():
            ids += [END, *tokenizer.encode(document)]
    return ids


def tokenizer_of(*models: Model) -> Tokenizer | None:
    """The first that there is."""
    return next((model.tokenizer for model in models if model.has_tokenizer), None)


def token_bytes(tokenizer: Tokenizer, ids: NDArray[np.uint32]) -> NDArray[np.int64]:
    """How many bytes of text each of *ids* stands for; 0 for the ends of documents."""
    unique, inverse = np.unique(ids, return_inverse=True)
    ends = tokenizer.end_ids | {END}
    sizes = [0 if int(token) in ends else len(tokenizer.decode_bytes([int(token)])) for token in unique]
    result: NDArray[np.int64] = np.asarray(sizes, np.int64)[inverse.reshape(ids.shape)]
    return result


def check_same_vocabulary(model: Model, reference: Model) -> None:
    """Raises: ArgumentError: two models whose tokens are not the same."""
    if model.n_vocab != reference.n_vocab:
        raise ArgumentError(
            f"{model.path.name} has a vocabulary of {model.n_vocab}, {reference.path.name} of {reference.n_vocab}: "
            "their predictions do not compare",
            hint="Give a reference of the same family, say the checkpoint that the model was made from.",
        )
    if model.has_tokenizer and reference.has_tokenizer:
        ours, theirs = model.tokenizer, reference.tokenizer
        if ours.kind == theirs.kind and ours.to_bytes() != theirs.to_bytes():
            raise ArgumentError(
                f"{model.path.name} and {reference.path.name} have different tokenizers: their tokens do not compare",
                hint="Give a reference of the same family, say the checkpoint that the model was made from.",
            )
