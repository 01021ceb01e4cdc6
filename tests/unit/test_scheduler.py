# SPDX-License-Identifier: Apache-2.0
"""Several threads on one model: who is computed with whom, and that nobody notices but by the time it takes.

With a fake engine, whose state is a digest of the ids it read, what a pass holds is exact; with a real one, bits are.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu import CancelToken, Model
from rwkv_cpu.errors import Cancelled, ModelClosedError, NonFiniteError
from rwkv_cpu.scheduler import PASS_TOKENS, Job, Scheduler
from rwkv_cpu.state import State, StateLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

N_VOCAB = 8
LAYOUT = StateLayout(2, 1, (), "fake", N_VOCAB)
BAD = 7


def new_state() -> State:
    return State(LAYOUT, np.zeros(2, np.float32))


class FakeEngine:
    """state = (how many ids were read, a digest of them); logits[0] = the digest."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.gate: Callable[[], None] | None = None
        self.busy = threading.Lock()

    def __call__(self, runs, *, cancel, out):
        assert self.busy.acquire(blocking=False), "two passes at once"
        try:
            self.passes.append([len(run.tokens) for run in runs])
            if self.gate is not None:
                self.gate()
            if cancel[0]:
                raise Cancelled
            if any(BAD in run.tokens for run in runs):
                raise NonFiniteError("not a number")
            rows = []
            for run in runs:
                n, digest = (0.0, 0.0) if run.state_in is None else run.state_in
                for token in run.tokens:
                    n, digest = n + 1, (digest * 31 + token + 1) % 65521
                    if run.logits == "all":
                        rows.append(np.full(N_VOCAB, digest, np.float32))
                if run.logits == "last":
                    rows.append(np.full(N_VOCAB, digest, np.float32))
                run.state_out[:] = n, digest
            found = np.array(rows, np.float32).reshape(-1, N_VOCAB)
            if out is not None:
                out[:] = found
                return out
            return found
        finally:
            self.busy.release()


def digest_of(tokens) -> float:
    digest = 0
    for token in tokens:
        digest = (digest * 31 + int(token) + 1) % 65521
    return digest


def ids(n: int, start: int = 0) -> np.ndarray:
    return ((np.arange(n) + start) % BAD).astype(np.uint32)


def scheduler() -> Scheduler:
    return Scheduler(token_bytes=1, n_vocab=N_VOCAB)


def test_alone_a_prompt_is_read_in_whole_passes():
    engine, state = FakeEngine(), new_state()
    job = Job(ids(600), "last", state)
    scheduler().run([job], engine)
    assert engine.passes == [[PASS_TOKENS], [PASS_TOKENS], [600 - 2 * PASS_TOKENS]]
    assert job.found is not None
    assert job.found[0] == state.data[1] == digest_of(ids(600))
    assert state.n_tokens == 600


sequences = st.lists(st.tuples(st.integers(1, 700), st.sampled_from(["last", "all", "none"])), min_size=1, max_size=8)


@settings(max_examples=60)
@given(st.lists(sequences, min_size=1, max_size=5))
def test_whatever_is_asked_at_once_gives_what_it_gives_alone(calls):
    engine, shared = FakeEngine(), scheduler()
    jobs = [
        [Job(ids(n, start=i), logits, new_state(), fresh=i % 2 == 1) for i, (n, logits) in enumerate(call)]
        for call in calls
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(lambda own: shared.run(own, engine), jobs))
    for job in (job for own in jobs for job in own):
        assert job.state.n_tokens == len(job.tokens)
        assert job.state.data[1] == digest_of(job.tokens)
        if job.logits == "last":
            assert job.found is not None
            assert job.found[0] == digest_of(job.tokens)
        elif job.logits == "all":
            assert job.found is not None
            assert [row[0] for row in job.found] == [digest_of(job.tokens[: i + 1]) for i in range(len(job.tokens))]
    assert max(sum(sizes) for sizes in engine.passes) <= PASS_TOKENS
    assert sum(sum(sizes) for sizes in engine.passes) == sum(len(job.tokens) for own in jobs for job in own)


def held_passes(engine: FakeEngine, shared: Scheduler, waiting: int) -> None:
    """The first pass lasts until *waiting* jobs more are there: what they get is decided together."""
    first = threading.Event()

    def gate() -> None:
        if not first.is_set():
            first.set()
            until = time.monotonic() + 30
            while len(shared._queue) < waiting + 1:
                assert time.monotonic() < until
                time.sleep(0.001)

    engine.gate = gate


def test_steps_of_several_threads_are_one_pass():
    engine, shared = FakeEngine(), scheduler()
    held_passes(engine, shared, 7)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: shared.run([Job(ids(1, i), "last", new_state())], engine), range(8)))
    assert engine.passes == [[1], [1] * 7]


