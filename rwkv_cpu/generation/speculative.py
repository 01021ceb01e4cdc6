# SPDX-License-Identifier: Apache-2.0
"""Drafts: tokens that the text probably goes on with, checked by the model in one pass.

A pass reads all weights once, whether for one token or for five: when a draft is right, several tokens cost little more
than one. Each position is sampled by the answer's own sampler from the model's own logits, in order, with the random
number that belongs to it; a draft only decides how many positions share a pass. So the text is the same, token for
token, with drafts and without, at any temperature.

Drafts come from the text itself (what followed the last time the same tokens occurred) or from a smaller model. How
long they are follows from what checking costs here and how often drafts were right; a ledger of the time won and lost
ends it where it does not pay.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.sampling import make_sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.sampling import Sampler, SamplingParams
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Drafts", "LookAhead"]

# A check keeps the state after each token: bounded by memory, and by what a pass gains from more tokens.
_MAX_DRAFT = 12
_MAX_STATE_BYTES = 256 << 20
# How far back the text is searched, and how long an agreement is counted.
_WINDOW = 16384
_LONGEST_MATCH = 12
_SHORTEST_MATCH = 2
# Before there is experience: how often the first token of a draft is right after an agreement of that many tokens, and
# how often the next one is if those before it were; what these guesses weigh; and the time of a pass over several
# tokens: fixed, and for each (in passes over one).
_PRIORS = {2: 0.25, 3: 0.4, 4: 0.6, 6: 0.7, 9: 0.8}
_PRIOR_OF_LATER = 0.8
_PRIOR_OF_MODEL = 0.6
_PRIOR_WEIGHT = 4.0
_FORGET = 0.97
_SEVERAL_COST = 1.1
_TOKEN_COST = 0.15
_REMEMBERED_OF_ONE, _REMEMBERED = 15, 5
# The first few drafts are short: what checking costs here is not known yet.
_CAUTIOUS_PASSES, _CAUTIOUS_DRAFT = 2, 3
# What a pass takes beyond this times what is expected of it does not count as lost.
_SURPRISE = 2.0
# A draft must promise this much more speed. The ledger may be in the red by this much of the time so far and this many
# passes, and remembers this many passes of gain.
_MIN_GAIN = 1.05
_MAX_LOSS = 0.02
_LOSS_AT_START = 1.2
_MAX_CREDIT = 8.0
# Agreements from this length on are followed now and then although they seem not to pay: what was learnt may be old.
_PROBE_LENGTH = 4
_PROBE_EVERY = 12
_PROBE_DRAFT = 3


class LookAhead:
    """A pass over a few tokens whose state goes no further than wanted.

    Attributes:
        logits: f32 [T, n_vocab], after each token.
    """

    def __init__(
        self, tokens: list[int], state: State, logits: NDArray[np.float32], states: NDArray[np.float32]
    ) -> None:
        self.logits = logits
        self._tokens = np.asarray(tokens, np.uint32)
        self._state = state
        self._states = states

    def keep(self, n: int) -> None:
        """Move the state on by the first *n* tokens."""
        if n > 0:
            np.copyto(self._state.swap_target(), self._states[n - 1])
            self._state.replace(self._tokens[:n], self.logits[n - 1])


class _Rate:
    """How often a token is right, as far as is known."""

    def __init__(self, prior: float) -> None:
        self._right = prior * _PRIOR_WEIGHT
        self._tried = _PRIOR_WEIGHT

    @property
    def value(self) -> float:
        return self._right / self._tried

    def learn(self, right: int, tried: int) -> None:
        self._right = self._right * _FORGET**tried + right
        self._tried = self._tried * _FORGET**tried + tried


class _Odds(NamedTuple):
    """How often the first token of a draft is right, and one after such as were."""

    first: _Rate
    later: _Rate

    def learn(self, drafted: int, accepted: int) -> None:
        self.first.learn(min(accepted, 1), 1)
        if accepted and drafted > 1:
            self.later.learn(accepted - 1, min(accepted, drafted - 1))


class Drafts:
    """Proposes drafts for one answer, checks them, and learns what they are worth.

    Args:
        model: the one that answers.
        params, seed: of the answer's sampler.
        draft: a smaller model with the same vocabulary; None: drafts from the text only.
    """

    def __init__(self, model: Model, params: SamplingParams, seed: int, draft: Model | None = None) -> None:
        self._model = model
        self._longest = min(_MAX_DRAFT, _MAX_STATE_BYTES // model.state_bytes - 1)
        self._states: NDArray[np.float32] | None = None
        self._text = np.empty(2 * _WINDOW, np.uint32)
        self._n_text = 0
        later = _Rate(_PRIOR_OF_LATER)
        self._odds = {length: _Odds(_Rate(prior), later) for length, prior in _PRIORS.items()}
        self._odds_of_model = _Odds(_Rate(_PRIOR_OF_MODEL), _Rate(_PRIOR_OF_MODEL))
        self._used = self._odds_of_model
        self._watched: list[int] = []  # a draft that is not checked, but compared with what comes,
        self._watched_right = 0  # and right so far
        self._watched_odds = self._used
        self._passes: dict[int, deque[float]] = {}  # seconds of the last passes over so many tokens,
        self._ratios = deque([1.0], _REMEMBERED)  # of passes over several to the first guess
        self._seconds: dict[int, float] = {}  # and what to expect of the next
        self._balance = self._total = 0.0
        self._drafting = self._checking = 0.0
        self._refused = self._touched = 0
        self.drafted = self.accepted = 0
        self._writer = None if draft is None else _DraftModel(draft, model, params.replace(seed=seed))

    def begin(self, text: Sequence[int]) -> None:
        """What stands before the answer."""
        self._append(text)
        if self._writer is not None:
            self._writer.begin(text)

    def _append(self, tokens: Sequence[int]) -> None:
        tokens = tokens[-_WINDOW:]
        if self._n_text + len(tokens) > len(self._text):
            self._text[:_WINDOW] = self._text[self._n_text - _WINDOW : self._n_text]
            self._n_text = _WINDOW
        self._text[self._n_text : self._n_text + len(tokens)] = tokens
        self._n_text += len(tokens)

    def note_token(self, token: int) -> None:
        """The next token of the answer was chosen."""
        self._append((token,))
        self._watch(token)
        if self._writer is not None:
            self._writer.append(token)

    def note_pass(self, seconds: float) -> None:
        """Reading one token without a draft took *seconds*."""
        self._learn_cost(1, seconds)
        self._total += seconds

    def propose(self, sampler: Sampler, room: int | None, cancel: CancelToken | None) -> list[int]:
        """What may come next; [] where a draft would not pay. At most *room* tokens (None: any number)."""
        most = self._longest if room is None else min(self._longest, room)
        if most < 1 or 1 not in self._seconds:
            return []
        self._drafting = 0.0
        found, length = self._look_up(most)
        if found:
            self._used = self._odds[max(n for n in self._odds if n <= length)]
            n = self._best_length(len(found), 0.0) or self._probe(length, len(found))
            if n == 0 and not self._watched:
                self._watched, self._watched_right, self._watched_odds = found, 0, self._used
            return found[:n]
        if self._writer is None:
            return []
        self._used = self._odds_of_model
        n = self._best_length(most, self._writer.seconds)
        if n == 0:
            return []
        started = perf_counter()
        found = self._writer.write(sampler, n, cancel)
        self._drafting = perf_counter() - started
        return found

    def check(self, last: int, draft: list[int], state: State, cancel: CancelToken | None) -> LookAhead:
        """Read *last* and *draft* in one pass; the state stays until LookAhead.keep()."""
        if self._states is None:
            self._states = np.empty((self._longest + 1, self._model.state_bytes // 4), np.float32)
        states = self._states[: len(draft) + 1]
        started = perf_counter()
        logits = self._model.look_ahead([last, *draft], state, states, cancel=cancel)
        self._checking = perf_counter() - started
        return LookAhead([last, *draft], state, logits, states)

    def learn(self, drafted: int, accepted: int) -> None:
        """So many tokens of the draft that was just checked were right."""
        self.drafted += drafted
        self.accepted += accepted
        self._used.learn(drafted, accepted)
        # The first use of memory costs the system's time, which says nothing about the next pass.
        if drafted < self._touched:
            self._learn_cost(drafted + 1, self._checking)
        self._touched = max(self._touched, drafted + 1)
        # What something else took meanwhile is not the draft's fault.
        one = self._seconds[1]
        spent = min(self._checking, _SURPRISE * self._cost(drafted + 1)) + self._drafting
        self._total += spent
        self._balance = min(self._balance + (1 + accepted) * one - spent, _MAX_CREDIT * one)

    def _watch(self, token: int) -> None:
        """Learn from the next token what the draft that is only watched would have been worth."""
        if not self._watched:
            return
        if token == self._watched[self._watched_right]:
            self._watched_right += 1
            if self._watched_right < len(self._watched):
                return
        self._watched_odds.learn(len(self._watched), self._watched_right)
        self._watched = []

    def _learn_cost(self, n_tokens: int, seconds: float) -> None:
        # A pass that was interrupted by something else says little: the lower median knows nothing of it.
        if n_tokens not in self._passes:
            guess = [] if n_tokens == 1 else [self._cost(n_tokens)]
            self._passes[n_tokens] = deque(guess, _REMEMBERED_OF_ONE if n_tokens == 1 else _REMEMBERED)
        self._passes[n_tokens].append(seconds)
        if n_tokens > 1:
            self._ratios.append(seconds / self._guess(n_tokens))
        self._seconds[n_tokens] = median_low(self._passes[n_tokens])

    def _cost(self, n_tokens: int) -> float:
        """Seconds to expect of a pass over so many tokens."""
        if n_tokens in self._seconds:
            return self._seconds[n_tokens]
        guess = self._guess(n_tokens) * median_low(self._ratios)
        return max(guess, self._seconds[1])

    def _guess(self, n_tokens: int) -> float:
        return self._seconds[1] * (_SEVERAL_COST + _TOKEN_COST * n_tokens)

    def _best_length(self, most: int, seconds_each: float) -> int:
        """How many tokens to draft: what promises the most tokens per second, 0 if that gains too little."""
        one, rate = self._seconds[1], self._used.first.value
        allowance = self._allowance
        if len(self._ratios) <= _CAUTIOUS_PASSES:
            most = min(most, _CAUTIOUS_DRAFT)
        best, best_speed, expected, chance = 0, _MIN_GAIN / one, 1.0, 1.0
        for n in range(1, most + 1):
            chance *= rate
            expected, rate = expected + chance, self._used.later.value
            cost = self._cost(n + 1) + n * seconds_each
            if cost - one > allowance:
                break
            if expected / cost > best_speed:
                best, best_speed = n, expected / cost
        return best

    def _probe(self, length: int, most: int) -> int:
        """How many tokens to draft although that seems not to pay."""
        self._refused += 1
        n = min(most, _PROBE_DRAFT)
        loss = self._cost(n + 1) - self._seconds[1]
        if length < _PROBE_LENGTH or self._refused < _PROBE_EVERY or loss > self._allowance:
            return 0
        self._refused = 0
        return n

    @property
    def _allowance(self) -> float:
        """Seconds that may be lost now."""
        return self._balance + _MAX_LOSS * self._total + _LOSS_AT_START * self._seconds[1]

    def _look_up(self, most: int) -> tuple[list[int], int]:
        """What followed the last and longest earlier occurrence of the text's end, and how long that is."""
        first = max(0, self._n_text - _WINDOW)
        text = self._text[first : self._n_text]
        if len(text) < 2 * _SHORTEST_MATCH:
            return [], 0
        ends = np.flatnonzero((text[1:-1] == text[-1]) & (text[:-2] == text[-2])) + 1
        length = _SHORTEST_MATCH
        while len(ends) and length < _LONGEST_MATCH:
            longer = ends[ends >= length]
            longer = longer[text[longer - length] == text[-1 - length]]
            if not len(longer):
                break
            ends, length = longer, length + 1
        if not len(ends):
            return [], 0
        at = int(ends[-1]) + 1
        # A text that repeats itself right away goes on doing so.
        found = text[at : at + most].tolist()
        period = len(text) - at
        while len(found) < most:
            found.append(found[len(found) - period])
        return found, length


class _DraftModel:
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

    def begin(self, text: Sequence[int]) -> None:
        """What stands before the answer; read when the first draft is asked for."""
        self._unread = list(text)

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
