# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and chat template: the byte tensors that travel inside a .rwkv file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from rwkv_cpu.errors import FormatError, ModelNotFoundError, RwkvError, ShapeError
from rwkv_cpu.tokenizer import from_bytes, kind_of_bytes, world_vocabulary

__all__ = ["NO_TOKENIZER", "OPTIONAL", "TokenizerBytes", "files_beside", "find_tokenizer"]

_log = logging.getLogger("rwkv_cpu")

NO_TOKENIZER = "none"
OPTIONAL = "optional"
# Ids 1 to 65529 stand in the World vocabulary; released models round its size up.
_WORLD_SIZES = range(65530, 65537)
_PILE_SIZE = 50277
# Models round their vocabulary up, to a multiple of 64 or 128 as a rule; a tokenizer much smaller is another model's.
_MAX_ROUNDING = 1024
_SHARED_NAMES = ("tokenizer.json", "20B_tokenizer.json", "tokenizer.model")
_MAX_FILE_BYTES = 64 << 20
_HINT = (
    "Give the model's tokenizer: --tokenizer FILE (a World vocabulary, a sentencepiece .model or a tokenizer.json), "
    "or --tokenizer none for a file that takes token ids only."
)
_PILE_HINT = (
    "That is the size of the Pile models: give their tokenizer with --tokenizer 20B_tokenizer.json, "
    "or --tokenizer none for a file that takes token ids only."
)


@dataclass(frozen=True)
class TokenizerBytes:
    """What goes into the file: *kind* one of tokenizer.KINDS, or "none" (then no data)."""

    kind: str
    data: bytes


def find_tokenizer(
    source: Path, n_vocab: int, wanted: str | Path | None, inside: tuple[str, bytes] | None = None
) -> TokenizerBytes:
    """The tokenizer for a checkpoint.

    Args:
        source: the checkpoint. When nothing is *wanted* or *inside*, FILE.model beside it is taken, then World's if
            the vocabulary has its size, then a tokenizer.json, 20B_tokenizer.json or tokenizer.model beside it that
            fits.
        n_vocab: of the model.
        wanted: a file, "none", "optional" (as None, but "none" when there is nothing), or None.
        inside: (kind, data) that the checkpoint itself brings.

    Raises:
        ModelNotFoundError, FormatError, UnsupportedModelError: the file is missing or no tokenizer, or the package
            that reads it is.
        ShapeError: it has more tokens than the model.
        RwkvError: none was found and it is not optional.
    """
    if wanted == NO_TOKENIZER:
        return TokenizerBytes(NO_TOKENIZER, b"")
    if wanted is not None and wanted != OPTIONAL:
        return _from_file(Path(wanted), n_vocab)
    if inside is not None:
        return _checked(source, *inside, n_vocab)
    own, *shared = files_beside(source)
    if own != source and own.is_file():
        return _from_file(own, n_vocab)
    if n_vocab in _WORLD_SIZES:
        return TokenizerBytes("world", world_vocabulary())
    for path in shared:
        if path.is_file() and path != source:
            try:
                data = _read(path)
                kind = kind_of_bytes(data)
                size = from_bytes(kind, data).n_vocab
            except FormatError as error:
                _log.warning("%s: %s", path, error)
                continue
            if n_vocab - _MAX_ROUNDING < size <= n_vocab:
                _log.info("using the tokenizer %s", path)
                return TokenizerBytes(kind, data)
    if wanted == OPTIONAL:
        return TokenizerBytes(NO_TOKENIZER, b"")
    raise RwkvError(
        f"{source}: no tokenizer is known for a vocabulary of {n_vocab} tokens",
        hint=_PILE_HINT if n_vocab == _PILE_SIZE else _HINT,
    )


def files_beside(source: Path) -> list[Path]:
    """Where find_tokenizer looks beside a checkpoint, whether or not something is there: its own file first."""
    if source.is_dir():
        return [source / "tokenizer.model", *(source / name for name in _SHARED_NAMES)]
    return [source.with_suffix(".model"), *(source.with_name(name) for name in _SHARED_NAMES)]


def _from_file(path: Path, n_vocab: int) -> TokenizerBytes:
    data = _read(path)
    try:
        kind = kind_of_bytes(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}", hint=_HINT) from error
    return _checked(path, kind, data, n_vocab)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise FormatError(f"{path}: too large for a tokenizer", hint=_HINT)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file", hint=_HINT) from error
    except OSError as error:
        raise RwkvError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from error


def _checked(path: Path, kind: str, data: bytes, n_vocab: int) -> TokenizerBytes:
    """The tokenizer, once it can be made and fits the model; *path* is where it came from."""
    try:
        tokenizer = from_bytes(kind, data)
    except RwkvError as error:
        raise type(error)(f"{path}: {error}", hint=error.hint or _HINT) from error
    if tokenizer.n_vocab > n_vocab:
        raise ShapeError(
            f"{path}: this tokenizer has {tokenizer.n_vocab} tokens, the model only {n_vocab}",
            hint="It belongs to another model: give this model's with --tokenizer FILE.",
        )
    if tokenizer.n_vocab <= n_vocab - _MAX_ROUNDING:
        _log.warning(
            "%s: this tokenizer has %d tokens, the model %d: does it belong to it?", path, tokenizer.n_vocab, n_vocab
        )
    return TokenizerBytes(kind, data)
