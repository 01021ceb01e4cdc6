# SPDX-License-Identifier: Apache-2.0
"""Instruction sets, cores, and pages of a mapped file."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from rwkv_cpu.errors import ArgumentError

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


_chosen_threads: int | None = None
_here = threading.local()


def default_threads() -> int:
    """What set_default_threads() said, else the physical cores that this process may use."""
    return _chosen_threads or int(lib.rwkvc_default_threads())


def set_default_threads(threads: int | None) -> None:
    """How many threads a model has that is loaded without saying so, from now on in this process; None: one per
    physical core that it may use. Raises: ArgumentError.
    """
    global _chosen_threads  # noqa: PLW0603  a setting of the process
    _chosen_threads = check_threads(threads)


def check_threads(threads: int | None) -> int | None:
    """The same number. Raises: ArgumentError: not one that a context could have."""
    if threads is not None and not 1 <= threads <= lib.RWKVC_MAX_THREADS:
        raise ArgumentError(
            f"threads is {threads}: it must be at least 1, and not absurdly large ({lib.RWKVC_MAX_THREADS} at most)"
        )
    return threads


def lower_priority() -> bool:
    """Let all other threads go before the calling one, for good, and before the workers of contexts that it makes.
    False where the system refuses.
    """
    lowered = _here.lowered = bool(lib.rwkvc_lower_priority())
    return lowered


def is_lowered() -> bool:
    """Whether the calling thread did that."""
    return bool(getattr(_here, "lowered", False))


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
