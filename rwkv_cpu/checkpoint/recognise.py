# SPDX-License-Identifier: Apache-2.0
"""What a file is, judged by its first bytes: names lie, and a wrong guess gives the most confusing errors."""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING

from rwkv_cpu.errors import FormatError, ModelNotFoundError, RwkvError, escaped

if TYPE_CHECKING:
    from pathlib import Path

DOWNLOAD_AGAIN = "The download seems incomplete or damaged: download the file again and compare its size."
_HEAD_BYTES = 4096
# What stands beside the parts of a model that comes in several files.
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# kind -> (what it is, what to do about it where a checkpoint is wanted)
KINDS: dict[str, tuple[str, str]] = {
    "pth": ("a PyTorch checkpoint", ""),
    "pth-legacy": ("a PyTorch checkpoint in the layout before version 1.6", ""),
    "rwkv": (
        "a .rwkv file already",
        "Use it directly. For another format start from the checkpoint that it was made from.",
    ),
    "safetensors": ("a safetensors file", ""),
    "directory": ("a directory with a model in it", ""),
    "gguf": ("a GGUF file", ""),
    "ggmf": ("a model file of rwkv.cpp (ggmf)", ""),
    "ggml": ("an old llama.cpp model file", "Use the .pth file that it was made from."),
    "tar": (
        "a PyTorch checkpoint in the tar layout of 2017",
        "Load it with torch and save it again: torch.save(torch.load(file), new_file).",
    ),
}


def shown(name: str) -> str:
    """A name from an untrusted file, safe to print: no control characters, not endless."""
    return escaped(name[:160]) + ("..." if len(name) > 160 else "")


def kind_of(path: Path) -> str:
    """A key of KINDS.

    Raises: ModelNotFoundError; FormatError for everything that is no model file, saying what it seems to be.
    """
    if path.is_dir() or path.name in INDEXES:
        from rwkv_cpu.checkpoint.directory import model_files

        model_files(path)
        return "directory"
    size, head = _read_head(path)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "pth"
    if head[:4] == b"GGUF":
        return "gguf"
    if head[:4] in (b"fmgg", b"lmgg", b"tjgg"):
        return "ggmf" if head[:4] == b"fmgg" else "ggml"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pth-legacy"
    if head[257:262] == b"ustar":
        return "tar"
    if len(head) >= 10 and head[8:9] == b"{":
        (length,) = struct.unpack("<Q", head[:8])
        if length <= max(size - 8, 0) or head.startswith(b'"rwkv_cpu.table"', 9):
            return "rwkv" if b'"rwkv_cpu.table"' in head else "safetensors"
        raise FormatError(
            f"{path}: looks like safetensors, but its header of {length} bytes is longer than the file ({size} bytes)",
            hint=DOWNLOAD_AGAIN,
        )
    raise _refusal(path, size, head)


def _read_head(path: Path) -> tuple[int, bytes]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{path}: this is a directory, not a model file", hint="Name the file inside it.")
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path}: this is not an ordinary file", hint="Name the model's file.")
        with path.open("rb") as file:
            return status.st_size, file.read(_HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFoundError(f"{path}: no such file", hint="Check the path.") from error
    except RwkvError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RwkvError(f"{path}: cannot be read: {reason}", hint="Check the path and its permissions.") from error


def _refusal(path: Path, size: int, head: bytes) -> FormatError:
    if size == 0:
        return FormatError(f"{path}: the file is empty", hint=DOWNLOAD_AGAIN)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return FormatError(
            f"{path}: this is a git-lfs pointer of {size} bytes, not the model itself",
            hint="Run `git lfs pull` in that repository, or download the file from its web page.",
        )
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return FormatError(
            f"{path}: this is a web page, not a model",
            hint="The download link led to a page (a log-in or an error?): use the link of the file itself.",
        )
    if not head.strip(b"\0"):
        return FormatError(f"{path}: the file begins with nothing but zeros", hint=DOWNLOAD_AGAIN)
    try:
        text = head[:1024].decode("ascii")
    except UnicodeDecodeError:
        text = "\0"
    if all(c.isprintable() or c in "\r\n\t\f" for c in text):
        return FormatError(
            f"{path}: this is a text file, not a model", hint="A checkpoint is a .pth file, a ready model a .rwkv file."
        )
    return FormatError(
        f"{path}: not a model file of a known kind (it begins with {head[:8].hex(' ')})",
        hint="A checkpoint is a .pth file, a ready model a .rwkv file.",
    )
