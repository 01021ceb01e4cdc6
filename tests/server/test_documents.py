# SPDX-License-Identifier: Apache-2.0
"""What docs/stdio.md shows is what happens; the example in Node.js runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from rwkv_cpu.server.protocol import CODES, slug_of
from rwkv_cpu.server.registry import METHODS
from rwkv_cpu.server.schema import schema


@pytest.fixture(scope="module")
def page(checkout):
    return (checkout / "docs" / "stdio.md").read_text("utf-8")


def pattern(shown):
    return re.compile(".*?".join(re.escape(part) for part in shown.split("…")))


def test_the_transcript(serve, page):
    (transcript,) = re.findall(r"```transcript\n(.*?)```", page, re.DOTALL)
    client = serve()
    skipping = False
    for line in transcript.splitlines():
        mark, _, shown = line.partition(" ")
        if mark == ">":
            client.write(shown.encode() + b"\n")
        elif shown == "…":
            skipping = True
        else:
            while True:
                message = json.dumps(client.message(), ensure_ascii=False, separators=(",", ":"))
                if pattern(shown).fullmatch(message):
                    break
                assert skipping, f"expected {shown}\ncame     {message}"
            skipping = False
    assert client.end()[0] == 0


def test_every_method_event_and_error_is_on_the_page(page):
    assert schema()
    for name in METHODS:
        assert f"`{name}`" in page or f"`{name.partition('/')[2]}`" in page, name
    for kind, code in CODES.items():
        if kind is not MemoryError:
            assert f"`{slug_of(kind)}`" in page, kind
            assert str(code) in page or -32006 < code < -32003, code


def node():
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node on this machine: apt install nodejs")
    return found


@pytest.fixture
def run_example(checkout, tmp_path, demo_path):
    def run(*command):
        script = checkout / "examples" / "node_stdio" / "main.js"
        return subprocess.run(
            [node(), script, *command],
            capture_output=True, text=True, encoding="utf-8", check=False, timeout=120,
            cwd=tmp_path, env={"RWKV_CPU_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        )  # fmt: skip

    return run


def test_the_node_example(run_example, tmp_path):
    done = run_example(sys.executable, "-m", "rwkv_cpu")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for expected in (
        "model demo: fits",
        "Nice to meet you, Ada!",
        "long message: cancelled, 1 turn",
        "Your name is Ada.",
        "taken back: What is my name?",
        "ArgumentError: no parameter 'txt' (Did you mean 'text'?)",
        "ended with 0",
    ):
        assert expected in lines
    assert any(re.fullmatch(r"Once upon a time.+\|.+", line) for line in lines)
    assert not list(tmp_path.glob("rwkv-*"))


def test_the_node_example_says_what_is_wrong(run_example):
    done = run_example("nosuchprogram")
    assert done.returncode == 1
    assert "ENOENT" in done.stderr
    done = run_example(sys.executable, "-c", "raise SystemExit(3)")
    assert done.returncode == 1
    assert "rwkv-cpu ended (3)" in done.stderr
