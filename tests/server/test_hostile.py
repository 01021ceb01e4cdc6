# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in: every line is answered as the standard says, in this process, where it can be counted."""

from __future__ import annotations

import io
import json
import threading

import pytest
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
    before = set(threading.enumerate())
    Server(io.BytesIO(data).read, written.append, LoadOptions()).run()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) <= before
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


HANDLES = {
    "model": ["m1", "demo"],
    "draft_model": ["m1"],
    "chat": ["c1", "c2"],
    "state": ["s1", "s2"],
    "path": ["a", "b"],
}
NUMBERS = {"max_tokens": st.integers(1, 4), "threads": st.integers(1, 2), "n": st.integers(1, 3)}


def of_shape(shape, name=""):
    """Values that the schema allows, and some that it does not."""
    if "$ref" in shape:
        shape = SCHEMA["$defs"]["sampling"]["properties"][name]
    if name in HANDLES:
        return st.sampled_from(HANDLES[name])
    if name in NUMBERS:
        return NUMBERS[name]
    if "anyOf" in shape:
        return st.one_of(*(of_shape(one, name) for one in shape["anyOf"]))
    if "enum" in shape:
        return st.sampled_from(shape["enum"])
    kind = shape.get("type")
    if kind == "array":
        return st.lists(of_shape(shape["items"]), max_size=3)
    if kind == "object" and shape.get("properties"):
        return of_record(shape)
    low, high = shape.get("minimum", -3), min(shape.get("maximum", 300), 300)
    return {
        "string": st.text(max_size=8) | st.sampled_from(["Hello!", "Once upon a time"]),
        "integer": st.integers(low, max(low, high)),
        "number": st.floats(low, max(low, high)),
        "boolean": st.booleans(),
        "null": st.none(),
        "object": st.dictionaries(st.text(max_size=5), values, max_size=2),
    }.get(kind, values)


def of_record(shape):
    members = {name: of_shape(one, name) for name, one in shape["properties"].items()}
    required = {name: members.pop(name) for name in shape.get("required", ())}
    return st.fixed_dictionaries(required, optional=members)


@st.composite
def typed_requests(draw):
    method = draw(st.sampled_from([m for m in METHODS if m not in ("shutdown", "info")]))
    few = st.sets(st.sampled_from(sorted(SCHEMA["$defs"][f"{method} params"]["properties"]) or [""]), max_size=3)
    shape = SCHEMA["$defs"][f"{method} params"]
    kept = draw(few) | set(shape.get("required", ()))
    shape = {**shape, "properties": {n: one for n, one in shape["properties"].items() if n in kept}}
    return {"jsonrpc": "2.0", "method": method, "params": draw(of_record(shape))}


@settings(max_examples=150)
@given(st.lists(typed_requests(), min_size=1, max_size=6))
def test_no_request_to_a_loaded_model_is_a_surprise(demo_folder, requests):
    begin = [{"jsonrpc": "2.0", "method": method, "params": {}} for method in ("state/new", "chat/create", "tokenize")]
    begin[-1]["params"] = {"text": "Hi"}
    requests = [{**one, "id": number} for number, one in enumerate([*begin, *requests])]
    arrived = threading.Semaphore(0)
    answers = []

    def lines():
        for request in requests:  # one after the other: what one makes, the next may use
            yield json.dumps(request).encode() + b"\n"
            while len(answers) <= request["id"]:
                arrived.acquire()

    def write(data):
        for line in data.splitlines():
            message = json.loads(line)
            SERVER_MESSAGE.validate(message)
            if "method" not in message:
                answers.append(message)
                arrived.release()

    source = lines()
    Server(lambda _: next(source, b""), write, LoadOptions("demo")).run()
    assert [one["id"] for one in answers] == [one["id"] for one in requests]
    for request, answer in zip(requests, answers, strict=True):
        if "error" in answer:
            assert answer["error"]["code"] != -32603, (request, answer)
        else:
            result = SCHEMA["$defs"][f"{request['method']} result"]
            Draft202012Validator({"$defs": SCHEMA["$defs"], **result}).validate(answer["result"])


@pytest.fixture(scope="module")
def demo_folder(demo_path, tmp_path_factory):
    """An empty folder to be in, and a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.setenv("RWKV_CPU_HOME", str(tmp_path_factory.mktemp("home")))
        yield


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
