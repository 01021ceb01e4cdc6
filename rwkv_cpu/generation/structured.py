# SPDX-License-Identifier: Apache-2.0
"""Answers of a given form: JSON, a JSON Schema, a regular expression, a grammar. llguidance says which tokens may come.

It is an extra: ``pip install 'rwkv-cpu[structured]'``. A Grammar itself needs nothing, so options can be checked and
passed on without it.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rwkv_cpu.errors import ArgumentError, UnsupportedModelError
from rwkv_cpu.generation.sampling import vocabulary_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from rwkv_cpu.model import Model
    from rwkv_cpu.tokenizer.base import Tokenizer

__all__ = ["Grammar", "Matcher"]

# A small model likes to go on with blanks for ever: between the parts of JSON, one blank or one line with its
# indentation is enough. Without empty lines, which end an answer in chats.
_JSON_SPACE = r"[ ]?|\n[ ]{0,32}"


@dataclass(frozen=True)
class Grammar:
    """The form of an answer; make one with json(), json_schema(), regex(), lark(), gbnf() or choice().

    Attributes:
        kind: "json_schema", "regex", "lark" or "gbnf".
        text: in that language.
    """

    kind: Literal["json_schema", "regex", "lark", "gbnf"]
    text: str

    @classmethod
    def json(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str | bool) -> Grammar:
        """A JSON value that this schema allows; a str is the schema's text.

        Raises:
            ArgumentError: no JSON.
        """
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(parsed, (Mapping, bool)):
                raise ArgumentError(f"a JSON schema is an object, not {type(parsed).__name__}")
            return cls("json_schema", json.dumps(parsed))
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(f"the JSON schema is no JSON: {error}") from None

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that all of *pattern* matches (the syntax of Rust's regex: no look-around, no back-references)."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A text of this Lark grammar, which begins with its rule ``start``."""
        return cls("lark", text)

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        """A text of this grammar as llama.cpp writes them (``root ::= ...``)."""
        return cls("gbnf", text)

    @classmethod
    def choice(cls, texts: Iterable[str]) -> Grammar:
        """One of *texts*."""
        options = list(texts)
        if not options or not all(isinstance(text, str) and text for text in options):
            raise ArgumentError("a choice needs texts of at least one character")
        return cls("lark", "start: " + " | ".join(json.dumps(text) for text in options))

    @classmethod
    def read(cls, text: str) -> Grammar:
        """A grammar in a file: GBNF where a rule is written ``name ::=``, else Lark."""
        return cls.gbnf(text) if "::=" in text else cls.lark(text)

    def check(self) -> None:
        """See that this can be followed.

        Raises:
            ArgumentError: it cannot, with the reason.
            UnsupportedModelError: llguidance is not installed.
        """
        self.compiled()

    def compiled(self) -> str:
        """What llguidance takes. Raises: as check()."""
        guidance = _llguidance()
        try:
            if self.kind == "json_schema":
                options = {"whitespace_flexible": True, "whitespace_pattern": _JSON_SPACE}
                compiled = guidance.LLMatcher.grammar_from_json_schema(self.text, overrides=options)
            else:
                compiled = guidance.grammar_from(self.kind, self.text)
        except ValueError as error:
            raise ArgumentError(f"the {self._name} cannot be used: {error}") from None
        failed, messages = guidance.LLMatcher.validate_grammar_with_warnings(compiled)
        if failed:
            raise ArgumentError(f"the {self._name} cannot be used: {_one_line(messages[0])}")
        return str(compiled)

    @property
    def _name(self) -> str:
        return {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar", "gbnf": "grammar"}[
            self.kind
        ]


