# SPDX-License-Identifier: Apache-2.0
"""One answer of a conversation, while it is being made."""

from __future__ import annotations

import string
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rwkv_cpu.chat.thoughts import Piece, ThoughtSplitter
from rwkv_cpu.errors import Busy, Cancelled
from rwkv_cpu.generation.loop import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from typing_extensions import Self

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.loop import Reply, Stats
    from rwkv_cpu.generation.sampling import SamplingParams
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Answer", "Outcome", "Run"]

# What stands at the end of a piece and may turn out to be the end of the answer, where it is taken off.
_MAY_BE_CUT = string.whitespace + "\ufffd"


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
            piece = next(self._pieces)
            if not piece.is_thought:
                return piece.text

    def pieces(self) -> Iterator[Piece]:
        """The same with the thoughts, each piece marked as thought or answer."""
        return self._pieces

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

    def close(self) -> None:
        """End it here. Harmless if it ended already."""
        try:
            self._pieces.close()
        except ValueError:  # the generator is running
            raise Busy("this is running in another thread", hint="Stop it with a CancelToken.") from None
        self._run.abandon()


@dataclass
class Run:
    """The making of one answer.

    Attributes:
        read_prompt: gives a state, the last ids of the prompt, which it has not read, and how many it read now.
        finish: called once at the end, with None if there is nothing to keep.
        params, max_tokens, stop, cancel, on_progress: as generation.loop.generate takes them.
        lead: how the answer begins, which was part of the prompt ("<think").
        exact: space around the text belongs to it.
        text, tokens, stats, finish_reason: as Answer shows them.
    """

    model: Model
    read_prompt: Callable[[], tuple[State, list[int], int]]
    finish: Callable[[Outcome | None], None] | None
    params: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    cancel: CancelToken | None
    on_progress: Callable[[int, int], None] | None
    lead: str = ""
    exact: bool = False
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
                state, rest, n_read = self.read_prompt()
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
                cancel=self.cancel,
                on_progress=self.on_progress,
            )
            try:
                yield from self._shown(reply)
            except GeneratorExit:
                reply.close()
                outcome = self._outcome(reply, waited, n_read)
                raise
            outcome = self._outcome(reply, waited, n_read)
        finally:
            self._end(outcome)

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
