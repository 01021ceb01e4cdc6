# SPDX-License-Identifier: Apache-2.0
"""How a token is chosen from logits."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError, TokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.model import Model
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = [
    "COUNTS",
    "MAX_TOP_LOGPROBS",
    "RANGES",
    "Sampler",
    "SamplingParams",
    "breaker_ids",
    "logprobs_of",
    "make_sampler",
    "uncounted_ids",
    "vocabulary_pieces",
]

RANGES = {
    "temperature": (0.0, 1000.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_a": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "presence_penalty": (-1000.0, 1000.0),
    "frequency_penalty": (-1000.0, 1000.0),
    "repetition_penalty": (0.01, 100.0),
    "penalty_decay": (0.0, 1.0),
    "dry_multiplier": (0.0, 1000.0),
    "dry_base": (1.0, 1000.0),
}
COUNTS = {"top_k": 2**32 - 1, "dry_allowed_length": 2**20, "dry_range": 2**20}
# Everything that the engine's options take as it is; banned, breakers, bias and seed go another way.
_OPTIONS = (*RANGES, *COUNTS)
MAX_TOP_LOGPROBS = 1024


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token. The defaults are what RWKV-7 G1 models are shown with.

    In this order: logit_bias is added, penalties are subtracted and banned tokens taken out; a token must then pass
    top_k, top_p, min_p and top_a, which all look at the probabilities of the whole vocabulary before temperature;
    typical_p and XTC look at what those left; one of the rest is drawn. docs/generation.md has the formulas.

    Attributes:
        temperature: 0 takes the most likely token (the lowest id of equals), lower is more predictable, 1 as learned.
        top_p: keep the most likely tokens that hold this share of the probability together; 1 keeps all.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: keep tokens at least this likely, relative to the most likely one; 0 keeps all.
        top_a: keep tokens at least this likely, times the square of the largest probability; 0 keeps all.
        typical_p: keep the tokens whose surprise is nearest to what is expected, up to this share; 1 keeps all.
        xtc_probability: how often the top choices are excluded, but for the least likely of them; 0: never.
        xtc_threshold: from which probability on a token is a top choice; above 0.5 there are never two.
        mirostat_tau: surprise in bits to keep the text at (mirostat 2), in place of all cuts above; 0: off.
        mirostat_eta: how fast mirostat corrects itself.
        presence_penalty: taken off the logit of every token that occurred in the answer.
        frequency_penalty: taken off as well, times the token's count.
        repetition_penalty: before that, positive logits of tokens that occurred are divided by this, others multiplied;
            1: neither. A count below 1 weakens it.
        penalty_decay: counts fade by this factor with every token.
        dry_multiplier: DRY, against going on with a sequence that occurred (in the prompt too); 0: off.
        dry_base: its penalty is dry_multiplier * dry_base ** (length of what is repeated - dry_allowed_length).
        dry_allowed_length: tokens of it that may be repeated freely.
        dry_range: how many of the last tokens it looks at.
        dry_breakers: texts over which it sees no repetition.
        logit_bias: what to add to the logits of ids; -100 all but bans one, 100 all but forces it.
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
    top_a: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 1024
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            self._check_number(name, low, high)
        for name, most in COUNTS.items():
            self._check_integer(name, getattr(self, name), most)
        if self.seed is not None:
            self._check_integer("seed", self.seed, 2**64 - 1)
        try:
            banned = tuple(self.banned)
        except TypeError:
            raise ArgumentError(f"banned must be a list of token ids, not {self.banned!r}") from None
        for token in banned:
            self._check_integer("banned", token, 2**32 - 1)
        object.__setattr__(self, "banned", tuple(int(token) for token in banned))
        given: Any = self.dry_breakers
        breakers = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
        if not all(isinstance(text, str) and text for text in breakers):
            raise ArgumentError(f"dry_breakers must be texts of at least one character, not {self.dry_breakers!r}")
        object.__setattr__(self, "dry_breakers", breakers)
        object.__setattr__(self, "logit_bias", self._checked_bias())

    def __hash__(self) -> int:
        values = (getattr(self, one.name) for one in fields(self) if one.name != "logit_bias")
        return hash((*values, *sorted(self.logit_bias.items())))

    def _checked_bias(self) -> dict[int, float]:
        if not isinstance(self.logit_bias, Mapping):
            raise ArgumentError(f"logit_bias must map token ids to numbers, not {self.logit_bias!r}")
        checked = {}
        given: Mapping[Any, Any] = self.logit_bias
        for token, bias in given.items():
            # JSON has text for keys, and so have the requests of OpenAI's clients.
            token = int(token) if isinstance(token, str) and token.isdecimal() else token
            self._check_integer("a token of logit_bias", token, 2**32 - 1)
            if not isinstance(bias, (int, float, np.integer, np.floating)) or not math.isfinite(bias):
                raise ArgumentError(f"the logit_bias of token {token} must be a finite number, not {bias!r}")
            checked[int(token)] = float(bias)
        return checked

    def replace(self, **changes: Any) -> SamplingParams:
        """The same with some settings changed.

        Raises:
            ArgumentError: an unknown setting, or a value out of its range.
        """
        known = [one.name for one in fields(self)]
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
        uncounted: ids whose count for the penalties stays 0; see uncounted_ids().
        breakers: ids that params.dry_breakers stand for; see breaker_ids().

    Attributes:
        seed: the one in use, also where params has none.

    Raises:
        ArgumentError: no vocabulary.
        TokenError: an id outside the vocabulary.
    """

    def __init__(
        self,
        n_vocab: int,
        params: SamplingParams,
        *,
        banned: Iterable[int] = (),
        uncounted: Iterable[int] = (),
        breakers: Iterable[int] = (),
    ) -> None:
        ffi, lib = engine.ffi, engine.lib
        self.n_vocab = n_vocab
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else int(params.seed)
        options = ffi.new("rwkvc_sampler_options *")
        lib.rwkvc_sampler_defaults(options)
        for name in _OPTIONS:
            setattr(options, name, getattr(params, name))
        options.seed = self.seed
        made = ffi.new("rwkvc_sampler **")
        engine.check(lib.rwkvc_sampler_create(n_vocab, options, made))
        self._handle: Any = ffi.gc(made[0], lib.rwkvc_sampler_destroy)
        self._token = ffi.new("uint32_t *")
        self._logprob = ffi.new("float *")
        self._watches_sequences = params.dry_multiplier > 0
        all_banned = [*params.banned, *banned]
        engine.check(lib.rwkvc_sampler_ban(self._handle, all_banned, len(all_banned)))
        if params.frequency_penalty != 0 or params.repetition_penalty != 1:
            ids = list(uncounted)
            engine.check(lib.rwkvc_sampler_exempt(self._handle, ids, len(ids)))
        if params.dry_multiplier > 0:
            ids = list(breakers)
            engine.check(lib.rwkvc_sampler_dry_breakers(self._handle, ids, len(ids)))
        if params.logit_bias:
            ids, biases = list(params.logit_bias), list(params.logit_bias.values())
            engine.check(lib.rwkvc_sampler_bias(self._handle, ids, biases, len(ids)))

    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None) -> int:
        """Choose a token.

        Args:
            logits: float32 [n_vocab]; left as they are. -Inf is a token that cannot be chosen.
            allowed: a bit per token, uint32 [ceil(n_vocab / 32)], the lowest of the first for token 0; None: all.

        Raises:
            ArgumentError: another shape or type.
            NonFiniteError: NaN or +Inf, or nothing is left to choose from.
        """
        return self._sample(logits, allowed, engine.ffi.NULL)

    def sample_with_logprob(
        self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None
    ) -> tuple[int, float]:
        """Choose a token; with the natural logarithm of its probability before any of the settings.

        Args:
            logits, allowed: as for sample().

        Raises:
            ArgumentError, NonFiniteError: as sample().
        """
        token = self._sample(logits, allowed, self._logprob)
        return token, float(self._logprob[0])

    def top_logprobs(self, logits: NDArray[np.float32], n: int) -> list[tuple[int, float]]:
        """The *n* most likely ids before any of the settings, best first, and the natural logs of their probabilities.

        Raises:
            ArgumentError: n below 1 or above 1024, another shape or type.
            NonFiniteError: NaN or +Inf.
        """
        ffi = engine.ffi
        ids, logprobs = ffi.new("uint32_t[]", max(n, 1)), ffi.new("float[]", max(n, 1))
        data = ffi.from_buffer("float[]", self._checked(logits))
        engine.check(engine.lib.rwkvc_sampler_top(self._handle, data, n, ids, logprobs))
        return list(zip(ids, logprobs, strict=True))

    def accept(self, token: int) -> None:
        """Count *token* for the penalties; sample() does not count by itself.

        Raises:
            TokenError: an id outside the vocabulary.
        """
        engine.check(engine.lib.rwkvc_sampler_accept(self._handle, token))

    def observe(self, tokens: Sequence[int] | NDArray[np.uint32]) -> None:
        """Show *tokens* of the prompt to DRY; the other penalties look at the answer only.

        Raises:
            TokenError: an id outside the vocabulary.
        """
        if self._watches_sequences:
            ids = [int(token) for token in tokens]
            engine.check(engine.lib.rwkvc_sampler_observe(self._handle, ids, len(ids)))

    def follow(self, leader: Sampler) -> None:
        """Go on from where *leader*, a sampler of the same settings, is: its counts and its random numbers."""
        engine.check(engine.lib.rwkvc_sampler_follow(self._handle, leader._handle))

    def reset(self) -> None:
        """Forget all tokens and start the random sequence again."""
        engine.lib.rwkvc_sampler_reset(self._handle)

    def _checked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if logits.dtype != np.float32 or logits.shape != (self.n_vocab,):
            raise ArgumentError(f"logits must be float32 [{self.n_vocab}], not {logits.dtype} {list(logits.shape)}")
        return np.ascontiguousarray(logits)

    def _sample(self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None, logprob: Any) -> int:
        ffi = engine.ffi
        data = ffi.from_buffer("float[]", self._checked(logits))
        bits = ffi.NULL
        if allowed is not None:
            if allowed.dtype != np.uint32 or allowed.shape != ((self.n_vocab + 31) // 32,):
                raise ArgumentError(f"allowed must be uint32 [{(self.n_vocab + 31) // 32}], a bit per token")
            bits = ffi.from_buffer("uint32_t[]", np.ascontiguousarray(allowed))
        engine.check(engine.lib.rwkvc_sampler_sample(self._handle, data, bits, self._token, logprob))
        return int(self._token[0])


def logprobs_of(logits: NDArray[np.float32], tokens: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the model expected of *tokens*.

    Args:
        logits: float32 [T, n_vocab]. tokens: uint32 [T].

    Returns: (natural logs of their probabilities, float32 [T]; how many tokens were likelier, uint32 [T]).
    Raises: TokenError, NonFiniteError; ArgumentError: other shapes.
    """
    n_vocab = logits.shape[1] if logits.ndim == 2 else 0
    if logits.dtype != np.float32 or tokens.dtype != np.uint32 or not n_vocab or tokens.shape != logits.shape[:1]:
        raise ArgumentError(f"logits {logits.dtype}{list(logits.shape)} of tokens {tokens.dtype}{list(tokens.shape)}")
    ffi = engine.ffi
    logprobs, ranks = np.empty(len(tokens), np.float32), np.empty(len(tokens), np.uint32)
    status = engine.lib.rwkvc_logprobs(
        ffi.from_buffer("float[]", np.ascontiguousarray(logits)),
        n_vocab,
        ffi.from_buffer("uint32_t[]", np.ascontiguousarray(tokens)),
        len(tokens),
        ffi.from_buffer("float[]", logprobs, require_writable=True),
        ffi.from_buffer("uint32_t[]", ranks, require_writable=True),
    )
    engine.check(status)
    return logprobs, ranks


def make_sampler(model: Model, params: SamplingParams) -> Sampler:
    """The sampler of an answer of *model*.

    Raises: TokenError: a banned or biased id outside the vocabulary.
    """
    tokenizer, n_vocab = model.tokenizer, model.n_vocab
    counts = params.frequency_penalty != 0 or params.repetition_penalty != 1
    uncounted = uncounted_ids(tokenizer) if counts else []
    breakers = breaker_ids(tokenizer, params.dry_breakers) if params.dry_multiplier > 0 else []
    return Sampler(
        n_vocab,
        params,
        # Models have some more rows than their tokenizer has tokens.
        banned=range(tokenizer.n_vocab, n_vocab),
        uncounted=[token for token in uncounted if token < n_vocab],
        breakers=[token for token in breakers if token < n_vocab],
    )


def breaker_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> list[int]:
    """Ids whose text has one of *texts* in it."""
    wanted = [text.encode() for text in texts]
    pieces = enumerate(vocabulary_pieces(tokenizer))
    return [token for token, piece in pieces if any(text in piece for text in wanted)]


def vocabulary_pieces(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every id; b"" for unused ones. Made once for each tokenizer."""
    pieces = _pieces.get(tokenizer)
    if pieces is None:
        pieces = _pieces[tokenizer] = [_piece(tokenizer, token) for token in range(tokenizer.n_vocab)]
    return pieces


_pieces: weakref.WeakKeyDictionary[Any, list[bytes]] = weakref.WeakKeyDictionary()


def _piece(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.decode_bytes([token])
    except TokenError:
        return b""


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
