# SPDX-License-Identifier: Apache-2.0
"""The hands of a conversion: threads that pack, one that writes behind them, and who tells how far it is."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.errors import Cancelled, OutOfMemory, RwkvError
from rwkv_cpu.memory import aligned_zeros
from rwkv_cpu.quantize.checksums import joined_crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.modelfile import ModelWriter

__all__ = ["Output", "Progress", "Workers", "converting"]

_WRITE_BYTES = 1 << 20  # between two looks at whether the conversion was cancelled
_MAX_WAITING_BYTES = 64 << 20
_MOST_PACKED = 4  # parts that may wait for the thread that writes
_UNIT_BYTES = 1 << 21  # packed at a time: handing out less costs more than the cache saves
_EMBEDDING_ROWS = 64  # so many end at a multiple of 64 bytes, whatever their width
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
        while not future.done() and not wait([future], _PROGRESS_SECONDS).done:
            self.check()
        return future.result()

    def start(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run it on one of the packing threads."""
        return self._pool.submit(function, *arguments)

    def cover(self, function: Callable[[int, int], Any], n: int) -> None:
        """Call function(first, last) for ranges that cover 0 to n, on all threads."""
        step = max(16, -(-n // (4 * self._threads * 16)) * 16)
        units = [self._pool.submit(function, first, min(first + step, n)) for first in range(0, n, step)]
        for unit in units:
            self.check()
            unit.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for pool in (self._pool, self._digest, self.writer):
            pool.shutdown(cancel_futures=True)


@dataclass
class _Part:
    """Bytes of a tensor on their way to the file; the result is their checksum."""

    info: engine.TensorInfo
    size: int
    work: int
    checksum: Future[int]


class Output:
    """Packs tensors part by part on all threads, and writes behind what was packed elsewhere; at most a few parts wait.

    Systems let one thread write to a file at a time, and others spin until it is their turn. So whoever packed a part
    writes what is there to be written, or, where another is at that, packs on.
    """

    def __init__(
        self, writer: ModelWriter, workers: Workers, progress: Progress, header_bytes: int, checkpoint: Path
    ) -> None:
        self._writer = writer
        self._workers = workers
        self._progress = progress
        self._header_bytes = header_bytes
        self._checkpoint = checkpoint
        self._turn = threading.Lock()
        self._packed: deque[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]] = deque()  # place, bytes, their buffer
        self._buffers: deque[NDArray[np.uint8]] = deque()
        self._waiting: deque[_Part] = deque()
        self._waiting_bytes = 0

    def pack(self, info: engine.TensorInfo, source: NDArray[Any], dtype: engine.Dtype) -> None:
        """Pack a tensor and write it; its last parts may be on their way still."""
        self._workers.check()
        info.crc32 = 0
        panels = engine.packed_panels(info)
        step = max(1, min(panels, panels * _UNIT_BYTES // info.size_bytes))
        if info.kind == engine.KIND_EMBEDDING:
            step = -(-step // _EMBEDDING_ROWS) * _EMBEDDING_ROWS
        for first in range(0, panels, step):
            last = min(first + step, panels)
            begin = engine.packed_offset(info, first)
            end = info.size_bytes if last == panels else engine.packed_offset(info, last)
            run = self._workers.start(self._pack_part, info, source, dtype, first, last, begin, end)
            self._wait_for(_Part(info, end - begin, end - begin, run))

    def put(self, info: engine.TensorInfo, packed: NDArray[np.uint8]) -> None:
        """Hand over a packed tensor; waits while much is waiting already. One large tensor may wait."""
        info.crc32 = 0
        run = self._workers.writer.submit(self._write_whole, info, packed)
        self._wait_for(_Part(info, packed.nbytes, 0, run))

    def finish(self) -> None:
        """Wait for all."""
        while self._waiting:
            self._finish_one()
        self._write_packed(0)

    def _wait_for(self, part: _Part) -> None:
        self._waiting.append(part)
        self._waiting_bytes += part.size
        while len(self._waiting) > 1 and self._waiting_bytes > _MAX_WAITING_BYTES:
            self._finish_one()

    def _finish_one(self) -> None:
        part = self._waiting.popleft()
        self._waiting_bytes -= part.size
        part.info.crc32 = joined_crc32(part.info.crc32, self._workers.result(part.checksum), part.size)
        self._progress.work(part.work)

    def _pack_part(
        self,
        info: engine.TensorInfo,
        source: NDArray[Any],
        dtype: engine.Dtype,
        first: int,
        last: int,
        begin: int,
        end: int,
    ) -> int:
        self._workers.check()
        with converting(self._checkpoint, info):
            buffer = self._buffer(end - begin)
            part = buffer[: end - begin]
            part[:] = 0
            engine.pack_part(info, source, dtype, first, last, part)
        crc = engine.crc32(part.data)
        self._packed.append((info.offset + begin, part, buffer))
        self._write_packed(_MOST_PACKED)
        return crc

    def _buffer(self, size: int) -> NDArray[np.uint8]:
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        return buffer if buffer.nbytes >= size else aligned_zeros(max(size, _UNIT_BYTES))

    def _write_packed(self, most: int) -> None:
        """Write the parts that are packed; while another thread does, leave it to that one, but no more than *most*."""
        while self._packed and self._turn.acquire(blocking=len(self._packed) > most):
            try:
                if self._packed:  # nobody took it meanwhile
                    place, part, buffer = self._packed.popleft()
                    self._write(place, part)
                    self._buffers.append(buffer)
            finally:
                self._turn.release()

    def _write_whole(self, info: engine.TensorInfo, packed: NDArray[np.uint8]) -> int:
        """Returns the checksum of these bytes."""
        crc = engine.crc32(packed.data)
        with self._turn:
            self._write(info.offset, packed)
        return crc

    def _write(self, place: int, packed: NDArray[np.uint8]) -> None:
        for at in range(0, packed.nbytes, _WRITE_BYTES):
            self._workers.check()
            self._writer.write(self._header_bytes + place + at, packed.data[at : at + _WRITE_BYTES])


@contextmanager
def converting(path: Path, info: engine.TensorInfo) -> Iterator[None]:
    """What goes wrong inside says which file and, where memory runs out, which tensor it was."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(
            f"{path}: out of memory while converting {info.name} ({info.size_bytes} bytes)",
            hint="Close other programs and try again.",
        ) from error
    except RwkvError as error:
        if isinstance(error, Cancelled) or str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}", hint=error.hint) from error


class Progress:
    """Calls back now and then. Work is counted in bytes packed, or in what takes as long."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0
        self._last = 0.0

    def expect(self, work: int) -> None:
        """There is so much more to do."""
        self._total += work

    def work(self, done: int) -> None:
        """So much more is done."""
        self._done += done
        now = time.monotonic()
        if self._on_progress is not None and now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._on_progress(min(self._done, self._total), self._total)

    def done(self) -> None:
        """All is written."""
        if self._on_progress is not None:
            self._on_progress(self._total, self._total)
