# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and chat template: the byte tensors that travel inside a .rwkv file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rwkv_cpu.errors import FormatError, ModelNotFoundError, RwkvError, ShapeError, UnsupportedModelError
from rwkv_cpu.tokenizer import from_bytes, world_vocabulary

__all__ = ["NO_TOKENIZER", "OPTIONAL", "TokenizerBytes", "find_tokenizer"]

NO_TOKENIZER = "none"
OPTIONAL = "optional"
# Ids 1 to 65529 stand in the World vocabulary; released models round its size up.
_WORLD_SIZES = range(65530, 65537)
_MAX_FILE_BYTES = 64 << 20
_HINT = (
    "Give the model's tokenizer: --tokenizer FILE (a sentencepiece .model or a World vocabulary), "
    "or --tokenizer none for a file that takes token ids only."
)


@dataclass(frozen=True)
class TokenizerBytes:
    """What goes into the file: *kind* "world", "sentencepiece" or "none" (then no data)."""

    kind: str
    data: bytes


def find_tokenizer(source: Path, n_vocab: int, wanted: str | Path | None) -> TokenizerBytes:
    """The tokenizer for a checkpoint.

    Args:
        source: the checkpoint; FILE.model beside FILE.pth is taken when nothing is *wanted*.
        n_vocab: of the model; World's size brings the World vocabulary.
        wanted: a file, "none", "optional" (as None, but "none" when there is nothing), or None.

    Raises:
        ModelNotFoundError, FormatError, UnsupportedModelError: the file is missing or no tokenizer.
        ShapeError: it has more tokens than the model.
        RwkvError: none was found and it is not optional.
    """
    if wanted == NO_TOKENIZER:
        return TokenizerBytes(NO_TOKENIZER, b"")
    if wanted is not None and wanted != OPTIONAL:
        return _from_file(Path(wanted), n_vocab)
    beside = source.with_suffix(".model")
    if beside != source and beside.is_file():
        return _from_file(beside, n_vocab)
    if n_vocab in _WORLD_SIZES:
        return TokenizerBytes("world", world_vocabulary())
    if wanted == OPTIONAL:
        return TokenizerBytes(NO_TOKENIZER, b"")
    raise RwkvError(f"{source}: no tokenizer is known for a vocabulary of {n_vocab} tokens", hint=_HINT)


def _from_file(path: Path, n_vocab: int) -> TokenizerBytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise FormatError(f"{path}: too large for a tokenizer", hint=_HINT)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file", hint=_HINT) from error
    except OSError as error:
        raise RwkvError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from error
    kind = _kind_of(path, data)
    try:
        tokenizer = from_bytes(kind, data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}", hint=error.hint or _HINT) from error
    if tokenizer.n_vocab > n_vocab:
        raise ShapeError(
            f"{path}: this tokenizer has {tokenizer.n_vocab} tokens, the model only {n_vocab}",
            hint="It belongs to another model.",
        )
    return TokenizerBytes(kind, data)


def _kind_of(path: Path, data: bytes) -> str:
    if data.startswith(b"\x0a"):  # field 1, pieces, of sentencepiece's protobuf message
        return "sentencepiece"
    if re.match(rb"\s*\d+ b?['\"]", data):
        return "world"
    if data.lstrip()[:1] == b"{":
        raise UnsupportedModelError(f"{path}: tokenizer files in JSON are not read by this version", hint=_HINT)
    raise FormatError(f"{path}: not a tokenizer of a known kind", hint=_HINT)
