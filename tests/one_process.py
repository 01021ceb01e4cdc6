# SPDX-License-Identifier: Apache-2.0
"""What the processes of pytest-xdist share: one of them makes it, the others wait."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """For one process at a time; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
