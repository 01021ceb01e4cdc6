# SPDX-License-Identifier: Apache-2.0
"""Running rwkv-cpu as users do: as a process, in a pipe, and in a terminal of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rwkv_cpu.terminal.prompt import history_path

ENTER = "\r"
CTRL_C, CTRL_D, ALT_ENTER = "\x03", "\x04", "\x1b\r"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, so that no test touches the user's history or cache."""
    for name in ("RWKV_CPU_HOME", "NO_COLOR", "FORCE_COLOR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "RWKV_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path / "rwkv"))
    assert history_path().is_relative_to(tmp_path)
    return tmp_path


@pytest.fixture
def rwkv(home, demo_path):
    """rwkv("chat", "-n", "3", input="Hello!\\n") → CompletedProcess; text in and out."""

    def run(*args, input="", **kwargs):  # noqa: A002 (subprocess's name)
        kwargs = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 60, **kwargs}
        return subprocess.run([sys.executable, "-m", "rwkv_cpu", *args], input=input, check=False, **kwargs)

    return run


class Terminal:
    """A program in a pseudo-terminal, and what its user sees."""

    def __init__(self, argv, *, columns=80, lines=40, env=None):
        pexpect, pyte = pytest.importorskip("pexpect"), pytest.importorskip("pyte")
        # Nothing here answers the question where the cursor is.
        env = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})}
        for name in ("COLUMNS", "LINES"):  # pytest-xdist sets them; this terminal has a size of its own
            env.pop(name, None)
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""
        self.process = pexpect.spawn(
            argv[0], argv[1:], env=env, dimensions=(lines, columns), encoding="utf-8", timeout=20
        )
        self._closed = (pexpect.EOF, OSError)
        self._quiet = pexpect.TIMEOUT

    def type(self, text):
        self.process.send(text)

    def say(self, text):
        """Type it, see it, send it; until the prompt is there again. What comes then may be longer than the screen."""
        self.type(text)
        self.wait_for(f"> {text}")
        self.type("\r")
        self.wait_for_prompt()

    def lines(self):
        return [line.rstrip() for line in self.screen.display]

    def text(self):
        return "\n".join(self.lines()).rstrip()

    def wait_for(self, text, *, times=1):
        """Until *text* stands on the screen so many times."""
        self._until(lambda: self.text().count(text) >= times, f"{text!r} {times} times")

    def wait_for_prompt(self):
        """Until the last line is the prompt, with nothing typed."""
        self._until(lambda: self.text().rpartition("\n")[2] in (">", "> Type a message, or /help"), "the prompt")

    def resize(self, columns, lines):
        self.process.setwinsize(lines, columns)
        self.screen.resize(lines, columns)

    def exit_code(self):
        """Read to the end; the exit code of the program."""
        self._until(lambda: False, None)
        self.process.close()
        return self.process.exitstatus

    def _until(self, seen, what):
        end = time.monotonic() + 20
        while not seen():
            if time.monotonic() > end:
                pytest.fail(f"waited for {what}; the screen shows:\n{self.text()}")
            try:
                data = self.process.read_nonblocking(4096, timeout=0.2)
            except self._quiet:
                continue
            except self._closed:
                if what is None:
                    return
                pytest.fail(f"waited for {what}; the program ended and the screen shows:\n{self.text()}")
            self.raw += data
            self._stream.feed(data)


@pytest.fixture
def terminal(home, demo_path):
    """terminal("chat", "--temp", "0") → Terminal."""
    opened = []

    def start(*args, program=("-m", "rwkv_cpu"), **kwargs):
        opened.append(Terminal([sys.executable, *program, *args], **kwargs))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.isalive():  # close() gives a busy machine a tenth of a second
            one.process.kill(signal.SIGKILL)
            one.process.wait()
        one.process.close()
