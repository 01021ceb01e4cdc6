# SPDX-License-Identifier: Apache-2.0
"""The schema tells the truth: about what is in the package, and about what goes over the wire."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator

from rwkv_cpu.server.schema import SCHEMA_FILE, schema, schema_text

SCHEMA = schema()


def valid(what, value):
    Draft202012Validator({"$defs": SCHEMA["$defs"], **SCHEMA["$defs"][what]}).validate(value)


def test_the_file_in_the_package_is_this_schema():
    assert SCHEMA_FILE.read_text("utf-8") == schema_text(), "write it again: python -m rwkv_cpu.server.schema"
    Draft202012Validator.check_schema(SCHEMA)


def test_the_command_prints_it():
    command = [sys.executable, "-m", "rwkv_cpu", "serve", "--stdio", "--schema"]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == SCHEMA


def test_a_recorded_conversation_is_valid(client, tmp_path):
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    chat = client.call("chat/create", temperature=0.0, system="Be kind.", stop=["###"])["chat"]
    for method, params in (
        ("initialize", {}),
        ("info", {}),
        ("models", {}),
        ("load", {"model": "demo", "threads": 1}),
        ("threads", {"threads": None}),
        ("tokenize", {"text": "Hi"}),
        ("detokenize", {"tokens": [1, 2]}),
        ("generate", {"prompt": "Once", "max_tokens": 4, "logprobs": 1, "stop": "\n", "seed": None}),
        ("score", {"text": "Hello", "context": "Hi"}),
        ("embed", {"text": "Hello"}),
        ("chat", {"messages": [{"role": "user", "content": "Hello"}], "tools": [tool], "max_tokens": 8}),
        ("unload", {}),
        ("chat/send", {"chat": chat, "text": "Hello", "max_tokens": 8}),
        ("chat/send", {"chat": chat, "tool_result": {"rain": True}, "max_tokens": 8}),
        ("chat/retry", {"chat": chat, "max_tokens": 8, "think": "off"}),
        ("chat/edit", {"chat": chat, "turn": 0, "text": "Hi", "keep_as": "old", "max_tokens": 8}),
        ("chat/fork", {"chat": chat}),
        ("chat/branch", {"chat": chat, "name": "new"}),
        ("chat/switch", {"chat": chat, "name": "old"}),
        ("chat/delete_branch", {"chat": chat, "name": "new"}),
        ("chat/history", {"chat": chat}),
        ("chat/undo", {"chat": chat}),
        ("chat/save", {"chat": chat, "path": str(tmp_path / "talk.json")}),
        ("chat/load", {"path": str(tmp_path / "talk.json")}),
        ("chat/reset", {"chat": chat}),
        ("chat/close", {"chat": chat}),
        ("state/new", {}),
        ("state/copy", {"state": "s1"}),
        ("state/save", {"state": "s1", "path": str(tmp_path / "a.state"), "f16": True}),
        ("state/load", {"path": str(tmp_path / "a.state")}),
        ("state/drop", {"state": "s1"}),
        ("cancel", {"id": 1}),
        ("$/cancelRequest", {"id": "a"}),
        ("shutdown", {}),
    ):
        valid(f"{method} params", params)
        valid(f"{method} result", client.call(method, params))
    used = {message["method"] for message in client.sent}
    assert used == {name.removesuffix(" params") for name in SCHEMA["$defs"] if name.endswith(" params")}
    for message in client.sent:
        valid("client", message)
    for message in client.seen:
        valid("server", message)
    kinds = {message["params"]["kind"] for message in client.seen if message.get("method") == "event"}
    assert kinds >= {"prefill", "text", "done"}


def test_errors_are_valid(client):
    for line in (b"{", b"[]", b"[1]", b'{"jsonrpc":"2.0","id":1,"method":"nosuch"}'):
        client.write(line + b"\n")
        valid("server", client.message())


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("client", {"jsonrpc": "2.0", "id": 1, "method": "nosuch"}),
        ("client", {"jsonrpc": "2.0", "id": 1, "method": "tokenize"}),
        ("client", {"jsonrpc": "2.0", "id": 1, "method": "generate", "params": {"temperature": -1}}),
        ("server", {"jsonrpc": "2.0", "id": 1}),
        ("server", {"jsonrpc": "2.0", "method": "event", "params": {"id": 1, "kind": "nosuch"}}),
    ],
)
def test_the_schema_knows_what_is_wrong(what, value):
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        valid(what, value)