def test_a_long_prompt_leaves_room_for_steps_and_short_prompts():
    engine, shared = FakeEngine(), scheduler()
    held_passes(engine, shared, 3)
    sizes = [PASS_TOKENS * 4, 1, 1, 40]

    def run(size: int) -> None:
        shared.run([Job(ids(size), "last", new_state())], engine)

    threads = []
    for size in sizes:
        threads.append(threading.Thread(target=run, args=(size,)))
        threads[-1].start()
        if size == sizes[0]:
            while not engine.passes:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert engine.passes[0] == [PASS_TOKENS]
    assert sorted(engine.passes[1]) == [1, 1, 32, 32]  # a small piece of each prompt beside the steps
    assert engine.passes[2] == [8, PASS_TOKENS - 8]  # the short one is done before the long one


def test_more_prompts_than_fit_take_turns():
    engine, shared = FakeEngine(), scheduler()
    held_passes(engine, shared, 23)
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda i: shared.run([Job(ids(128, i), "none", new_state())], engine), range(24)))
    assert all(len(sizes) <= 8 for sizes in engine.passes)
    # Nobody is served twice before everybody was served once: the 23 others need 3 passes of 8.
    assert engine.passes[1:4] == [[PASS_TOKENS // 8] * 8] * 2 + [engine.passes[3]]
    assert sum(map(sum, engine.passes)) == 24 * 128


def test_a_draft_is_not_divided():
    engine, shared = FakeEngine(), scheduler()
    state = new_state()
    shared.run([Job(ids(5), "none", state)], engine)
    every = np.zeros((300, 2), np.float32)

    def fill(runs, *, cancel, out):
        (run,) = runs
        assert run.every_state
        run.state_out[:] = 9
        return np.zeros((len(run.tokens), N_VOCAB), np.float32)

    shared.run([Job(ids(300), "all", state, every_state=every)], fill)
    assert (every == 9).all()
    assert state.n_tokens == 5
    assert state.data[1] == digest_of(ids(5))


def test_one_state_serves_one_job_after_the_other():
    engine, shared, state = FakeEngine(), scheduler(), new_state()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shared.run([Job(ids(300), "none", state)], engine), range(8)))
    assert state.n_tokens == 2400
    assert state.data[1] == digest_of(np.concatenate([ids(300)] * 8))


def test_several_begin_from_one_state_together():
    engine, shared, source = FakeEngine(), scheduler(), new_state()
    shared.run([Job(ids(9), "none", source)], engine)
    jobs = [Job(ids(n), "last", new_state(), fresh=True, source=source) for n in (3, 4, 5)]
    shared.run(jobs, engine)
    assert engine.passes[-1] == [3, 4, 5]
    assert [job.state.n_tokens for job in jobs] == [12, 13, 14]
    assert [job.state.data[1] for job in jobs] == [digest_of([*ids(9), *ids(n)]) for n in (3, 4, 5)]
    assert source.n_tokens == 9


def test_cancelling_one_call_costs_the_others_nothing_but_time():
    engine, shared, token = FakeEngine(), scheduler(), CancelToken()
    held_passes(engine, shared, 2)
    inner = engine.gate

    def gate() -> None:
        assert inner is not None
        inner()
        if len(engine.passes) == 2:
            token.cancel()

    engine.gate = gate
    states = [new_state() for _ in range(3)]
    caught: list[Cancelled] = []

    def run(i: int) -> None:
        try:
            shared.run([Job(ids(400, i), "last", states[i])], engine, cancel=token if i == 1 else None)
        except Cancelled as error:
            caught.append(error)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    assert len(caught) == 1
    assert caught[0].n_done == states[1].n_tokens < 400
    assert states[1].data[1] == digest_of(ids(400, 1)[: states[1].n_tokens])
    for i in (0, 2):
        assert states[i].data[1] == digest_of(ids(400, i))


def test_a_call_that_waits_for_the_pass_of_others_is_cancelled_at_once():
    engine, runner = FakeEngine(), scheduler()
    begun, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        begun.set()
        assert go_on.wait(60)

    engine.gate = gate
    token, state = CancelToken(), new_state()
    with ThreadPoolExecutor() as pool:
        other = Job(ids(PASS_TOKENS), "last", new_state())
        long = pool.submit(runner.run, [other], engine)
        assert begun.wait(60)
        waiting = pool.submit(runner.run, [Job(ids(1), "last", state)], engine, cancel=token)
        with runner._arrivals:
            assert runner._arrivals.wait_for(lambda: len(runner._queue) == 2, 60)
        token.cancel()
        try:
            with pytest.raises(Cancelled) as error:  # while the other's pass is under way
                waiting.result(20)
        finally:
            go_on.set()
        long.result(60)
    assert (error.value.n_done, state.n_tokens, other.state.n_tokens) == (0, 0, PASS_TOKENS)
    assert engine.passes == [[PASS_TOKENS]]


