# SPDX-License-Identifier: Apache-2.0
"""Instruction sets, cores, and pages of a mapped file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .boundary import check, ffi, lib


@dataclass(frozen=True)
class IsaInfo:
    """An instruction set that the engine was compiled for."""

    name: str
    usable: bool
    needs: str


def isas() -> list[IsaInfo]:
    """Instruction sets compiled in, best first."""
    found: list[IsaInfo] = []
    while (name := lib.rwkvc_isa_name(len(found))) != ffi.NULL:
        needs = ffi.string(lib.rwkvc_isa_needs(name)).decode()
        found.append(IsaInfo(ffi.string(name).decode(), bool(lib.rwkvc_isa_usable(name)), needs))
    return found


def default_isa() -> str:
    """The instruction set that is used when none is asked for (RWKV_CPU_ISA, else the best)."""
    name = ffi.new("const char **")
    check(lib.rwkvc_isa_default(name))
    return str(ffi.string(name[0]).decode())


def default_threads() -> int:
    """Physical cores that this process may use."""
    return int(lib.rwkvc_default_threads())


def read_ahead(buffer: Any) -> None:
    """Ask the system to read the file that *buffer* maps; maps nothing, waits for nothing but a disk's full queue."""
    with ffi.from_buffer("uint8_t[]", buffer) as raw:
        lib.rwkvc_read_ahead(raw, len(raw))


def prefault(buffer: Any, cancel: Any) -> None:
    """Map every page of *buffer* (any size) before it is used; returns when done, without the interpreter's lock.

    cancel: an ``int32_t *``; a value other than 0 ends it.
    Raises: Cancelled; FormatError: the file became shorter, or the disk cannot be read.
    """
    with ffi.from_buffer("uint8_t[]", buffer) as raw:
        check(lib.rwkvc_prefault(raw, len(raw), cancel))
