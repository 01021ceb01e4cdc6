# SPDX-License-Identifier: Apache-2.0
"""A checkpoint file in memory, read lazily: pages come when a tensor is read and go some tensors later."""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import RwkvError
from rwkv_cpu.memory import allow_huge_pages, give_back

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["MappedFile"]

_HELD_BYTES = 1 << 28  # more than a conversion has on its way at a time: pages that go too early are read twice


class MappedFile:
    """The bytes of *path*, mapped read-only.

    Attributes:
        map: the mapping.
    """

    def __init__(self, path: Path) -> None:
        """Raises: RwkvError (cannot be read)."""
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise RwkvError(f"{path}: cannot be read: {reason}") from error
        self._held: deque[tuple[int, int]] = deque()
        self._held_bytes = 0

    def array(self, dtype: np.dtype[Any], count: int, offset: int) -> NDArray[Any]:
        """*count* values at byte *offset*, which the caller has checked; a copy only where they lie unaligned."""
        if count == 0:
            return np.empty(0, dtype)
        flat = np.frombuffer(self.map, dtype, count, offset)
        self.release(offset, offset + count * dtype.itemsize)
        return flat if flat.flags.aligned else flat.copy()

    def close(self) -> None:
        """Arrays stay valid: the mapping goes with the last of them."""
        with contextlib.suppress(BufferError):
            self.map.close()

    def release(self, start: int, end: int) -> None:
        """Bytes *start* to *end* are read now: give back the pages of what was read so long ago that it is converted.

        An array that is still in use just reads them again.
        """
        if not self._held:  # not before: who only looks into the file would read 2 MB for each of its headers
            allow_huge_pages(self.map)
        self._held.append((start, end))
        self._held_bytes += end - start
        while self._held_bytes - (self._held[0][1] - self._held[0][0]) > _HELD_BYTES:
            first, last = self._held.popleft()
            self._held_bytes -= last - first
            give_back(self.map, first, last)
