# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu generate``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkv_cpu.cli import main

PROMPT = "User: Hello!\n\nAssistant:"
ANSWER = " Hi! Nice to meet you. How can I help you?"
GREEDY = ["--temp", "0", "--stop", r"\n\n"]
STUCK = str(Path(__file__).parent / "stuck_chat.py")


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT.replace("\n", r"\n")])
def test_a_prompt_is_continued_as_it_stands(rwkv, prompt):
    done = rwkv("generate", "-p", prompt, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER + "\n", "")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_prompts_come_from_files_and_stdin_and_their_last_line_end_does_not_count(rwkv, tmp_path, end):
    file = tmp_path / "prompt.txt"
    file.write_bytes((PROMPT + end).encode())
    assert rwkv("generate", "-f", str(file), *GREEDY).stdout == ANSWER + "\n"
    for args in (["-"], ["-m", "demo", "-f", "-"]):
        assert rwkv("generate", *args, *GREEDY, input=PROMPT + end).stdout == ANSWER + "\n"


def test_json_is_one_object_with_everything(rwkv):
    done = rwkv("generate", "demo", "-p", PROMPT, *GREEDY, "--json")
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert sorted(found) == ["finish_reason", "model", "stats", "text", "tokens"]
    assert found["text"] == ANSWER
    assert found["finish_reason"] == "stop"
    assert found["model"].endswith("demo.rwkv")
    assert found["stats"]["generated_tokens"] == len(found["tokens"])
    assert found["stats"]["prompt_tokens"] > 3
    assert found["stats"]["tokens_per_second"] > 0


def test_max_tokens_and_seed(rwkv):
    args = ["generate", "-p", "User: Tell", "--json", "--temp", "1", "--top-p", "1", "--top-k", "0", "-n", "5"]
    first, again, other = (json.loads(rwkv(*args, "-s", seed).stdout) for seed in ("1", "1", "2"))
    assert first["tokens"] == again["tokens"] != other["tokens"]
    assert len(first["tokens"]) <= 5


def test_speed_goes_to_stderr(rwkv):
    done = rwkv("generate", "-p", PROMPT, *GREEDY, "--show-speed")
    assert done.stdout == ANSWER + "\n"
    assert re.fullmatch(r"\d+ tokens at [\d.]+/s, \d+ read in \d+ ms, first after \d+ ms\n", done.stderr)


def test_any_bytes_are_a_prompt(rwkv, tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(1, 256)))
    done = rwkv("generate", "-f", str(tmp_path / "x"), "-n", "3")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_binary_file_is_no_prompt(rwkv, tmp_path):
    (tmp_path / "x").write_bytes(b"ab\0c")
    done = rwkv("generate", "-f", str(tmp_path / "x"), "-n", "3")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this is a binary file (byte 2 is zero), not text" in done.stderr


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ([], "-p TEXT"),
        (["-p", ""], "-p TEXT"),
        (["-p", "x", "-"], "-p TEXT"),
        (["-p", "x", "-f", "y"], "-p TEXT"),
        (["Once", "upon"], "-p"),
        (["a.rwkv", "-m", "b.rwkv", "-p", "x"], "-p"),
        (["-p", "x", "-n", "-3"], "--help"),
        (["-p", "x", "--tmp", "1"], "--help"),
    ],
)
def test_wrong_use_is_told_with_a_hint(args, hint):
    done = CliRunner().invoke(main, ["generate", *args])
    assert (done.exit_code, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("rwkv-cpu: error: ")
    assert hint in second


def test_missing_files_are_runtime_errors(rwkv, tmp_path):
    done = rwkv("generate", "-f", str(tmp_path / "none.txt"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"rwkv-cpu: error: {tmp_path / 'none.txt'}: No such file or directory",
        "hint: Check the path; a relative one begins at the working directory.",
    ]
    done = rwkv("generate", "Hello there", "-p", "x")
    assert done.returncode == 1
    assert "'Hello there'" in done.stderr


def test_a_closed_pipe_ends_quietly(home, demo_path):
    done = subprocess.run(
        f"{sys.executable} -m rwkv_cpu generate -p 'User: Tell me a story' --temp 1 -n 5000 | head -c 20",
        shell=True, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert len(done.stdout) == 20
    assert done.stderr == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_prints_what_was_made_and_ends_with_130(home, demo_path, as_json):
    command = [sys.executable, STUCK, "generate", "-p", PROMPT, "--temp", "0", *(["--json"] if as_json else [])]
    env = {**os.environ, "SAY_STUCK": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stderr.readline() == b"stuck\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    text = json.loads(out)["text"] if as_json else out.decode().removesuffix("\n")
    assert text.startswith(" Hi! Nice")
    assert ANSWER.startswith(text)
