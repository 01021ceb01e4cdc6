# SPDX-License-Identifier: Apache-2.0
"""Opening fails: nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_cpu import Model
from rwkv_cpu.errors import FormatError


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads the way Linux does")
def test_files_that_cannot_be_opened_leave_no_threads_and_no_descriptors(demo_path, tmp_path):
    data = bytearray(demo_path.read_bytes()[:-64])
    (tmp_path / "short.rwkv").write_bytes(data)
    data = bytearray(demo_path.read_bytes())
    table = int.from_bytes(data[:8], "little") + 8
    data[table : table + 64] = bytes(64)
    (tmp_path / "table.rwkv").write_bytes(data)

    def fail():
        for name in ("short.rwkv", "table.rwkv"):
            with pytest.raises(FormatError):
                Model(tmp_path / name, threads=3)

    def held():
        return [len(list(Path(folder).iterdir())) for folder in ("/proc/self/task", "/proc/self/fd")]

    fail()
    before = held()
    for _ in range(5):
        fail()
    assert held() == before
