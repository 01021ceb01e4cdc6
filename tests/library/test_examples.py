# SPDX-License-Identifier: Apache-2.0
"""The chats in C and in Node.js, with the shared library: they answer, stop, and share their states with Python."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.quantize import quantize
from rwkv_cpu.state import prefix_digests
from tests.library.conftest import ROOT

QUESTIONS = "Hello\nWhat is 2 plus 3?\n"


@pytest.fixture(scope="module")
def c_chat(compile_c):
    return [compile_c(ROOT / "examples" / "chat.c")]


@pytest.fixture(scope="module")
def node_chat(library, tmp_path_factory):
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(ROOT / "examples" / "node_koffi", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    run = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if run.returncode:
        pytest.skip(f"npm cannot install koffi here: {run.stderr.strip().splitlines()[-1:]}")
    return ["node", folder / "chat.js", library]


@pytest.fixture(params=["c_chat", "node_chat"])
def chat(request):
    return request.getfixturevalue(request.param)


def run(chat, environment, *arguments, typed=QUESTIONS):
    command = [*chat, *arguments]
    return subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, check=False)


def test_a_chat_answers_and_its_state_is_pythons(chat, environment, world_model, tmp_path):
    kept = tmp_path / "Gespräch.state"
    first = run(chat, environment, world_model, kept)
    assert first.returncode == 0, first.stderr
    answers = [line.removeprefix("> ").strip() for line in first.stdout.splitlines()]
    assert len([answer for answer in answers if len(answer) > 3]) >= 2, first.stdout
    assert "\ufffd" not in first.stdout
    hello, sum_ = (answer for answer in answers if len(answer) > 3)
    text = f"User: Hello\n\nAssistant: {hello}\n\n", f"User: What is 2 plus 3?\n\nAssistant: {sum_}\n\n"
    with Model.load(world_model) as model:
        state = model.load_state(kept)
        ids = [token for turn in text for token in model.tokenizer.encode(turn)]
        _, expected = model.forward(ids)
        assert (state.n_tokens, state.digest) == (len(ids), list(prefix_digests(ids))[-1])
        assert np.array_equal(state.data, expected.data)
    again = run(chat, environment, world_model, kept, typed="Tell me more.\n")
    assert f"going on after {len(ids)} tokens" in again.stdout


def test_what_cannot_be_opened_is_said_in_one_line_and_a_hint(chat, environment, demo_path, tmp_path):
    for path, says in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (demo_path, "sentencepiece")):
        failed = run(chat, environment, path)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert re.match(rf"chat: .*{says}", failed.stderr), failed.stderr
        assert len(failed.stderr.splitlines()) <= 2


@pytest.fixture(scope="module")
def endless_model(make_pth, tmp_path_factory):
    """Random weights: nothing ends an answer but the limit of 1,000 tokens."""
    folder = tmp_path_factory.mktemp("endless")
    words = folder / "words.txt"
    words.write_text("".join(f"{token} {bytes([token])!r} 1\n" for token in range(1, 256)), "ascii")
    quantize(make_pth(n_layer=8, n_embd=512, n_vocab=256), folder / "endless.rwkv", tokenizer=words)
    return folder / "endless.rwkv"


def test_an_interrupt_stops_the_answer_and_not_the_chat(chat, environment, endless_model, tmp_path):
    kept = tmp_path / "kept.state"
    command = [*chat, endless_model, kept]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        process.stdin.write(b"x\n")
        process.stdin.flush()
        seen = b""
        while len(seen.replace(b"> ", b"")) < 5:
            seen += os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(seen + rest) < 900, "the answer went on"
    with Model.load(endless_model) as model:
        assert 0 < model.load_state(kept).n_tokens < 900


def test_the_readme_of_the_examples_names_all_of_them():
    text = (ROOT / "examples" / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "examples").iterdir()):
        assert path.name == "README.md" or path.name in text, f"examples/README.md does not mention {path.name}"


def test_greedy_words_cost_the_bundled_model_little(world_model, demo_path):
    """What examples/demo_for_c.py says of the other way to cut words: most turns are cut the same."""
    turns = [
        "User: Hello\n\nAssistant: Hi there! How can I help you?\n\n",
        "User: What is 2 plus 3?\n\nAssistant: 2 plus 3 is 5.\n\n",
        "User: Tell me a story about a fox.\n\nAssistant: Once there was a kind fox named Kleex.\n\n",
        "User: What colour is the sky?\n\nAssistant: The sky is blue.\n\n",
    ]
    with Model.load(demo_path) as demo, Model.load(world_model) as other:
        for turn in turns:
            ids = other.tokenizer.encode(turn)
            assert other.tokenizer.decode(ids) == turn
        same = [demo.tokenizer.encode(turn) == other.tokenizer.encode(turn) for turn in turns]
        ids = demo.tokenizer.encode(turns[1])
        assert np.array_equal(demo.forward(ids)[0], other.forward(ids)[0]), "the weights are the very same"
    assert sum(same) >= len(turns) // 2
