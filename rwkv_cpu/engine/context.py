# SPDX-License-Identifier: Apache-2.0
"""Forward calls: threads, scratch memory, sequences, callbacks; and measurements of parts."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rwkv_cpu import errors

from .boundary import check, checked, ffi, lib
from .hardware import check_threads, default_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from .opened import OpenModel

LogitsChoice = Literal["last", "all", "none"]
_LOGITS = {"none": lib.RWKVC_LOGITS_NONE, "last": lib.RWKVC_LOGITS_LAST, "all": lib.RWKVC_LOGITS_ALL}


@dataclass
class SequenceRun:
    """One sequence of a forward call; see ``rwkvc_sequence``.

    state_in, state_out: f32 [state_floats] (state_in None: before the first token; state_out [T, state_floats] with
    every_state). hidden: None, or f32 [T, n_embd] to receive the last layer norm's output after each token. n_done is
    written by the call.
    """

    tokens: NDArray[np.uint32]
    state_in: NDArray[np.float32] | None
    state_out: NDArray[np.float32]
    logits: LogitsChoice = "last"
    every_state: bool = False
    n_done: int = 0
    hidden: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ValueReads:
    """Inputs of the channel mixes' integer value matrices in passes of one token: ``rwkvc_value_reads``.

    inputs: all of them. columns: those that were not zero. groups: of 32 inputs, with at least one that was not.
    """

    inputs: int
    columns: int
    groups: int

    def since(self, before: ValueReads) -> ValueReads:
        """What came after *before*."""
        return ValueReads(self.inputs - before.inputs, self.columns - before.columns, self.groups - before.groups)


@dataclass(frozen=True)
class PartCost:
    """A part of a forward measured by itself: ``rwkvc_part_cost``.

    seconds: of the fastest pass. bytes: of weights or state that it read. multiply_adds: that it did.
    """

    seconds: float
    bytes: float
    multiply_adds: float


_progress_callbacks: dict[int, Callable[[int, int], None]] = {}
_progress_failures: dict[int, Callable[[BaseException], None]] = {}
_progress_lock = threading.Lock()


def _progress_failed(_kind: Any, error: BaseException, trace: Any) -> None:
    """Ctrl-C may arrive in _progress before it calls anything: hand it to forward() all the same."""
    _progress_failures[int(ffi.cast("uintptr_t", trace.tb_frame.f_locals["user"]))](error)


@ffi.def_extern(name="rwkvc_py_progress", onerror=_progress_failed)  # type: ignore[untyped-decorator]
def _progress(user: Any, done: int, total: int) -> None:
    _progress_callbacks[int(ffi.cast("uintptr_t", user))](done, total)


_input_callbacks: dict[int, Callable[[str, NDArray[np.float32]], None]] = {}


@ffi.def_extern(name="rwkvc_py_inputs")  # type: ignore[untyped-decorator]
def _inputs(user: Any, tensor: Any, x: Any, n: int, cols: int, ld: int) -> None:
    rows = np.frombuffer(ffi.buffer(x, 4 * ((n - 1) * ld + cols)), np.float32)
    view = np.lib.stride_tricks.as_strided(rows, (n, cols), (4 * ld, 4), writeable=False)
    _input_callbacks[int(ffi.cast("uintptr_t", user))](ffi.string(tensor).decode(), view)


class Context:
    """An ``rwkvc_context``: threads, scratch memory, instruction set. One call at a time."""

    def __init__(self, threads: int | None = None, isa: str | None = None, chunk: int | None = None) -> None:
        options = ffi.new("rwkvc_context_options *")
        lib.rwkvc_context_defaults(options)
        if chunk is not None and not 1 <= chunk <= 65536:
            raise errors.ArgumentError(f"chunk is {chunk}: it must be at least 1, and not absurdly large")
        options.threads, options.chunk = check_threads(threads) or default_threads(), chunk or 0
        name = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
        options.isa = name
        handle = ffi.new("rwkvc_context **")
        check(lib.rwkvc_context_create(options, handle))
        self.raw: Any = handle[0]

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(ffi.string(lib.rwkvc_context_isa(self.raw)).decode())

    @property
    def threads(self) -> int:
        """Threads that work, the caller's included."""
        return int(lib.rwkvc_context_threads(self.raw))

    @property
    def scratch_bytes(self) -> int:
        """Working memory held now."""
        return int(lib.rwkvc_context_bytes(self.raw))

    @property
    def value_reads(self) -> ValueReads:
        """What decoding has met in the channel mixes' value matrices so far."""
        raw = ffi.new("rwkvc_value_reads *")
        lib.rwkvc_context_value_reads(self.raw, raw)
        return ValueReads(int(raw.inputs), int(raw.columns), int(raw.groups))

    def forward(
        self,
        model: OpenModel,
        runs: Sequence[SequenceRun],
        *,
        cancel: Any = None,
        progress: Callable[[int, int], None] | None = None,
        out: NDArray[np.float32] | None = None,
        inputs: Callable[[str, NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """Advance every sequence by its tokens in one call; returns logits f32 [rows wanted, n_vocab], *out* if given.

        cancel: an ``int32_t *`` (CancelToken.pointer). progress(done, total) between chunks, on this thread; an
        exception in it ends the call after the chunk (it sets cancel) and is raised here. inputs(tensor's name,
        x f32 [T, cols]) before each matrix product, likewise; x is gone when it returns.
        Raises: TokenError, NonFiniteError, OutOfMemory, ForkedError, Cancelled; runs[i].n_done says how far each got.
        """
        raw = ffi.new("rwkvc_sequence[]", len(runs))
        keep = []
        rows = 0
        for entry, run in zip(raw, runs, strict=True):
            tokens = ffi.from_buffer("uint32_t[]", checked(run.tokens, np.uint32))
            state_out = ffi.from_buffer("float[]", checked(run.state_out, np.float32), require_writable=True)
            need = model.state_floats * (len(run.tokens) if run.every_state else 1)
            if len(state_out) != need or (run.state_in is not None and run.state_in.size != model.state_floats):
                raise errors.StateError(f"a state of {len(state_out)} numbers, this model's have {need}")
            entry.tokens, entry.n_tokens, entry.state_out = tokens, len(run.tokens), state_out
            if run.state_in is not None:
                entry.state_in = ffi.from_buffer("float[]", checked(run.state_in, np.float32))
            entry.logits, entry.every_state = _LOGITS[run.logits], run.every_state
            if run.hidden is not None:
                if run.hidden.shape != (len(run.tokens), model.config.raw.size[lib.RWKVC_SIZE_EMBD]):
                    raise errors.ArgumentError(f"hidden states {list(run.hidden.shape)} of {len(run.tokens)} tokens")
                hidden = checked(run.hidden, np.float32)
                entry.hidden = ffi.from_buffer("float[]", hidden, require_writable=True)
            keep.append((tokens, state_out, entry.state_in, entry.hidden))
            rows += {"none": 0, "last": 1, "all": len(run.tokens)}[run.logits]
        n_vocab = model.config.raw.size[lib.RWKVC_SIZE_VOCAB]
        logits = np.empty((rows, n_vocab), np.float32) if out is None else checked(out, np.float32)
        if logits.shape != (rows, n_vocab):
            raise errors.ArgumentError(f"logits go into [{rows}, {n_vocab}], not {list(logits.shape)}")
        options = ffi.new("rwkvc_forward_options *")
        options.struct_size = ffi.sizeof("rwkvc_forward_options")
        flag = cancel if cancel is not None else ffi.new("int32_t *", 0)
        options.cancel = flag
        failure: list[BaseException] = []
        one = sum(len(run.tokens) for run in runs) == 1  # nothing between chunks, and a call costs as little as it can
        if progress is None and not one and threading.current_thread() is threading.main_thread():
            progress = _nothing  # Python looks at signals only when it runs: Ctrl-C then ends the call after a chunk
        if progress is not None:
            _listen(options, flag, progress, failure)
        if inputs is not None:
            _watch(options, flag, inputs, failure)
        target = ffi.from_buffer("float[]", logits, require_writable=True) if rows else ffi.NULL
        try:
            status = lib.rwkvc_forward(self.raw, model.raw, raw, len(runs), target, options)
        finally:
            with _progress_lock:
                _progress_callbacks.pop(id(options), None)
                _progress_failures.pop(id(options), None)
                _input_callbacks.pop(id(options), None)
        for entry, run in zip(raw, runs, strict=True):
            run.n_done = entry.n_done
        if failure:
            raise failure[0]
        check(status)
        return logits

    def measure_read(self, size_bytes: int = 1 << 30) -> float:
        """Bytes per second of a sequential read over that much memory."""
        rate = ffi.new("double *")
        check(lib.rwkvc_measure_read(self.raw, size_bytes, rate))
        return float(rate[0])

    def measure_int8(self) -> float:
        """int8 operations (2 per multiply-add) per second with operands in registers."""
        rate = ffi.new("double *")
        check(lib.rwkvc_measure_int8(self.raw, rate))
        return float(rate[0])

    def measure_product(
        self, kind: int, weight_format: int, rows: int, cols: int, tokens: int, *, copies: int = 1, zeros: float = 0.0
    ) -> PartCost:
        """A matrix product by itself: made-up weights [rows, cols] of a KIND_* and FORMAT_*, times *tokens* inputs.

        copies: of the weights, used in turn, so that caches do not hold them. zeros: share of the inputs that are 0.
        Takes about half a second. Raises: ArgumentError, OutOfMemory.
        """
        part = {"part": lib.RWKVC_PART_PRODUCT, "kind": kind, "format": weight_format, "zeros": zeros}
        return self._measure_part({**part, "rows": rows, "cols": cols, "tokens": tokens, "copies": copies})

    def measure_recurrence(self, heads: int, head_size: int, tokens: int, *, copies: int = 1) -> PartCost:
        """RWKV-7's recurrence by itself, *tokens* after one another; the bytes are the state's, once."""
        part = {"part": lib.RWKVC_PART_RECURRENCE, "rows": heads, "cols": head_size}
        return self._measure_part({**part, "tokens": tokens, "copies": copies})

    def _measure_part(self, part: dict[str, Any]) -> PartCost:
        for name in ("rows", "cols", "tokens", "copies"):
            if not 0 < part[name] < 1 << 31:
                raise errors.ArgumentError(f"{name} is {part[name]}: it must be at least 1, and not absurdly large")
        cost = ffi.new("rwkvc_part_cost *")
        check(lib.rwkvc_measure_part(self.raw, ffi.new("rwkvc_part *", part), cost))
        return PartCost(float(cost.seconds), float(cost.bytes), float(cost.multiply_adds))

    def close(self) -> None:
        """End the threads and free the scratch memory."""
        if self.raw is not None:
            lib.rwkvc_context_destroy(self.raw)
            self.raw = None

    def __del__(self) -> None:
        # lib is None at the end of the interpreter; raw, if it was never made, or closed.
        if lib is not None and getattr(self, "raw", None) is not None:
            self.close()


def _listen(options: Any, flag: Any, progress: Callable[[int, int], None], failure: list[BaseException]) -> None:
    """Route the engine's progress to *progress*; its exception stops the call through the cancel flag."""

    def report(done: int, total: int) -> None:
        if not failure:
            progress(done, total)

    def failed(error: BaseException) -> None:
        failure.append(error)
        flag[0] = 1

    key = id(options)
    with _progress_lock:
        _progress_callbacks[key], _progress_failures[key] = report, failed
    options.progress, options.user = lib.rwkvc_py_progress, ffi.cast("void *", key)


def _watch(
    options: Any, flag: Any, inputs: Callable[[str, NDArray[np.float32]], None], failure: list[BaseException]
) -> None:
    """Route the engine's inputs of products to *inputs*; its exception stops the call through the cancel flag."""

    def show(name: str, x: NDArray[np.float32]) -> None:
        try:
            if not failure:
                inputs(name, x)
        except BaseException as error:  # noqa: BLE001  raised where the call was made
            failure.append(error)
            flag[0] = 1

    with _progress_lock:
        _input_callbacks[id(options)] = show
    options.inputs, options.user = lib.rwkvc_py_inputs, ffi.cast("void *", id(options))


def _nothing(_done: int, _total: int) -> None:
    """A progress callback that does nothing but let Python look at its signals."""
