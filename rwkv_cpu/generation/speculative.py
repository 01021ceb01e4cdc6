# SPDX-License-Identifier: Apache-2.0
"""Drafts: tokens that the text probably goes on with, checked by the model in one pass.

A pass reads all weights once, whether for one token or for five: when a draft is right, several tokens cost little more
than one. Each position is sampled by the answer's own sampler from the model's own logits, in order, with the random
number that belongs to it; a draft only decides how many positions share a pass. So the text is the same, token for
token, with drafts and without, at any temperature.

Drafts come from the text itself (repetition.py) or from a smaller model (draft_model.py). How long they are follows
from what checking costs here (pass_costs.py) and from how often guesses of their kind were right; every token of the
answer teaches that, whether it was drafted or not. A ledger of the time won and lost ends it where it does not pay.
"""

from __future__ import annotations

import mmap
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from rwkv_cpu.generation.draft_model import DraftModel
from rwkv_cpu.generation.pass_costs import Ledger, PassCosts
from rwkv_cpu.generation.repetition import FIRST_CHANCES, Repetition, SpacelessIds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.sampling import Sampler, SamplingParams
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["Drafts", "LookAhead", "Workshop"]

# A check keeps the state after each token: bounded by memory, and by the engine, which takes 12 tokens at a time.
_MAX_DRAFT = 11
_MAX_STATE_BYTES = 256 << 20
# How often a token of a smaller model is right, before there is experience; what first guesses weigh, in tokens.
_CHANCE_OF_MODEL = 0.6
_FIRST_WEIGHT = 4.0
_FORGET = 0.98
# The first few drafts are short: what checking costs here is not known yet.
_CAUTIOUS_PASSES, _CAUTIOUS_DRAFT = 2, 3
# A draft must promise this much more speed; a token that is right less often than this never pays.
_MIN_GAIN = 1.02
_MIN_CHANCE = 0.05
# Looking for a draft may take this share of the time: after a search for nothing, small models rest for some tokens.
_MAX_SEARCH = 0.02
# Guesses that are this often right are followed now and then although they seem not to pay: costs change.
_PROBE_CHANCE = 0.5
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


