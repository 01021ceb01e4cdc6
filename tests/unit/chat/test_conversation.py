# SPDX-License-Identifier: Apache-2.0
"""Conversations on a scripted model whose state is the ids it read: what the model has seen is checked exactly."""

from __future__ import annotations

import json
import threading

import pytest

from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.chat import Chat, ChatTemplate
from rwkv_cpu.errors import ArgumentError, Busy, FormatError
from rwkv_cpu.generation.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def chat_with(fake_model, script=None, template="world", **kwargs):
    return Chat(fake_model(script, template), params=GREEDY, **kwargs)


def seen_at_next_message(chat, text="probe"):
    """The text the model has read when it begins to answer *text* next."""
    states = []
    advance = chat.model.advance

    def spy(tokens, state, **kwargs):
        result = advance(tokens, state, **kwargs)
        states.append(list(state.ids))
        return result

    chat.model.advance = spy
    twin = chat.fork()
    twin.send(text).read()
    chat.model.advance = advance
    ends = [i for i in states if chat.model.tokenizer.decode(i).endswith("Assistant:")]
    return chat.model.tokenizer.decode(ends[0])


def ids_at_next_message(chat, text="probe"):
    seen = seen_at_next_message(chat, text)
    return chat.model.tokenizer.encode(seen)


SCRIPT = {
    "stops": " Yes.\n\nUser: and I go on",
    "ends": " All done.",
    "ends with a blank line": " Fine.\n\n",
    "ends with a line": " Fine.\n",
    "paragraphs": " One.\n\nTwo.\n\nUser: x",
    "no space": "Bare.\n\nUser: x",
    "nothing": "\n\nUser: x",
    "umlauts": " Schöne Grüße.\n\nUser: x",
    "long": " " + "word " * 50 + "\n\nUser: x",
}


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("stops", "Yes."),
        ("ends", "All done."),
        ("ends with a blank line", "Fine."),
        ("ends with a line", "Fine."),
        ("paragraphs", "One.\n\nTwo."),
        ("umlauts", "Schöne Grüße."),
        ("long", ("word " * 50).strip()),
    ],
)
def test_after_any_ending_the_model_has_read_exactly_the_template(fake_model, message, answer):
    chat = chat_with(fake_model, SCRIPT, system="Be brief.")
    reply = chat.send(message)
    pieces = list(reply)
    assert "".join(pieces) == reply.text == answer == chat.turns[-1].text
    assert reply.finish_reason == chat.turns[-1].finish_reason in ("stop", "end")
    expected = f"System: Be brief.\n\nUser: {message}\n\nAssistant: {answer}\n\nUser: probe\n\nAssistant:"
    assert seen_at_next_message(chat) == expected


