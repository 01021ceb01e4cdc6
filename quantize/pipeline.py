# SPDX-License-Identifier: Apache-2.0
"""The conversion itself: read one tensor, pack it on all threads, write it behind; then the table.

Memory holds the tensor being packed and the one being written. The bytes do not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu._version import __version__
from rwkv_cpu.checkpoint import Checkpoint, files_of, open_checkpoint
from rwkv_cpu.errors import ArgumentError, Cancelled, OutOfMemory, RwkvError
from rwkv_cpu.modelfile import ModelWriter, Place, build_header
from rwkv_cpu.quantize.embed import NO_TOKENIZER, OPTIONAL, find_tokenizer
from rwkv_cpu.quantize.plan import Plan, make_plan, recognise
from rwkv_cpu.quantize.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.cancel import CancelToken

__all__ = ["quantize"]

_log = logging.getLogger("rwkv_cpu")
_SHA_BYTES = 1 << 20
_WRITE_BYTES = 1 << 20  # small enough to be in the cache still when it is written after its checksum
_MAX_WAITING_BYTES = 64 << 20
_UNIT_BYTES = 1 << 18  # least work worth handing to another thread
_PROGRESS_SECONDS = 0.05
_NO_SHA = "0" * 64


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    format: str = "q8",  # noqa: A002 (its name everywhere)
    tokenizer: str | Path | None = None,
    chat_template: str | bytes | None = None,
    threads: int | None = None,
    gn_eps: float | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    pissa_init: str | Path | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Report:
    """Convert the checkpoint *source* to the .rwkv file *target*.

    Args:
        source: a trained checkpoint, recognised by its content: a file, or a directory of Hugging Face's layout.
        target: the file to write; appears complete or not at all.
        format: how matrices are stored: "q8", "f16" or "f32". Vectors stay f32, low-rank pairs f16.
        tokenizer: a World vocabulary, a sentencepiece model or a tokenizer.json; "none" for none; "optional" for none
            if none is found. Not given: the checkpoint's own, FILE.model beside it, World's where the vocabulary has
            its size, a tokenizer.json beside it that fits.
        chat_template: what goes into the file as its template: a name or JSON (chat.ChatTemplate). Default: the
            checkpoint's own, or "world".
        threads: for packing; default: the physical cores this process may use.
        gn_eps: epsilon of the group norm after the recurrence; default: what config.json says in a directory, or the
            version's own.
        lora: an adapter (LoRA or PiSSA, as RWKV-PEFT writes them) to merge into the checkpoint, in f32.
        lora_alpha: LoRA's alpha, which does not stand in the file.
        pissa_init: PiSSA's file of initial factors; then there is no alpha.
        force: replace an existing target.
        on_progress: called with (bytes packed, bytes in all) about 20 times a second, on the caller's thread.
        cancel: a CancelToken; another thread may set it.

    Returns: sizes, bits per weight and time.

    Raises:
        ModelNotFoundError, FormatError, UnsupportedModelError, ShapeError: the checkpoint cannot be used.
        NonFiniteError: NaN or Inf in a tensor, named.
        ArgumentError: unknown format; the target is the source; lora_alpha is missing.
        Cancelled; RwkvError: the target exists, the disk is full, no tokenizer was found.
    """
    began = time.perf_counter()
    source, target = Path(source), Path(target)
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads is {threads}: at least 1 is needed")
    with _open(source, lora, lora_alpha, pissa_init) as checkpoint:
        config = recognise(checkpoint)
        if any(name.endswith(".att.time_state") for name in checkpoint.tensors):
            _log.warning("%s: its tuned starting state is not kept: give it to chat and generate as --state", source)
        gn_eps = getattr(checkpoint, "gn_eps", None) if gn_eps is None else gn_eps
        if gn_eps is not None:
            engine.set_group_norm_epsilon(config, gn_eps)
        sizes = config.public()
        # One that cannot be used is no obstacle where the user names another.
        inside = checkpoint.tokenizer if tokenizer is None or tokenizer == OPTIONAL else None
        embedded = find_tokenizer(source, sizes.n_vocab, tokenizer, inside)
        contents: dict[str, bytes] = {}
        if embedded.kind != NO_TOKENIZER:
            contents[f"tokenizer.{embedded.kind}"] = embedded.data
        template = chat_template if chat_template is not None else checkpoint.chat_template or b"world"
        contents["chat_template"] = template.encode() if isinstance(template, str) else template
        plan = make_plan(checkpoint, config, format, {name: data for name, data in contents.items() if data})
        ModelWriter.check_target(target, force=force)
        files = files_of(checkpoint)
        source_bytes = sum(file.stat().st_size for file in files)
        if target.exists() and any(target.samefile(file) for file in (*files, *_given(lora, pissa_init))):
            raise ArgumentError(f"{target}: this is the checkpoint itself", hint="Name another file.")
        about = {
            "rwkv_cpu.version": __version__,
            "rwkv_cpu.architecture": sizes.name,
            "rwkv_cpu.format": format,
            "rwkv_cpu.bits_per_weight": f"{plan.bits_per_weight:.4f}",
            "rwkv_cpu.parameters": str(plan.parameters),
            "rwkv_cpu.tokenizer": embedded.kind,
            "rwkv_cpu.options": json.dumps({"format": format, "tokenizer": embedded.kind}),
            "rwkv_cpu.source": source.name or source.resolve().name,
            "rwkv_cpu.source_kind": checkpoint.kind,
            "rwkv_cpu.source_bytes": str(source_bytes),
        }
        if lora is not None:
            about["rwkv_cpu.lora"] = Path(lora).name
        size = _convert(
            checkpoint, plan, about, target, threads or engine.default_threads(), force, on_progress, cancel
        )
    report = Report(
        source=source,
        target=target,
        format=format,
        architecture=sizes.name,
        tokenizer=embedded.kind,
        parameters=plan.parameters,
        source_bytes=source_bytes,
        target_bytes=size,
        bits_per_weight=plan.bits_per_weight,
        file_bits_per_weight=8 * size / plan.parameters,
        formats=plan.formats,
        seconds=time.perf_counter() - began,
    )
    _log.info("converted %s to %s: %d bytes in %.2f s", source, target, size, report.seconds)
    return report


def _open(source: Path, lora: str | Path | None, lora_alpha: float | None, pissa_init: str | Path | None) -> Checkpoint:
    """The checkpoint, with the adapter merged in if there is one."""
    if lora is not None:
        from rwkv_cpu.checkpoint.adapters import AdaptedCheckpoint

        init = None if pissa_init is None else Path(pissa_init)
        return AdaptedCheckpoint(open_checkpoint(source), Path(lora), lora_alpha, init)
    if lora_alpha is not None or pissa_init is not None:
        raise ArgumentError("lora_alpha and pissa_init belong to an adapter, and none is given", hint="Give lora too.")
    return open_checkpoint(source)


def _given(*paths: str | Path | None) -> list[Path]:
    return [Path(path) for path in paths if path is not None]


def _convert(
    checkpoint: Checkpoint,
    plan: Plan,
    about: dict[str, str],
    target: Path,
    threads: int,
    force: bool,
    on_progress: Callable[[int, int], None] | None,
    cancel: CancelToken | None,
) -> int:
    """Write the file; returns its size."""
    places = [(info.name, Place(info.offset, info.size_bytes)) for info in plan.all]
    # The digest is known at the end only, its length from the beginning.
    header_bytes = len(build_header(about | {"rwkv_cpu.source_sha256": _NO_SHA}, places))
    size = header_bytes + plan.data_bytes
    with ModelWriter(target, size, force=force) as writer, _Workers(threads, cancel) as workers:
        digest = workers.submit(_sha256, files_of(checkpoint), workers)
        out = _Output(writer, workers, header_bytes)
        progress = _Progress(on_progress, plan.data_bytes)
        for info in plan.weights:
            try:
                packed = _packed_buffer(info.size_bytes)
                workers.pack(info, _source_of(checkpoint, info), packed, progress)
            except MemoryError as error:
                raise OutOfMemory(
                    f"{checkpoint.path}: out of memory while converting {info.name} ({info.size_bytes} bytes)",
                    hint="Close other programs and try again.",
                ) from error
            except RwkvError as error:
                raise _with_path(error, checkpoint.path) from error
            out.put(info, packed)
        for info in plan.texts:
            packed = _packed_buffer(info.size_bytes)
            data = plan.contents[info.name]
            packed[: len(data)] = np.frombuffer(data, np.uint8)
            out.put(info, packed)
        out.finish()
        about["rwkv_cpu.source_sha256"] = workers.result(digest)
        writer.write(0, build_header(about, places))
        writer.write(header_bytes, engine.write_table(plan.config, plan.all))
        workers.check()
        writer.commit()
        progress.done(plan.data_bytes)
    return size


def _with_path(error: RwkvError, path: Path) -> RwkvError:
    """The same error, saying which file."""
    if isinstance(error, Cancelled) or str(path) in str(error):
        return error
    return type(error)(f"{path}: {error}", hint=error.hint)


def _source_of(checkpoint: Checkpoint, info: engine.TensorInfo) -> tuple[NDArray[Any], engine.Dtype]:
    """The tensor as the engine takes it: an array of its rows and columns as stored, and its dtype."""
    array, dtype = checkpoint.read(info.source), checkpoint.tensors[info.source].dtype
    if dtype == "f64":
        with np.errstate(over="ignore"):  # what becomes Inf is refused when packed, by name
            array, dtype = array.astype(np.float32), "f32"
    return array, cast("engine.Dtype", dtype)


def _packed_buffer(size_bytes: int) -> NDArray[np.uint8]:
    """Zeros (the padding's value), aligned as the engine wants them."""
    whole = np.zeros(size_bytes + 64, np.uint8)
    skip = -whole.ctypes.data % 64
    return whole[skip : skip + size_bytes]


def _sha256(paths: Iterable[Path], workers: _Workers) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(_SHA_BYTES):
                workers.check()
                digest.update(part)
    return digest.hexdigest()


class _Workers:
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
        progress: _Progress,
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
        progress.advance(info.size_bytes)

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


class _Output:
    """Writes packed tensors behind the packing, with their checksums; at most a few wait."""

    def __init__(self, writer: ModelWriter, workers: _Workers, header_bytes: int) -> None:
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


class _Progress:
    """Calls back now and then."""

    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._base = 0
        self._last = 0.0

    def within(self, done: int) -> None:
        """*done* bytes of the current tensor."""
        now = time.monotonic()
        if self._on_progress is not None and now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._on_progress(self._base + done, self._total)

    def advance(self, size: int) -> None:
        """The current tensor is packed."""
        self._base += size
        self.within(0)

    def done(self, total: int) -> None:
        """All is written."""
        if self._on_progress is not None:
            self._on_progress(total, self._total)
