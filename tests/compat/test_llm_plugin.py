# SPDX-License-Identifier: Apache-2.0
"""The real ``llm`` command line with this plugin. It finds it by the package's entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest.importorskip("llm", reason="needs llm: pip install 'rwkv_cpu[llm]'")


@pytest.fixture
def llm(tmp_path):
    def run(*arguments: str, text: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LLM_USER_PATH": str(tmp_path / "llm")},
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr if code else done.stdout

    return run


def test_the_entry_point_is_there():
    assert "rwkv_cpu.compat.llm_plugin" in {point.value for point in entry_points(group="llm")}


def test_prompt_stream_options_and_conversation(llm):
    assert "rwkv" in llm("models")
    assert llm("-m", "rwkv", "What is 7 plus 5?").strip() == "7 plus 5 is 12."
    assert llm("-m", "rwkv", "--no-stream", "What is 7 plus 5?").strip() == "7 plus 5 is 12."
    greedy = ("-o", "temperature", "0")
    assert llm("-m", "rwkv", *greedy, "-o", "max_tokens", "3", "What is 7 plus 5?").strip() == "7 plus"
    llm("-m", "rwkv", *greedy, "Hello! My name is Ada.")
    assert "Ada" in llm("-c", *greedy, "What is my name?")
    logged = json.loads(llm("logs", "-n", "1", "--json"))
    assert logged[0]["model"] == "rwkv"


def test_chat_keeps_the_conversation(llm):
    said = llm("chat", "-m", "rwkv", "-o", "temperature", "0", text="My name is Ada.\nWhat is my name?\nexit\n")
    assert said.count("Ada") >= 2


def test_schema(llm):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    assert json.loads(llm("-m", "rwkv", "--schema", json.dumps(schema), "Choose."))["n"] in (1, 2)


def test_errors_are_told(llm):
    assert "no_such_file" in llm("-m", "rwkv", "-o", "model", "no_such_file", "Hello", code=1)
    assert "temperature" in llm("-m", "rwkv", "-o", "temperature", "-3", "Hello", code=1)


def test_asynchronous_model():
    import asyncio

    import llm as library

    async def ask() -> str:
        response = library.get_async_model("rwkv").prompt("What is 7 plus 5?", temperature=0)
        return "".join([piece async for piece in response])

    assert asyncio.run(ask()) == "7 plus 5 is 12."
