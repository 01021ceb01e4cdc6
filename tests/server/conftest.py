# SPDX-License-Identifier: Apache-2.0
"""A client of ``rwkv-cpu serve --stdio``, as a program in another language would be one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading

import pytest

WATCHDOG_SECONDS = 120


class Client:
    """Starts the server as a process; every message that came is kept in *seen*."""

    def __init__(self, *args, env=None, **kwargs):
        command = [sys.executable, "-m", "rwkv_cpu", "serve", "--stdio", *args]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **kwargs
        )
        self._watchdog = threading.Timer(WATCHDOG_SECONDS, self.process.kill)
        self._watchdog.start()
        self._next = 100
        self.sent, self.seen = [], []

    def write(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, method, params=None, **named):
        """A request; its id."""
        self._next += 1
        message = {"jsonrpc": "2.0", "id": self._next, "method": method, "params": {**(params or {}), **named}}
        self.sent.append(message)
        self.write(json.dumps(message).encode() + b"\n")
        return self._next

    def message(self):
        """The next message; fails at the end of the stream."""
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), f"the server ended: {self.process.stderr.read().decode()}"
        self.seen.append(json.loads(line))
        return self.seen[-1]

    def event(self, id, kind):  # noqa: A002
        """The next event of this kind of that request."""
        while True:
            message = self.message()
            assert message.get("id") != id, message
            params = message.get("params", {})
            if params.get("id") == id and params["kind"] == kind:
                return params

    def response(self, id):  # noqa: A002
        for message in self.seen:
            if "method" not in message and message["id"] == id:
                return message
        while True:
            message = self.message()
            if "method" not in message and message["id"] == id:
                return message

    def call(self, method, params=None, **named):
        """A request's result."""
        answer = self.response(self.send(method, params, **named))
        assert "result" in answer, answer
        return answer["result"]

    def error(self, method, params=None, **named):
        answer = self.response(self.send(method, params, **named))
        assert "error" in answer, answer
        return answer["error"]

    def end(self):
        """Close its input; (exit code, what it still wrote, standard error)."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        out, err = self.process.stdout.read(), self.process.stderr.read()
        self._watchdog.cancel()
        return self.process.wait(), out, err.decode()

    def kill(self):
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def serve(tmp_path, demo_path):
    """serve(*arguments) → Client."""
    clients = []

    def start(*args, **kwargs):
        env = {**os.environ, "RWKV_CPU_HOME": str(tmp_path / "home"), **kwargs.pop("env", {})}
        clients.append(Client(*args, env=env, **kwargs))
        return clients[-1]

    yield start
    for client in clients:
        client.kill()


@pytest.fixture
def client(serve):
    """With the bundled model."""
    return serve("demo")
