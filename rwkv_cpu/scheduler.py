# SPDX-License-Identifier: Apache-2.0
"""Several threads on one model: what they ask for at the same time is computed together.

The weights are read once for all tokens of a pass, so that two conversations decoded together cost little more than
one. No thread belongs to the scheduler. A call that finds the engine idle takes the lead: it runs one pass (at most
264 tokens) for everybody who waits, then gives the lead to whoever is next. Alone on a model, a call costs two locks
more than calling the engine.

- A pass takes one step of every waiting sequence that is being decoded, and fills up with a piece of every prompt that
  is being read: a small piece while others decode, so that their next token does not wait for long.
- After a pass its sequences come back within a moment, when their next token is chosen. The next leader waits for that
  moment, for those who were quick the last time; otherwise two conversations would take turns instead of sharing.
- A pass never writes the block that a state is in, so it can be dropped and run again: when one of its calls is
  cancelled, the others lose only time.
- A pass that fails is repeated for each of its sequences alone, so that only the guilty one gets the error.

Python handles Ctrl-C in the main thread, between its own instructions. So the main thread has a long pass, or one that
serves others too, run by a thread made for it, and waits. Where the model has low priority every pass runs in such a
thread: a thread that lowered its priority could not raise it again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .engine import SequenceRun, ffi, lower_priority
from .errors import Busy, Cancelled, RwkvError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from .cancel import CancelToken
    from .engine import LogitsChoice
    from .state import State

__all__ = ["PASS_TOKENS", "Job", "Scheduler"]

# The engine's own pass (rwkvc_context_options.chunk).
PASS_TOKENS = 264
# Up to here a job is a step of decoding: one token, or a draft to check.
_STEP_TOKENS = 16
# Of prompts, in a pass with such steps. At 0.4B this makes the step three times as long, and reading half as fast.
_MIXED_TOKENS = 64
# No prompt gets less of a pass than this: reading weights for fewer tokens does not pay.
_SHARE_TOKENS = 32

# How long a leader waits for those of the last pass: a share of that pass, within these limits.
_GATHER_SHARE = 0.25
_GATHER_SECONDS = (0.001, 0.02)
_REMEMBERED = 1024

# Bytes of weights times tokens from which the main thread leaves a pass to another thread: 0.1 s of a slow machine.
_LONG_PASS = 1_000_000_000
# How often a call that waits for somebody else's pass looks at its token: what cancels it must not take a lock.
_CANCEL_SECONDS = 0.01
# A wait without end cannot be interrupted on Windows.
_WAIT_SECONDS = 0.05


class Forward(Protocol):
    """The engine's forward with model and context bound."""

    def __call__(
        self, runs: Sequence[SequenceRun], *, cancel: Any, out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Logits f32 [rows wanted, n_vocab]."""
        ...


@dataclass(eq=False)
class Job:
    """One sequence to be advanced.

    Attributes:
        tokens: ids u32 [T].
        logits: which are wanted.
        state: moved on, pass by pass.
        fresh: state is a new one, whose numbers mean nothing yet: begin at source (None: before the first token).
        every_state: f32 [T, floats]: gets the state after each token, and state stays as it is.
        hidden: f32 [T, n_embd]: gets what the head multiplies, after each token.
        found: the logits, when it is finished.
        n_done: tokens that the state has read.
    """

    tokens: NDArray[np.uint32]
    logits: LogitsChoice
    state: State
    fresh: bool = False
    source: State | None = None
    every_state: NDArray[np.float32] | None = None
    hidden: NDArray[np.float32] | None = None
    found: NDArray[np.float32] | None = None
    n_done: int = 0
    last_pass: int = 0
    alone: bool = False

    @property
    def n_left(self) -> int:
        """Tokens still to read."""
        return len(self.tokens) - self.n_done

    @property
    def is_step(self) -> bool:
        """Whether it is one step of decoding, to be run whole."""
        return self.every_state is not None or len(self.tokens) <= _STEP_TOKENS

    def run_of(self, n_tokens: int) -> SequenceRun:
        """The next *n_tokens* for the engine."""
        if self.fresh and self.n_done == 0:
            state_in, state_out = None, self.state.data
            if self.source is not None:  # as it is now: jobs before this one may have moved it on
                state_in = self.source.data
                self.state.n_tokens, self.state.digest = self.source.n_tokens, self.source.digest
        elif self.every_state is not None:
            state_in, state_out = self.state.data, self.every_state
        else:
            state_in, state_out = self.state.data, self.state.swap_target()
        last = n_tokens == self.n_left
        choice: LogitsChoice = self.logits if last or self.logits == "all" else "none"
        part = slice(self.n_done, self.n_done + n_tokens)
        hidden = None if self.hidden is None else self.hidden[part]
        return SequenceRun(self.tokens[part], state_in, state_out, choice, self.every_state is not None, hidden=hidden)

    def commit(self, run: SequenceRun, rows: NDArray[np.float32]) -> None:
        """The engine finished *run*, with these logits f32 [rows wanted, n_vocab]."""
        last = rows[-1] if len(rows) else None
        if self.fresh and self.n_done == 0:
            self.state.read(run.tokens, last)
        elif self.every_state is None:
            self.state.replace(run.tokens, last)
        self.n_done += len(run.tokens)


@dataclass(eq=False)
class _Call:
    """What one thread waits for."""

    jobs: list[Job]
    cancel: CancelToken | None
    n_total: int
    wake: threading.Condition | None = None  # made when it first waits, which few do
    n_reported: int = 0
    n_running: int = 0  # of its jobs in the pass under way
    finished: bool = False
    error: BaseException | None = None

    def wait(self, lock: threading.Lock, seconds: float | None) -> None:
        """Until notify(), or for so long; with the scheduler's *lock*."""
        if self.wake is None:
            self.wake = threading.Condition(lock)
        self.wake.wait(seconds)

    def notify(self) -> None:
        """Wake its thread if that waits."""
        if self.wake is not None:
            self.wake.notify_all()

    @property
    def n_done(self) -> int:
        return sum(job.n_done for job in self.jobs)

    @property
    def cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.cancelled


@dataclass(eq=False)
class _Pass:
    """One call of the engine."""

    parts: list[tuple[_Call, Job, SequenceRun]]
    rows: list[NDArray[np.float32]] = field(default_factory=list)  # of each part, when it is done
    flag: Any = field(default_factory=lambda: ffi.new("int32_t *", 0))
    error: RwkvError | None = None

    def stop(self) -> None:
        """End it within milliseconds."""
        self.flag[0] = 1

    @property
    def n_tokens(self) -> int:
        return sum(len(run.tokens) for _, _, run in self.parts)

    @property
    def calls(self) -> list[_Call]:
        if len(self.parts) == 1:
            return [self.parts[0][0]]
        return list({id(call): call for call, _, _ in self.parts}.values())


class Scheduler:
    """Runs the calls of one model. token_bytes: of weights that one token reads; n_vocab: length of its logits.

    lowered: whether passes run in threads of low priority; may be set at any time.
    """

    def __init__(self, token_bytes: int, n_vocab: int) -> None:
        self._token_bytes = token_bytes
        self._n_vocab = n_vocab
        self.lowered = False
        self._lock = threading.Lock()
        self._arrivals = threading.Condition(self._lock)  # the leader waits for the next step of others
        self._idle = threading.Condition(self._lock)  # close() waits for the lead
        self._queue: list[tuple[_Call, Job]] = []
        self._leader: int | None = None  # its thread
        self._pass: _Pass | None = None
        self._n_passes = 0
        self._callers: dict[int, int] = {}
        self._closed: Callable[[], RwkvError] | None = None
        # State → when its last pass ended, and whether it came back soon the last time.
        self._seen: dict[int, tuple[float, bool]] = {}
        self._expected: set[int] = set()
        self._window = _GATHER_SECONDS[0]

    def run(
        self,
        jobs: list[Job],
        forward: Forward,
        *,
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run *jobs* to their ends; their results are in them.

        Args:
            progress: called on this thread with (tokens done, of all), after passes; its exception ends the call.

        Raises:
            Cancelled: n_done says how many tokens of the call are in its states. What the engine raises.
        """
        if cancel is not None and cancel.cancelled:
            raise Cancelled
        call = _Call(jobs, cancel, sum(len(job.tokens) for job in jobs))
        me = threading.get_ident()
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            self._callers[me] = self._callers.get(me, 0) + 1
            self._queue += [(call, job) for job in jobs]
            self._note_arrival(jobs)
        try:
            self._drive(call, forward, progress)
        except BaseException:  # Ctrl-C, or an error in progress()
            self._withdraw(call)
            raise
        finally:
            with self._lock:
                self._callers[me] -= 1
                if not self._callers[me]:
                    del self._callers[me]
        if call.error is not None:
            raise call.error

    def close(self, error: Callable[[], RwkvError]) -> None:
        """End everything: later calls raise error(), and so do those under way, whose states stay valid.

        Raises:
            Busy: in a progress callback, which is inside a call itself.
        """
        with self._lock:
            self._check_outside()
            self._closed = error
            if self._pass is not None:
                self._pass.stop()
            while self._leader is not None:
                self._idle.wait()
            for call in {id(call): call for call, _ in self._queue}.values():
                self._finish(call, error())

    # -------------------------------------------------------------------------------------- a call

    def _drive(self, call: _Call, forward: Forward, progress: Callable[[int, int], None] | None) -> None:
        while True:
            with self._lock:
                while (
                    not call.finished
                    and self._leader is not None
                    and (progress is None or call.n_done == call.n_reported)
                ):
                    call.wait(
                        self._lock, _CANCEL_SECONDS if call.cancel else _WAIT_SECONDS if _in_main_thread() else None
                    )
                    if call.cancelled and not call.n_running and not call.finished:
                        self._finish(call, Cancelled(n_done=call.n_done))
                done, finished = call.n_done, call.finished
                due = progress is not None and done != call.n_reported
                if not due and not finished:
                    self._leader = threading.get_ident()
            if due and progress is not None:
                call.n_reported = done
                progress(done, call.n_total)
            elif finished:
                return
            else:
                self._lead(forward)

    def _withdraw(self, call: _Call) -> None:
        """Forget the call; returns when the engine no longer uses its memory."""
        with self._lock:
            if self._leader == threading.get_ident():  # interrupted between taking the lead and its first step
                self._end_lead()
            call.finished = True
            self._queue = [entry for entry in self._queue if entry[0] is not call]
            while call.n_running:
                if self._pass is not None:
                    self._pass.stop()
                call.wait(self._lock, _WAIT_SECONDS)
            self._wake_next()

    def _finish(self, call: _Call, error: BaseException | None = None) -> None:
        call.finished, call.error = True, error
        self._queue = [entry for entry in self._queue if entry[0] is not call]
        call.notify()

    def _check_outside(self) -> None:
        if threading.get_ident() in self._callers:
            raise Busy(
                "the model is running: a progress callback cannot close it",
                hint="Cancel the call, or raise an exception in the callback.",
            )

    # ------------------------------------------------------------------------------------ the lead

    def _lead(self, forward: Forward) -> None:
        """One pass for everybody. The caller has the lead, and loses it."""
        with self._lock:
            self._gather()
            current = self._pass = self._choose()
            if self._closed is not None:
                current.stop()
        several = len(current.calls) > 1
        if self.lowered:
            _elsewhere(lambda: self._compute(current, forward), current.stop, prepare=lower_priority)
        elif _in_main_thread() and (several or current.n_tokens * self._token_bytes >= _LONG_PASS):
            _elsewhere(lambda: self._compute(current, forward), current.stop)
        else:
            self._compute(current, forward)

    def _compute(self, current: _Pass, forward: Forward) -> None:
        """Run a pass and settle it."""
        tokens = list({id(call.cancel): call.cancel for call in current.calls if call.cancel}.values())
        for token in tokens:
            token.link(current.stop)
        try:
            if current.parts:
                self._forward(current, forward)
        except RwkvError as error:
            current.error = error
        finally:
            for token in tokens:
                token.unlink(current.stop)
            with self._lock:
                self._settle(current)
                self._end_lead()

    def _forward(self, current: _Pass, forward: Forward) -> None:
        _, first, run = current.parts[0]
        own = first.logits == "all" and len(current.parts) == 1
        out = _rows_of(first, self._n_vocab)[first.n_done : first.n_done + len(run.tokens)] if own else None
        began = time.perf_counter()
        rows = forward([run for _, _, run in current.parts], cancel=current.flag, out=out)
        low, high = _GATHER_SECONDS
        self._window = min(max(_GATHER_SHARE * (time.perf_counter() - began), low), high)
        at = 0
        found = []
        for _, job, run in current.parts:
            n_rows = {"none": 0, "last": 1, "all": len(run.tokens)}[run.logits]
            found.append(rows[at : at + n_rows])
            if n_rows and job.logits == "last":
                job.found = rows[at]
            elif n_rows and not own:
                _rows_of(job, self._n_vocab)[job.n_done : job.n_done + n_rows] = found[-1]
            at += n_rows
        current.rows = found

    def _settle(self, current: _Pass) -> None:
        """Move the states on; tell who is finished, cancelled or failed."""
        now = time.perf_counter()
        failed = current.error is not None and not isinstance(current.error, Cancelled)
        self._pass = None
        self._expected = set()
        for i, (call, job, run) in enumerate(current.parts):
            call.n_running -= 1
            job.last_pass = self._n_passes
            job.alone = failed
            if current.rows and not call.finished:
                job.commit(run, current.rows[i])
                if job.is_step and not job.fresh:
                    self._remember(id(job.state), now)
                if job.n_left == 0:
                    self._queue.remove((call, job))
        for call in current.calls:
            if call.finished:  # withdrawn meanwhile
                call.notify()
            elif all(job.n_left == 0 for job in call.jobs):
                self._finish(call)
            elif self._closed is not None:
                self._finish(call, self._closed())
            elif call.cancelled:
                self._finish(call, Cancelled(n_done=call.n_done))
            elif failed and len(current.parts) == 1:
                self._finish(call, current.error)
            else:
                call.notify()  # for its progress

    def _end_lead(self) -> None:
        self._leader = None
        self._idle.notify_all()
        self._wake_next()

    def _wake_next(self) -> None:
        """Somebody who waits takes the lead."""
        if self._queue and self._leader is None:
            self._queue[0][0].notify()

    # ---------------------------------------------------------------------------- what a pass holds

    def _choose(self) -> _Pass:
        """The next pass; from here on its jobs' memory is in use."""
        chosen: list[tuple[_Call, Job, int]] = []
        if len(self._queue) == 1 and self._queue[0][1].is_step:  # as below, but what one conversation does all the time
            return self._pass_of([(*self._queue[0], self._queue[0][1].n_left)])
        ready = self._ready()
        if ready and (alone := next((entry for entry in ready if entry[1].alone), None)) is not None:
            ready = [alone]
        prompts = sorted((e for e in ready if not e[1].is_step), key=lambda e: (e[1].last_pass, e[1].n_left))
        room = PASS_TOKENS - (_SHARE_TOKENS if prompts else 0)
        for call, job in ready:
            # The first is taken whatever its size: a draft is not divided.
            if job.is_step and (job.n_left <= room or not chosen):
                chosen.append((call, job, job.n_left))
                room -= job.n_left
        room = max(room, 0) + (_SHARE_TOKENS if prompts else 0)
        room = min(room, _MIXED_TOKENS) if chosen else room
        prompts = prompts[: max(1, room // _SHARE_TOKENS)]
        # Short ones first: what they leave is for the others.
        for i, (call, job) in enumerate(sorted(prompts, key=lambda e: e[1].n_left)):
            n_tokens = min(job.n_left, room // (len(prompts) - i))
            chosen.append((call, job, n_tokens))
            room -= n_tokens
        return self._pass_of(chosen)

    def _pass_of(self, chosen: list[tuple[_Call, Job, int]]) -> _Pass:
        self._n_passes += 1
        for call, _, _ in chosen:
            call.n_running += 1
        return _Pass([(call, job, job.run_of(n_tokens)) for call, job, n_tokens in chosen])

    def _ready(self) -> list[tuple[_Call, Job]]:
        """Jobs whose states nobody before them in the queue uses."""
        ready = []
        written: set[int] = set()
        read: set[int] = set()
        for call, job in self._queue:
            source = job.source if job.fresh else None
            if id(job.state) not in written | read and (source is None or id(source) not in written):
                ready.append((call, job))
            written.add(id(job.state))
            if source is not None and job.n_done == 0:
                read.add(id(source))
        return ready

    # ------------------------------------------------------------------------------ waiting together

    def _gather(self) -> None:
        """Wait a moment for the sequences of the last pass that will be back soon."""
        until = time.perf_counter() + self._window
        while self._expected and (left := until - time.perf_counter()) > 0:
            self._arrivals.wait(left)

    def _note_arrival(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.fresh or (seen := self._seen.get(id(job.state))) is None:
                continue
            self._seen[id(job.state)] = (seen[0], time.perf_counter() - seen[0] <= self._window)
            self._expected.discard(id(job.state))
        if not self._expected:
            self._arrivals.notify_all()

    def _remember(self, key: int, now: float) -> None:
        soon = self._seen.get(key, (now, True))[1]
        self._seen[key] = (now, soon)
        if soon:
            self._expected.add(key)
        if len(self._seen) > _REMEMBERED:
            self._seen = {key: seen for key, seen in self._seen.items() if key in self._expected}


def _rows_of(job: Job, n_vocab: int) -> NDArray[np.float32]:
    """Where the logits of all its tokens go."""
    if job.found is None:
        job.found = np.empty((len(job.tokens), n_vocab), np.float32)
    return job.found


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _elsewhere(
    work: Callable[[], None], stop: Callable[[], None], *, prepare: Callable[[], object] = lambda: None
) -> None:
    """*work* in another thread, which does *prepare* first, so that Ctrl-C interrupts the wait; *stop* ends it then."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            prepare()
            work()
        except BaseException as error:  # noqa: BLE001 (raised by the waiting thread)
            failure.append(error)

    thread = threading.Thread(target=run, name="rwkv-cpu pass", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_WAIT_SECONDS)
    except BaseException:
        stop()
        with contextlib.suppress(RuntimeError):  # interrupted before it had begun
            thread.join()
        raise
    if failure:
        raise failure[0]
