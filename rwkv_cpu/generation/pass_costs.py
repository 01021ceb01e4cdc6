# SPDX-License-Identifier: Apache-2.0
"""What a pass over a few tokens costs on this machine, learnt from passes; and whether drafts have paid so far."""

from __future__ import annotations

from collections import deque
from statistics import median_low

__all__ = ["Ledger", "PassCosts"]

# Before there is experience: what each further token of a pass costs, in passes over one.
_TOKEN_COST = 0.12
_REMEMBERED_OF_ONE, _REMEMBERED_SLOPES, _REMEMBERED = 15, 15, 5
# What a pass takes beyond this times what is expected of it does not count as lost.
_SURPRISE = 2.0
# The ledger may be in the red by this much of the time so far and this many passes, and remembers this many of gain.
_MAX_LOSS = 0.02
_LOSS_AT_START = 1.2
_MAX_CREDIT = 8.0


class PassCosts:
    """Seconds to expect of a pass. A pass that something else interrupts says little: lower medians ignore it.

    Attributes:
        one: seconds of a pass over one token; 0.0: not known yet.
        n_checks: passes over several tokens that it has learnt from.
    """

    def __init__(self) -> None:
        self.one = 0.0
        self.n_checks = 0
        self._ones: deque[float] = deque(maxlen=_REMEMBERED_OF_ONE)
        self._slopes = deque([_TOKEN_COST], _REMEMBERED_SLOPES)
        self._ratios: dict[int, deque[float]] = {}  # to a pass over one, of the last passes over so many tokens

    def learn(self, n_tokens: int, seconds: float) -> None:
        """A pass over *n_tokens* took *seconds*."""
        if n_tokens == 1:
            self._ones.append(seconds)
            self.one = median_low(self._ones)
            return
        ratio = seconds / self.one
        if n_tokens not in self._ratios:
            self._ratios[n_tokens] = deque([self._guess(n_tokens)], _REMEMBERED)
        self._ratios[n_tokens].append(ratio)
        self._slopes.append((ratio - 1) / (n_tokens - 1))
        self.n_checks += 1

    def expect(self, n_tokens: int) -> float:
        """Seconds of a pass over so many tokens; never less than of one."""
        if n_tokens == 1:
            return self.one
        known = self._ratios.get(n_tokens)
        return self.one * max(median_low(known) if known else self._guess(n_tokens), 1.0)

    def _guess(self, n_tokens: int) -> float:
        return 1 + (n_tokens - 1) * median_low(self._slopes)


class Ledger:
    """The time that drafts won and lost in one answer."""

    def __init__(self, costs: PassCosts) -> None:
        self._costs = costs
        self._balance = self._total = 0.0

    def note_pass(self, seconds: float) -> None:
        """A pass without a draft."""
        self._total += seconds

    def note_draft(self, n_tokens: int, seconds: float, drafting: float, accepted: int) -> None:
        """A pass over *n_tokens* with a draft that took *drafting* to write, of which *accepted* were right."""
        one = self._costs.one
        spent = min(seconds, _SURPRISE * self._costs.expect(n_tokens)) + drafting
        self._total += spent
        self._balance = min(self._balance + (1 + accepted) * one - spent, _MAX_CREDIT * one)

    @property
    def allowance(self) -> float:
        """Seconds that may be lost now."""
        return self._balance + _MAX_LOSS * self._total + _LOSS_AT_START * self._costs.one