class Workshop:
    """What the answers of one model share: what passes cost, and the memory for states that are being checked."""

    def __init__(self, model: Model) -> None:
        self.spaceless = SpacelessIds(model.tokenizer, model.n_vocab)
        self.costs = PassCosts()
        self.n_states = min(_MAX_DRAFT + 1, _MAX_STATE_BYTES // model.state_bytes)
        self._floats = model.state_bytes // 4
        self._blocks: list[NDArray[np.float32]] = []

    def take_states(self) -> NDArray[np.float32]:
        """f32 [n_states, state_bytes / 4], for one answer at a time.

        Its first use costs the system as much as several tokens: so the last one given back is kept. The others go back
        to the system whole: blocks of this size would leave holes in the heaps of the threads that took them.
        """
        try:
            return self._blocks.pop()
        except IndexError:
            memory = mmap.mmap(-1, self.n_states * self._floats * 4)
            return np.frombuffer(memory, np.float32).reshape(self.n_states, self._floats)

    def give_back(self, states: NDArray[np.float32]) -> None:
        """An answer ended."""
        if not self._blocks:
            self._blocks.append(states)


class _Rate:
    """How often a token is right, as far as is known."""

    def __init__(self, first: float) -> None:
        self._right = first * _FIRST_WEIGHT
        self._tried = _FIRST_WEIGHT

    @property
    def value(self) -> float:
        return self._right / self._tried

    def learn(self, right: bool) -> None:
        self._right = self._right * _FORGET + right
        self._tried = self._tried * _FORGET + 1


class Drafts:
    """Proposes drafts for one answer, checks them, and learns what they are worth.

    Args:
        model: the one that answers.
        params, seed: of the answer's sampler.
        draft: a smaller model with the same vocabulary; None: drafts from the text only.

    Attributes:
        drafted, accepted: tokens of drafts that were checked, and those that were right.
    """

    def __init__(self, model: Model, params: SamplingParams, seed: int, draft: Model | None = None) -> None:
        self._model = model
        self._workshop = model.workshop
        self._costs = self._workshop.costs
        self._ledger = Ledger(self._costs)
        self._states: NDArray[np.float32] | None = None
        self._text = Repetition(self._workshop.spaceless)
        self._rates = [_Rate(chance) for chance in FIRST_CHANCES]
        self._rate_of_model = _Rate(_CHANCE_OF_MODEL)
        self._guess: list[tuple[int, _Rate]] = []  # what is thought to come, to be compared with what comes,
        self._n_seen = 0  # and so much of it came
        self._resting = self._refused = self._touched = 0
        self._drafting = self._checking = 0.0
        self.drafted = self.accepted = 0
        self._writer = None if draft is None else DraftModel(draft, model, params.replace(seed=seed))

    def begin(self, text: Sequence[int] | NDArray[np.uint32]) -> None:
        """What stands before the answer; may be said in parts."""
        self._text.append(text)
        if self._writer is not None:
            self._writer.begin(text)

    def end(self) -> None:
        """No more drafts: memory is given back, however long the answer is kept."""
        self._text.close()
        states, self._states = self._states, None
        if states is not None:
            self._workshop.give_back(states)

    def note_token(self, token: int) -> None:
        """The next token of the answer was chosen."""
        self._text.append((token,))
        self._compare(token)
        if self._writer is not None:
            self._writer.append(token)

    def note_pass(self, seconds: float) -> None:
        """Reading one token without a draft took *seconds*."""
        self._costs.learn(1, seconds)
        self._ledger.note_pass(seconds)

    def propose(self, sampler: Sampler, room: int | None, cancel: CancelToken | None) -> list[int]:
        """What may come next; [] where a draft would not pay. At most *room* tokens (None: any number)."""
        most = self._workshop.n_states - 1
        if room is not None:
            most = min(most, room)
        if most < 1 or self._costs.one <= 0:
            return []
        self._drafting = 0.0
        draft = self._search(most)
        if draft or self._writer is None:
            return draft
        n = self._best_length([self._rate_of_model] * most, self._writer.seconds)
        if n == 0:
            return []
        started = perf_counter()
        draft = self._writer.write(sampler, n, cancel)
        self._drafting = perf_counter() - started
        self._expect((token, self._rate_of_model) for token in draft)
        return draft

    def check(self, last: int, draft: list[int], state: State, cancel: CancelToken | None) -> LookAhead:
        """Read *last* and *draft* in one pass; the state stays until LookAhead.keep()."""
        if self._states is None:
            self._states = self._workshop.take_states()
        states = self._states[: len(draft) + 1]
        started = perf_counter()
        logits = self._model.look_ahead([last, *draft], state, states, cancel=cancel)
        self._checking = perf_counter() - started
        return LookAhead([last, *draft], state, logits, states)

    def learn(self, drafted: int, accepted: int) -> None:
        """So many tokens of the draft that was just checked were right."""
        self.drafted += drafted
        self.accepted += accepted
        # The first use of memory costs the system's time, which says nothing about the next pass.
        if drafted < self._touched:
            self._costs.learn(drafted + 1, self._checking)
        self._touched = max(self._touched, drafted + 1)
        self._ledger.note_draft(drafted + 1, self._checking, self._drafting, accepted)

    def _search(self, most: int) -> list[int]:
        """A draft from the text."""
        if self._resting > 0:
            self._resting -= 1
            return []
        started = perf_counter()
        guess, chance = [], 1.0
        for token, kind in self._text.guesses(most):
            rate = self._rates[kind]
            guess.append((token, rate))
            chance *= rate.value
            if chance < _MIN_CHANCE:
                break
        self._expect(guess)
        n = self._best_length([rate for _, rate in guess]) or self._probe(guess)
        if n == 0:
            self._resting = int((perf_counter() - started) / (_MAX_SEARCH * self._costs.one))
        return [token for token, _ in guess[:n]]

    def _expect(self, guess: Iterable[tuple[int, _Rate]]) -> None:
        self._guess, self._n_seen = list(guess), 0

    def _compare(self, token: int) -> None:
        """Learn what the guess was worth, drafted or not."""
        if self._n_seen < len(self._guess):
            expected, rate = self._guess[self._n_seen]
            rate.learn(token == expected)
            self._n_seen += 1
            if token != expected:
                self._guess = []

    def _best_length(self, rates: list[_Rate], seconds_each: float = 0.0) -> int:
        """How many tokens to draft: what promises the most tokens per second, 0 if that gains too little."""
        costs, allowance = self._costs, self._ledger.allowance
        if costs.n_checks < _CAUTIOUS_PASSES:
            rates = rates[:_CAUTIOUS_DRAFT]
        best, best_speed, expected, chance = 0, _MIN_GAIN / costs.one, 1.0, 1.0
        for n, rate in enumerate(rates, 1):
            chance *= rate.value
            expected += chance
            cost = costs.expect(n + 1) + n * seconds_each
            if cost - costs.one > allowance:
                break
            if expected / cost > best_speed:
                best, best_speed = n, expected / cost
        return best

    def _probe(self, guess: list[tuple[int, _Rate]]) -> int:
        """How many tokens to draft although that seems not to pay."""
        if not guess or guess[0][1].value < _PROBE_CHANCE:
            return 0
        self._refused += 1
        n = min(len(guess), _PROBE_DRAFT)
        loss = self._costs.expect(n + 1) - self._costs.one
        if self._refused < _PROBE_EVERY or loss > self._ledger.allowance:
            return 0
        self._refused = 0
        return n
