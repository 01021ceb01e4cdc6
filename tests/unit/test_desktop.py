# SPDX-License-Identifier: Apache-2.0
"""A Desk without a window: what its events say, that it never waits, and that it needs no console."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu.chat.events import PrefillEvent, TextEvent
from rwkv_cpu.desktop import (
    Desk,
    FailedEvent,
    LoadEvent,
    ReadyEvent,
    _add,
    last_session,
    model_choices,
    new_session,
    progress_of,
    status_of,
)
from rwkv_cpu.errors import ArgumentError, Busy, Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rwkv_cpu.desktop import DeskEvent

SECONDS = 60
LONG = "The river is long and slow. " * 2000


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path))
    desk = Desk()
    yield desk
    desk.close()


def events(desk: Desk, until: str = "") -> list[DeskEvent]:
    """All to the end of what is going on, or to the first of a kind."""
    found: list[DeskEvent] = []
    deadline = time.monotonic() + SECONDS
    while desk.busy and time.monotonic() < deadline:
        found += desk.poll()
        if until and any(event.kind == until for event in found):
            break
    return found


def loaded(desk: Desk, **options: object) -> Desk:
    desk.load("demo", chat_options={"temperature": 0}, **options)
    assert events(desk)[-1] == ReadyEvent()
    return desk


def test_a_question_is_answered_in_events(desk: Desk) -> None:
    desk.load("demo", chat_options={"temperature": 0})
    load = events(desk)
    assert {event.kind for event in load} == {"load", "ready"}
    assert load[-2].kind == "load"
    assert progress_of(load[-2]) == 1.0
    desk.send("My name is Ada.")
    answer = events(desk)
    assert answer[-1].kind == "done"
    assert "".join(event.text for event in answer if isinstance(event, TextEvent)) == answer[-1].text == "Hello, Ada!"
    assert status_of(answer[-1]).endswith("tokens/s")
    assert not desk.busy
    assert desk.poll() == []


def test_one_thing_at_a_time_and_stopping_it(desk: Desk) -> None:
    loaded(desk)
    desk.send(LONG)
    with pytest.raises(Busy):
        desk.send("Hello!")
    seen = events(desk, until="prefill")
    desk.cancel()
    last = (seen + events(desk))[-1]
    assert last.kind == "done"
    assert status_of(last) == "Stopped"
    assert desk.chat is not None
    assert desk.chat.n_turns == 0
    desk.send("My name is Ada.")
    assert events(desk)[-1].text == "Hello, Ada!"  # type: ignore[union-attr]


def test_loading_can_be_stopped_and_what_was_open_stays(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(desk)
    before, chat = desk.model, desk.chat
    desk.load("demo")
    desk.cancel()
    last = events(desk)[-1]
    if isinstance(last, FailedEvent):  # it may have been quicker
        assert isinstance(last.error, Cancelled)
        assert (desk.model, desk.chat) == (before, chat)
    desk.load("no such model")
    last = events(desk)[-1]
    assert isinstance(last, FailedEvent)
    assert "no such model" in last.message
    assert "demo" in last.hint
    desk.send("My name is Ada.")
    assert events(desk)[-1].kind == "done"


def test_a_session_goes_on_with_another_desk_and_another_model(desk: Desk) -> None:
    assert last_session().startswith("Chat 2")
    loaded(desk, session="talk")
    desk.send("My name is Ada.")
    events(desk)
    desk.load("demo", session="talk")  # the model anew, the conversation goes on
    assert events(desk)[-1] == ReadyEvent()
    assert desk.chat is not None
    assert desk.chat.n_turns == 1
    desk.open(new_session())
    events(desk)
    assert desk.chat.n_turns == 0
    desk.close()
    assert last_session() in ("talk", *[last_session()])
    other = Desk()
    other.load("demo", session="talk")
    events(other)
    assert other.chat is not None
    other.send("What is my name?", temperature=0)
    assert events(other)[-1].text == "Your name is Ada."  # type: ignore[union-attr]
    other.edit(0, "My name is Zelda.")
    events(other)
    assert set(other.chat.branches) == {"main", "edit 1"}
    other.close()


def test_nothing_works_before_a_model_is_loaded(desk: Desk) -> None:
    for call in (lambda: desk.send("Hi"), desk.retry, lambda: desk.open("x"), lambda: desk.edit(0, "Hi")):
        with pytest.raises(ArgumentError):
            call()
    desk.cancel()
    desk.close()
    desk.close()


def test_what_came_meanwhile_is_joined() -> None:
    found: list[DeskEvent] = []
    for event in (
        LoadEvent(1, 4, "read"), LoadEvent(2, 4, "read"), PrefillEvent(1, 9), PrefillEvent(9, 9), TextEvent("a"),
        TextEvent("b"),
    ):  # fmt: skip
        _add(found, event)
    assert found == [LoadEvent(2, 4, "read"), PrefillEvent(9, 9), TextEvent("ab")]


def test_no_thread_is_left_while_nothing_is_done(desk: Desk) -> None:
    before = set(threading.enumerate())
    loaded(desk)
    desk.send("My name is Ada.")
    events(desk)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)  # the last of them is ending
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(sys.platform == "win32", reason="resource usage of POSIX")
def test_an_idle_model_takes_no_processor_time(desk: Desk) -> None:
    import resource

    loaded(desk)
    desk.send("My name is Ada.")
    events(desk)

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    shares = []
    for _ in range(3):
        before, began = spent(), time.monotonic()
        threading.Event().wait(0.5)
        shares.append((spent() - before) / (time.monotonic() - began))
    assert min(shares) < 0.02


def test_models_are_offered_with_the_memory_they_need(desk: Desk) -> None:
    choices = model_choices()
    assert choices[0].name == "demo"
    assert choices[0].label.startswith("demo · 1")


def test_nothing_is_written_to_a_missing_console(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "os.environ['RWKV_CPU_HOME'] = sys.argv[1]\n"
        "import logging, rwkv_cpu\n"
        "from rwkv_cpu.desktop import Desk\n"
        "desk = Desk()\n"
        "for name in ('demo', 'nothing'):\n"
        "    desk.load(name, session='talk')\n"
        "    while desk.busy: desk.poll()\n"
        "desk.send('My name is Ada.', temperature=0)\n"
        "while desk.busy: desk.poll()\n"
        "logging.getLogger('rwkv_cpu').error('nobody listens')\n"
        "pathlib.Path(sys.argv[1], 'answer').write_text(desk.chat.turns[-1].text)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=SECONDS)
    assert (tmp_path / "answer").read_text() == "Hello, Ada!"