def test_a_token_cancelled_before_stops_a_call_before_it_begins():
    engine, token = FakeEngine(), CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        scheduler().run([Job(ids(3), "last", new_state())], engine, cancel=token)
    assert not engine.passes


def test_only_the_guilty_gets_the_error():
    engine, shared = FakeEngine(), scheduler()
    held_passes(engine, shared, 3)
    guilty = 2

    def run(i: int) -> object:
        state = new_state()
        tokens = np.array([1, BAD, 2], np.uint32) if i == guilty else ids(3, i)
        try:
            shared.run([Job(tokens, "last", state)], engine)
        except NonFiniteError as error:
            assert state.n_tokens == 0
            return error
        return state.data[1] == digest_of(tokens)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert isinstance(found.pop(guilty), NonFiniteError)
    assert found == [True] * 3


def test_an_error_in_a_progress_callback_ends_its_own_call_only():
    engine, shared = FakeEngine(), scheduler()
    held_passes(engine, shared, 1)

    def fail(done: int, total: int) -> None:
        raise RuntimeError("enough")

    other = new_state()
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(shared.run, [Job(ids(900), "none", new_state())], engine, progress=fail)
        good = pool.submit(shared.run, [Job(ids(900, 1), "none", other)], engine)
        with pytest.raises(RuntimeError, match="enough"):
            bad.result(60)
        good.result(60)
    assert other.data[1] == digest_of(ids(900, 1))
    assert not shared._queue


def test_progress_is_told_on_the_calling_thread_and_never_goes_back():
    engine, shared = FakeEngine(), scheduler()

    def run(i: int) -> None:
        seen: list[tuple[int, int]] = []
        me = threading.get_ident()

        def progress(done: int, total: int) -> None:
            assert threading.get_ident() == me
            seen.append((done, total))

        shared.run([Job(ids(1000 + i), "none", new_state())], engine, progress=progress)
        assert seen == sorted(set(seen))
        assert seen[-1] == (1000 + i, 1000 + i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def test_closing_ends_calls_under_way_with_valid_states():
    engine, shared = FakeEngine(), scheduler()
    running = threading.Event()
    held_passes(engine, shared, 1)
    inner = engine.gate

    def gate() -> None:
        assert inner is not None
        inner()
        running.set()

    engine.gate = gate
    states = [new_state(), new_state()]

    def run(i: int) -> bool:
        try:
            while True:
                shared.run([Job(ids(PASS_TOKENS * 50), "none", states[i])], engine)
        except ModelClosedError:
            return True

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(run, i) for i in range(2)]
        assert running.wait(60)
        shared.close(lambda: ModelClosedError("closed"))
        assert [f.result(60) for f in found] == [True, True]
    for state in states:
        assert state.data[0] == state.n_tokens
    with pytest.raises(ModelClosedError):
        shared.run([Job(ids(1), "none", new_state())], engine)


# ------------------------------------------------------------------------------------------ real models


@pytest.fixture(scope="module")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=2) as model:
        yield model


def test_many_threads_get_the_bits_they_get_alone(demo: Model):
    def decode(i: int) -> list[bytes]:
        state = demo.new_state()
        found = [demo.advance(np.arange(40 * i + 5) % 300, state)]
        for step in range(25):
            found.append(demo.advance([(int(found[-1].argmax()) + i * step) % 300], state))
        found.append(state.data)
        return [array.tobytes() for array in found]

    alone = [decode(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, range(8))) == alone


def test_threads_decoding_at_once_share_passes(demo: Model):
    steps, n = 100, 6
    ready = threading.Barrier(n)

    def decode(_: int) -> None:
        state = demo.new_state()
        ready.wait()
        for _ in range(steps):
            demo.advance([5], state)

    before = demo._scheduler._n_passes
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(decode, range(n)))
    assert demo._scheduler._n_passes - before < steps * n / 2


def test_ctrl_c_ends_a_pass_in_the_middle_without_a_token(make_rwkv, tmp_path: Path):
    """In a process of its own. A whole pass takes seconds here; the state shows that none was finished."""
    path = make_rwkv(format="f32", n_layer=8, n_embd=512)
    code = f"""
import os, signal, threading
from rwkv_cpu import Model
model = Model({str(path)!r}, isa="scalar", threads=1)
state = model.new_state()
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    model.advance([5] * 256, state, logits="none")
except KeyboardInterrupt:
    print("stopped", state.n_tokens)
print(model.advance([5], state).shape, state.n_tokens)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "stopped 0\n(256,) 1\n", "")
