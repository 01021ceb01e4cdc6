# SPDX-License-Identifier: Apache-2.0
"""Thoughts are told from answers, shown, and left out of what the model reads later."""

from __future__ import annotations

import pytest

from rwkv_cpu.chat import Chat
from rwkv_cpu.chat.thoughts import THINK_MODES, Piece, ThoughtSplitter
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.sampling import SamplingParams
from tests.unit.chat.test_conversation import seen_at_next_message

GREEDY = SamplingParams(temperature=0.0)


def parts(text, lead="", size=10**9):
    splitter = ThoughtSplitter(lead)
    pieces = []
    for at in range(0, len(text), size):
        pieces += splitter.feed(text[at : at + size])
    pieces += splitter.flush()
    return tuple("".join(p.text for p in pieces if p.is_thought == kind) for kind in (True, False))


CASES = [
    ("", " Hello.", ("", " Hello.")),
    ("", "<think>a\n\nb</think>\nHello.", ("a\n\nb", "\nHello.")),
    ("", " \n<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
    ("", "<thin ice", ("", "<thin ice")),
    ("", "<think", ("", "<think")),
    ("<think", ">a</think>\nb", ("a", "\nb")),
    ("<think", ">a</thin</think>b", ("a</thin", "b")),
    ("<think", ">never ends </th", ("never ends </th", "")),
    ("<think></think", ">\nb", ("", "\nb")),
    ("<think></think", "\nb", ("", "\nb")),
    ("<think></think", "", ("", "")),
    ("<think", ">x</think", ("x", "")),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(("lead", "text", "expected"), CASES)
def test_thought_and_answer_are_told_apart_however_they_come(lead, text, expected, size):
    assert parts(text, lead, size) == expected


SCRIPT = {
    "plain": " Yes.\n\nUser: x",
    "thinks": " <think>Hm.\n\nAh.</think>\nYes.\n\nUser: x",
    "only thinks": " <think>Hm.",
}


def chat_with(fake_model, **options):
    return Chat(fake_model(SCRIPT, "world"), params=GREEDY, **options)


def test_a_thought_is_part_of_the_turn_and_not_of_what_is_read_later(fake_model):
    chat = chat_with(fake_model, think="on")
    chat.send("plain", think="").read()
    answer = chat.send("thinks")
    pieces = list(answer.pieces())
    assert "".join(p.text for p in pieces if p.is_thought).strip() == answer.thought == "Hm.\n\nAh."
    assert "".join(p.text for p in pieces if not p.is_thought) == answer.text == "Yes."
    assert (chat.turns[1].text, chat.turns[1].thought) == ("Yes.", "Hm.\n\nAh.")
    expected = "User: plain\n\nAssistant: Yes.\n\nUser: thinks\n\nAssistant: Yes.\n\nUser: probe\n\nAssistant:"
    chat.think = ""
    assert seen_at_next_message(chat) == expected


def test_many_thinking_turns_are_read_once_more_and_not_all_over(fake_model):
    chat = chat_with(fake_model, think="on")
    for _ in range(20):
        chat.send("thinks").read()
    before = chat.model.computed
    chat.send("thinks").read()
    assert chat.model.computed - before < 120
    chat.undo(10)
    before = chat.model.computed
    chat.send("thinks").read()
    assert chat.model.computed - before < 120
    chat.think = ""
    turn = "User: thinks\n\nAssistant: Yes.\n\n"
    assert seen_at_next_message(chat) == turn * 12 + "User: probe\n\nAssistant:"


def test_a_thought_without_an_answer_is_a_turn_without_text(fake_model):
    chat = chat_with(fake_model)
    assert chat.send("only thinks").read() == ""
    assert chat.turns[0].thought == "Hm."
    assert seen_at_next_message(chat) == "User: only thinks\n\nAssistant:\n\nUser: probe\n\nAssistant:"


@pytest.mark.parametrize(
    ("mode", "prompt"),
    [
        ("", "User: x\n\nAssistant:"),
        ("off", "User: x\n\nAssistant: <think></think"),
        ("short", "User: x (think a bit)\n\nAssistant: <think"),
        ("on", "User: x\n\nAssistant: <think"),
        ("long", "User: x (think a lot)\n\nAssistant: <think"),
    ],
)
def test_modes_write_what_the_models_were_trained_on(fake_model, mode, prompt):
    chat = chat_with(fake_model)
    assert chat.model.tokenizer.decode(chat.history.goal("x", mode).ids) == prompt
    assert mode in THINK_MODES


def test_unknown_modes_and_templates_without_them_are_told(fake_model):
    chat = chat_with(fake_model)
    with pytest.raises(ArgumentError, match="no think mode"):
        chat.think = "hard"
    with pytest.raises(ArgumentError, match="no think mode"):
        chat.send("x", think="hard")
    chat.send("plain").read()
    with pytest.raises(ArgumentError):
        Chat(fake_model(SCRIPT, "raw"), think="on")


def test_a_blank_line_in_a_thought_does_not_end_the_answer(fake_model):
    chat = Chat(fake_model({"x": " <think>One.\n\nTwo.</think>Yes."}, "world-paragraph"), params=GREEDY, think="on")
    answer = chat.send("x")
    assert (answer.read(), answer.thought) == ("Yes.", "One.\n\nTwo.")


def test_thoughts_are_saved(fake_model, tmp_path):
    chat = chat_with(fake_model, think="on")
    chat.send("thinks").read()
    chat.save(tmp_path / "talk.json")
    loaded = Chat.load(tmp_path / "talk.json", chat.model)
    assert (loaded.think, loaded.turns[0].thought) == ("on", "Hm.\n\nAh.")
    loaded.think = chat.think = ""
    assert seen_at_next_message(loaded) == seen_at_next_message(chat)
    assert Piece("x", is_thought=True).is_thought
