# SPDX-License-Identifier: Apache-2.0
"""Threads and priority that change while a model is in use: who computes, at which nice value, with the same bits."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import rwkv_cpu
from rwkv_cpu import CancelToken, Model, engine
from rwkv_cpu.errors import ArgumentError, Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nice values of threads are Linux's")
PROMPT = [(i * 31 + 7) % 1000 for i in range(600)]


@pytest.fixture
def model(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=2) as opened:
        yield opened


def threads_of_process() -> dict[int, tuple[int, int]]:
    """Nice value and processor time in ticks of each."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found[int(task.name)] = (int(fields[16]), int(fields[11]) + int(fields[12]))
    return found


def niceness() -> dict[int, int]:
    """Of each thread of this process."""
    return {thread: nice for thread, (nice, _) in threads_of_process().items()}


def niceness_during(model: Model, others: set[int]) -> tuple[set[int], set[int]]:
    """Nice values of the threads that compute for a forward's sake, and of those that called and watched.

    The highest that was seen: a thread begins with the priority of its maker and lowers it first of all. One that was
    only seen before it had done anything does not count.
    """
    seen: dict[int, int] = {}
    computed: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for thread, (nice, ticks) in threads_of_process().items():
                seen[thread] = max(nice, seen.get(thread, -20))
                if ticks > 0:
                    computed.add(thread)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(6):
            model.forward(PROMPT, logits="none")
    finally:
        stop.set()
        watcher.join()
    hosts = {threading.get_native_id(), watcher.native_id}
    return {n for t, n in seen.items() if t in computed - hosts - others}, {seen[t] for t in seen if t in hosts}


@linux
def test_all_that_is_computed_is_computed_at_low_priority_and_the_host_keeps_its_own(demo_path: Path) -> None:
    base, there = os.getpriority(os.PRIO_PROCESS, 0), set(niceness())
    with Model.load(demo_path, threads=2, low_priority=True) as model:
        lowered, hosts = niceness_during(model, there)
        assert lowered == {min(base + 10, 19)}
        assert hosts == {base}
        model.low_priority = False
        model.forward([1])
        while set(niceness().values()) != {base}:  # the last leader is ending
            model.forward([1])
        others, hosts = niceness_during(model, there)
        assert others | hosts == {base}
    assert os.getpriority(os.PRIO_PROCESS, 0) == base


def test_priority_and_threads_change_no_bit(model: Model) -> None:
    expected = model.forward(PROMPT)[0]
    for threads, low in ((1, False), (3, True), (None, True), (2, False)):
        model.threads, model.low_priority = threads, low
        assert np.array_equal(model.forward(PROMPT)[0], expected)
        assert model.context.threads == model.threads == (threads or engine.default_threads())
        assert model.low_priority is low


def test_threads_may_be_set_in_the_middle_of_a_prompt(model: Model) -> None:
    expected = model.forward(PROMPT)[0]
    used: list[int] = []

    def change(done: int, _total: int) -> None:
        used.append(model.context.threads)
        model.threads = 1 + done % 3
        model.low_priority = not model.low_priority

    assert np.array_equal(model.forward(PROMPT, progress=change)[0], expected)
    assert len(set(used)) > 1


def test_a_pass_of_low_priority_can_be_cancelled(model: Model) -> None:
    model.low_priority = True
    token = CancelToken()
    with pytest.raises(Cancelled):
        model.forward(PROMPT, cancel=token, progress=lambda *_: token.cancel())
    assert np.isfinite(model.forward(PROMPT)[0]).all()


def test_absurd_numbers_are_refused_when_they_are_set(model: Model) -> None:
    for threads in (0, -1, 100_000):
        with pytest.raises(ArgumentError):
            model.threads = threads
        with pytest.raises(ArgumentError):
            rwkv_cpu.set_default_threads(threads)
    assert model.threads == 2


def test_an_embedded_model_leaves_the_window_a_core(demo_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for cores, expected in ((8, 7), (2, 1), (1, 1)):
            rwkv_cpu.set_default_threads(cores)
            with Model.load(demo_path, embedded=True) as model:
                assert model.threads == expected
            with Model.load(demo_path) as model:
                assert model.threads == cores
        with Model.load(demo_path, embedded=True, threads=3) as model:
            assert model.threads == 3
    finally:
        rwkv_cpu.set_default_threads(None)
    assert engine.default_threads() == engine.lib.rwkvc_default_threads()
