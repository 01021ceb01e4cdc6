# SPDX-License-Identifier: Apache-2.0
"""The hands of a conversion: threads that pack, one that writes behind them, and who tells how far it is."""

from __future__ import annotations

import time
import zlib
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from rwkv_cpu import engine
from rwkv_cpu.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.modelfile import ModelWriter

__all__ = ["Output", "Progress", "Workers"]

_WRITE_BYTES = 1 << 20  # small enough to be in the cache still when it is written after its checksum
_MAX_WAITING_BYTES = 64 << 20
_UNIT_BYTES = 1 << 18  # least work worth handing to another thread
_PROGRESS_SECONDS = 0.05


class Workers:
    """Threads that pack and hash, and one that writes in order. Ends at once when cancelled or failed."""

    def __init__(self, threads: int, cancel: CancelToken | None) -> None:
        self._threads = threads
        self._cancel = cancel
        self._stopped = False
        self._pool = ThreadPoolExecutor(threads, "rwkv_cpu-pack")
        self._digest = ThreadPoolExecutor(1, "rwkv_cpu-digest")
        self.writer = ThreadPoolExecutor(1, "rwkv_cpu-write")

    def check(self) -> None:
        """Raises: Cancelled."""
        if self._stopped or (self._cancel is not None and self._cancel.cancelled):
            raise Cancelled("the conversion was cancelled")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it beside everything else."""
        return self._digest.submit(function, *arguments)

    def result(self, future: Future[Any]) -> Any:
        """Wait for it, but not longer than until cancelled."""
        while not wait([future], _PROGRESS_SECONDS).done:
            self.check()
        return future.result()

    def pack(
        self,
        info: engine.TensorInfo,
        source: tuple[NDArray[Any], engine.Dtype],
        packed: NDArray[np.uint8],
        progress: Progress,
    ) -> None:
        """Pack a tensor on all threads."""
        self.check()
        array, dtype = source
        panels = engine.packed_panels(info)
        # Units of about 2 MB: short enough to stop soon, long enough that handing them out costs nothing.
        step = max(1, min(panels, (panels * 8 * _UNIT_BYTES) // info.size_bytes))
        if info.size_bytes <= _UNIT_BYTES:
            engine.pack(info, array, dtype, 0, panels, packed)
        else:
            units = [
                self._pool.submit(self._unit, info, array, dtype, first, min(first + step, panels), packed)
                for first in range(0, panels, step)
            ]
            left: set[Future[None]] = set(units)
            while left:
                finished, left = wait(left, _PROGRESS_SECONDS, FIRST_EXCEPTION)
                for unit in finished:
                    unit.result()
                progress.within(info.size_bytes * (len(units) - len(left)) // len(units))
                self.check()
        progress.work(info.size_bytes)

    def cover(self, function: Callable[[int, int], Any], n: int) -> None:
        """Call function(first, last) for ranges that cover 0 to n, on all threads."""
        step = max(16, -(-n // (4 * self._threads * 16)) * 16)
        units = [self._pool.submit(function, first, min(first + step, n)) for first in range(0, n, step)]
        for unit in units:
            self.check()
            unit.result()

    def _unit(
        self,
        info: engine.TensorInfo,
        array: NDArray[Any],
        dtype: engine.Dtype,
        first: int,
        last: int,
        packed: NDArray[np.uint8],
    ) -> None:
        self.check()
        engine.pack(info, array, dtype, first, last, packed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for pool in (self._pool, self._digest, self.writer):
            pool.shutdown(cancel_futures=True)


class Output:
    """Writes packed tensors behind the packing, with their checksums; at most a few wait."""

    def __init__(self, writer: ModelWriter, workers: Workers, header_bytes: int) -> None:
        self._writer = writer
        self._workers = workers
        self._header_bytes = header_bytes
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._waiting_bytes = 0

    def put(self, info: engine.TensorInfo, packed: NDArray[np.uint8]) -> None:
        """Hand a tensor over; waits while much is waiting already. One large tensor may wait."""
        while self._waiting and self._waiting_bytes + packed.nbytes > _MAX_WAITING_BYTES:
            self._finish_one()
        self._waiting_bytes += packed.nbytes
        self._waiting.append((packed.nbytes, self._workers.writer.submit(self._write, info, packed)))

    def finish(self) -> None:
        """Wait for all."""
        while self._waiting:
            self._finish_one()

    def _finish_one(self) -> None:
        size, future = self._waiting.popleft()
        self._waiting_bytes -= size
        self._workers.result(future)

    def _write(self, info: engine.TensorInfo, packed: NDArray[np.uint8]) -> None:
        crc = 0
        for at in range(0, packed.nbytes, _WRITE_BYTES):
            self._workers.check()
            part = packed.data[at : at + _WRITE_BYTES]
            crc = zlib.crc32(part, crc)
            self._writer.write(self._header_bytes + info.offset + at, part)
        info.crc32 = crc


class Progress:
    """Calls back now and then. Work is counted in bytes packed, or in what takes as long."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._base = 0
        self._last = 0.0

    def expect(self, work: int) -> None:
        """There is so much more to do."""
        self._total += work

    def within(self, done: int) -> None:
        """*done* bytes of the current tensor."""
        now = time.monotonic()
        if self._on_progress is not None and now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._on_progress(min(self._base + done, self._total), self._total)

    def work(self, done: int) -> None:
        """So much more is done."""
        self._base += done
        self.within(0)

    def done(self) -> None:
        """All is written."""
        if self._on_progress is not None:
            self._on_progress(self._total, self._total)
