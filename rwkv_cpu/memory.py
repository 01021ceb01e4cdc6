# SPDX-License-Identifier: Apache-2.0
"""Will a model fit? What it needs, what this machine can give, and what to tell people.

A model whose mapped weights do not fit into memory still runs, but the system then reads them from disk again for
every token: minutes where there should be moments. People take that for a slow program, so it is said beforehand.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MemoryForecast",
    "aligned_empty",
    "aligned_zeros",
    "allow_huge_pages",
    "available_bytes",
    "forecast_file",
    "give_back",
    "human_bytes",
    "resident_bytes",
]

# What interpreter, libraries, states and the engine's scratch take beside the weights: measured 40 MB for small models;
# states and scratch grow with the width, but stay below this at every released size.
OVERHEAD_BYTES = 150_000_000

# Bits per weight of a converted file; checkpoints are bf16 or f16, 16 bits.
_FORMAT_BITS = {"q4": 5.1, "q5": 6.0, "q6": 6.9, "q8": 8.7, "f16": 16.2, "f32": 32.2}
_CHECKPOINT_BITS = 16.0


@dataclass(frozen=True)
class MemoryForecast:
    """What running a model takes, beside what is there.

    Attributes:
        weights_bytes: mapped weights; shared with other processes that use the same file.
        overhead_bytes: interpreter, libraries, state and scratch.
        available_bytes: what the system can hand out without swapping, None where it does not say.
        limited_by: "machine" or "container", whichever is tighter.
    """

    weights_bytes: int
    overhead_bytes: int
    available_bytes: int | None
    limited_by: str

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.overhead_bytes

    @property
    def would_swap(self) -> bool:
        """True if the machine would read the weights from disk again and again. False where it is not known."""
        return self.available_bytes is not None and self.needed_bytes > self.available_bytes

    @property
    def warning(self) -> str:
        """One sentence for people; "" if all is well."""
        if not self.would_swap or self.available_bytes is None:
            return ""
        place = "this container may use" if self.limited_by == "container" else "are free on this machine"
        return (
            f"the model needs about {human_bytes(self.needed_bytes)} of memory, but only "
            f"{human_bytes(self.available_bytes)} {place}: it would be read from disk again for every word, very slowly"
        )

    @property
    def hint(self) -> str:
        """What to do about the warning; "" if there is none."""
        return "close other programs, or use a smaller model or format (q4 is the smallest)" if self.would_swap else ""


def forecast_file(path: str | os.PathLike[str], *, format: str = "q8") -> MemoryForecast:  # noqa: A002 (its name everywhere)
    """Forecast from a file's size, before anything is opened: a .rwkv as it is, a checkpoint as *format* will be.

    Raises:
        OSError: no such file, or it cannot be read.
    """
    file = Path(path)
    size = file.stat().st_size
    if file.suffix != ".rwkv":
        size = int(size * _FORMAT_BITS.get(format, _CHECKPOINT_BITS) / _CHECKPOINT_BITS)
    available, limited_by = _available()
    return MemoryForecast(
        weights_bytes=size,
        overhead_bytes=OVERHEAD_BYTES,
        available_bytes=available,
        limited_by=limited_by,
    )


def aligned_zeros(size_bytes: int) -> NDArray[np.uint8]:
    """Zeros (the value of padding) for a packed tensor, aligned as the engine wants it."""
    import numpy as np  # the rest of this module does without: the command line starts faster

    return _from_line(np.zeros(size_bytes + 64, np.uint8))


def aligned_empty(size_bytes: int) -> NDArray[np.uint8]:
    """The same of any value."""
    import numpy as np

    return _from_line(np.empty(size_bytes + 64, np.uint8))


def _from_line(whole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All but 64 bytes of it, from the first multiple of 64 on."""
    skip = -whole.ctypes.data % 64
    return whole[skip : skip + len(whole) - 64]


def allow_huge_pages(mapped: mmap.mmap) -> None:
    """Let the system read a mapped file and map it 2 MB at a time, where the file system can."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # refused elsewhere, at no harm
            mapped.madvise(mmap.MADV_HUGEPAGE)


def give_back(mapped: mmap.mmap, start: int, end: int) -> None:
    """Let go of the whole pages in bytes *start* to *end* of a mapped file; read again, they come again."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mapped, "madvise"):
        with contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def available_bytes() -> int | None:
    """Memory this process can take without swapping; None where the system does not say."""
    return _available()[0]


def resident_bytes() -> int:
    """Memory this process occupies now, mapped files included; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def human_bytes(n: float) -> str:
    """1234567 → "1.2 MB" (decimal units, as disks and downloads are sold)."""
    for unit in ("B", "kB", "MB"):
        if abs(n) < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def _available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, str]:
    if not sys.platform.startswith("linux"):
        return None, "machine"
    machine = _meminfo_available(proc / "meminfo")
    container = _cgroup_available(proc / "self" / "cgroup", cgroup)
    if container is not None and (machine is None or container < machine):
        return container, "container"
    return machine, "machine"


def _meminfo_available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            fields = line.split()
            return int(fields[1]) * 1024 if len(fields) > 1 and fields[1].isdigit() else None
    return None


def _cgroup_available(membership: Path, root: Path) -> int | None:
    """The tightest limit of this process's control groups minus what is in use; None without a limit.

    Every group up to the root may have a limit of its own. Cached file pages count as used but are given back on
    demand, so they are taken as free.
    """
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found: list[int] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, limit, usage, cache_key = root, "memory.max", "memory.current", "file"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_key = "total_cache"
        else:
            continue
        group = base / path.lstrip("/")
        # Inside a container the path may be the host's and not exist here: its root is then the group itself.
        groups = [group, *group.parents] if group.is_dir() else [base]
        for folder in groups:
            allowed, used = _read_int(folder / limit), _read_int(folder / usage)
            if allowed is not None and used is not None and allowed < 1 << 60:
                cached = _read_stat(folder / "memory.stat", cache_key)
                found.append(max(0, allowed - max(0, used - cached)))
            if folder == base:
                break
    return min(found, default=None)


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _read_stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return 0
