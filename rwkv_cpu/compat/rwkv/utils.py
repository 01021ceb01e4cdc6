# SPDX-License-Identifier: Apache-2.0
"""``rwkv.utils``: PIPELINE and PIPELINE_ARGS, with the package's exact meaning."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.compat.rwkv.model import RWKV

__all__ = ["PIPELINE", "PIPELINE_ARGS"]

_UNCOUNTED = " \t0123456789"


class PIPELINE_ARGS:  # noqa: N801 (the package's name)
    """How PIPELINE.generate() samples: see there.

    Attributes:
        temperature, top_p, top_k: as sample_logits() takes them.
        alpha_frequency, alpha_presence: subtracted from a token's logit: frequency times its count, and presence once.
        alpha_decay: counts fade by this with every token.
        token_ban: never chosen. token_stop: end the text. chunk_len: tokens of the prompt per forward().
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_p: float = 0.85,
        top_k: int = 0,
        alpha_frequency: float = 0.2,
        alpha_presence: float = 0.2,
        alpha_decay: float = 0.996,
        token_ban: Sequence[int] = (),
        token_stop: Sequence[int] = (),
        chunk_len: int = 256,
    ) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.alpha_frequency = alpha_frequency
        self.alpha_presence = alpha_presence
        self.alpha_decay = alpha_decay
        self.token_ban = token_ban
        self.token_stop = token_stop
        self.chunk_len = chunk_len


class PIPELINE:
    """A model with a tokenizer.

    Args:
        model: an RWKV of compat.rwkv.model.
        WORD_NAME: "rwkv_vocab_v20230424", the path of a tokenizer.json (needs the extra "hf") or a sentencepiece model,
            or "cl100k_base" (needs tiktoken).
    """

    def __init__(self, model: RWKV, WORD_NAME: str) -> None:
        self.model = model
        self.tokenizer: Any
        if WORD_NAME == "rwkv_vocab_v20230424":
            self.tokenizer = _World()
        elif WORD_NAME == "cl100k_base":
            try:
                self.tokenizer = importlib.import_module("tiktoken").get_encoding(WORD_NAME)
            except ImportError:
                raise ArgumentError("cl100k_base needs tiktoken", hint="pip install tiktoken") from None
        else:
            from rwkv_cpu.tokenizer import from_bytes, kind_of_bytes

            data = Path(WORD_NAME).read_bytes()
            self.tokenizer = from_bytes(kind_of_bytes(data), data)

    def refine_context(self, context: str) -> str:
        """*context* without empty lines and space around lines, after a line end."""
        lines = (line.strip().strip("\u3000").strip("\r") for line in context.strip().split("\n"))
        return "\n" + "\n".join(line for line in lines if line).strip()

    def encode(self, x: str) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(x))

    def decode(self, x: Sequence[int]) -> str:
        """The text of ids; U+FFFD in it says that it ends inside a character."""
        return str(self.tokenizer.decode(x))

    def sample_logits(self, logits: Any, temperature: float = 1.0, top_p: float = 0.85, top_k: int = 0) -> int:
        """Choose a token, with numpy's global random numbers.

        Tokens less likely than the one at which the likeliest reach *top_p* together are dropped, then all but the
        *top_k* likeliest (0: none); what is left is raised to 1 / *temperature*. Temperature 0: the likeliest.
        """
        if temperature == 0:
            temperature, top_p = 1.0, 0.0
        probs = _softmax(np.asarray(logits, np.float32))
        order = np.argsort(probs)
        falling = probs[order][::-1]
        cutoff = falling[np.argmax(np.cumsum(falling) >= top_p)]
        probs[probs < cutoff] = 0
        if 0 < int(top_k) < len(probs):
            probs[order[: -int(top_k)]] = 0
        if temperature != 1.0:
            probs **= np.float32(1.0 / temperature)
        # The package draws from numpy's global generator: the same np.random.seed() gives the same text here.
        return int(np.random.choice(len(probs), p=probs / probs.sum()))  # noqa: NPY002

    def generate(
        self,
        ctx: str,
        token_count: int = 100,
        args: PIPELINE_ARGS | None = None,
        callback: Callable[[str], object] | None = None,
        state: list[Any] | None = None,
    ) -> str:
        """Continue *ctx* by up to *token_count* tokens.

        Args:
            callback: called with every piece of text.
            state: to begin with; see RWKV.forward().
        """
        args = PIPELINE_ARGS() if args is None else args
        counts: dict[int, float] = {}
        chosen: list[int] = []
        n_shown = 0
        text = ""
        unread = self.encode(ctx)
        logits: Any = None
        for _ in range(token_count):
            while unread:
                logits, state = self.model.forward(unread[: args.chunk_len], state)
                unread = unread[args.chunk_len :]
            if logits is None:
                raise ArgumentError("the text to continue is empty")
            logits[list(args.token_ban)] = -np.inf
            for token, count in counts.items():
                logits[token] -= args.alpha_presence + count * args.alpha_frequency
            token = self.sample_logits(logits, args.temperature, args.top_p, args.top_k)
            if token in args.token_stop:
                break
            chosen.append(token)
            for other in counts:
                counts[other] *= args.alpha_decay
            counted = 0.0 if self.decode([token]) in _UNCOUNTED else 1.0
            counts[token] = counts.get(token, 0.0) + counted
            piece = self.decode(chosen[n_shown:])
            if "\ufffd" not in piece:
                if callback is not None:
                    callback(piece)
                text += piece
                n_shown = len(chosen)
            unread = [token]
        return text


class _World:
    """The package's TRIE_TOKENIZER."""

    def __init__(self) -> None:
        from rwkv_cpu.tokenizer.world import WorldTokenizer

        self._tokenizer = WorldTokenizer()

    def encode(self, src: str) -> list[int]:
        return self._tokenizer.encode(src)

    def encodeBytes(self, src: bytes) -> list[int]:  # noqa: N802 (the package's name)
        return self._tokenizer.encode(src)

    def decodeBytes(self, tokens: Sequence[int]) -> bytes:  # noqa: N802
        return self._tokenizer.decode_bytes(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """One U+FFFD in all if they are no UTF-8, or not of the vocabulary."""
        try:
            return self.decodeBytes(tokens).decode("utf-8")
        except ValueError:  # UnicodeDecodeError, TokenError
            return "\ufffd"


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raised: NDArray[np.float32] = np.exp(logits - logits.max())
    raised /= raised.sum()
    return raised
