# SPDX-License-Identifier: Apache-2.0
"""A text that a user names: read whole, with errors that say what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_cpu.errors import ArgumentError, ModelNotFoundError, RwkvError

if TYPE_CHECKING:
    import os

__all__ = ["check_text", "decoded", "read_text"]

_PLAIN = "Give a plain text in UTF-8."


def read_text(path: str | os.PathLike[str], *, max_bytes: int | None = None, hint: str = "") -> str:
    """The text of a UTF-8 file, a byte order mark left out.

    Args: max_bytes: refuse a larger one. hint: of its errors; default: what is usual about each.
    Raises: ModelNotFoundError: no such file. ArgumentError: not UTF-8 text, or too large. RwkvError: cannot be read.
    """
    path = Path(path)
    try:
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise ArgumentError(f"{path}: {path.stat().st_size} bytes are too many, at most {max_bytes}", hint=hint)
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file", hint=hint or "Check the path.") from error
    except IsADirectoryError as error:
        raise RwkvError(f"{path}: this is a directory", hint=hint or "Name a text file in it.") from error
    except OSError as error:
        raise RwkvError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    return decoded(raw, str(path), hint=hint)


def check_text(raw: bytes, where: str, *, hint: str = _PLAIN) -> None:
    """That they are text, in whatever encoding. Raises: ArgumentError, which names *where* they come from."""
    if (at := raw.find(b"\0")) >= 0:
        raise ArgumentError(f"{where}: this is a binary file (byte {at} is zero), not text", hint=hint)


def decoded(raw: bytes, where: str, *, hint: str = "") -> str:
    """Bytes as text. Raises: ArgumentError, which names *where* they come from and the first wrong byte."""
    hint = hint or _PLAIN
    check_text(raw, where, hint=hint)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where}: this is not UTF-8 text (byte {error.start})", hint=hint) from error
