# SPDX-License-Identifier: Apache-2.0
"""Branches, and states beyond what memory has room for."""

from __future__ import annotations

import gc

import pytest

from rwkv_cpu import Model
from rwkv_cpu.chat import Chat
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.sampling import SamplingParams
from tests.unit.chat.test_conversation import SCRIPT, chat_with, seen_at_next_message

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path))
    return tmp_path


def users(chat):
    return [turn.user for turn in chat.turns]


def test_branches_go_on_where_they_were_left(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    chat.send("umlauts").read()
    chat.start_branch("other")
    chat.undo()
    chat.send("ends").read()
    assert chat.branches == {"other": 2, "main": 2}
    chat.switch("main")
    assert users(chat) == ["stops", "umlauts"]
    before = chat.model.computed
    assert "Grüße" in seen_at_next_message(chat)
    assert chat.model.computed - before < 60
    chat.switch("other")
    assert users(chat) == ["stops", "ends"]
    chat.switch("other")
    chat.delete_branch("main")
    assert chat.branches == {"other": 2}


def test_edit_can_keep_what_was(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    for message in ("stops", "long", "ends"):
        chat.send(message).read()
    with pytest.raises(ArgumentError):
        chat.edit(0, "ends", keep_as="main")
    chat.edit(1, "umlauts", keep_as="before").read()
    assert users(chat) == ["stops", "umlauts"]
    chat.switch("before")
    assert users(chat) == ["stops", "long", "ends"]


def test_a_cancelled_edit_makes_no_branch(fake_model):
    from rwkv_cpu import CancelToken

    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    cancel = CancelToken()
    cancel.cancel()
    chat.edit(0, "long", keep_as="before", cancel=cancel).read()
    assert (users(chat), chat.branches) == (["stops"], {"main": 1})


@pytest.mark.parametrize("name", ["", " ", "a\n", "x" * 65, "main"])
def test_names_of_branches_are_checked(fake_model, name):
    with pytest.raises(ArgumentError):
        chat_with(fake_model).start_branch(name)


def test_wrong_branches_are_named(fake_model):
    chat = chat_with(fake_model)
    for act in (chat.switch, chat.delete_branch):
        with pytest.raises(ArgumentError, match="no branch 'x'"):
            act("x")
    with pytest.raises(ArgumentError, match="current"):
        chat.delete_branch("main")


def test_states_go_to_disk_and_come_back_without_computing(fake_model, home):
    chat = chat_with(fake_model, SCRIPT, snapshot_bytes=0)
    for _ in range(12):
        chat.send("stops").read()
    assert len(list((home / "states").glob("*/*.spilled"))) >= 10
    assert chat.history.shelf.in_memory == 2
    plain = chat_with(fake_model, SCRIPT)
    for _ in range(2):
        plain.send("stops").read()
    chat.undo(10)
    before = chat.model.computed
    assert seen_at_next_message(chat) == seen_at_next_message(plain)
    assert chat.model.computed - before < 60
    del chat
    gc.collect()
    assert list((home / "states").iterdir()) == []


def test_without_disk_the_past_is_computed_again(fake_model, home):
    chat = chat_with(fake_model, SCRIPT, snapshot_bytes=0, disk_bytes=0)
    for _ in range(6):
        chat.send("stops").read()
    chat.undo(5)
    assert seen_at_next_message(chat).startswith("User: stops\n\nAssistant: Yes.\n\nUser: probe")
    assert not (home / "states").exists()


def test_disk_has_a_limit_too(fake_model, home):
    chat = chat_with(fake_model, SCRIPT, snapshot_bytes=0, disk_bytes=5000)  # five states
    for _ in range(40):
        chat.send("stops").read()
    assert len(list((home / "states").glob("*/*.spilled"))) <= 5
    chat.undo(39)
    assert seen_at_next_message(chat).startswith("User: stops\n\nAssistant: Yes.\n\nUser: probe")


def test_what_a_killed_process_left_is_removed(fake_model, home):
    left = home / "states" / "999999999-abcd"
    left.mkdir(parents=True)
    (left / "1.spilled").write_text("x")
    chat = chat_with(fake_model, SCRIPT, snapshot_bytes=0)
    for _ in range(4):
        chat.send("stops").read()
    assert not left.exists()


def test_a_spilled_state_is_the_same_to_the_bit(demo_path):
    with Model.load(demo_path) as model:
        chats = [Chat(model, params=GREEDY, snapshot_bytes=size) for size in (0, 10**9)]
        answers = []
        for chat in chats:
            for message in ("Hello!", "My name is Ada.", "Tell me a story", "And now?", "Goodbye."):
                chat.send(message).read()
            chat.undo(3)
            answers.append(chat.send("What is my name?").read())
        assert answers == ["Your name is Ada."] * 2


def test_a_long_system_text_is_not_read_again_after_reset_or_undo(demo_path):
    with Model.load(demo_path) as model:
        chat = Chat(model, "You are Pip. " * 40, params=GREEDY)
        first = chat.send("Hello!")
        text = first.read()
        assert first.stats.prompt_tokens > 100
        for back in (chat.reset, chat.undo):
            back()
            again = chat.send("Hello!")
            assert again.read() == text
            assert again.stats.prompt_tokens < 20
