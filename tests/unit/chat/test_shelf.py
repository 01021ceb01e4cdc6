# SPDX-License-Identifier: Apache-2.0
"""States of a conversation in memory and in files, while Python's garbage collector forgets some of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import Model
from rwkv_cpu.chat.shelf import StateShelf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Forgetful(OrderedDict):
    """Whoever looks through it collects garbage on the way: the first key is gone afterwards."""

    shelf: StateShelf

    def __iter__(self) -> Iterator[int]:
        keys = list(super().__iter__())
        if len(keys) > 1:
            self.shelf.forget(keys[0])
        return iter(keys)


@pytest.fixture
def demo(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=1) as model:
        yield model


def test_states_may_be_forgotten_while_room_is_made(demo: Model, tmp_path: Path) -> None:
    shelf = StateShelf(0, demo.state_bytes, demo.load_state, folder=tmp_path, max_disk_bytes=10 * demo.state_bytes)
    shelf._memory = Forgetful()
    shelf._memory.shelf = shelf
    slots = [shelf.put(demo.new_state()) for _ in range(8)]
    assert 0 < shelf.in_memory < 8
    assert slots[-1].get() is not None


def test_files_may_be_forgotten_while_room_is_made(demo: Model, tmp_path: Path) -> None:
    shelf = StateShelf(0, demo.state_bytes, demo.load_state, folder=tmp_path, max_disk_bytes=3 * demo.state_bytes)
    shelf._files = Forgetful()
    shelf._files.shelf = shelf
    slots = [shelf.put(demo.new_state()) for _ in range(12)]
    assert len(list(tmp_path.iterdir())) <= 12
    assert slots[-1].get() is not None
