# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in: every line is answered as the standard says, in this process, where it can be counted."""

from __future__ import annotations

import io
import json
import threading

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from rwkv_cpu.server.channel import ClientGoneError, Outbox, TooLong, lines_of
from rwkv_cpu.server.protocol import ProtocolError, encode, error_of, parse_line
from rwkv_cpu.server.schema import schema
from rwkv_cpu.server.server import Server
from rwkv_cpu.server.workspace import LoadOptions

SCHEMA = schema()
SERVER_MESSAGE = Draft202012Validator({"$defs": SCHEMA["$defs"], **SCHEMA["$defs"]["server"]})
METHODS = sorted(name.removesuffix(" params") for name in SCHEMA["$defs"] if name.endswith(" params"))
STANDARD = {-32700, -32600, -32601, -32602}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
names = st.sampled_from(sorted({n for m in METHODS for n in SCHEMA["$defs"][f"{m} params"]["properties"]}))
requests = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from([m for m in METHODS if m != "shutdown"])},
    optional={"id": scalars, "params": values | st.dictionaries(names, values, max_size=4)},
)


def answers_to(data):
    """Everything that a server writes to a client that sends *data*."""
    written = []
    Server(io.BytesIO(data).read, written.append, LoadOptions()).run()
    lines = b"".join(written).splitlines()
    return [json.loads(line) for line in lines]


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line and line.strip()), max_size=5))
def test_every_line_of_bytes_gets_one_answer(lines):
    answers = answers_to(b"\n".join(lines))
    for answer in answers:
        SERVER_MESSAGE.validate(answer)
        assert isinstance(answer, list) or answer["error"]["code"] in STANDARD
    assert len(answers) == len(lines)


@settings(max_examples=300)
@given(st.lists(requests | values, max_size=4))
def test_no_request_is_a_surprise(requests):
    data = b"".join(json.dumps(one).encode() + b"\n" for one in requests)
    for answer in answers_to(data):
        SERVER_MESSAGE.validate(answer)
        for one in answer if isinstance(answer, list) else [answer]:
            if "error" in one:
                assert one["error"]["code"] != -32603, one
                assert one["error"]["message"]


@given(st.binary(max_size=300), st.integers(1, 20), st.integers(1, 30))
def test_lines_do_not_depend_on_how_they_arrive(data, size, longest):
    whole = list(lines_of(io.BytesIO(data).read, longest))
    stream = io.BytesIO(data)
    pieces = list(lines_of(lambda _: stream.read(size), longest))
    assert [None if isinstance(one, TooLong) else one for one in pieces] == [
        None if isinstance(one, TooLong) else one for one in whole
    ]
    assert all(isinstance(one, TooLong) or (len(one) <= longest and one == one.strip()) for one in whole)


@given(values)
def test_messages_are_one_line_and_come_back(value):
    line = encode(value)
    assert line.count(b"\n") == 1
    assert parse_line(line) == value


def test_numbers_that_json_does_not_know():
    assert encode({"a": [float("nan"), float("inf"), 1.5]}) == b'{"a":[null,null,1.5]}\n'


def test_an_unexpected_error_says_that_it_is_a_bug():
    error = error_of(KeyError("x"))
    assert error["code"] == -32603
    assert "bug" in error["data"]["hint"]
    assert error_of(ProtocolError(-32600, "no"))["data"]["code"] == "request"
    assert error_of(FileNotFoundError(2, "No such file", "a"))["message"] == "a: No such file"


def test_what_is_not_read_is_bounded():
    may_write, written = threading.Event(), []

    def write(data):
        may_write.wait()
        written.append(data)

    outbox = Outbox(write, lambda: None)
    lines = [f"{n:1000}\n".encode() for n in range(2000)]
    n_put = 0

    def produce():
        nonlocal n_put
        for line in lines:
            outbox.put(line)
            n_put += 1

    try:
        outbox.put(lines[0], timeout=0)
        for line in lines[1:]:
            outbox.put(line, timeout=0)
            n_put += 1
    except ClientGoneError:
        pass
    assert 200 < n_put < 600  # 256 KB wait, as much may be with the writer
    may_write.set()

    outbox = Outbox(write, lambda: None)
    may_write.clear()
    written.clear()
    n_put = 0
    producer = threading.Thread(target=produce)
    producer.start()
    may_write.set()
    producer.join()
    assert outbox.drain(60)
    assert b"".join(written) == b"".join(lines)


def test_a_request_waits_for_a_client_that_does_not_read(demo_path):
    may_write, first_write, text = threading.Event(), threading.Event(), []
    request = {"jsonrpc": "2.0", "id": 1, "method": "generate"}
    request["params"] = {"prompt": "Once upon a time", "banned": [0], "max_tokens": 20_000, "seed": 1}
    requests = io.BytesIO(json.dumps(request).encode() + b"\n")
    ended = threading.Event()

    def read(size):
        return requests.read(size) or (ended.wait() and b"")

    def write(data):
        first_write.set()
        may_write.wait()
        text.append(data)

    server = Server(read, write, LoadOptions("demo"))
    thread = threading.Thread(target=server.run)
    thread.start()
    first_write.wait()
    outbox = server._outbox
    with outbox._changed:  # until the request waits for room: its text is 2 MB of messages
        outbox._changed.wait_for(lambda: outbox._waiting_bytes >= 1 << 18)
        assert outbox._waiting_bytes < (1 << 18) + 1000
        assert server._n_active == 1
    ended.set()
    may_write.set()
    thread.join()
    assert json.loads(b"".join(text).splitlines()[-1])["result"]["finish_reason"] == "cancelled"
