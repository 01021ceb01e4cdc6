# SPDX-License-Identifier: Apache-2.0
"""The chat as a person sees it: a real pseudo-terminal, its screen interpreted by pyte."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rwkv_cpu.terminal.prompt import history_path

ENTER, CTRL_C, CTRL_D, ALT_ENTER = "\r", "\x03", "\x04", "\x1b\r"
UP = "\x1b[A"
STUCK = (str(Path(__file__).parent / "stuck_chat.py"),)
HELLO = "Hi! Nice to meet you. How can I help you?"


def test_a_newcomer_says_hello_and_leaves(terminal):
    term = terminal("chat", "--temp", "0")
    term.wait_for_prompt()
    assert "Pip" in term.text()
    assert "rwkv-cpu chat FILE.pth" in term.text().replace("\n", " ")
    assert "/help" in term.text()
    term.say("Hello!")
    assert HELLO in term.lines()
    term.type(CTRL_D)
    assert term.exit_code() == 0


def test_undo_forgets_and_retry_answers_again(terminal):
    term = terminal("chat", "--temp", "0")
    term.wait_for_prompt()
    term.say("My name is Ada.")
    term.say("What is my name?")
    term.wait_for("Your name is Ada.")
    term.say("/retry")
    term.wait_for("Your name is Ada.", times=2)
    term.say("/undo 2")
    term.wait_for("Taken back: My name is Ada.")
    term.type("What is my name?" + ENTER)
    term.wait_for("> What is my name?", times=2)
    term.wait_for_prompt()
    assert term.text().count("Your name is Ada.") == 2


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(terminal):
    term = terminal("chat", "--temp", "0", program=STUCK)
    term.wait_for_prompt()
    term.type("Tell me a story about a robot named Bolt." + ENTER)
    term.wait_for("Once")
    term.type(CTRL_C)
    term.wait_for("(stopped)")
    term.wait_for_prompt()
    term.say("/show")
    assert term.text().count("Once there was a young robot") == 2
    term.type(CTRL_D)
    assert term.exit_code() == 0


def test_ctrl_c_stops_the_reading_of_a_message(terminal):
    term = terminal("chat", program=STUCK)
    term.wait_for_prompt()
    term.type("I am stuck here. " * 20 + ENTER)
    term.wait_for("Reading")  # the progress bar
    term.type(CTRL_C)
    term.wait_for("(stopped before the first word: not sent)")
    term.wait_for_prompt()
    assert "Reading" not in term.text()
    term.say("/show")
    term.wait_for("Nothing yet.")


def test_ctrl_c_at_the_prompt_says_how_to_leave(terminal):
    term = terminal("chat")
    term.wait_for_prompt()
    term.type("half a mess" + CTRL_C)
    term.wait_for_prompt()
    assert "Ctrl-D leaves, /help" not in term.text()
    term.type(CTRL_C)
    term.wait_for("Ctrl-D leaves, /help")
    term.wait_for_prompt()
    term.type("/exit" + ENTER)
    assert term.exit_code() == 0


@pytest.mark.parametrize("between", [ALT_ENTER, "\\" + ENTER, "\x1b[200~\n\x1b[201~"])
def test_a_message_may_have_several_lines(terminal, between):
    term = terminal("chat")
    term.wait_for_prompt()
    term.type("first line" + between + "second line")
    term.wait_for("second line")
    term.type(ENTER)
    term.wait_for_prompt()
    term.say("/show")
    assert "> first line\nsecond line\n" in term.text()


def test_history_is_kept_between_runs_for_the_user_alone(terminal):
    first, second = terminal("chat"), terminal("chat", "--no-history")
    for term, message in ((first, "Are you there"), (second, "Nobody shall know")):
        term.wait_for_prompt()
        term.say(message)
        term.type(CTRL_D)
        assert term.exit_code() == 0
    third = terminal("chat")
    third.wait_for_prompt()
    third.type(UP)
    third.wait_for("> Are you there")
    assert stat.S_IMODE(history_path().stat().st_mode) == 0o600


def test_commands_complete_and_wrong_ones_get_the_nearest(terminal):
    term = terminal("chat")
    term.wait_for_prompt()
    term.type("/und")
    term.wait_for("Take back the last question")
    term.type("\t" + ENTER)
    term.wait_for("the conversation has no turns yet")
    term.say("/rtry")
    term.wait_for("Did you mean /retry?")
    term.say("/set temperatur 1")
    term.wait_for("Did you mean temperature?")


def test_no_color_has_no_colours(terminal):
    term = terminal("chat", "--temp", "0", env={"NO_COLOR": "1"})
    term.wait_for_prompt()
    term.say("Hello!")
    term.say("/help")
    term.say("/nope")
    assert "\x1b[3" not in term.raw
    assert "\x1b[9" not in term.raw


def test_a_dumb_terminal_gets_plain_lines(terminal):
    term = terminal("chat", "--temp", "0", env={"TERM": "dumb"})
    term.wait_for_prompt()
    term.type("Hello!\n")
    term.wait_for(HELLO)
    term.wait_for_prompt()
    term.type(CTRL_C)
    term.wait_for("Ctrl-D leaves")
    term.type(CTRL_D)
    assert term.exit_code() == 0
    assert "\x1b" not in term.raw


def test_an_answer_wraps_at_words_in_a_narrow_terminal(terminal, rwkv):
    term = terminal("chat", "--temp", "0", columns=30, lines=60)
    term.wait_for_prompt()
    term.say("Tell me a story")
    answer = rwkv("chat", "--temp", "0", input="Tell me a story\n").stdout
    assert len(answer) > 100
    assert " ".join(answer.split()) in " ".join(term.text().split())


def test_wrong_models_are_told_in_a_terminal_too(terminal):
    term = terminal("chat", "nope.pth")
    assert term.exit_code() == 1
    assert "rwkv-cpu: error: " in term.text()
    assert "Traceback" not in term.text()
