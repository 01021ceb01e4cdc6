# SPDX-License-Identifier: Apache-2.0
"""Saving a conversation replaces conversations only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import Chat, Model
from rwkv_cpu.errors import ArgumentError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def chat(demo_path: Path) -> Iterator[Chat]:
    with Model(demo_path) as model:
        chat = model.chat()
        for _ in chat.send("Hello!"):
            pass
        yield chat


def test_other_files_are_not_replaced(chat: Chat, tmp_path: Path) -> None:
    model = tmp_path / "mine.rwkv"
    model.write_bytes(b"weights")
    with pytest.raises(ArgumentError, match="no conversation"):
        chat.save(model)
    assert model.read_bytes() == b"weights"
    state = tmp_path / "talk.json.state"
    state.write_text("precious")
    with pytest.raises(ArgumentError, match="in the way"):
        chat.save(tmp_path / "talk.json")
    assert state.read_text() == "precious"
    for place in ("/", tmp_path):
        with pytest.raises(ArgumentError, match="directory"):
            chat.save(place)


def test_a_conversation_is_replaced_by_itself(chat: Chat, tmp_path: Path) -> None:
    chat.save(tmp_path / "talk.json")
    chat.save(tmp_path / "talk.json")
    assert len(Chat.load(tmp_path / "talk.json", chat.model).turns) == 1


def test_what_never_ends_is_not_read(chat: Chat) -> None:
    with pytest.raises(FormatError, match="ordinary"):
        Chat.load("/dev/zero", chat.model)
