# SPDX-License-Identifier: Apache-2.0
"""Answers of a given form."""

from __future__ import annotations

import builtins
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu import Grammar
from rwkv_cpu.errors import ArgumentError, UnsupportedModelError
from rwkv_cpu.generation import Sampler, SamplingParams
from rwkv_cpu.generation.structured import Matcher
from rwkv_cpu.tokenizer.huggingface import HuggingFaceTokenizer
from rwkv_cpu.tokenizer.sentencepiece import SentencePieceTokenizer
from rwkv_cpu.tokenizer.world import WorldTokenizer

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "ü", "日本"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def fits_schema(text: str) -> None:
    value = json.loads(text)
    assert set(value) <= {"name", "age", "tags"}
    assert isinstance(value["name"], str)
    assert 0 <= value["age"] <= 150
    assert set(value.get("tags", [])) <= {"a", "ü", "日本"}


GRAMMARS = {
    "schema": (Grammar.json_schema(SCHEMA), fits_schema),
    "schema text": (Grammar.json_schema(json.dumps(SCHEMA)), fits_schema),
    "regex": (Grammar.regex("[A-Z][a-zé]{2,8} [0-9]{3}"), re.compile("[A-Z][a-zé]{2,8} [0-9]{3}").fullmatch),
    "gbnf": (Grammar.gbnf('root ::= "yes" | "no " [a-c]{1,9} "!"'), re.compile("yes|no [a-c]{1,9}!").fullmatch),
    "lark": (
        Grammar.lark('start: WORD (" " WORD){2}\nWORD: /[a-z]{1,9}/\n'),
        re.compile("([a-z]{1,9} ){2}[a-z]{1,9}").fullmatch,
    ),
    "choice": (Grammar.choice(["red", 'gr"een', "日本"]), {"red", 'gr"een', "日本"}.__contains__),
}


class Vocabulary:
    """As much of a Model as a Matcher looks at."""

    def __init__(self, tokenizer: Any, extra: int) -> None:
        self.tokenizer = tokenizer
        self.n_vocab = tokenizer.n_vocab + extra


@pytest.fixture(scope="session", params=["world", "sentencepiece", "huggingface"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    data = request.config.rootpath / "tests" / "data"
    if request.param == "world":
        return Vocabulary(WorldTokenizer(), 7)
    if request.param == "sentencepiece":
        return Vocabulary(SentencePieceTokenizer((data / "tiny-bpe.model").read_bytes()), 0)
    return Vocabulary(HuggingFaceTokenizer((data / "tiny-bytelevel.json").read_bytes()), 3)


@pytest.mark.parametrize("name", GRAMMARS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_random_logits_give_valid_answers_with_every_tokenizer(vocabulary, name, seed):
    grammar, fits = GRAMMARS[name]
    ends = vocabulary.tokenizer.end_ids
    matcher = Matcher(grammar, vocabulary, ends)
    sampler = Sampler(vocabulary.n_vocab, SamplingParams(top_k=0, top_p=1, seed=seed))
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    while not matcher.finished:
        allowed = matcher.allowed()
        token = sampler.sample(random.normal(0, 4, vocabulary.n_vocab).astype(np.float32), allowed)
        if token in ends:
            break
        assert matcher.valid_part([token]) == [token]
        matcher.accept(token)
        tokens.append(token)
        assert len(tokens) < 2000
    text = vocabulary.tokenizer.decode_bytes(tokens).decode("utf-8")
    assert fits(text) in (None, True) or fits(text)


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_demonstration_model_keeps_to_the_grammar(demo_model, name):
    grammar, fits = GRAMMARS[name]
    for seed in range(4):
        reply = demo_model.generate("User: Who are you?\n\nAssistant:", grammar=grammar, seed=seed, top_p=1.0)
        reply.read()
        assert reply.finish_reason == "end"
        result = fits(reply.text)
        assert result is None or result
        plain = demo_model.generate(
            "User: Who are you?\n\nAssistant:", grammar=grammar, seed=seed, top_p=1.0, speculative=False
        )
        assert plain.read() == reply.text


def test_json_mode_gives_an_object_without_empty_lines(demo_model):
    for seed in range(4):
        reply = demo_model.generate("Data:", grammar=Grammar.json(), seed=seed, max_tokens=60, top_p=1.0)
        text = reply.read()
        assert text.startswith("{")
        assert "\n\n" not in text
        if reply.finish_reason == "end":
            assert isinstance(json.loads(text), dict)


def test_end_is_possible_only_where_the_grammar_is_complete():
    world = Vocabulary(WorldTokenizer(), 0)
    matcher = Matcher(Grammar.regex("ab+"), world, frozenset({0}))
    assert not matcher.allowed()[0] & 1
    for token in world.tokenizer.encode("ab"):
        matcher.accept(token)
    assert matcher.allowed()[0] & 1
    other = Matcher(Grammar.regex("ab+"), world, frozenset({33}))
    for token in world.tokenizer.encode("ab"):
        other.accept(token)
    allowed = other.allowed()
    assert not allowed[0] & 1
    assert allowed[1] & 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json_schema("{"),
        lambda: Grammar.json_schema("[1]"),
        lambda: Grammar.json_schema({"type": "objec"}).check(),
        lambda: Grammar.regex("(").check(),
        lambda: Grammar.regex("(?=a)").check(),
        lambda: Grammar.gbnf("root ::= missing").check(),
        lambda: Grammar.lark("start: missing").check(),
        lambda: Grammar.choice([]),
    ],
)
def test_what_cannot_be_followed_is_refused_with_a_reason(make):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert len(str(caught.value)) > 20


def test_a_file_tells_its_language():
    assert Grammar.read('root ::= "a"').kind == "gbnf"
    assert Grammar.read('start: "a"').kind == "lark"


def test_without_llguidance_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "llguidance":
            raise ImportError("No module named 'llguidance'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsupportedModelError) as caught:
        Grammar.json().check()
    assert "rwkv-cpu[structured]" in caught.value.hint
