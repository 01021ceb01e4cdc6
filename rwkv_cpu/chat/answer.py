# SPDX-License-Identifier: Apache-2.0
"""One answer of a conversation, while it is being made."""

from __future__ import annotations

import string
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from rwkv_cpu.asynchronous import END, AsyncSteps
from rwkv_cpu.chat.events import DoneEvent, PrefillEvent, TextEvent, ThoughtEvent, ToolEvent
from rwkv_cpu.chat.thoughts import Piece, ThoughtSplitter
from rwkv_cpu.errors import Busy, Cancelled
from rwkv_cpu.generation.loop import generate
from rwkv_cpu.generation.tools import ToolCallParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.chat.events import Event
    from rwkv_cpu.generation.loop import Reply, Stats
    from rwkv_cpu.generation.sampling import SamplingParams
    from rwkv_cpu.generation.structured import Grammar
    from rwkv_cpu.generation.tools import Tool
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Answer", "AsyncAnswer", "Outcome", "Run"]

# What stands at the end of a piece and may turn out to be the end of the answer, where it is taken off.
_MAY_BE_CUT = string.whitespace + "\ufffd"
_WAIT_SECONDS = 0.05


@dataclass(frozen=True)
class Outcome:
    """What an answer left behind.

    Attributes:
        raw: its text as generated, space at its start included.
        answer: that without the thought. thought: without its marks.
        finish_reason: as Turn's.
        consumed: the ids of it that *state* has read: all, or all but the last.
        state: nobody else's.
    """

    raw: str
    answer: str
    thought: str
    finish_reason: str
    stats: Stats
    consumed: list[int]
    state: State


class Answer:
    """An answer being made: iterate it for pieces of text. Nothing is computed before the first is asked for.

    Made by Chat.send(). Leaving the loop early, or close(), ends it; what there was stays in the conversation.
    """

    def __init__(self, run: Run) -> None:
        # The generator refers to the run, never to this object: so that an answer which is dropped unread is
        # finalised at once, and its conversation is free again.
        self._run = run
        self._pieces = run.produce()

    @property
    def text(self) -> str:
        """The answer so far, without space around it; the pieces join up to exactly this."""
        return self._run.text

    @property
    def thought(self) -> str:
        """What the model thought so far before it answers; "" for models that do not think."""
        return self._run.thought.strip()

    @property
    def finish_reason(self) -> str | None:
        """None while it runs, then "stop" or "end" (complete), "length" or "cancelled"."""
        return self._run.finish_reason

    @property
    def stats(self) -> Stats | None:
        """Figures of message and answer together; None until it ended."""
        return self._run.stats

    @property
    def tokens(self) -> list[int]:
        """The ids generated so far."""
        return self._run.tokens

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            piece = self._next()
            if not piece.is_thought:
                return piece.text

    def pieces(self) -> Iterator[Piece]:
        """The same with the thoughts, each piece marked as thought or answer."""
        while True:
            try:
                piece = self._next()
            except StopIteration:
                return
            yield piece

    def events(self, tools: Sequence[Tool] | None = None) -> Iterator[Event]:
        """The same with everything that happens: the prompt being read, thoughts, text, and at the end the figures.

        A long prompt is read in another thread meanwhile, where on_progress is called too. Leaving the loop ends the
        answer.

        Args:
            tools: functions whose calls become events of their own, instead of text.
        """
        calls = None if tools is None else ToolCallParser(tools)
        try:
            first = yield from self._prefill_events()
            if first is not None:
                yield from _events_of(first, calls)
                for piece in self.pieces():
                    yield from _events_of(piece, calls)
            for part in () if calls is None else calls.flush():
                yield TextEvent(part) if isinstance(part, str) else ToolEvent(part)
        finally:
            self.cancel()
            self.close()
        yield DoneEvent(self.text, self.thought, self.finish_reason or "cancelled", self.stats)

    def _prefill_events(self) -> Generator[Event, None, Piece | None]:
        """Reads the prompt; returns the first piece, None if there is none."""
        queue: SimpleQueue[Event | None] = SimpleQueue()
        found: list[Piece | None] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                found.append(next(self.pieces(), None))
            except BaseException as error:  # noqa: BLE001 (raised by the waiting thread)
                failure.append(error)
            queue.put(None)

        self._run.on_prefill = lambda done, total: queue.put(PrefillEvent(done, total))
        thread = Thread(target=work, name="rwkv-cpu prompt", daemon=True)
        thread.start()
        try:
            while (event := _next_of(queue)) is not None:
                yield event
        finally:
            self._run.on_prefill = None
            if not (found or failure):
                self.cancel()
            thread.join()
        if failure:
            raise failure[0]
        return found[0]

    def _next(self) -> Piece:
        try:
            return next(self._pieces)
        except StopIteration:
            if self._run.error is not None:  # it never came to an end: saying so once is easily missed
                raise self._run.error from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def read(self) -> str:
        """Run to the end and return the whole text."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """Stop it within milliseconds, from any thread; its iteration then ends, with finish_reason "cancelled"."""
        self._run.cancel.cancel()

    def close(self) -> None:
        """End it here. Harmless if it ended already."""
        try:
            self._pieces.close()
        except ValueError:  # the generator is running
            raise Busy("this is running in another thread", hint="Stop it with cancel().") from None
        self._run.abandon()


class AsyncAnswer(AsyncSteps[str]):
    """An Answer for asyncio: ``async for piece in chat.asend(...)``; made by Chat.asend() and its like."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer, answer.cancel)
        self._answer = answer

    @property
    def text(self) -> str:
        """As Answer's; so are the others."""
        return self._answer.text

    @property
    def thought(self) -> str:
        """What the model thought so far."""
        return self._answer.thought

    @property
    def finish_reason(self) -> str | None:
        """None while it runs."""
        return self._answer.finish_reason

    @property
    def stats(self) -> Stats | None:
        """None until it ended."""
        return self._answer.stats

    async def events(self, tools: Sequence[Tool] | None = None) -> AsyncIterator[Event]:
        """Answer.events() for asyncio."""
        events = self._answer.events(tools)
        while (event := await self._step(events)) is not END:
            yield event
        await self.aclose()

    async def read(self) -> str:
        """Run to the end and return the whole text."""
        async for _ in self:
            pass
        return self.text


