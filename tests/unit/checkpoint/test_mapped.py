# SPDX-License-Identifier: Apache-2.0
"""Pages of a mapped checkpoint, as the system counts them."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_cpu.checkpoint import mapped

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/smaps is Linux")
PART = 4 << 20  # twice a huge page, in which the system may map the file


def mapping(path: Path) -> tuple[int, list[str]]:
    """Resident bytes and flags of the mapping of *path*."""
    _, _, rest = Path("/proc/self/smaps").read_text("utf-8").partition(f" {path}\n")
    fields = dict(line.split(":", 1) for line in rest.split("VmFlags:")[0].splitlines())
    return int(fields["Rss"].split()[0]) * 1024, rest.split("VmFlags:")[1].splitlines()[0].split()


def test_what_was_read_long_ago_is_given_back_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_HELD_BYTES", 2 * PART)
    path = tmp_path / "weights"
    values = np.arange(10 * PART, dtype=np.uint32).astype(np.uint8)
    path.write_bytes(values.tobytes())
    file = mapped.MappedFile(path)
    parts = []
    for begin in range(0, len(values), PART):
        parts.append(file.array(np.dtype(np.uint8), PART, begin))
        assert parts[-1].sum() == values[begin : begin + PART].sum()
        assert mapping(path)[0] < 5 * PART  # of ten
    assert np.array_equal(np.concatenate(parts), values)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this system has no transparent huge pages"
)
def test_huge_pages_are_allowed_once_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(mmap.PAGESIZE))
    file = mapped.MappedFile(path)
    assert "hg" not in mapping(path)[1]
    assert file.array(np.dtype(np.uint8), 8, 0).sum() == 0
    assert "hg" in mapping(path)[1]
    file.close()
