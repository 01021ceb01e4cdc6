# SPDX-License-Identifier: Apache-2.0
"""A whole conversation at a real terminal: typing while it streams, Ctrl-C, undo, retry, edit, resize, kill -9.

The model writes what a file says and can be held at a token, so no test waits for a clock.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENTER, CTRL_C, CTRL_D, CTRL_R, BACKSPACE = "\r", "\x03", "\x04", "\x12", "\x7f"
SCRIPTED = (str(Path(__file__).parent / "scripted_chat.py"),)
CODE = "Here it **is**:\n\n```python\nprint('Grüße 日本語')\n```\n\nThat is `all`."


@pytest.fixture
def scripted(terminal, tmp_path):
    """scripted("text to answer", "--option", hold=3) → Terminal; scripted.go() lets a held answer go on."""

    class Scripted:
        answer, ready = tmp_path / "answer", tmp_path / "go"

        def __call__(self, text, *args, hold=None, wait=True, **kwargs):
            self.write(text)
            env = {"ANSWER": str(self.answer), "HOLD_AT_GO": str(self.ready)}
            if hold is not None:
                env["HOLD_AT"] = str(hold)
            options = {"columns": 80, **kwargs}
            term = terminal("chat", "--template", "world", *args, program=SCRIPTED, env=env, **options)
            if wait:
                term.wait_for_prompt()
            return term

        def write(self, text):
            self.answer.write_text(f" {text}", encoding="utf-8")

        def go(self):
            self.ready.touch()

        def hold(self):
            self.ready.unlink(missing_ok=True)

    return Scripted()


def test_markdown_is_rendered_and_its_code_can_be_copied(scripted):
    term = scripted(CODE)
    term.say("Schreib es: Grüße, 日本語 🙂")
    lines = term.lines()
    assert "Here it is:" in lines
    assert "print('Grüße 日本語')" in [line.replace("日 本 語", "日本語") for line in lines]
    assert "That is all." in lines
    assert "```" not in term.text()
    assert "\x1b[1mis" in term.raw
    term.say("/copy")
    term.wait_for("Copied code, 1 line, through the terminal.")
    import base64

    sent = term.raw.partition("\x1b]52;c;")[2].partition("\x07")[0]
    assert base64.b64decode(sent).decode() == "print('Grüße 日本語')"
    term.say("/copy 2")
    term.wait_for("no code block 2: the answer has 1")


def test_what_is_typed_while_it_streams_is_the_next_message(scripted):
    term = scripted("One two three four five.", hold=4)
    term.type("Count" + ENTER)
    term.wait_for("of context")
    term.type("Wörx" + BACKSPACE + "ter?")
    term.wait_for("> Wörter?")
    scripted.go()
    term.wait_for("One two three four five.")
    term.wait_for("> Wörter?")
    term.type(" Ja." + ENTER)
    term.wait_for("One two three four five.", times=2)
    term.wait_for_prompt()
    term.say("/show")
    term.wait_for("2> Wörter? Ja.")


def test_enter_and_a_paste_while_it_streams_send_what_was_typed(scripted):
    term = scripted("One two three.", hold=2)
    term.type("Count" + ENTER)
    term.wait_for("of context")
    term.type("\x1b[200~first\nsecond\x1b[201~" + ENTER)
    term.wait_for("first second⏎")
    scripted.go()
    term.wait_for("One two three.", times=2)
    term.wait_for_prompt()
    term.say("/show")
    term.wait_for("2> first\nsecond")


def test_ctrl_c_stops_the_answer_and_the_terminal_is_as_before(scripted):
    term = scripted("One two three.\n\nFour five six.", hold=9)
    term.type("Count" + ENTER)
    term.wait_for("of context")
    term.type(CTRL_C)
    term.wait_for("(stopped)")
    term.wait_for_prompt()
    assert "of context" not in term.text()
    assert term.raw.count("\x1b[?25l") > 0
    assert term.raw.rindex("\x1b[?25h") > term.raw.rindex("\x1b[?25l")
    term.say("/undo")
    term.wait_for("Taken back: Count")
    term.type(CTRL_D)
    assert term.exit_code() == 0


def test_undo_retry_edit_and_branch(scripted):
    term = scripted("First answer.")
    term.say("one")
    scripted.write("Second answer.")
    term.say("two")
    scripted.write("Another answer.")
    term.say("/retry")
    term.wait_for("Another answer.")
    term.say("three")
    scripted.write("Edited answer.")
    term.type("/edit 2" + ENTER)
    term.wait_for("> /edit 2 two")
    term.type(" changed" + ENTER)
    term.wait_for("Edited answer.")
    term.wait_for("(what followed before: /branch main-2)")
    term.wait_for_prompt()
    term.say("/branch")
    term.wait_for("main-2  3 turns")
    term.say("/branch main-2")
    term.wait_for("On branch main-2: 3 turns.")
    term.say("/undo 2")
    term.wait_for("Taken back: two")
    term.say("/branch idea")
    term.wait_for("A new branch idea from here")
    term.say("/edit 7 x")
    term.wait_for("there is no turn 7: the conversation has 1")
    term.say("/branch -d main")
    term.wait_for("Deleted the branch main.")


def test_a_thought_is_dimmed_folds_away_and_can_be_read(scripted):
    # The prompt ends in "<think", so that the model goes on with ">".
    term = scripted("x", "--think", "on", hold=12)
    scripted.answer.write_text(">First I think about it.\nThen again.\n</think>\nThe answer.")
    term.type("Think!" + ENTER)
    term.wait_for("│ First I think")
    term.wait_for("thinking")
    scripted.go()
    term.wait_for("The answer.")
    term.wait_for_prompt()
    assert "First I think" not in term.text()
    assert "▸ thought for" in term.text()
    term.say("/thought")
    term.wait_for("First I think about it.\nThen again.")
    term.say("/set thoughts show")
    term.say("Again")
    term.wait_for("│ First I think about it.")
    term.say("/think off")
    term.wait_for("think = off")
    term.say("/think maybe")
    term.wait_for("think takes default, off, short, on, long, not 'maybe'")


def test_history_can_be_searched(scripted):
    term = scripted("Yes.")
    term.say("a very special question")
    term.say("another one")
    term.type(CTRL_R + "special")
    term.wait_for("a very special question", times=2)
    term.type(ENTER)
    term.wait_for("Yes.", times=2)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_after_kill_nothing_is_lost_but_the_unfinished_answer(scripted):
    term = scripted("I remember.", "--session", "Früh am Morgen")
    term.say("My name is Zoë.")
    term.type(CTRL_D)
    assert term.exit_code() == 0
    term = scripted("One two three four.", "--session", "Früh am Morgen", hold=4)
    term.wait_for("1 turn so far")
    term.wait_for("> My name is Zoë.\nI remember.")
    term.type("Tell me a story" + ENTER)
    term.wait_for("of context")
    term.process.kill(signal.SIGKILL)
    scripted.go()
    term = scripted("Once upon a time.", "--session", "Früh am Morgen", wait=False)
    term.wait_for("The last question was not answered.")
    term.wait_for("> Tell me a story")
    term.type(ENTER)
    term.wait_for("Once upon a time.")
    term.wait_for_prompt()
    term.say("/show")
    text = term.text()
    assert "1> My name is Zoë.\nI remember." in text
    assert "2> Tell me a story\nOnce upon a time." in text
    term.say("/sessions")
    term.wait_for("Früh am Morgen  2 turns  My name is Zoë.")


def test_plain_shows_the_text_as_it_is(scripted):
    term = scripted(CODE, "--plain")
    term.say("Write it")
    term.wait_for("```python")
    assert "Here it **is**:" in term.lines()
    assert "\x1b[?2026h" not in term.raw


def test_a_long_answer_scrolls_and_every_line_is_written_once(scripted):
    text = "\n".join(f"- point {i} of the list" for i in range(60))
    term = scripted(text, lines=15)
    term.say("List it")
    shown = term.raw
    for i in range(40):
        assert shown.count(f"point {i} of the list") >= 1
    assert [line for line in term.lines() if "point" in line][-1].endswith("point 59 of the list")


# ------------------------------------------------------------------------------------------ tmux


class Tmux:
    """A program in a terminal that wraps its lines anew when it is resized, as real ones do."""

    def __init__(self, socket, command, env, columns=80, lines=24):
        self._command = ["tmux", "-S", str(socket), "-f", os.devnull]
        variables = [f"{name}={value}" for name, value in env.items()]
        self("new-session", "-d", "-x", str(columns), "-y", str(lines), "env", *variables, *command)

    def __call__(self, *args):
        done = subprocess.run([*self._command, *args], check=True, capture_output=True, text=True, encoding="utf-8")
        return done.stdout

    def text(self):
        lines = self("capture-pane", "-p", "-J", "-S", "-200").split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip()

    def wait_for(self, text):
        self.wait_until(lambda shown: text in shown, True, text)

    def wait_until(self, seen, wanted, what="the chat"):
        end = time.monotonic() + 30
        while seen(self.text()) != wanted:
            if time.monotonic() > end:
                pytest.fail(f"waited for {what!r}; the screen shows:\n{self.text()}")
            time.sleep(0.02)

    def close(self):
        subprocess.run([*self._command, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def tmux(home, tmp_path, demo_path):
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    opened = []

    def start(text, **options):
        (tmp_path / "answer").write_text(f" {text}", encoding="utf-8")
        env = {
            "ANSWER": tmp_path / "answer",
            "HOLD_AT_GO": tmp_path / "go",
            "HOLD_AT": "18",
            "RWKV_CPU_HOME": home / "rwkv",
            "LC_ALL": "C.UTF-8",
            **options.pop("env", {}),
        }
        command = [sys.executable, *SCRIPTED, "chat", "--template", "world"]
        opened.append(Tmux(tmp_path / "tmux", command, env, **options))
        opened[-1].wait_for("> Type a message")
        return opened[-1]

    yield start
    for one in opened:
        one.close()


LONG = (
    "The first paragraph of the answer has a number of words in it, and goes on for a while.\n\nThe second one. Done."
)


@pytest.mark.parametrize("columns", [40, 120])
def test_resizing_while_it_streams_leaves_one_whole_answer(tmux, tmp_path, columns):
    term = tmux(LONG)
    term("send-keys", "Hello there", "Enter")
    term.wait_for("18 tokens")
    term("resize-window", "-x", str(columns))
    # Until the chat was told of its new size, and fitted its status line to it.
    term.wait_until(
        lambda text: ("state" if columns > 80 else "memory") in text.rpartition("18 tokens ·")[2], columns > 80
    )
    (tmp_path / "go").touch()
    term.wait_for("Done.")
    term.wait_for("\n>\n")
    text = term.text()
    assert " ".join(LONG.split()) in " ".join(text.split())
    assert text.count("> Hello there") == 1
    assert text.count("The first paragraph") == 1
    # What is below the prompt stays there, and tells what does not grow.
    term.wait_for("memory: constant" if columns > 80 else "of context")


def test_the_status_line_is_below_the_prompt_and_fits(tmux, tmp_path):
    (tmp_path / "go").touch()
    term = tmux("Yes.", columns=30)
    term("send-keys", "Hello", "Enter")
    term.wait_for("Yes.")
    term.wait_for("tokens/s")
    last = term.text().split("\n")[-1]
    assert "tokens/s" in last
    assert len(last) <= 30
