# SPDX-License-Identifier: Apache-2.0
"""Events, asyncio, cancelling: an answer beside its plain text."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import CancelToken, Chat, Model
from rwkv_cpu.chat.events import DoneEvent, PrefillEvent, TextEvent, ThoughtEvent
from rwkv_cpu.errors import Busy, NonFiniteError
from rwkv_cpu.generation.sampling import SamplingParams
from rwkv_cpu.generation.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREEDY = SamplingParams(temperature=0.0)
LONG = "x " * 600


def chat_with(fake_model, script=None):
    return Chat(fake_model(script, "world"), params=GREEDY)


@pytest.fixture(scope="module")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=2) as model:
        yield model


# ---------------------------------------------------------------------------------------------- events


def test_events_are_prefill_then_text_then_done(fake_model):
    chat = chat_with(fake_model, {LONG.strip(): " Fine, thanks.\n\nUser: x"})
    events = list(chat.send(LONG).events())
    kinds = "".join(event.kind[0] for event in events)
    assert kinds.strip("p").strip("t") == "d"
    prefill = [event for event in events if isinstance(event, PrefillEvent)]
    assert prefill
    assert [event.done for event in prefill] == sorted(event.done for event in prefill)
    assert all(event.done <= event.total for event in prefill)
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert "".join(event.text for event in events if isinstance(event, TextEvent)) == done.text == "Fine, thanks."
    assert done.finish_reason == "stop"
    assert done.stats is not None
    assert done.stats.generated_tokens > 0
    assert chat.turns[-1].text == "Fine, thanks."


def test_thoughts_are_events_of_their_own(fake_model):
    chat = chat_with(fake_model, {"why": " <think>Because.</think>\nSo it is.\n\nUser: x"})
    events = list(chat.send("why").events())
    assert "".join(e.text for e in events if isinstance(e, ThoughtEvent)).strip() == "Because."
    assert "".join(e.text for e in events if isinstance(e, TextEvent)) == "So it is."
    assert isinstance(events[-1], DoneEvent)
    assert (events[-1].text, events[-1].thought) == ("So it is.", "Because.")
    assert "".join(chat.send("why")) == "So it is."


def test_calls_of_tools_are_events_of_their_own(fake_model):
    call = '```json\n{"name": "clock", "arguments": {"zone": "UTC"}}\n```'
    chat = chat_with(fake_model, {"time": f" {call}\n\nUser: x"})
    events = [e for e in chat.send("time").events([Tool("clock")]) if e.kind in ("text", "tool")]
    assert [e.kind for e in events if e.kind == "tool" or e.text.strip()] == ["tool"]
    (called,) = [e.call for e in events if e.kind == "tool"]
    assert (called.name, called.arguments) == ("clock", {"zone": "UTC"})
    assert "".join(e.text for e in chat.send("time").events() if e.kind == "text") == call


def test_leaving_the_events_ends_the_answer(fake_model):
    chat = chat_with(fake_model)
    for event in chat.send("hello").events():
        if event.kind == "text":
            break
    del event
    assert chat.turns[-1].finish_reason == "cancelled"
    assert chat.send("again").read()  # the chat is free


def test_leaving_while_the_prompt_is_read_stops_reading(demo: Model):
    chat = demo.chat()
    events = chat.send("word " * 200_000).events()
    assert next(events).kind == "prefill"
    events.close()
    assert not chat.turns
    assert demo.chat().send("Hello!").read()


def test_cancel_during_events_is_an_outcome_not_an_error(fake_model):
    chat = chat_with(fake_model)
    answer = chat.send("hello")
    seen = []
    for event in answer.events():
        seen.append(event)
        if event.kind == "text":
            answer.cancel()
    assert isinstance(seen[-1], DoneEvent)
    assert seen[-1].finish_reason == "cancelled"
    assert chat.turns[-1].text == seen[-1].text != ""


def test_an_error_of_the_model_comes_out_of_events_and_again_of_the_answer(fake_model):
    chat = chat_with(fake_model)

    def broken(*args, **kwargs):
        raise NonFiniteError("not a number")

    chat.model.advance = broken
    answer = chat.send("hello")
    with pytest.raises(NonFiniteError):
        list(answer.events())
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            next(answer)
    assert not chat.turns
    with pytest.raises(NonFiniteError):
        chat.send("the chat is free").read()


# --------------------------------------------------------------------------------------------- cancel


def test_a_token_of_the_caller_stops_the_answer_and_is_not_kept(fake_model):
    chat = chat_with(fake_model)
    token = CancelToken()
    answer = chat.send("hello", cancel=token)
    next(answer)
    assert token._linked
    token.cancel()
    assert answer.read() == chat.turns[-1].text
    assert answer.finish_reason == "cancelled"
    assert not token._linked


def test_cancel_from_another_thread_ends_a_long_prompt_and_frees_the_chat(demo: Model):
    chat = demo.chat()
    started = threading.Event()
    answer = chat.send("word " * 200_000, on_progress=lambda *_: started.set())
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(answer.read)
        assert started.wait(60)
        with pytest.raises(Busy):
            chat.send("two at once")
        answer.cancel()
        assert text.result(60) == ""
    assert answer.finish_reason == "cancelled"
    assert chat.send("What is 7 plus 5?", temperature=0).read() == "7 plus 5 is 12."


def test_many_threads_send_to_one_chat_and_one_of_them_is_served(demo: Model):
    chat, served, refused = demo.chat(), [], []
    barrier = threading.Barrier(16)

    def send(i: int) -> None:
        barrier.wait()
        try:
            served.append(chat.send(f"What is {i} plus 1?").read())
        except Busy:
            refused.append(i)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(16)))
    assert len(served) + len(refused) == 16
    assert len(served) == len(chat.turns) >= 1


def test_many_chats_answer_at_once_as_they_do_alone(demo: Model):
    def talk(i: int) -> list[str]:
        chat = demo.chat(temperature=1.0, top_p=0.9, seed=i)
        return [chat.send(text).read() for text in (f"My name is Ada {i}.", "What is 7 plus 5?", "What is my name?")]

    alone = [talk(i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(talk, range(6))) == alone


# ----------------------------------------------------------------------------------------------- async


def test_asend_gives_what_send_gives(demo: Model):
    async def ask() -> tuple[str, str, str | None]:
        chat = demo.chat(temperature=0)
        answer = chat.asend("What is the capital of France?")
        text = "".join([piece async for piece in answer])
        return text, answer.text, chat.turns[-1].text

    expected = demo.chat(temperature=0).send("What is the capital of France?").read()
    assert asyncio.run(ask()) == (expected,) * 3


def test_several_tasks_answer_while_the_loop_goes_on(demo: Model):
    async def main() -> tuple[list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        chats = [demo.chat(temperature=0) for _ in range(5)]
        texts = await asyncio.gather(*(chat.asend("What is 7 plus 5?").read() for chat in chats))
        ticking.cancel()
        return texts, ticks

    texts, ticks = asyncio.run(main())
    assert set(texts) == {"7 plus 5 is 12."}
    assert ticks > 20


def test_cancelling_the_task_stops_the_prompt_and_frees_the_chat(demo: Model):
    async def main() -> str:
        chat = demo.chat(temperature=0)
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def ask() -> None:
            def tell(*_: int) -> None:
                loop.call_soon_threadsafe(started.set)

            async for _ in chat.asend("word " * 200_000, on_progress=tell):
                raise AssertionError

        task = asyncio.create_task(ask())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not chat.turns
        return await chat.asend("What is 7 plus 5?").read()

    assert asyncio.run(main()) == "7 plus 5 is 12."


def test_a_timeout_keeps_what_was_answered(fake_model):
    async def main() -> Chat:
        chat = chat_with(fake_model, {"go": " " + "word " * 3000})
        answer = chat.asend("go", max_tokens=100_000)
        shown = asyncio.Event()

        async def read() -> None:
            async for _ in answer:
                shown.set()

        task = asyncio.create_task(read())
        await shown.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return chat

    chat = asyncio.run(main())
    assert chat.turns[-1].finish_reason == "cancelled"
    assert "word ".startswith(chat.turns[-1].text[:5])


def test_async_events_and_leaving_early(demo: Model):
    async def main() -> None:
        chat = demo.chat(temperature=0)
        kinds = [event.kind async for event in chat.asend("word " * 400).events()]
        assert kinds[0] == "prefill"
        assert kinds[-1] == "done"
        async with chat.asend("Tell me a joke.") as answer:
            async for _ in answer:
                break
        assert chat.turns[-1].finish_reason == "cancelled"
        await chat.aretry().read()
        await chat.aedit(0, "Hello!").read()
        assert len(chat.turns) == 1

    asyncio.run(main())


def test_generate_has_an_async_twin(demo: Model):
    async def main() -> str:
        reply = demo.agenerate("Once upon a time", max_tokens=20, seed=3)
        return "".join([piece async for piece in reply])

    assert asyncio.run(main()) == demo.generate("Once upon a time", max_tokens=20, seed=3).read()
