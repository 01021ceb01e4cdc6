# SPDX-License-Identifier: Apache-2.0
"""Whatever is stopped, wherever it is stopped: going on gives the text of a run that was never stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu import CancelToken, Model
from rwkv_cpu.batch import run_batch
from rwkv_cpu.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "The river is long and slow. " * 90 + "What is it like?"
QUESTIONS = ("My name is Ada.", "The river is long and slow. " * 60 + "What is my name?", "Tell me a joke.")
N_TOKENS = 24


@pytest.fixture(scope="module")
def model(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(model: Model) -> str:
    return model.generate(PROMPT, max_tokens=N_TOKENS, temperature=0).read()


@pytest.fixture(scope="module")
def answers(model: Model) -> list[str]:
    chat = model.chat(temperature=0, max_tokens=N_TOKENS)
    return [chat.send(question).read() for question in QUESTIONS]


class After(CancelToken):
    """Cancels itself when it was looked at so often: a point inside the work, not a time."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    @property
    def cancelled(self) -> bool:
        self.looks -= 1
        if self.looks == 0:
            self.cancel()
        return super().cancelled


@settings(max_examples=25)
@given(n_read=st.integers(0, 700), n_written=st.integers(0, N_TOKENS))
def test_generate(model: Model, whole: str, n_read: int, n_written: int) -> None:
    ids = model.tokenizer.encode(PROMPT)
    state, done = model.new_state(), 0
    while done < len(ids):  # stopped while the prompt is read, again and again
        token = CancelToken()
        try:
            model.advance(
                ids[done:], state, cancel=token, progress=lambda n, _, t=token: t.cancel() if n >= n_read else None
            )
            done = len(ids)
        except Cancelled as error:
            done += error.n_done
    assert np.array_equal(state.data, model.forward(ids)[1].data)
    token = CancelToken()
    reply = model.generate("", state=state, max_tokens=N_TOKENS, temperature=0, cancel=token)
    text = ""
    for piece in reply:
        text += piece
        if len(reply.tokens) >= n_written:
            token.cancel()
    written = list(reply.tokens)
    rest = ""
    if len(written) < N_TOKENS and reply.finish_reason == "cancelled":
        _, again = model.forward([*ids, *written])
        assert np.array_equal(model.forward(written[reply.consumed_tokens :], state)[1].data, again.data) or not written
        rest = model.generate("", state=again, max_tokens=N_TOKENS - len(written), temperature=0).read()
    assert (text + rest).encode("utf-8", "replace").replace(b"\xef\xbf\xbd", b"") in whole.encode()
    assert whole.startswith(text.rstrip("\ufffd"))


@settings(max_examples=25)
@given(data=st.data())
def test_chat(model: Model, answers: list[str], data: st.DataObject) -> None:
    chat = model.chat(temperature=0, max_tokens=N_TOKENS)
    for question, expected in zip(QUESTIONS, answers, strict=True):
        for _ in range(data.draw(st.integers(0, 2))):
            n_pieces, in_prompt = data.draw(st.integers(0, 6)), data.draw(st.booleans())
            answer = chat.send(question, cancel=After(data.draw(st.integers(1, 8))) if in_prompt else None)
            for i, _piece in enumerate(answer):
                if i >= n_pieces:
                    answer.cancel()
            if answer.text:
                assert expected.startswith(answer.text)
                chat.undo()
        assert chat.send(question).read() == expected
    assert [turn.text for turn in chat.turns] == answers


@settings(max_examples=15)
@given(first=st.integers(0, 5), pieces=st.integers(0, 5))
def test_async(model: Model, answers: list[str], first: int, pieces: int) -> None:
    async def talk() -> list[str]:
        chat = model.chat(temperature=0, max_tokens=N_TOKENS)

        async def read(limit: int) -> None:
            n = 0
            async with chat.asend(QUESTIONS[0]) as answer:
                async for _ in answer:
                    n += 1
                    if n >= limit:
                        await asyncio.sleep(3600)

        task = asyncio.create_task(read(pieces))
        for _ in range(first):
            await asyncio.sleep(0)
        done, _ = await asyncio.wait([task], timeout=0.01)
        if not done:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        if chat.n_turns:
            chat.undo()
        return [await chat.asend(question).read() for question in QUESTIONS]

    assert asyncio.run(talk()) == answers


@settings(max_examples=8)
@given(stops=st.lists(st.integers(1, 5), max_size=3))
def test_batch(model: Model, tmp_path_factory: pytest.TempPathFactory, stops: list[int]) -> None:
    folder = tmp_path_factory.mktemp("batch")
    prompts = [f"The {n} friends" for n in range(6)]
    lines = [{"id": n, "prompt": prompt, "max_tokens": 10, "temperature": 0} for n, prompt in enumerate(prompts)]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for looks in stops:  # the same command goes on where it was
        with contextlib.suppress(Cancelled):
            run_batch(model, folder / "in.jsonl", folder / "out.jsonl", cancel=After(looks))
    run_batch(model, folder / "in.jsonl", folder / "out.jsonl")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]
    assert sorted(row["id"] for row in rows) == list(range(6))
    for row in rows:
        assert row["text"] == model.generate(prompts[row["id"]], max_tokens=10, temperature=0).read()
