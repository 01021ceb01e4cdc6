# SPDX-License-Identifier: Apache-2.0
"""rwkv-cpu compare, as users run it."""

from __future__ import annotations

import json

import pytest

from rwkv_cpu.quantize import quantize
from tests.pth_writer import rwkv7_tensors, write_checkpoint


@pytest.fixture(scope="module")
def other(tmp_path_factory, demo_path):
    """A model of the demonstration model's vocabulary that knows nothing."""
    from rwkv_cpu import Model

    folder = tmp_path_factory.mktemp("compare")
    with Model(demo_path) as demo:
        (folder / "tokenizer.model").write_bytes(demo.tokenizer.to_bytes())
        source = write_checkpoint(folder / "m.pth", rwkv7_tensors(n_embd=64, n_ffn=128, n_vocab=demo.n_vocab))
    quantize(source, folder / "other.rwkv", tokenizer=folder / "tokenizer.model")
    return folder / "other.rwkv"


def test_plain_in_a_pipe(rwkv, other):
    done = rwkv("compare", "demo", str(other), "-p", "User: Hi!\\n\\nAssistant:", "-n", "6")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "--- demo\n" in done.stdout
    assert "--- other.rwkv\n" in done.stdout
    assert "they part at token" in done.stdout
    assert done.stderr == ""


def test_json_and_prompts_from_a_file(rwkv, other, tmp_path):
    (tmp_path / "p.txt").write_text("User: Hi!\\n\\nAssistant:\n\nThe sun\n", "utf-8")
    done = rwkv("compare", "demo", str(other), "-f", str(tmp_path / "p.txt"), "-n", "5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["prompt"] for one in found["prompts"]] == ["User: Hi!\n\nAssistant:", "The sun"]
    for one in found["prompts"]:
        assert len(one["tokens"]) <= 5
        assert one["tokens"][one["divergence"]]["first"][0]["probability"] > 0


@pytest.mark.parametrize("columns", [120, 80, 50])
def test_a_terminal_gets_columns_or_one_below_the_other(terminal, other, columns):
    screen = terminal("compare", "demo", str(other), "-p", "User: Hi!\\n\\nAssistant:", "-n", "12", columns=columns)
    assert screen.exit_code() == 0
    heads = [line for line in screen.lines() if line.startswith("demo")]
    assert ("other.rwkv" in heads[0]) == (columns > 72)
    assert "▶" in screen.text()
    assert all(len(line) <= columns for line in screen.lines())


def test_wrong_use(rwkv, other, tmp_path):
    source = write_checkpoint(tmp_path / "m.pth", rwkv7_tensors(n_embd=64, n_ffn=128, n_vocab=320))
    quantize(source, tmp_path / "small.rwkv", tokenizer="none")
    done = rwkv("compare", "demo", str(tmp_path / "small.rwkv"))
    assert done.returncode == 1
    assert "small.rwkv of 320" in done.stderr
    assert "hint:" in done.stderr
    (tmp_path / "empty.txt").write_text("\n")
    done = rwkv("compare", "demo", str(other), "-f", str(tmp_path / "empty.txt"))
    assert done.returncode == 2
    assert "no prompt" in done.stderr
    assert rwkv("compare", "demo").returncode == 2
    assert "no model called" in rwkv("compare", "demo", str(tmp_path / "missing.rwkv")).stderr
