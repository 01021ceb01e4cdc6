# SPDX-License-Identifier: Apache-2.0
"""How many threads are the default: sysfs and cgroups as trees of files, affinity by the real call; and idle ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from tests.random_model import build, usual_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sysfs and cgroups are Linux's")


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def siblings(root: Path, cpus: dict[int, str], name: str = "core_cpus_list") -> None:
    for cpu, listed in cpus.items():
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/{name}", listed)


@pytest.fixture
def count(inner: Any, tmp_path: Path) -> Callable[..., int]:
    def counted(*allowed: int, n_cpus: int = 16) -> int:
        mask = bytearray(n_cpus)
        for cpu in allowed:
            mask[cpu] = 1
        return int(
            inner.lib.rwkvc_count_cores(str(tmp_path).encode(), inner.ffi.from_buffer("uint8_t[]", mask), n_cpus)
        )

    return counted


def test_hardware_threads_all_count_within_the_quota(inner: Any, tmp_path: Path) -> None:
    mask = inner.ffi.new("uint8_t[8]", [1] * 6 + [0] * 2)
    siblings(tmp_path, {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    root = str(tmp_path).encode()
    assert inner.lib.rwkvc_count_cpus(root, mask, 8) == 6
    write(tmp_path, "proc/self/cgroup", "0::/a/b")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "300000 100000")
    assert inner.lib.rwkvc_count_cpus(root, mask, 8) == 3


def test_without_any_tree_every_cpu_is_a_core(count: Callable[..., int]) -> None:
    assert count(0, 1, 2) == 3
    assert count() == 1


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_threads_of_a_core_count_once(count: Callable[..., int], tmp_path: Path, name: str) -> None:
    siblings(tmp_path, {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}, name)
    assert count(*range(8)) == 4
    assert count(0, 4) == 1
    assert count(0, 5) == 2
    assert count(4, 5, 6, 7) == 4, "the other thread of each core is not ours: these are four cores all the same"


def test_hybrid_cores_all_count(count: Callable[..., int], tmp_path: Path) -> None:
    """Two fast cores with two threads each, four slow ones with one; ranges instead of commas."""
    siblings(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", **{cpu: str(cpu) for cpu in range(4, 8)}})
    assert count(*range(8)) == 6


def test_damaged_lists_are_cores_of_their_own(count: Callable[..., int], tmp_path: Path) -> None:
    siblings(tmp_path, {0: "", 1: "x", 2: "7-", 3: "99999999999"})
    assert count(0, 1, 2, 3) == 4


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_quota_of_cgroup_v2(count: Callable[..., int], tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", quota)
    assert count(*range(8)) == cores


def test_the_tightest_quota_above_counts(count: Callable[..., int], tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b/c")
    write(tmp_path, "sys/fs/cgroup/a/b/c/cpu.max", "600000 100000")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "300000 100000")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "500000 100000")
    assert count(*range(8)) == 3


def test_in_a_container_the_groups_own_path_may_not_exist(count: Callable[..., int], tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/docker/0123456789abcdef")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "200000 100000")
    assert count(*range(8)) == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("group", ["/", "/lxc/box"])
def test_quota_of_cgroup_v1(count: Callable[..., int], tmp_path: Path, mount: str, group: str) -> None:
    write(tmp_path, "proc/self/cgroup", f"7:cpuset:/\n4:cpu,cpuacct:{group}\n1:name=systemd:/x\n0::/")
    write(tmp_path, f"sys/fs/cgroup/{mount}{group}/cpu.cfs_quota_us", "300000")
    write(tmp_path, f"sys/fs/cgroup/{mount}{group}/cpu.cfs_period_us", "100000")
    assert count(*range(8)) == 3


def test_no_quota_in_cgroup_v1_and_other_controllers_files(count: Callable[..., int], tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:cpu,cpuacct:/\n3:cpuset:/\nnonsense")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    write(tmp_path, "sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "100000")
    write(tmp_path, "sys/fs/cgroup/cpuset/cpu.cfs_period_us", "100000")
    assert count(*range(8)) == 8


@linux
def test_affinity_is_respected() -> None:
    cpu = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{cpu}}})\n"
        "from rwkv_cpu import Model, engine\n"
        "print(engine.default_threads(), Model.load('demo').threads)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1"]


def test_default_is_at_most_the_cpus_there_are() -> None:
    assert 1 <= engine.default_threads() <= (os.cpu_count() or 1)


def test_idle_threads_use_no_cpu_time(demo_path: Path) -> None:
    """Workers spin for some microseconds after a call, then sleep."""
    with Model(demo_path, threads=4) as model:
        state = model.forward(list(range(1, 40)))[1]
        model.forward([1], state)
        time.sleep(0.05)
        before = time.process_time()  # of all threads
        time.sleep(1.0)
        assert time.process_time() - before < 0.02


def test_scratch_is_bounded_by_the_chunk_not_by_the_prompt() -> None:
    model = engine.OpenModel(build(np.random.default_rng(0), usual_config(engine.lib.RWKVC_RWKV7), "q8"))
    held = {}
    for chunk in (16, 64):
        context = engine.Context(2, None, chunk)
        for length in (chunk, 10 * chunk + 3):
            ids = np.arange(length, dtype=np.uint32) % 100
            context.forward(model, [engine.SequenceRun(ids, None, np.empty(model.state_floats, np.float32))])
            held[chunk, length > chunk] = context.scratch_bytes
        context.close()
    model.close()
    state_bytes = model.state_floats * 4
    for chunk in (16, 64):  # a prompt of several chunks keeps a shadow of the state beside
        assert 0 < held[chunk, False] <= held[chunk, True] <= held[chunk, False] + state_bytes
    assert held[64, False] > 2 * held[16, False]
