# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu chat`` with the bundled model, through pipes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkv_cpu.cli import main

HELLO = "Hi! Nice to meet you. How can I help you?\n"
STUCK = str(Path(__file__).parent / "stuck_chat.py")


def test_one_line_one_answer_and_nothing_else(rwkv):
    done = rwkv("chat", "--temp", "0", input="Hello!\nMy name is Ada.\nWhat is my name?\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == HELLO + "Hello, Ada!\nYour name is Ada.\n"


def test_lines_end_as_they_like_and_the_last_may_lack_its_end(rwkv):
    assert rwkv("chat", "--temp", "0", input="Hello!\r\n\r\n\n").stdout == HELLO
    assert rwkv("chat", "--temp", "0", input="Hello!").stdout == HELLO
    assert rwkv("chat", input="").stdout == ""


def test_a_backslash_continues_a_line(rwkv):
    done = rwkv("chat", "--temp", "0", "-n1", input="/show\nHello!\\\n\\\nthere\n/show\n")
    assert done.stdout.count("\n") == 1
    assert "> Hello!\n" in done.stderr
    assert "there\n" in done.stderr


def test_commands_work_in_a_pipe_and_talk_on_stderr(rwkv):
    done = rwkv("chat", "--temp", "0", input="My name is Ada.\n/undo\nWhat is my name?\n/set temp 0.5\n/stats\n/help\n")
    assert done.returncode == 0
    assert done.stdout.startswith("Hello, Ada!\nI don't know.") or "not told me" in done.stdout
    assert done.stdout.count("\n") == 2
    for text in ("Taken back: My name is Ada.", "temperature = 0.5", "/retry", "conversation  1 turn,"):
        assert text in done.stderr


def test_an_unknown_slash_word_is_text_for_the_model_in_a_pipe(rwkv):
    done = rwkv("chat", "-n", "3", input="/etc is a folder\nquit\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 2


def test_a_failed_command_in_a_pipe_is_told_and_the_rest_goes_on(rwkv):
    done = rwkv("chat", "--temp", "0", input="/load /nowhere/x\nHello!\n")
    assert done.returncode == 1
    assert done.stdout == HELLO
    assert done.stderr == "rwkv-cpu: error: /nowhere/x: No such file or directory\n"


def test_the_same_seed_gives_the_same_chat(rwkv):
    options = ["chat", "--seed", "5", "--temp", "1", "--top-p", "1", "--top-k", "0"]
    first, again, other = (rwkv(*options, *more, input="Tell me a story\n").stdout for more in ([], [], ["-s", "6"]))
    assert first == again != other


def test_system_text_stop_and_length_reach_the_model(rwkv):
    system = "You are Pip. Answer briefly and kindly. The user is called Floyd."
    assert "Floyd" in rwkv("chat", "--temp", "0", "--system", system, input="Do you know my name?\n").stdout
    assert rwkv("chat", "--temp", "0", "--stop", "Nice", input="Hello!\n").stdout == "Hi!\n"
    assert rwkv("chat", "--temp", "0", "-n", "2", input="Hello!\n").stdout == "Hi!\n"


def test_stats_are_on_stderr(rwkv):
    done = rwkv("chat", "--temp", "0", "--stats", input="Hello!\n")
    assert done.stdout == HELLO
    assert re.fullmatch(r"\[\d+ tokens at [\d.]+/s, \d+ read in \d+ ms, first after \d+ ms, [\d.]+ MB\]\n", done.stderr)


def test_a_conversation_is_saved_and_goes_on_in_another_run(rwkv, tmp_path):
    path = tmp_path / "talk.json"
    rwkv("chat", "--temp", "0", input=f"My name is Ada.\n/save {path}\n")
    assert rwkv("chat", "--temp", "0", "--load", str(path), input="What is my name?\n").stdout == "Your name is Ada.\n"


def test_no_control_codes_in_a_pipe_even_when_colours_are_forced(rwkv):
    done = rwkv(
        "chat", "--temp", "0", input="Hello!\n/help\n/nope\n", env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    )
    assert "\x1b" not in done.stdout + done.stderr


def test_a_model_that_is_not_there_is_one_line_and_a_hint(rwkv):
    done = rwkv("chat", "no-such-model.rwkv")
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("rwkv-cpu: error: ")
    assert "no-such-model.rwkv" in first
    assert second.startswith("hint: ")


def test_a_file_that_is_no_model_and_a_folder_are_errors(rwkv, tmp_path):
    (tmp_path / "x.rwkv").write_bytes(b"this is no model" * 10)
    for path in (tmp_path / "x.rwkv", tmp_path):
        done = rwkv("chat", str(path))
        assert (done.returncode, done.stdout) == (1, "")
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--top-p", "2"],
        ["--temp", "-1"],
        ["--temp", "hot"],
        ["--seed", "-1"],
        ["--min-p", "nan"],
        ["--format", "q3"],
        ["--nope"],
        ["-n", "0"],
        ["-t", "0"],
        ["a", "b"],
        ["a", "-m", "b"],
    ],
)
def test_wrong_options_are_usage_errors(args):
    done = CliRunner().invoke(main, ["chat", *args])
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.startswith("rwkv-cpu: error: ")


def test_a_closed_pipe_ends_quietly(home, demo_path):
    lines = "Hello!\\n" * 2000
    done = subprocess.run(
        f"printf '{lines}' | {sys.executable} -m rwkv_cpu chat --temp 0 | head -1",
        shell=True, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (HELLO, "")


@pytest.mark.parametrize("message", [None, "I am stuck here " * 20])
def test_ctrl_c_in_a_pipe_ends_with_130(home, demo_path, message):
    env = {**os.environ, "SAY_STUCK": "1"}
    command = [sys.executable, STUCK, "chat", "--temp", "0"]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, env=env)
    process.stdin.write(b"Who are you?\n" if message is None else message.encode() + b"\n")
    process.stdin.flush()
    assert process.stderr.readline() == b"stuck\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert out.startswith(b"I am Pip") == (message is None)


def test_a_machine_that_would_swap_is_told_before_loading(demo_path, monkeypatch):
    monkeypatch.setattr("rwkv_cpu.memory._available", lambda: (1_000_000, "machine"))
    done = CliRunner().invoke(main, ["chat", str(demo_path), "--temp", "0"], input="Hello!\n")
    assert (done.exit_code, done.stdout) == (0, HELLO)
    first, second = done.stderr.splitlines()
    assert first.startswith("rwkv-cpu: warning: the model needs about ")
    assert "1.0 MB are free" in first
    assert second.startswith("hint: ")
