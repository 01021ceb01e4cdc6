# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of sentencepiece's files: golden cases, bytes that are no UTF-8, spaces at the start."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from rwkv_cpu import tokenizer
from rwkv_cpu.errors import FormatError, TokenError

if TYPE_CHECKING:
    from pathlib import Path

    from rwkv_cpu.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def bpe(checkout: Path) -> Tokenizer:
    """1,000 pieces, byte fallback, a space put before every text."""
    return tokenizer.from_bytes("sentencepiece", (checkout / "tests" / "data" / "tiny-bpe.model").read_bytes())


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


def test_bpe_equals_golden_cases(bpe, checkout):
    assert_golden(bpe, checkout / "tests" / "data" / "sp_bpe_cases.jsonl")


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_equals_all_golden_cases(shared, name):
    folder = shared / "goldens" / "tokenizer"
    tok = tokenizer.from_bytes("sentencepiece", (folder / f"tiny-{name}.model").read_bytes())
    assert_golden(tok, folder / f"sp_{name}_cases.jsonl")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"cut \xc3",
        b"\xe4\xb8 and \xe4\xb8\xad",
        b"hello \x80\x81 world \xf0\x9f",
        "\U0010f0ff private \U0010efff".encode() + b"\xfe",
        bytes(range(256)),
    ],
)
def test_invalid_utf8_is_kept_byte_by_byte(bpe, data):
    ids = bpe.encode(data)
    assert bpe.decode_bytes(ids) == b" " + data
    assert bpe.decode(ids) == data.decode("utf-8", "replace")


def test_valid_text_beside_an_invalid_byte_keeps_its_ids(bpe):
    assert bpe.encode(b"The quick brown fox \xff")[:6] == bpe.encode("The quick brown fox ")[:6]


def test_without_byte_pieces_invalid_utf8_is_replaced(shared):
    model = (shared / "goldens" / "tokenizer" / "tiny-unigram.model").read_bytes()
    tok = tokenizer.from_bytes("sentencepiece", model)
    assert tok.encode(b"a\xffb") == tok.encode("a\ufffdb")


def test_space_that_was_put_first_is_taken_away_only_at_the_start_of_a_text(bpe):
    ids = bpe.encode("Hello world")
    assert bpe.decode(ids) == "Hello world"
    assert bpe.decode_bytes(ids) == b" Hello world"
    for continuing, expected in ((False, "Hello world"), (True, " Hello world")):
        stream = bpe.stream(continuing=continuing)
        assert "".join(map(stream.step, ids)) + stream.flush() == expected


def test_bytes_of_ids_are_the_same_however_they_are_divided(bpe):
    ids = bpe.encode("  Ünïcode 😀 日本語\n\ttext  ")
    assert b"".join(bpe.decode_bytes([i]) for i in ids) == bpe.decode_bytes(ids)


def test_control_and_unknown_pieces(bpe):
    assert bpe.end_ids == {2}
    assert bpe.decode_bytes([1, 2]) == b""
    assert bpe.decode([0]) == " \u2047 "


@pytest.mark.parametrize("bad", [1000, 2**31, -1])
def test_id_outside_the_vocabulary_is_named_with_its_position(bpe, bad):
    assert bpe.n_vocab == 1000
    with pytest.raises(TokenError, match=rf"position 1: token {bad}"):
        bpe.decode([300, bad])


@pytest.mark.parametrize("data", [b"", b"not a model", b"\xff" * 64])
def test_damaged_model_is_refused(data, capfd):
    with pytest.raises(FormatError, match="sentencepiece"):
        tokenizer.from_bytes("sentencepiece", data)
    assert capfd.readouterr() == ("", "")


def test_truncated_model_is_refused_or_read_without_a_crash(bpe):
    data = bpe.to_bytes()
    for length in range(1, len(data), 997):
        with contextlib.suppress(FormatError):
            tokenizer.from_bytes("sentencepiece", data[:length]).encode("Hello")


def test_model_file_bytes_give_the_same_tokenizer(bpe):
    again = tokenizer.from_bytes("sentencepiece", bpe.to_bytes())
    assert again.encode("Hello, 世界") == bpe.encode("Hello, 世界")


def test_demonstration_model(shared):
    tok = tokenizer.from_bytes("sentencepiece", (shared / "demo-model" / "pip-demo-rwkv7.model").read_bytes())
    ids = tok.encode("User: Hello!\n\nAssistant:")
    assert 2 in ids
    assert tok.decode([0, 2, 3]) == "\n\n\n"
    assert tok.end_ids == {0}
    for text in ("  two spaces  ", "\ttab", "😀\n\n\n", "12345", ""):
        assert tok.decode(tok.encode(text)) == text
        assert tok.decode_bytes(tok.encode(text)) == text.encode()