@dataclass
class Run:
    """The making of one answer.

    Attributes:
        read_prompt: gives a state, the last ids of the prompt, which it has not read, how many it read now, and the
            last of the conversation's ids before those.
        finish: called once at the end, with None if there is nothing to keep.
        params, max_tokens, stop, cancel, on_progress: as generation.loop.generate takes them.
        lead: how the answer begins, which was part of the prompt ("<think").
        exact: space around the text belongs to it.
        grammar: the form of the answer.
        on_prefill: as on_progress, for who listens to events.
        error: what it failed with.
        text, tokens, stats, finish_reason: as Answer shows them.
    """

    model: Model
    read_prompt: Callable[[], tuple[State, list[int], int, Sequence[int] | NDArray[np.uint32]]]
    finish: Callable[[Outcome | None], None] | None
    params: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    cancel: CancelToken
    on_progress: Callable[[int, int], None] | None
    on_prefill: Callable[[int, int], None] | None = None
    error: Exception | None = None
    lead: str = ""
    exact: bool = False
    grammar: Grammar | None = None
    thought: str = ""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    stats: Stats | None = None
    finish_reason: str | None = None

    def produce(self) -> Generator[Piece, None, None]:
        """The pieces of the answer."""
        outcome: Outcome | None = None
        try:
            began = time.perf_counter()
            try:
                state, rest, n_read, before = self.read_prompt()
            except Cancelled:
                self.finish_reason = "cancelled"
                return
            waited = time.perf_counter() - began
            reply = generate(
                self.model,
                state,
                rest,
                self.params,
                max_tokens=self.max_tokens,
                stop=self.stop,
                history=before,
                grammar=self.grammar,
                cancel=self.cancel,
                on_progress=lambda done, total: self.tell_progress(n_read + done, n_read + total),
            )
            try:
                yield from self._shown(reply)
            except GeneratorExit:
                reply.close()
                outcome = self._outcome(reply, waited, n_read)
                raise
            outcome = self._outcome(reply, waited, n_read)
        except Exception as error:
            self.error = error
            raise
        finally:
            self._end(outcome)

    def tell_progress(self, done: int, total: int) -> None:
        """The prompt is being read."""
        for listener in (self.on_progress, self.on_prefill):
            if listener is not None:
                listener(done, total)

    def abandon(self) -> None:
        """End an answer that was never begun; harmless for others."""
        if self.finish is not None:
            self.finish_reason = "cancelled"
            self._end(None)

    def _end(self, outcome: Outcome | None) -> None:
        finish, self.finish = self.finish, None
        if finish is not None:
            finish(outcome)

    def _shown(self, reply: Reply) -> Iterator[Piece]:
        """The pieces without space around the whole."""
        held = ""
        splitter = ThoughtSplitter(self.lead)
        for text in reply:
            self.tokens = list(reply.tokens)
            for piece in splitter.feed(text):
                if piece.is_thought:
                    self.thought += piece.text
                    yield piece
                    continue
                held += piece.text
                if not self.text:
                    held = self._trimmed(held, held.lstrip())
                ready = self._trimmed(held, held.rstrip(_MAY_BE_CUT))
                held = held[len(ready) :]
                if ready:
                    self.text += ready
                    yield Piece(ready, is_thought=False)
        for piece in splitter.flush():
            if piece.is_thought:
                self.thought += piece.text
                yield piece
            else:
                held += piece.text
        tail = _whole(held, reply.finish_reason)
        tail = self._trimmed(tail, tail.strip() if not self.text else tail.rstrip())
        if tail:
            self.text += tail
            yield Piece(tail, is_thought=False)

    def _trimmed(self, whole: str, trimmed: str) -> str:
        return whole if self.exact else trimmed

    def _outcome(self, reply: Reply, waited: float, n_read: int) -> Outcome | None:
        """None if nothing was answered: a message cancelled before its first word counts as not sent."""
        self.tokens = list(reply.tokens)
        self.finish_reason = reply.finish_reason or "cancelled"
        self.stats = _with_prompt(reply.stats, waited, n_read)
        raw = _whole(reply.text, self.finish_reason)
        raw = self._trimmed(raw, raw.rstrip())
        splitter = ThoughtSplitter(self.lead)
        pieces = [*splitter.feed(raw), *splitter.flush()]
        answer = "".join(piece.text for piece in pieces if not piece.is_thought)
        self.thought = "".join(piece.text for piece in pieces if piece.is_thought)
        self.text = self._trimmed(answer, answer.strip())
        if not self.text and self.finish_reason == "cancelled":
            return None
        consumed = self.tokens[: reply.consumed_tokens]
        return Outcome(raw, answer, self.thought.strip(), self.finish_reason, self.stats, consumed, reply.state)


def _events_of(piece: Piece, calls: ToolCallParser | None) -> Iterator[Event]:
    if piece.is_thought:
        yield ThoughtEvent(piece.text)
        return
    for part in [piece.text] if calls is None else calls.feed(piece.text):
        yield TextEvent(part) if isinstance(part, str) else ToolEvent(part)


def _next_of(queue: SimpleQueue[Event | None]) -> Event | None:
    """A wait that Ctrl-C interrupts, on Windows too."""
    while True:
        with suppress(Empty):
            return queue.get(timeout=_WAIT_SECONDS)


def _whole(text: str, finish_reason: str | None) -> str:
    """Without the half character that an answer cut off anywhere may end in."""
    return text if finish_reason in ("stop", "end") else text.rstrip("\ufffd")


def _with_prompt(stats: Stats, waited: float, n_read: int) -> Stats:
    """The reply's figures with those of the part of the message that was read before."""
    return replace(
        stats,
        prompt_tokens=stats.prompt_tokens + n_read,
        prefill_seconds=stats.prefill_seconds + waited,
        first_token_seconds=stats.first_token_seconds + waited,
    )