def test_an_answer_without_its_space_stays_as_the_model_wrote_it(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    assert chat.send("no space").read() == "Bare."
    assert seen_at_next_message(chat) == "User: no space\n\nAssistant:Bare.\n\nUser: probe\n\nAssistant:"


def test_an_empty_answer_is_a_turn(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    assert chat.send("nothing").read() == ""
    assert seen_at_next_message(chat) == "User: nothing\n\nAssistant:\n\nUser: probe\n\nAssistant:"


def test_paragraph_template_ends_at_the_first_blank_line(fake_model):
    chat = chat_with(fake_model, SCRIPT, template="world-paragraph")
    assert chat.send("paragraphs").read() == "One."
    assert seen_at_next_message(chat) == "User: paragraphs\n\nAssistant: One.\n\nUser: probe\n\nAssistant:"


def test_the_state_is_used_again_and_nothing_is_read_twice(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("long").read()
    chat.send("stops").read()
    before = chat.model.computed
    chat.send("stops").read()
    # The message and its answer, and no more.
    assert chat.model.computed - before < 60


def test_an_answer_that_ends_in_a_single_line_break_is_not_read_again(fake_model):
    chat = chat_with(fake_model, {"long line": " " + "word " * 100 + ".\n", "short": " Yes."})
    answer = chat.send("long line").read()
    before = chat.model.computed
    chat.send("short").read()
    assert chat.model.computed - before < 60
    expected = f"User: long line\n\nAssistant: {answer}\n\nUser: short\n\nAssistant: Yes.\n\nUser: probe\n\nAssistant:"
    assert seen_at_next_message(chat) == expected
    chat.undo()
    assert seen_at_next_message(chat) == f"User: long line\n\nAssistant: {answer}\n\nUser: probe\n\nAssistant:"


def test_user_text_is_cleaned_for_the_model_and_kept_for_people(fake_model):
    chat = chat_with(fake_model)
    chat.send(" a\r\n\r\nb ").read()
    assert chat.turns[0].user == " a\r\n\r\nb "
    assert seen_at_next_message(chat).startswith("User: a\nb\n\nAssistant:")


def test_undo_gives_the_conversation_before(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    before = seen_at_next_message(chat)
    chat.send("long").read()
    chat.send("ends").read()
    taken = chat.undo(2)
    assert [t.user for t in taken] == ["long", "ends"]
    computed = chat.model.computed
    chat.undo(0)
    assert chat.model.computed == computed
    assert seen_at_next_message(chat) == before
    with pytest.raises(ArgumentError):
        chat.undo(2)
    assert len(chat.turns) == 1


def test_retry_asks_the_same_again_from_the_same_state(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    chat.send("long").read()
    expected = seen_at_next_message(chat)
    assert chat.retry().read() == ("word " * 50).strip()
    assert [t.user for t in chat.turns] == ["stops", "long"]
    assert seen_at_next_message(chat) == expected


def test_retry_of_a_long_message_does_not_read_it_again(fake_model):
    message = "x" * 500
    chat = chat_with(fake_model, {message: " ok"})
    chat.send(message).read()
    before = chat.model.computed
    chat.retry().read()
    assert chat.model.computed - before < 10


def test_edit_goes_back_and_says_something_else(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    for message in ("stops", "long", "ends"):
        chat.send(message).read()
    chat.edit(1, "ends").read()
    assert [t.user for t in chat.turns] == ["stops", "ends"]
    expected = "User: stops\n\nAssistant: Yes.\n\nUser: ends\n\nAssistant: All done.\n\nUser: probe\n\nAssistant:"
    assert seen_at_next_message(chat) == expected
    with pytest.raises(ArgumentError):
        chat.edit(2, "x")


def test_snapshots_that_were_dropped_are_computed_again(fake_model):
    plain, tight = (chat_with(fake_model, SCRIPT, snapshot_bytes=n, disk_bytes=0) for n in (10**9, 0))
    for chat in (plain, tight):
        for message in ("stops", "long", "ends", "umlauts", "stops"):
            chat.send(message).read()
        chat.undo(4)
    assert seen_at_next_message(tight) == seen_at_next_message(plain)
    assert len(tight.history.shelf) <= 2


def test_a_fork_goes_its_own_way(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    twin = chat.fork()
    twin.send("ends").read()
    assert len(chat.turns) == 1
    assert len(twin.turns) == 2
    chat.undo()
    assert twin.turns[0].user == "stops"


def test_a_cancelled_answer_stays_as_far_as_it_went(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    cancel = CancelToken()
    reply = chat.send("long", cancel=cancel)
    for _ in range(12):
        next(reply)
    cancel.cancel()
    text = reply.read()
    assert reply.finish_reason == "cancelled"
    assert chat.turns[-1].text == text
    assert text.startswith("word word w")
    assert len(text) < 60
    assert seen_at_next_message(chat) == f"User: long\n\nAssistant: {text}\n\nUser: probe\n\nAssistant:"


def test_leaving_the_loop_early_keeps_what_was_said(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    for n, _ in enumerate(chat.send("long")):
        if n == 10:
            break
    assert chat.turns[-1].finish_reason == "cancelled"
    assert chat.send("ends").read() == "All done."


def test_cancelling_while_the_message_is_read_sends_nothing(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    cancel = CancelToken()

    def progress(done, total):
        if done > total // 2:
            cancel.cancel()

    message = "y" * 300
    reply = chat.send(message, cancel=cancel, on_progress=progress)
    assert list(reply) == []
    assert reply.finish_reason == "cancelled"
    assert len(chat.turns) == 1
    # What was read is not read again.
    before = chat.model.computed
    chat.send(message).read()
    assert len(chat.turns) == 2
    assert chat.turns[1].text.startswith("You said yyy")
    assert chat.model.computed - before < 600


def test_a_retry_cancelled_before_its_first_word_leaves_the_old_answer(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    cancel = CancelToken()
    cancel.cancel()
    assert chat.retry(cancel=cancel).read() == ""
    assert [t.text for t in chat.turns] == ["Yes."]


def test_a_failed_answer_leaves_the_conversation_as_it_was(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    seen = seen_at_next_message(chat)
    advance = chat.model.advance

    def broken(*args, **kwargs):
        raise MemoryError

    chat.model.advance = broken
    with pytest.raises(MemoryError):
        chat.retry().read()
    chat.model.advance = advance
    assert [t.text for t in chat.turns] == ["Yes."]
    assert seen_at_next_message(chat) == seen


def test_length_stops_and_says_so(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    reply = chat.send("long", max_tokens=7)
    assert reply.read() == "word w"
    assert reply.finish_reason == "length"
    assert len(reply.tokens) == 7
    assert seen_at_next_message(chat) == "User: long\n\nAssistant: word w\n\nUser: probe\n\nAssistant:"


def test_half_a_character_is_not_kept(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    reply = chat.send("umlauts", max_tokens=len(" Sch") + 1)
    assert "".join(reply) == "Sch"
    assert seen_at_next_message(chat) == "User: umlauts\n\nAssistant: Sch\n\nUser: probe\n\nAssistant:"


def test_a_second_question_at_once_is_busy_and_harms_nothing(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    reply = chat.send("long")
    next(reply)
    caught = []

    def other():
        for call in (lambda: chat.send("stops"), chat.undo, chat.retry, chat.reset, chat.fork):
            with pytest.raises(Busy) as busy:
                call()
            caught.append(busy.value)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(caught) == 5
    assert caught[0].hint
    assert reply.read() == ("word " * 50).strip()
    assert chat.send("ends").read() == "All done."


def test_an_answer_nobody_reads_does_not_lock_the_chat(fake_model):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops")
    reply = chat.send("stops")
    reply.close()
    reply.close()
    assert chat.turns == ()
    assert chat.send("ends").read() == "All done."


def test_wrong_settings_are_named(fake_model):
    chat = chat_with(fake_model)
    with pytest.raises(ArgumentError, match="tempereature"):
        chat.send("x", tempereature=1)
    for wrong in (
        {"max_tokens": 0},
        {"max_tokens": "9"},
        {"stop": ""},
        {"stop": [3]},
        {"temperature": -1},
        {"top_p": 2},
    ):
        with pytest.raises(ArgumentError):
            chat.send("x", **wrong)
    with pytest.raises(ArgumentError):
        chat.send("   ")
    assert chat.turns == ()
    assert chat.send("ends").read()


def test_the_same_seed_gives_the_same_conversation_and_retries_differ(fake_model):
    class Dice(fake_model):
        def advance(self, tokens, state, **kwargs):
            result = super().advance(tokens, state, **kwargs)
            if result is not None:
                result[:] = -30
                result[ord("a") : ord("z")] = 1
            return result

    def talk():
        chat = Chat(Dice(), params=SamplingParams(temperature=1.0, top_p=1.0, seed=7), max_tokens=20)
        return [chat.send("x").read(), chat.send("x").read(), chat.retry().read()]

    first = talk()
    assert first == talk()
    assert len(set(first)) == 3


def test_reset_begins_anew_with_the_same_system_text(fake_model):
    chat = chat_with(fake_model, SCRIPT, system="A.")
    chat.send("stops").read()
    chat.reset()
    assert chat.turns == ()
    assert seen_at_next_message(chat) == "System: A.\n\nUser: probe\n\nAssistant:"
    chat.reset("B.")
    assert seen_at_next_message(chat) == "System: B.\n\nUser: probe\n\nAssistant:"


def test_settings_may_be_given_by_name(fake_model):
    chat = Chat(fake_model(), temperature=0.5, top_k=3)
    assert (chat.params.temperature, chat.params.top_k) == (0.5, 3)
    with pytest.raises(ArgumentError):
        Chat(fake_model(), tempurature=1)


def test_a_template_brings_its_own_advice(fake_model):
    template = ChatTemplate(sampling={"temperature": 0.25, "max_tokens": 77})
    chat = Chat(fake_model(template=template.to_bytes().decode()))
    assert chat.params.temperature == 0.25
    assert chat.max_tokens == 77


def test_a_saved_conversation_goes_on_with_the_same_ids(fake_model, tmp_path):
    chat = chat_with(fake_model, SCRIPT, system="Be brief.", stop=["###"], max_tokens=99)
    chat.send("paragraphs").read()
    chat.send("long", max_tokens=9).read()
    path = tmp_path / "talk.json"
    chat.save(path)
    loaded = Chat.load(path, chat.model)
    assert [(t.user, t.text, t.finish_reason) for t in loaded.turns] == [
        (t.user, t.text, t.finish_reason) for t in chat.turns
    ]
    assert (loaded.params, loaded.stop, loaded.max_tokens, loaded.system) == (chat.params, ("###",), 99, "Be brief.")
    assert seen_at_next_message(loaded) == seen_at_next_message(chat)
    loaded.undo()
    chat.undo()
    assert seen_at_next_message(loaded) == seen_at_next_message(chat)
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


def test_a_conversation_moves_to_a_model_of_another_vocabulary(fake_model, tmp_path):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("paragraphs").read()
    chat.save(tmp_path / "talk.json")
    other = fake_model(SCRIPT)
    other.tokenizer.to_bytes = lambda: b"another"
    loaded = Chat.load(tmp_path / "talk.json", other)
    assert seen_at_next_message(loaded) == seen_at_next_message(chat)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(kind="else"),
        lambda d: d.update(version=99),
        lambda d: d.update(turns=3),
        lambda d: d.update(turns=[{"user": 1, "assistant": "x"}]),
        lambda d: d.update(ids=[1, 2, 99999]),
        lambda d: d.update(ids=[1]),
        lambda d: d.update(borders=[[0, ""]]),
        lambda d: d.update(borders=[[5, ""], [3, ""]]),
        lambda d: d.update(borders=[None, None]),
        lambda d: d.update(params={"nonsense": 1}),
        lambda d: d.update(params={"temperature": -1}),
        lambda d: d.update(params={"temperature": "hot"}),
        lambda d: d.update(template={"user": 1}),
        lambda d: d.update(max_tokens="x"),
    ],
)
def test_a_damaged_conversation_file_is_a_format_error_that_names_it(fake_model, tmp_path, damage):
    chat = chat_with(fake_model, SCRIPT)
    chat.send("stops").read()
    path = tmp_path / "talk.json"
    chat.save(path)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"talk\.json"):
        Chat.load(path, chat.model)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[1]", b"{", b"[" * 100000])
def test_a_file_of_another_kind_is_a_format_error(fake_model, tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FormatError):
        Chat.load(tmp_path / "x", fake_model())


def test_saving_into_a_folder_that_is_not_there_names_it(fake_model, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        chat_with(fake_model).save(tmp_path / "none" / "talk.json")
    assert caught.value.filename == str(tmp_path / "none")


def test_the_last_ids_of_a_text_are_the_same_however_one_came_there(fake_model):
    chat = chat_with(fake_model, SCRIPT, system="Be brief.")

    def expected(most):
        goal = chat.history.goal("probe")
        chain, node = [], goal.base
        while node is not None:
            chain, node = [*node.ids, *chain], node.base
        assert chat.history.last_ids(goal, most).tolist() == chain[-most:]

    for message in ("stops", "long", "umlauts"):
        expected(5000)
        chat.send(message).read()
        expected(30)
    chat.undo(2)
    expected(30)
    expected(5000)
    chat.send("long").read()
    expected(5000)
    chat.reset()
    expected(5000)
