# SPDX-License-Identifier: Apache-2.0
"""How a token is chosen from logits."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["Sampler", "SamplingParams", "uncounted_ids"]

_MAX_TEMPERATURE = 1000.0
_MAX_PENALTY = 1000.0


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token. The defaults are what RWKV-7 G1 models are shown with.

    In this order: penalties are subtracted and banned tokens taken out; a token must then pass top_k, top_p and min_p,
    which all look at the probabilities before temperature; one of the rest is drawn.

    Attributes:
        temperature: 0 takes the most likely token (the lowest id of equals), lower is more predictable, 1 as learned.
        top_p: keep the most likely tokens that hold this share of the probability together; 1 keeps all.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: keep tokens at least this likely, relative to the most likely one; 0 keeps all.
        presence_penalty: taken off the logit of every token that occurred in the answer.
        frequency_penalty: taken off as well, times the token's count.
        penalty_decay: that count fades by this factor with every token.
        seed: the same seed gives the same answer on every machine; None takes a new one each time.
        banned: ids never to choose.

    Raises:
        ArgumentError: a value out of its range; names it.
    """

    temperature: float = 1.0
    top_p: float = 0.5
    top_k: int = 100
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    seed: int | None = None
    banned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_number("temperature", 0.0, _MAX_TEMPERATURE)
        self._check_number("top_p", 0.0, 1.0)
        self._check_integer("top_k", self.top_k, 2**32 - 1)
        self._check_number("min_p", 0.0, 1.0)
        self._check_number("presence_penalty", -_MAX_PENALTY, _MAX_PENALTY)
        self._check_number("frequency_penalty", -_MAX_PENALTY, _MAX_PENALTY)
        self._check_number("penalty_decay", 0.0, 1.0)
        if self.seed is not None:
            self._check_integer("seed", self.seed, 2**64 - 1)
        try:
            banned = tuple(self.banned)
        except TypeError:
            raise ArgumentError(f"banned must be a list of token ids, not {self.banned!r}") from None
        for token in banned:
            self._check_integer("banned", token, 2**32 - 1)
        object.__setattr__(self, "banned", tuple(int(token) for token in banned))

    def replace(self, **changes: Any) -> SamplingParams:
        """The same with some settings changed.

        Raises:
            ArgumentError: an unknown setting, or a value out of its range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ArgumentError(f"no sampling setting {name!r}", hint=f"there are {', '.join(known)}")
        return replace(self, **changes)

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
            raise ArgumentError(f"{name} must be a number, not {value!r}")
        if not low <= value <= high or math.isnan(value):
            raise ArgumentError(f"{name} must be from {low:g} to {high:g}, not {value}")

    @staticmethod
    def _check_integer(name: str, value: object, high: int) -> None:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise ArgumentError(f"{name} must be a whole number, not {value!r}")
        if not 0 <= value <= high:
            raise ArgumentError(f"{name} must be from 0 to {high}, not {value}")


class Sampler:
    """Chooses tokens and counts them for the penalties. Serves one answer, and one thread at a time.

    Args:
        n_vocab: length of the logits.
        params: how to choose.
        banned: ids never to choose, beside params.banned.
        uncounted: ids whose count for the frequency penalty stays 0; see uncounted_ids().

    Attributes:
        seed: the one in use, also where params has none.

    Raises:
        ArgumentError: no vocabulary.
        TokenError: a banned or uncounted id outside the vocabulary.
    """

    def __init__(
        self, n_vocab: int, params: SamplingParams, *, banned: Iterable[int] = (), uncounted: Iterable[int] = ()
    ) -> None:
        ffi, lib = engine.ffi, engine.lib
        self.n_vocab = n_vocab
        self.seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        options = ffi.new("rwkvc_sampler_options *")
        lib.rwkvc_sampler_defaults(options)
        options.temperature = params.temperature
        options.top_k = params.top_k
        options.top_p = params.top_p
        options.min_p = params.min_p
        options.presence_penalty = params.presence_penalty
        options.frequency_penalty = params.frequency_penalty
        options.penalty_decay = params.penalty_decay
        options.seed = self.seed
        made = ffi.new("rwkvc_sampler **")
        engine.check(lib.rwkvc_sampler_create(n_vocab, options, made))
        self._handle: Any = ffi.gc(made[0], lib.rwkvc_sampler_destroy)
        self._token = ffi.new("uint32_t *")
        self._logprob = ffi.new("float *")
        all_banned = [*params.banned, *banned]
        engine.check(lib.rwkvc_sampler_ban(self._handle, all_banned, len(all_banned)))
        if params.frequency_penalty != 0:
            ids = list(uncounted)
            engine.check(lib.rwkvc_sampler_exempt(self._handle, ids, len(ids)))

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Choose a token.

        Args:
            logits: float32 [n_vocab]; left as they are. -Inf is a token that cannot be chosen.

        Raises:
            ArgumentError: another shape or type.
            NonFiniteError: NaN or +Inf, or nothing is left to choose from.
        """
        return self._sample(logits, engine.ffi.NULL)

    def sample_with_logprob(self, logits: NDArray[np.float32]) -> tuple[int, float]:
        """Choose a token; with the natural logarithm of its probability before any of the settings.

        Args:
            logits: as for sample().

        Raises:
            ArgumentError, NonFiniteError: as sample().
        """
        token = self._sample(logits, self._logprob)
        return token, float(self._logprob[0])

    def accept(self, token: int) -> None:
        """Count *token* for the penalties; sample() does not count by itself.

        Raises:
            TokenError: an id outside the vocabulary.
        """
        engine.check(engine.lib.rwkvc_sampler_accept(self._handle, token))

    def reset(self) -> None:
        """Forget the counted tokens and start the random sequence again."""
        engine.lib.rwkvc_sampler_reset(self._handle)

    def _sample(self, logits: NDArray[np.float32], logprob: Any) -> int:
        if logits.dtype != np.float32 or logits.shape != (self.n_vocab,):
            raise ArgumentError(f"logits must be float32 [{self.n_vocab}], not {logits.dtype} {list(logits.shape)}")
        data = engine.ffi.from_buffer("float[]", np.ascontiguousarray(logits))
        engine.check(engine.lib.rwkvc_sampler_sample(self._handle, data, self._token, logprob))
        return int(self._token[0])


def uncounted_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that the frequency penalty must not wear out: digits, blanks and tabs, as in the rwkv package.

    There it is every token whose text is part of a blank, a tab and the digits from 0 to 9, in a row.
    """
    text = " \t0123456789"
    ids = set()
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            encoded = tokenizer.encode(text[start:end])
            if len(encoded) == 1:
                ids.add(encoded[0])
    return sorted(ids)
