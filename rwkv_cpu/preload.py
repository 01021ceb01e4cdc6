# SPDX-License-Identifier: Apache-2.0
"""Bring a model's pages into memory ahead of their first use.

The system is asked at once to read the file, since reading on demand reaches a fraction of a disk's speed. In the
background, a thread that stays behind everything else maps what is read (about 40 ms per GB), but waits a moment: in
the time until the first token the forward maps what it needs itself, on all cores, and a thread beside it would only
dispute the process's page tables with it. Where somebody waits for it, as a window that shows how far it is, it does
not wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from rwkv_cpu import engine, memory
from rwkv_cpu.errors import RwkvError

if TYPE_CHECKING:
    from rwkv_cpu.modelfile import ModelFile

__all__ = ["Preloader"]

_MAP_AFTER_SECONDS = 0.25
# Mapped between two looks at how far it is.
_PIECE_BYTES = 16 << 20


class Preloader:
    """Faults in the mapping of *file* from now on; stop() must come before the mapping goes.

    Does nothing where the file is larger than the free memory: its pages would only push each other out.

    Args:
        awaited: somebody waits for it: at once, and not behind everything else.

    Attributes:
        done_bytes: mapped so far.
    """

    def __init__(self, file: ModelFile, *, awaited: bool = False) -> None:
        self._file = file
        self._awaited = awaited
        self.done_bytes = 0
        self._cancel = engine.ffi.new("int32_t *", 0)
        self._stopped = threading.Event()
        # A daemon: the end of the program need not wait for the disk.
        self._thread = threading.Thread(target=self._run, name="rwkv_cpu preload", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether pages are still being mapped."""
        return self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Until every page is mapped, or stop() was called, or that time is over."""
        self._thread.join(seconds)

    def ask_to_stop(self) -> None:
        """As stop(), without waiting for it."""
        self._cancel[0] = 1
        self._stopped.set()

    def stop(self) -> None:
        """End it within milliseconds (a page that the disk is reading is waited for)."""
        self.ask_to_stop()
        self._thread.join()

    def _run(self) -> None:
        free = memory.available_bytes()
        if free is not None and self._file.info.size_bytes > free:
            return
        if not self._awaited and hasattr(os, "SCHED_IDLE"):
            # This thread only, which calls it itself: on Linux 0 means the calling thread.
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        # What is wrong with the file or the disk, the forward that needs those pages will say.
        with contextlib.suppress(RwkvError):
            engine.read_ahead(self._file.buffer)
            if self._awaited or not self._stopped.wait(_MAP_AFTER_SECONDS):
                whole = memoryview(self._file.buffer)
                for begin in range(0, len(whole), _PIECE_BYTES):
                    engine.prefault(whole[begin : begin + _PIECE_BYTES], self._cancel)
                    self.done_bytes = min(begin + _PIECE_BYTES, len(whole))
