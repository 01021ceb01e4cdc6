# SPDX-License-Identifier: Apache-2.0
"""Drafts that a smaller model writes."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.sampling import make_sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.sampling import Sampler, SamplingParams
    from rwkv_cpu.model import Model

__all__ = ["DraftModel"]


class DraftModel:
    """A smaller model that writes drafts with the random numbers of the answer's sampler."""

    def __init__(self, draft: Model, model: Model, params: SamplingParams) -> None:
        if draft.n_vocab != model.n_vocab or (
            draft.tokenizer is not model.tokenizer and draft.tokenizer.to_bytes() != model.tokenizer.to_bytes()
        ):
            raise ArgumentError(
                "the draft model has another vocabulary", hint="Use a smaller model of the same family for drafts."
            )
        self._model = draft
        self._sampler = make_sampler(draft, params)
        self._states = [draft.new_state()]  # after the text; after each token of the draft
        self._unread: list[int] = []
        self._draft: list[int] = []
        self._agreed = 0
        self.seconds = 0.0  # a token of a draft

    def begin(self, text: Sequence[int] | NDArray[np.uint32]) -> None:
        """What stands before the answer, or the next part of it; read when the first draft is asked for."""
        self._unread.extend(int(token) for token in text)

    def append(self, token: int) -> None:
        """The answer went on with *token*."""
        if self._agreed < len(self._draft) and not self._unread and self._draft[self._agreed] == token:
            self._agreed += 1
        else:
            self._settle()
            self._unread.append(token)

    def write(self, leader: Sampler, n: int, cancel: CancelToken | None) -> list[int]:
        """What this model would say next, *n* tokens."""
        self._settle()
        state = self._states[0]
        logits = self._model.advance(self._unread, state, cancel=cancel)
        self._unread = []
        self._sampler.follow(leader)
        started = perf_counter()
        for i in range(n):
            token = self._sampler.sample(logits)
            self._draft.append(token)
            if i + 1 == n:
                break
            self._sampler.accept(token)
            if len(self._states) == i + 1:
                self._states.append(self._model.new_state())
            self._states[i + 1].become(self._states[i])
            logits = self._model.advance([token], self._states[i + 1], cancel=cancel)
        self.seconds = (perf_counter() - started) / n
        return list(self._draft)

    def _settle(self) -> None:
        """Go to the state before the last token of the draft that was right: it and what follows are unread."""
        read = max(self._agreed - 1, 0)
        self._states[0], self._states[read] = self._states[read], self._states[0]
        self._unread = self._draft[read : self._agreed] + self._unread
        self._draft, self._agreed = [], 0