class Matcher:
    """Follows one answer through a Grammar.

    Args:
        end_ids: ids that end the answer, allowed where the grammar is complete.

    Raises:
        ArgumentError: the grammar cannot be followed.
        UnsupportedModelError: llguidance is not installed.
    """

    def __init__(self, grammar: Grammar, model: Model, end_ids: frozenset[int]) -> None:
        compiled = grammar.compiled()
        tokenizer = _guided_tokenizer(model.tokenizer)
        self._matcher = _llguidance().LLMatcher(tokenizer, compiled, log_level=0)
        self._check("the grammar cannot be used")
        self._words = (model.n_vocab + 31) // 32
        self._guided_bytes = (tokenizer.vocab_size + 31) // 32 * 4
        self._mask = np.zeros(max(self._words, self._guided_bytes // 4), np.uint32)
        self._end_ids = sorted(token for token in end_ids if token < model.n_vocab)
        self._tokenizer_ends = [token for token in tokenizer.eos_tokens if token < model.n_vocab]

    @property
    def finished(self) -> bool:
        """Whether nothing more can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.uint32]:
        """What may come next: a bit per token, uint32 [ceil(n_vocab / 32)]. Overwritten by the next call."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._guided_bytes)
        self._check("the grammar became too complex")
        complete = bool(self._matcher.is_accepting())
        for token in self._tokenizer_ends:
            self._set(token, on=False)
        for token in self._end_ids:
            self._set(token, on=complete)
        return self._mask[: self._words]

    def accept(self, token: int) -> None:
        """The answer goes on with *token*; one that ends it is not shown here."""
        self._matcher.consume_token(token)
        self._check("the answer left its grammar")

    def valid_part(self, draft: Sequence[int]) -> list[int]:
        """The beginning of *draft* that the grammar allows."""
        return list(draft[: self._matcher.validate_tokens(list(draft))])

    def forced(self) -> list[int]:
        """Tokens for text that must come now, [] if there is a choice."""
        return [] if self.finished else list(self._matcher.compute_ff_tokens())

    def _set(self, token: int, *, on: bool) -> None:
        bit = np.uint32(1 << (token % 32))
        if on:
            self._mask[token // 32] |= bit
        else:
            self._mask[token // 32] &= ~bit

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise ArgumentError(f"{what}: {_one_line(self._matcher.get_error())}")


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        pieces = vocabulary_pieces(tokenizer)
        ends = sorted(token for token in tokenizer.end_ids if token < len(pieces))
        # A vocabulary without an end gets one beyond its last token, which no model can choose.
        self.eos_token_id = ends[0] if ends else len(pieces)
        self.bos_token_id = None
        self.special_token_ids = ends or [len(pieces)]
        self.tokens = [*pieces, *([] if ends else [b""])]
        self._id_of: dict[bytes, int] | None = None
        self._longest = 0
        for token in self.special_token_ids:
            self.tokens[token] = b"<|end_%d|>" % token

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids for text that the grammar forces."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(data)
        # Some tokenizers put a space before every text, and some change text: longest pieces then.
        return ids if self._tokenizer.decode_bytes(ids) == data else self._longest_pieces(data)

    def _longest_pieces(self, data: bytes) -> list[int]:
        if self._id_of is None:
            self._id_of = {piece: token for token, piece in enumerate(self.tokens) if piece}
            self._longest = max(map(len, self._id_of), default=0)
        found: list[int] = []
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._id_of), None)
            if end is None:  # no token for this byte: what comes before it can be forced
                break
            found.append(self._id_of[data[at:end]])
            at = end
        return found


_guided: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _guided_tokenizer(tokenizer: Tokenizer) -> Any:
    """llguidance's view of *tokenizer*, which takes half a second to make at 65,536 tokens; made once."""
    found = _guided.get(tokenizer)
    if found is None:
        guidance = _llguidance()
        found = _guided[tokenizer] = guidance.LLTokenizer(guidance.TokenizerWrapper(_Vocabulary(tokenizer)))
    return found


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UnsupportedModelError(
            f"answers of a given form need the llguidance package ({error})",
            hint="pip install 'rwkv-cpu[structured]'",
        ) from None
    return llguidance


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
