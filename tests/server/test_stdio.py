# SPDX-License-Identifier: Apache-2.0
"""The server as a process: what its clients may rely on."""

from __future__ import annotations

import fcntl
import json
import select
import signal
import subprocess
import sys

import pytest

LONG = "word " * 100_000
# The answer never ends by itself.
ENDLESS = {"banned": [0], "max_tokens": 1_000_000}


def test_first_words(client):
    about = client.call("initialize", protocol=1, client={"name": "test"})
    assert about["server"]["name"] == "rwkv-cpu"
    assert "chat/send" in about["capabilities"]["methods"]
    assert client.error("initialize", protocol=99)["code"] == -32602
    code, rest, err = client.end()
    assert (code, rest, err) == (0, b"", "")


def test_nothing_is_loaded_without_a_request(serve):
    client = serve()
    error = client.error("generate", prompt="Hi")
    assert error["data"]["class"] == "ArgumentError"
    assert "load" in error["data"]["hint"]
    loaded = client.call("load", model="demo", threads=1)
    assert (loaded["model"], loaded["threads"]) == ("m1", 1)
    assert client.call("generate", prompt="Hi", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_wrong_model_on_the_command_line_is_told_to_whoever_needs_it(serve):
    client = serve("nosuch.rwkv")
    assert client.call("initialize")["models"] == []
    error = client.error("generate", prompt="Hi")
    assert (error["code"], error["data"]["class"]) == (-32007, "ModelNotFoundError")
    assert "nosuch.rwkv" in error["message"]
    assert client.call("load")["name"] == "demo"
    assert client.call("tokenize", text="Hi")["tokens"]


def test_generate_streams_what_it_returns(client):
    number = client.send("generate", prompt="Once upon a time", max_tokens=20, seed=1, logprobs=2)
    result = client.response(number)["result"]
    events = [m["params"] for m in client.seen if m.get("method") == "event"]
    assert "".join(e["text"] for e in events if e["kind"] == "text") == result["text"]
    assert [e["kind"] for e in events][-1] == "done"
    assert events[0]["kind"] == "prefill"
    assert len(result["logprobs"]) == result["usage"]["completion_tokens"]
    again = client.call("generate", prompt="Once upon a time", max_tokens=20, seed=result["seed"], stream=False)
    assert again["text"] == result["text"]


def test_a_conversation(client):
    chat = client.call("chat/create", temperature=0)["chat"]
    assert client.call("chat/send", chat=chat, text="Hello! My name is Ada.")["turns"] == 1
    answer = client.call("chat/send", chat=chat, text="What is my name?")
    assert "Ada" in answer["text"]
    twin = client.call("chat/fork", chat=chat)["chat"]
    assert client.call("chat/undo", chat=chat)["taken"][0]["user"] == "What is my name?"
    assert client.call("chat/send", chat=chat, text="What is my name?") | {"stats": 0} == answer | {"stats": 0}
    client.call("chat/branch", chat=chat, name="sums")
    client.call("chat/edit", chat=chat, turn=1, text="What is 7 plus 5?")
    client.call("chat/retry", chat=chat)
    history = client.call("chat/history", chat=chat)
    assert history["branches"] == {"sums": 2, "main": 2}
    assert "12" in history["turns"][1]["text"]
    assert client.call("chat/switch", chat=chat, name="main")["branch"] == "main"
    assert client.call("chat/history", chat=twin)["turns"] == client.call("chat/history", chat=chat)["turns"]
    client.call("chat/close", chat=twin)
    assert client.error("chat/send", chat=twin, text="Hi")["data"]["hint"] == f"there are {chat}"


def test_a_saved_conversation_goes_on(client, tmp_path):
    chat = client.call("chat/create", temperature=0)["chat"]
    client.call("chat/send", chat=chat, text="Hello! My name is Ada.")
    client.call("chat/save", chat=chat, path=str(tmp_path / "talk.json"))
    loaded = client.call("chat/load", path=str(tmp_path / "talk.json"))
    assert loaded["turns"] == 1
    assert "Ada" in client.call("chat/send", chat=loaded["chat"], text="What is my name?")["text"]


def test_a_session_outlives_the_server(serve):
    first = serve("demo")
    chat = first.call("chat/create", session="kept", temperature=0)["chat"]
    first.call("chat/send", chat=chat, text="Hello! My name is Ada.")
    first.kill()
    second = serve("demo")
    chat = second.call("chat/create", session="kept")
    assert chat["turns"] == 1
    assert "Ada" in second.call("chat/send", chat=chat["chat"], text="What is my name?")["text"]


def test_messages_without_a_handle(client):
    messages = [{"role": "user", "content": "Hello! My name is Ada."}]
    first = client.call("chat", messages=messages, temperature=0)
    messages += [{"role": "assistant", "content": first["text"]}, {"role": "user", "content": "What is my name?"}]
    assert "Ada" in client.call("chat", messages=messages, temperature=0)["text"]


def test_messages_with_a_grammar(client):
    pytest.importorskip("llguidance")
    messages = [{"role": "user", "content": "Hello! My name is Ada."}]
    properties = {"name": {"enum": ["Ada", "Bo"]}}
    form = {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}
    number = client.send("chat", messages=messages, temperature=0, grammar={"json_schema": form})
    answer = client.response(number)["result"]
    streamed = [m["params"]["text"] for m in client.seen if m.get("params", {}).get("kind") == "text"]
    assert json.loads(answer["text"])["name"] in ("Ada", "Bo")
    assert "".join(streamed) == answer["text"]
    assert answer["finish_reason"] == "end"
    assert client.call("chat", messages=messages, grammar={"choice": ["yes", "no"]})["text"] in ("yes", "no")
    tool = {"name": "now", "description": "The time.", "parameters": {}}
    for wrong in ({}, {"json": True, "regex": "a"}, {"regex": "("}):
        assert client.error("chat", messages=messages, grammar=wrong)["code"] == -32602
    assert "not both" in client.error("chat", messages=messages, grammar={"json": True}, tools=[tool])["message"]


def test_states(client, tmp_path):
    state = client.call("state/new")["state"]
    first = client.call("generate", prompt="Once upon a time", state=state, max_tokens=5, temperature=0)
    client.call("state/save", state=state, path=str(tmp_path / "a.state"))
    copy = client.call("state/copy", state=state)["state"]
    loaded = client.call("state/load", path=str(tmp_path / "a.state"))["state"]
    after = [client.call("generate", state=one, max_tokens=5, temperature=0)["text"] for one in (state, copy, loaded)]
    whole = client.call("generate", prompt="Once upon a time", max_tokens=10, temperature=0)["text"]
    assert [first["text"] + text for text in after] == [whole] * 3
    client.call("state/drop", state=copy)
    assert client.error("state/drop", state=copy)["code"] == -32602


def test_texts(client):
    tokens = client.call("tokenize", text="Once upon a time 🙂")["tokens"]
    assert client.call("detokenize", tokens=tokens)["text"] == "Once upon a time 🙂"
    scored = client.call("score", text="Once upon a time")
    assert len(scored["logprobs"]) == len(scored["tokens"])
    assert scored["total"] == pytest.approx(sum(scored["logprobs"]))
    assert len(client.call("embed", text="Hello")["vector"]) == 256
    assert client.error("detokenize", tokens=[10**9])["data"]["class"] == "TokenError"


def test_models_have_a_memory_forecast(client, make_rwkv, tmp_path):
    (tmp_path / "broken.rwkv").write_bytes(b"no model")
    found = client.call("models", paths=[str(make_rwkv().parent), str(tmp_path / "broken.rwkv")])["models"]
    assert found[0]["name"] == "demo"
    assert found[0]["memory"]["needed_bytes"] > found[0]["about"]["size_bytes"]
    assert found[-1]["error"]["data"]["class"] == "FormatError"
    assert any(one["path"] == str(make_rwkv()) for one in found)
    missing = client.call("models", paths=[str(tmp_path / "nosuch")])["models"][-1]
    assert missing["error"]["data"]["class"] == "ModelNotFoundError"


def test_four_chats_at_the_same_time_answer_as_they_would_alone(client):
    questions = ["What is 7 plus 5?", "Tell me a joke.", "What is the capital of France?", "Hello! My name is Ada."]
    alone = [
        client.call("chat/send", chat=client.call("chat/create", temperature=0)["chat"], text=question)["text"]
        for question in questions
    ]
    chats = [client.call("chat/create", temperature=0)["chat"] for _ in questions]
    ids = [client.send("chat/send", chat=c, text=q) for c, q in zip(chats, questions, strict=True)]
    assert [client.response(one)["result"]["text"] for one in ids] == alone


def test_a_chat_answers_one_question_at_a_time(client):
    chat = client.call("chat/create")["chat"]
    first = client.send("chat/send", chat=chat, text=LONG)
    client.event(first, "prefill")
    error = client.error("chat/send", chat=chat, text="Hi")
    assert (error["code"], error["data"]["class"]) == (-32010, "Busy")
    assert client.error("chat/undo", chat=chat)["code"] == -32010
    assert client.call("cancel", id=first) == {"cancelled": True}
    assert client.response(first)["result"]["finish_reason"] == "cancelled"


def test_an_id_is_used_by_one_request_at_a_time(client):
    first = client.send("generate", prompt=LONG)
    client.event(first, "prefill")
    client.write(json.dumps({"jsonrpc": "2.0", "id": first, "method": "tokenize", "params": {"text": "Hi"}}).encode())
    client.write(b"\n")
    message = client.response(first)
    assert message["error"]["code"] == -32600
    client.call("cancel", id=first)


# ------------------------------------------------------------------------------------------- cancelling


def test_cancel_while_loading(serve, make_pth, tmp_path):
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True)
    client = serve()
    with (cache / ".lock").open("ab") as lock:  # another program converts just now
        fcntl.flock(lock, fcntl.LOCK_EX)
        number = client.send("load", model=str(make_pth()))
        assert client.call("cancel", id=number) == {"cancelled": True}
        error = client.response(number)["error"]
    assert (error["code"], error["data"]["class"]) == (-32800, "Cancelled")
    assert client.call("cancel", id=number) == {"cancelled": False}
    number = client.send("load", model=str(make_pth()))
    assert client.event(number, "load")["total"] > 0
    assert client.response(number)["result"]["model"] == "m1"


