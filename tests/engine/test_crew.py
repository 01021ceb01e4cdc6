# SPDX-License-Identifier: Apache-2.0
"""How many threads take part beside other work (src/threads/crew.h), on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

REGION = 0.1e-3  # seconds of a region in which nobody waits
SLICE = 3e-3  # that a thread is put aside for


class Machine:
    """A pool's caller on a machine with room for `cores` threads: one more is put aside again and again."""

    def __init__(self, inner: Any, threads: int, cores: int) -> None:
        self.lib = inner.lib
        self.crew = inner.ffi.new("rwkvc_crew *")
        self.lib.rwkvc_crew_start(self.crew, threads)
        self.cores = cores
        self.now = 1000.0
        self.since_put_aside = 0.0

    def run(self, seconds: float) -> float:
        """The share of the time that was waited away."""
        end, waited, begin = self.now + seconds, 0.0, self.now
        while self.now < end:
            self.lib.rwkvc_crew_retry(self.crew, self.now)
            began, worked = self.now, self.now + REGION
            self.now = worked
            self.since_put_aside += REGION
            if self.crew.active > self.cores and self.since_put_aside > SLICE:
                self.now += SLICE
                waited += SLICE
                self.since_put_aside = 0.0
                self.lib.rwkvc_crew_waited(self.crew, began, worked, self.now)
        return waited / (self.now - begin)


@pytest.mark.parametrize("threads", [2, 8, 64])
def test_all_take_part_on_a_machine_of_their_own(inner: Any, threads: int) -> None:
    machine = Machine(inner, threads, threads)
    assert machine.run(5) == 0
    assert machine.crew.active == threads


@pytest.mark.parametrize(("threads", "cores"), [(2, 1), (4, 3), (8, 2), (64, 40)])
def test_beside_other_work_threads_step_back_until_none_is_waited_for(inner: Any, threads: int, cores: int) -> None:
    machine = Machine(inner, threads, cores)
    machine.run(5)
    assert cores <= machine.crew.active <= cores + 1
    assert machine.run(20) < 0.03, "one more is tried ever more seldom"


def test_when_the_other_work_ends_all_take_part_again(inner: Any) -> None:
    machine = Machine(inner, 4, 1)
    machine.run(30)
    assert machine.crew.active <= 2
    machine.cores = 4
    machine.run(12)
    assert machine.crew.active == 4


def test_one_mishap_and_ordinary_waiting_change_nothing(inner: Any) -> None:
    """A last item as long as the caller's own share, and a thread put aside for 20 ms twice a second."""
    machine = Machine(inner, 2, 2)
    for _ in range(10_000):
        began = machine.now
        machine.lib.rwkvc_crew_waited(machine.crew, began, began + 1e-3, began + 1.9e-3)
        machine.now = began + 2e-3
    for _ in range(20):
        began = machine.now
        machine.lib.rwkvc_crew_waited(machine.crew, began, began + REGION, began + 0.02)
        machine.now = began + 0.5
    assert machine.crew.active == 2
