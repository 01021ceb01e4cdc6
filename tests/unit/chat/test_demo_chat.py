# SPDX-License-Identifier: Apache-2.0
"""Conversations with the bundled model: the state after undo, retry, save and load is the same to the bit."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from rwkv_cpu import CancelToken, Model
from rwkv_cpu.chat import Chat
from rwkv_cpu.chat.reading import read_goal
from rwkv_cpu.generation.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def model(demo_path):
    with Model.load(demo_path) as opened:
        yield opened


def conversations(shared):
    """The transcripts that came with the model: lists of (question, answer)."""
    text = (shared / "demo-model" / "transcripts.md").read_text(encoding="utf-8")
    found = []
    for part in re.split(r"^### \d+$", text, flags=re.MULTILINE)[1:]:
        questions = re.findall(r"^- User: (.*)$", part, flags=re.MULTILINE)
        answers = re.findall(r"^- Assistant: (.*)$", part, flags=re.MULTILINE)
        found.append(list(zip(questions, answers, strict=True)))
    return found


def test_the_demo_answers_as_in_its_transcripts(model, shared):
    same, total = 0, 0
    for conversation in conversations(shared):
        chat = Chat(model, params=GREEDY)
        for question, answer in conversation:
            total += 1
            same += chat.send(question).read() == answer
    assert total >= 80
    # The transcripts are of unquantised weights: q8 may choose another word where two are almost equally likely.
    assert same / total >= 0.95


def state_after(chat, text="And you?"):
    """The state in which the next message would be answered."""
    state, rest, _ = read_goal(chat.model, chat.history, None, chat.history.goal(text), None, None)
    chat.model.advance(rest, state, logits="none")
    return state.data.copy()


def test_the_state_is_that_of_the_templates_text_read_at_once(model):
    chat = Chat(model, system="You are Pip.", params=GREEDY)
    for message in ("Hello!", "My name is Ada.", "What is my name?"):
        chat.send(message).read()
    turns = "".join(f"User: {t.user}\n\nAssistant: {t.text}\n\n" for t in chat.turns)
    text = f"System: You are Pip.\n\n{turns}User: And you?\n\nAssistant:"
    _, state = model.forward(model.tokenizer.encode(text), logits="none")
    assert np.array_equal(state_after(chat), state.data)


def test_undo_and_retry_leave_no_trace(model):
    chat, plain = (Chat(model, params=GREEDY) for _ in range(2))
    for one in (chat, plain):
        one.send("Hello!").read()
    chat.send("My name is Ada.").read()
    chat.retry(temperature=1.0, top_p=1.0, seed=3).read()
    for _ in zip(range(3), chat.send("Tell me a story"), strict=False):
        pass
    chat.undo(2)
    assert np.array_equal(state_after(chat), state_after(plain))


def test_a_loaded_conversation_goes_on_to_the_bit(model, tmp_path):
    chat = Chat(model, params=SamplingParams(seed=11), max_tokens=40)
    for message in ("Hello!", "Tell me a story", "What is it about?"):
        chat.send(message).read()
    chat.save(tmp_path / "talk.json")
    loaded = Chat.load(tmp_path / "talk.json", model)
    assert np.array_equal(state_after(loaded), state_after(chat))


def test_a_long_conversation_is_loaded_without_reading_it_again(model, tmp_path):
    chat = Chat(model, params=GREEDY)
    for message in ("Hello! " * 200, "My name is Ada.", "What is my name?"):
        chat.send(message).read()
    path, state_path = tmp_path / "talk.json", tmp_path / "talk.json.state"
    chat.save(path)
    assert state_path.stat().st_mode & 0o077 == 0
    answer = Chat.load(path, model).send("What is my name?")
    assert answer.read() == chat.send("What is my name?").read()
    assert answer.stats.prompt_tokens < 20

    # A state that is damaged, another conversation's or gone costs time, and nothing else.
    chat.reset()
    chat.send("Goodbye! " * 200).read()
    chat.save(tmp_path / "other.json")
    saved = state_path.read_bytes()
    for data in (saved[:-1] + b"\1", (tmp_path / "other.json.state").read_bytes(), b"", None):
        state_path.unlink()
        if data is not None:
            state_path.write_bytes(data)
        again = Chat.load(path, model).send("What is my name?")
        assert again.read() == answer.text
        assert again.stats.prompt_tokens > 100
        if data is None:
            state_path.write_bytes(saved)

    # A conversation that became short leaves no state behind.
    chat.reset()
    chat.save(path)
    assert not state_path.exists()


def test_undo_needs_no_computation(model):
    chat = Chat(model, params=GREEDY)
    for message in ("Hello!", "My name is Ada.", "Tell me a story"):
        chat.send(message).read()
    chat.undo()
    assert chat.send("What is my name?").stats is None
    answer = chat.send("What is my name?")
    assert answer.read() == "Your name is Ada."
    assert answer.stats.prompt_tokens < 20


def test_many_chats_share_a_model(model):
    chats = [Chat(model, params=GREEDY) for _ in range(3)]
    for chat, name in zip(chats, ("Ada", "Zelda", "Gideon"), strict=True):
        chat.send(f"My name is {name}.").read()
    answers = [chat.send("What is my name?").read() for chat in chats]
    assert answers == ["Your name is Ada.", "Your name is Zelda.", "Your name is Gideon."]


def test_a_token_cancelled_from_another_thread_ends_the_answer(model):
    import threading

    chat = Chat(model, params=SamplingParams(temperature=1.0, top_p=1.0), stop=(), max_tokens=10**9)
    token = CancelToken()
    answer = chat.send("word " * 20000, cancel=token)
    threading.Timer(0.05, token.cancel).start()
    began = time.monotonic()
    answer.read()
    assert answer.finish_reason == "cancelled"
    assert time.monotonic() - began < 5  # reading it all takes longer; how much quicker is the engine's test
    assert chat.turns == ()
    assert chat.send("Hello!", temperature=0).read()


def test_drafts_and_dry_see_the_whole_conversation(model, monkeypatch):
    from rwkv_cpu.chat import answer

    seen = []

    def generate(model, state, prompt, params, **options):
        seen.append([*map(int, options["history"]), *prompt])
        return real(model, state, prompt, params, **options)

    real = answer.generate
    monkeypatch.setattr(answer, "generate", generate)
    chat = Chat(model, "Be brief.", temperature=0, max_tokens=12)
    for message in ("What is the sun?", "Say it again, please. " * 20, "And again."):
        chat.send(message).read()
    for ids in seen:
        assert model.tokenizer.decode(ids).startswith("System: Be brief.\n\nUser: What is the sun?")
    assert model.tokenizer.decode(seen[-1]).endswith("User: And again.\n\nAssistant:")
    chat.undo(3)
    chat.send("Another.").read()
    assert "sun" not in model.tokenizer.decode(seen[-1])