def test_cancel_while_the_prompt_is_read(client):
    chat = client.call("chat/create", temperature=0)["chat"]
    client.call("chat/send", chat=chat, text="Hello! My name is Ada.")
    number = client.send("chat/send", chat=chat, text=LONG)
    client.event(number, "prefill")
    client.write(b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":%d}}\n' % number)
    result = client.response(number)["result"]
    assert (result["text"], result["finish_reason"], result["turns"]) == ("", "cancelled", 1)
    assert "Ada" in client.call("chat/send", chat=chat, text="What is my name?")["text"]


@pytest.mark.parametrize("n_pieces", [1, 2, 7])
def test_cancelled_text_goes_on_as_if_nothing_had_happened(client, n_pieces):
    options = {**ENDLESS, "temperature": 0}
    state = client.call("state/new")["state"]
    number = client.send("generate", options, prompt="Once upon a time", state=state)
    for _ in range(n_pieces):
        client.event(number, "text")
    client.call("cancel", id=number)
    first = client.response(number)["result"]
    assert first["finish_reason"] == "cancelled"
    second = client.call("generate", {**options, "max_tokens": 8}, state=state)
    n_tokens = first["usage"]["completion_tokens"] + 8
    whole = client.call("generate", {**options, "max_tokens": n_tokens}, prompt="Once upon a time")
    assert first["text"] + second["text"] == whole["text"]


def test_unload_ends_what_uses_the_model(client):
    number = client.send("generate", prompt=LONG)
    client.event(number, "prefill")
    client.call("unload")
    assert client.response(number)["error"]["data"]["class"] == "ModelClosedError"


# ---------------------------------------------------------------------------------------------- the end


def test_shutdown_answers_last(client):
    number = client.send("generate", ENDLESS, prompt="Once upon a time")
    client.event(number, "text")
    last = client.send("shutdown")
    assert client.response(last)["result"] == {}
    assert client.response(number)["result"]["finish_reason"] == "cancelled"
    assert client.end() == (0, b"", "")


@pytest.mark.parametrize("what", ["prefill", "text"])
def test_it_ends_when_its_input_does(client, what):
    number = client.send("generate", ENDLESS, prompt=LONG if what == "prefill" else "Once upon a time")
    client.event(number, what)
    code, rest, err = client.end()
    assert (code, err) == (0, "")
    assert json.loads(rest.splitlines()[-1])["result"]["finish_reason"] == "cancelled"


def test_it_ends_when_nobody_reads(client):
    number = client.send("generate", ENDLESS, prompt="Once upon a time")
    client.event(number, "text")
    client.process.stdout.close()
    assert client.process.wait() == 0


def test_it_ends_quietly_when_it_is_told_to(client):
    number = client.send("generate", prompt=LONG)
    client.event(number, "prefill")
    client.process.send_signal(signal.SIGTERM)
    assert client.process.wait() == 130
    assert client.process.stderr.read() == b""


def test_no_orphan_when_the_parent_is_killed_in_the_middle_of_a_prompt(demo_path, tmp_path):
    parent = (
        "import json, subprocess, sys, time\n"
        "server = subprocess.Popen([sys.executable, '-m', 'rwkv_cpu', 'serve', '--stdio', 'demo'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "request = {'jsonrpc': '2.0', 'id': 1, 'method': 'generate', 'params': {'prompt': 'word ' * 100000}}\n"
        "server.stdin.write(json.dumps(request).encode() + b'\\n'); server.stdin.flush()\n"
        "print(server.stdout.readline().decode(), flush=True)\n"
        "server.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert '"prefill"' in process.stdout.readline().decode()
        process.kill()
        # The server has the same standard error: it is at its end when both are gone.
        ready, _, _ = select.select([process.stderr], [], [], 60)
        assert ready
        assert process.stderr.read() == b""


# ------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("line", "code", "id", "words"),
    [
        (b"{", -32700, None, "not JSON"),
        (b"\xff\xfe", -32700, None, "not UTF-8"),
        (b'{"jsonrpc":"2.0","id":1e999,"method":"initialize"}', -32700, None, "too large"),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"initialize"}', -32700, None, "NaN"),
        (b"[" * 100_000, -32700, None, "not JSON"),
        (b"[]", -32600, None, "batch"),
        (b"7", -32600, None, "object"),
        (b'{"id":1,"method":"initialize"}', -32600, 1, "jsonrpc"),
        (b'{"jsonrpc":"2.0","id":"a"}', -32600, "a", "method"),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600, 1, "method"),
        (b'{"jsonrpc":"2.0","id":true,"method":"initialize"}', -32600, None, "id"),
        (b'{"jsonrpc":"2.0","id":[1],"method":"initialize"}', -32600, None, "id"),
        (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":7}', -32600, 1, "params"),
        (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":[1]}', -32602, 1, "by name"),
        (b'{"jsonrpc":"2.0","id":1,"method":"initialize2"}', -32601, 1, "initialize2"),
        (b'{"jsonrpc":"2.0","id":1,"method":"tokenize"}', -32602, 1, "text is missing"),
        (b'{"jsonrpc":"2.0","id":1,"method":"tokenize","params":{"text":7}}', -32602, 1, "text must be a text"),
        (b'{"jsonrpc":"2.0","id":1,"method":"tokenize","params":{"txet":"a","text":"a"}}', -32602, 1, "txet"),
        (b'{"jsonrpc":"2.0","id":1,"method":"generate","params":{"top_p":2}}', -32602, 1, "top_p"),
        (b'{"jsonrpc":"2.0","id":1,"method":"generate","params":{"max_tokens":0}}', -32602, 1, "max_tokens"),
        (b'{"jsonrpc":"2.0","id":1,"method":"generate","params":{"prompt":["a"]}}', -32602, 1, "prompt[0]"),
    ],
)
def test_wrong_input_is_answered(client, line, code, id, words):  # noqa: A002
    client.write(line + b"\n")
    message = client.message()
    assert (message["error"]["code"], message["id"]) == (code, id)
    assert words in message["error"]["message"]
    assert set(message["error"]["data"]) == {"code", "class", "hint"}
    assert client.call("initialize")


def test_a_line_that_is_too_long(client):
    client.write(b'{"jsonrpc":"2.0","id":1,"method":"tokenize","params":{"text":"' + b"a" * (17 << 20) + b'"}}\n')
    assert client.message()["error"]["code"] == -32600
    assert client.call("initialize")


@pytest.mark.parametrize("id", [0, -1, 1.5, "", "é\ud83d", 10**400, None, "x" * 10_000])
def test_ids_of_every_kind_come_back(client, id):  # noqa: A002
    client.write(json.dumps({"jsonrpc": "2.0", "id": id, "method": "tokenize", "params": {"text": "Hi"}}).encode())
    client.write(b"\r\n")
    message = client.message()
    assert message["id"] == id
    assert message["result"]["tokens"]


def test_batches_and_notifications(client):
    client.write(b"\n  \n")  # blank lines are nothing
    client.write(b'{"jsonrpc":"2.0","method":"initialize"}\n{"jsonrpc":"2.0","method":"nosuch"}\n')
    client.write(b'[{"jsonrpc":"2.0","method":"initialize"}]\n')  # only notifications: no answer
    client.write(
        b'[{"jsonrpc":"2.0","id":1,"method":"tokenize","params":{"text":"Hi"}},7,{"jsonrpc":"2.0","method":"x"},'
        b'{"jsonrpc":"2.0","id":2,"method":"initialize"},{"jsonrpc":"2.0","id":3,"method":"nosuch"}]\n'
    )
    answers = client.message()
    assert isinstance(answers, list)
    assert sorted(str(one["id"]) for one in answers) == ["1", "2", "3", "None"]
    assert {one["error"]["code"] for one in answers if "error" in one} == {-32600, -32601}


def test_the_last_line_needs_no_end(client):
    client.write(b'{"jsonrpc":"2.0","id":1,"method":"initialize"}')
    code, rest, _ = client.end()
    assert code == 0
    assert json.loads(rest)["id"] == 1


def test_logs_go_to_standard_error(demo_path):
    run = subprocess.run(
        [sys.executable, "-m", "rwkv_cpu", "--debug", "serve", "--stdio"],
        input=b'{"jsonrpc":"2.0","id":1,"method":"load","params":{"model":"nosuch"}}\n',
        capture_output=True,
        check=True,
    )
    for line in run.stdout.splitlines():
        assert json.loads(line)["jsonrpc"] == "2.0"


def test_serve_needs_to_be_told_how(demo_path):
    run = subprocess.run([sys.executable, "-m", "rwkv_cpu", "serve"], capture_output=True, check=False, text=True)
    assert run.returncode == 2
    assert "--stdio" in run.stderr
