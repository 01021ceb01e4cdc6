# SPDX-License-Identifier: Apache-2.0
"""Sessions go on where they were left, whatever ended them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.chat import ChatTemplate, open_session, sessions
from rwkv_cpu.chat.journal import Journal, replay
from rwkv_cpu.errors import ArgumentError, Busy, FormatError

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def model(demo_path):
    with Model.load(demo_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def computed(monkeypatch):
    counts = [0]
    advance = Model.advance

    def counting(self, tokens, state, **options):
        counts[0] += len(tokens)
        return advance(self, tokens, state, **options)

    monkeypatch.setattr(Model, "advance", counting)

    def taken():
        found, counts[0] = counts[0], 0
        return found

    return taken


def talk(model, *messages, name="talk"):
    with open_session(name, model, **GREEDY) as chat:
        for message in messages:
            chat.send(message).read()
        return list(chat.turns)


def plain(turns):
    return [(turn.user, turn.text, turn.finish_reason) for turn in turns]


def test_a_session_goes_on_with_its_turns_settings_and_states(model, computed):
    with open_session("talk", model, "You are Pip.", top_k=7, max_tokens=60, **GREEDY) as chat:
        for message in ("Hello!", "My name is Ada.", "Tell me a story"):
            chat.send(message).read()
        turns, expected = chat.turns, chat.fork().send("What is my name?").read()
    with open_session("talk", model) as chat:
        assert plain(chat.turns) == plain(turns)
        assert (chat.system, chat.params.top_k, chat.max_tokens, chat.params.temperature) == ("You are Pip.", 7, 60, 0)
        assert (chat.session, chat.unanswered) == ("talk", None)
        computed()
        answer = chat.send("What is my name?")
        assert answer.read() == expected == "Your name is Ada."
        assert computed() < 20 + len(answer.tokens)
        chat.undo(3)  # to a turn of the earlier run
        answer = chat.send("Goodbye.")
        answer.read()
        assert computed() < 20 + len(answer.tokens)


def test_undo_branches_and_edits_are_remembered(model):
    with open_session("talk", model, **GREEDY) as chat:
        for message in ("Hello!", "My name is Ada.", "What is my name?"):
            chat.send(message).read()
        chat.undo()
        chat.start_branch("other")
        chat.edit(0, "Who are you?", keep_as="greeting").read()
        main, greeting = dict(chat.branches)["main"], dict(chat.branches)["greeting"]
    with open_session("talk", model) as chat:
        assert (chat.branch, main, greeting) == ("other", 2, 2)
        assert chat.branches == {"other": 1, "main": 2, "greeting": 2}
        assert [turn.user for turn in chat.turns] == ["Who are you?"]
        chat.switch("main")
        assert chat.send("What is my name?").read() == "Your name is Ada."
        chat.delete_branch("greeting")
    with open_session("talk", model) as chat:
        assert chat.branches == {"main": 3, "other": 1}
        chat.reset()
        assert chat.turns == ()
    with open_session("talk", model) as chat:
        assert chat.branches == {"main": 0}


def test_every_cut_of_the_journal_is_a_session_with_the_turns_before(model, home):
    turns = plain(talk(model, "Hello!", "My name is Ada.", "What is my name?"))
    file = home / "sessions" / "talk" / "journal.jsonl"
    data = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    ops = [json.loads(line.partition(b" ")[2])["op"] for line in data.splitlines()]
    for cut in sorted({*ends, *(end - 1 for end in ends), *(end + 5 for end in ends[:-1])}):
        file.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        if not whole:
            continue
        with open_session("talk", model) as chat:
            assert plain(chat.turns) == turns[: ops[:whole].count("turn")]
            asked = ops[:whole].count("ask") > ops[:whole].count("turn")
            assert (chat.unanswered is not None) == asked
            if asked:
                assert chat.unanswered == (turns[chat.n_turns][0], chat.n_turns)
        assert file.read_bytes() == data[: ends[whole - 1]]


def test_a_state_that_is_lost_damaged_or_anothers_costs_time_only(model, home, computed):
    talk(model, "Hello!", "My name is Ada.")
    states = home / "sessions" / "talk" / "states"
    assert sorted(path.name for path in states.iterdir()) == ["1.state", "2.state"]
    (states / "2.state").write_bytes((states / "1.state").read_bytes())
    with open_session("talk", model) as chat:
        assert chat.send("What is my name?").read() == "Your name is Ada."
        chat.undo()
    (states / "1.state").write_bytes(b"")
    (states / "2.state").unlink()
    with open_session("talk", model) as chat:
        computed()
        assert chat.send("What is my name?").read() == "Your name is Ada."
        assert computed() > 20


KILLED = """
import os, signal
from rwkv_cpu import Model
from rwkv_cpu.chat import open_session
chat = open_session("talk", Model.load({path!r}), temperature=0)
chat.send("My name is Ada.").read()
answer = chat.send("Tell me a story")
print(next(answer), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_after_kill_only_the_unfinished_answer_is_lost(model, demo_path):
    done = subprocess.run([sys.executable, "-c", KILLED.format(path=str(demo_path))], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    with open_session("talk", model) as chat:
        assert [turn.user for turn in chat.turns] == ["My name is Ada."]
        assert chat.unanswered == ("Tell me a story", 1)
        assert chat.send("What is my name?").read() == "Your name is Ada."
        assert chat.unanswered is None


def test_a_retry_that_was_killed_leaves_the_old_answer(model, home):
    turns = plain(talk(model, "Hello!", "My name is Ada."))
    file = home / "sessions" / "talk"
    journal = Journal(file)
    journal.append({"op": "ask", "at": 1, "text": "My name is Ada."})
    journal.close()
    with open_session("talk", model) as chat:
        assert (plain(chat.turns), chat.unanswered) == (turns, None)
    journal = Journal(file)
    journal.append({"op": "ask", "at": 0, "text": "Goodbye!"})
    journal.close()
    with open_session("talk", model) as chat:
        assert (plain(chat.turns), chat.unanswered) == (turns, ("Goodbye!", 0))


def test_what_was_cancelled_before_its_first_word_is_no_question(model, home):
    from rwkv_cpu import CancelToken

    talk(model, "Hello!")
    with open_session("talk", model) as chat:
        cancel = CancelToken()
        cancel.cancel()
        chat.send("Who are you?", cancel=cancel).read()
    with open_session("talk", model) as chat:
        assert (chat.n_turns, chat.unanswered) == (1, None)


def test_one_program_at_a_time(model):
    with open_session("talk", model), pytest.raises(Busy):
        open_session("talk", model)
    chat = open_session("talk", model)
    with pytest.raises(Busy):
        sessions.delete_session("talk")
    del chat
    open_session("talk", model).close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", " a", "a ", "x" * 65, "a\nb", "a\0"])
def test_names_stay_in_their_folder(model, name):
    with pytest.raises(ArgumentError):
        open_session(name, model)


def test_a_session_has_its_own_system_text(model):
    open_session("talk", model, "You are Pip.").close()
    open_session("talk", model, "You are Pip.").close()
    with pytest.raises(ArgumentError, match="own system text"):
        open_session("talk", model, "You are Bob.")


def test_another_template_reads_the_text_again(model):
    talk(model, "Hello!", "My name is Ada.")
    template = ChatTemplate.named("world")
    with open_session("talk", model, template=template) as chat:
        assert chat.template == template
        assert chat.send("What is my name?", max_tokens=8).read().startswith("Your name is Ada.")


def test_sessions_are_listed_exported_and_deleted(model, home):
    assert sessions.list_sessions() == []
    turns = talk(model, "Hello!", "My name is Ada.", name="Grüße an Ada")
    talk(model, "Who are you?", name="b")
    (home / "sessions" / "broken").mkdir()
    (home / "sessions" / "broken" / "journal.jsonl").write_bytes(b"no journal\n")
    found = {info.name: info for info in sessions.list_sessions()}
    assert found.keys() == {"Grüße an Ada", "b", "broken"}
    info = found["Grüße an Ada"]
    assert (info.turns, info.first, info.branches, info.damaged) == (2, "Hello!", ("main",), "")
    assert info.size_bytes > 2 * model.state_bytes
    assert found["broken"].damaged
    text = sessions.export_session("Grüße an Ada")
    assert text == f"# Grüße an Ada\n\n> Hello!\n\n{turns[0].text}\n\n> My name is Ada.\n\n{turns[1].text}\n"
    document = json.loads(sessions.export_session("Grüße an Ada", "json"))
    assert [turn["text"] for turn in document["turns"]] == [turn.text for turn in turns]
    with pytest.raises(ArgumentError):
        sessions.export_session("b", "pdf")
    for name in found:
        sessions.delete_session(name)
    assert sessions.list_sessions() == []
    with pytest.raises(ArgumentError, match="no session"):
        sessions.delete_session("b")


def test_a_foreign_or_newer_journal_is_refused(model, home):
    folder = home / "sessions" / "talk"
    journal = Journal(folder)
    journal.append({"op": "begin", "version": 99})
    journal.close()
    with pytest.raises(FormatError, match="newer"):
        open_session("talk", model)
    (folder / "journal.jsonl").write_bytes(b"precious\n")
    with pytest.raises(FormatError):
        open_session("talk", model)
    assert (folder / "journal.jsonl").read_bytes() == b"precious\n"
    (folder / "journal.jsonl").write_bytes(b"")
    journal = Journal(folder)
    journal.append({"op": "begin", "version": 1})
    journal.append({"op": "move", "head": 7, "branch": "main", "branches": {}})
    journal.close()
    with pytest.raises(FormatError, match="no turn 7"):
        replay(folder / "journal.jsonl")


def test_states_are_the_same_to_the_bit_after_going_on(model):
    with open_session("talk", model, **GREEDY) as chat:
        chat.send("Hello!").read()
        chat.send("My name is Ada.").read()
        expected = chat.history.head.kept[-1].slot.get().data.copy()
    with open_session("talk", model) as chat:
        assert np.array_equal(chat.history.head.kept[-1].slot.get().data, expected)
