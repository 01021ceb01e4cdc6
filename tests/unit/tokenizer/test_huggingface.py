# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of tokenizer.json files: golden cases, exact bytes, what other tokenizers' files are told.

tests/data/tiny-bytelevel.json is built like the Pile models' 20B: NFC, special tokens 0 and 1, runs of spaces added.
"""

from __future__ import annotations

import gzip
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cpu import tokenizer
from rwkv_cpu.errors import FormatError, RwkvError, TokenError, UnsupportedModelError
from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rwkv_cpu.tokenizer import Tokenizer

pytest.importorskip("tokenizers", reason="needs the tokenizers package: pip install 'rwkv-cpu[hf]'")

TINY = (CHECKOUT / "tests" / "data" / "tiny-bytelevel.json").read_bytes()
SMALL = tokenizer.from_bytes("huggingface", TINY)


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The tiny tokenizer.json with one change."""
    definition = json.loads(TINY)
    change(definition)
    return json.dumps(definition).encode()


def assert_golden(tok: Tokenizer, cases: Path) -> None:
    lines = cases.read_text("utf-8").splitlines()
    assert lines
    for line in lines:
        case = json.loads(line)
        assert tok.encode(case["text"]) == case["ids"], line
        assert tok.encode(case["text"].encode()) == case["ids"], line
        assert tok.decode(case["ids"]) == case.get("decoded", case["text"]), line
        stream = tok.stream()
        assert "".join(map(stream.step, case["ids"])) + stream.flush() == tok.decode(case["ids"]), line


def test_equals_small_golden_cases(checkout):
    assert_golden(SMALL, checkout / "tests" / "data" / "bytelevel_cases.jsonl")


def test_20b_equals_all_golden_cases(shared):
    folder = shared / "goldens" / "tokenizer"
    tok = tokenizer.from_bytes("huggingface", gzip.decompress((folder / "20B_tokenizer.json.gz").read_bytes()))
    assert (tok.n_vocab, tok.end_ids) == (50277, {0})
    assert_golden(tok, folder / "20b_cases.jsonl")


def test_sizes_and_ends():
    assert (SMALL.kind, SMALL.n_vocab, SMALL.end_ids) == ("huggingface", 807, {0})


def test_special_tokens_and_runs_of_spaces_are_single_ids():
    assert SMALL.encode("<|endoftext|>") == [0]
    assert SMALL.decode([0, 1]) == "<|endoftext|><|padding|>"
    assert SMALL.encode(" " * 8) == [800]
    assert SMALL.decode_bytes([800]) == b" " * 8


@given(st.binary())
def test_any_bytes_come_back_up_to_normalisation(data):
    again = SMALL.decode_bytes(SMALL.encode(data))
    assert SMALL.encode(again) == SMALL.encode(data)
    if data.isascii():
        assert again == data


@pytest.mark.parametrize(
    "data", [b"\xff", b"cut \xc3", b"\xe4\xb8 and \xe4\xb8\xad", b"a  \x80\x81 b", bytes(range(256))]
)
def test_invalid_utf8_is_kept_byte_by_byte(data):
    ids = SMALL.encode(data)
    assert SMALL.decode_bytes(ids) == data
    assert SMALL.decode(ids) == data.decode("utf-8", "replace")


def test_stream_gives_no_half_character():
    ids = SMALL.encode("日本😀")
    stream = SMALL.stream()
    pieces = [stream.step(token) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "日本😀"
    assert "" in pieces
    cut = SMALL.stream()
    assert cut.step(ids[0]) + cut.flush() == "\ufffd"


def test_bytes_of_ids_are_the_same_however_they_are_divided():
    ids = SMALL.encode("  Ünïcode 😀 日本語\n\ttext  ")
    assert b"".join(SMALL.decode_bytes([i]) for i in ids) == SMALL.decode_bytes(ids)


@pytest.mark.parametrize("bad", [807, 2**31, 2**40, -1])
def test_id_outside_the_vocabulary_is_named_with_its_position(bad):
    with pytest.raises(TokenError, match=rf"position 1: token {bad} "):
        SMALL.decode([300, bad])


def test_file_bytes_give_the_same_tokenizer():
    assert SMALL.to_bytes() == TINY
    assert tokenizer.from_bytes("huggingface", SMALL.to_bytes()).encode("Hello, 世界") == SMALL.encode("Hello, 世界")


def test_settings_for_training_are_switched_off():
    """Truncation would cut prompts short, dropout would make encoding a matter of luck, a template would add ids."""

    def train(definition):
        definition["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        definition["padding"] = {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "<|padding|>",
        }
        definition["model"]["dropout"] = 0.5
        definition["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }

    text = "The quick brown fox jumps over the lazy dog."
    tok = tokenizer.from_bytes("huggingface", changed(train))
    assert all(tok.encode(text) == SMALL.encode(text) for _ in range(20))


@pytest.mark.parametrize(
    ("step", "value"),
    [
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        ("decoder", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    ],
)
def test_other_kinds_of_tokenizer_are_refused_by_name(step, value):
    with pytest.raises(UnsupportedModelError, match="byte-level BPE") as caught:
        tokenizer.from_bytes("huggingface", changed(lambda definition: definition.update({step: value})))
    assert caught.value.hint


def test_steps_in_a_sequence_are_understood():
    def split_first(definition):
        definition["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False},
                definition["pre_tokenizer"],
            ],
        }
        definition["decoder"] = {"type": "Sequence", "decoders": [definition["decoder"]]}

    tok = tokenizer.from_bytes("huggingface", changed(split_first))
    assert tok.decode(tok.encode("year 2026")) == "year 2026"


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b'{"model": {}}', b"\xff" * 64, TINY[:-100]])
def test_damaged_file_is_refused(data):
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        tokenizer.from_bytes("huggingface", data)


def test_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UnsupportedModelError, match="tokenizers package") as caught:
        tokenizer.from_bytes("huggingface", TINY)
    assert caught.value.hint == "pip install 'rwkv-cpu[hf]'"


def test_kind_is_recognised_by_content(checkout):
    data = checkout / "tests" / "data"
    assert tokenizer.kind_of_bytes(TINY) == "huggingface"
    assert tokenizer.kind_of_bytes(b'\n\n {\n "version"') == "huggingface"
    assert tokenizer.kind_of_bytes((data / "tiny-bpe.model").read_bytes()) == "sentencepiece"
    assert tokenizer.kind_of_bytes(tokenizer.world_vocabulary()) == "world"
    for other in (b"", b"hello", b"[1]", b"PK\x03\x04", b"\xff"):
        with pytest.raises(FormatError):
            tokenizer.kind_of_bytes(other)


def test_unknown_kind_is_refused():
    with pytest.raises(RwkvError, match="telepathy"):
        tokenizer.from_bytes("telepathy", b"")
