# SPDX-License-Identifier: Apache-2.0
"""One answer of a conversation, while it is being made."""

from __future__ import annotations

import string
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rwkv_cpu.errors import Cancelled
from rwkv_cpu.generation.loop import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.loop import Reply, Stats
    from rwkv_cpu.generation.sampling import SamplingParams
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Answer", "Outcome"]

# What stands at the end of a piece and may turn out to be the end of the answer, where it is taken off.
_MAY_BE_CUT = string.whitespace + "\ufffd"


@dataclass(frozen=True)
class Outcome:
    """What an answer left behind.

    Attributes:
        raw: its text as generated, space at its start included.
        finish_reason: as Turn's.
        consumed: the ids of it that *state* has read: all, or all but the last.
        state: nobody else's.
    """

    raw: str
    finish_reason: str
    stats: Stats
    consumed: list[int]
    state: State


class Answer:
    """An answer being made: iterate it for pieces of text. Nothing is computed before the first is asked for.

    Made by Chat.send(). Leaving the loop early, or close(), ends it; what there was stays in the conversation.

    Attributes:
        text: the answer so far, without space around it.
        finish_reason: None while it runs, then "stop" or "end" (complete), "length" or "cancelled".
        stats: None until it ended; of message and answer together.
        tokens: ids generated so far.
    """

    def __init__(
        self,
        *,
        model: Model,
        read_prompt: Callable[[], tuple[State, list[int]]],
        finish: Callable[[Outcome | None], None],
        params: SamplingParams,
        max_tokens: int,
        stop: tuple[str, ...],
        cancel: CancelToken | None,
    ) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.stats: Stats | None = None
        self.tokens: list[int] = []
        self._model = model
        self._read_prompt = read_prompt
        self._finish: Callable[[Outcome | None], None] | None = finish
        self._params = params
        self._max_tokens = max_tokens
        self._stop = stop
        self._cancel = cancel
        self._pieces = self._produce()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # An answer that was never read must not leave its conversation locked.
        if getattr(self, "_pieces", None) is not None:
            self.close()

    def read(self) -> str:
        """Run to the end and return the whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """End it here. Harmless if it ended already."""
        self._pieces.close()
        if self._finish is not None:
            # Never started: the generator had nothing to clean up.
            self.finish_reason = "cancelled"
            self._end(None)

    def _end(self, outcome: Outcome | None) -> None:
        finish, self._finish = self._finish, None
        if finish is not None:
            finish(outcome)

    def _produce(self) -> Iterator[str]:
        outcome: Outcome | None = None
        try:
            began = time.perf_counter()
            try:
                state, rest = self._read_prompt()
            except Cancelled:
                self.finish_reason = "cancelled"
                return
            waited = time.perf_counter() - began
            n_before = state.n_tokens
            reply = self._generate(state, rest)
            try:
                yield from self._shown(reply)
            except GeneratorExit:
                reply.close()
                outcome = self._outcome(reply, state, n_before + len(rest), waited)
                raise
            outcome = self._outcome(reply, state, n_before + len(rest), waited)
        finally:
            self._end(outcome)

    def _generate(self, state: State, prompt: list[int]) -> Reply:
        return generate(
            self._model,
            state,
            prompt,
            self._params,
            max_tokens=self._max_tokens,
            stop=self._stop,
            cancel=self._cancel,
        )

    def _shown(self, reply: Reply) -> Iterator[str]:
        """The pieces without space around the whole: what is yielded joins up to exactly ``text``."""
        held = ""
        for piece in reply:
            self.tokens = list(reply.tokens)
            held += piece
            if not self.text:
                held = held.lstrip()
            ready = held.rstrip(_MAY_BE_CUT)
            held = held[len(ready) :]
            if ready:
                self.text += ready
                yield ready
        tail = _whole(held, reply.finish_reason).rstrip()
        if tail:
            self.text += tail
            yield tail

    def _outcome(self, reply: Reply, state: State, n_prompt: int, waited: float) -> Outcome | None:
        """None if nothing was answered: a message cancelled before its first word counts as not sent."""
        self.tokens = list(reply.tokens)
        self.finish_reason = reply.finish_reason or "cancelled"
        self.stats = _with_prompt(reply.stats, waited, n_prompt - len(self.tokens))
        raw = _whole(reply.text, self.finish_reason).rstrip()
        self.text = raw.strip()
        if not self.text and self.finish_reason == "cancelled":
            return None
        consumed = self.tokens[: max(0, state.n_tokens - n_prompt)]
        return Outcome(raw, self.finish_reason, self.stats, consumed, state)


def _whole(text: str, finish_reason: str | None) -> str:
    """Without the half character that an answer cut off anywhere may end in."""
    return text if finish_reason in ("stop", "end") else text.rstrip("\ufffd")
