# SPDX-License-Identifier: Apache-2.0
"""Streaming: never half a character."""

from __future__ import annotations

import pytest

from rwkv_cpu.tokenizer import DecodeStream


def stream() -> DecodeStream:
    return DecodeStream(lambda token: bytes([token]))


@pytest.mark.parametrize("text", ["é", "中", "😀", "👩‍👩‍👧", "aé中😀z"])
def test_character_appears_with_its_last_byte(text):
    s = stream()
    steps = [s.step(b) for b in text.encode()]
    assert "".join(steps) == text
    assert "\ufffd" not in "".join(steps)
    assert sum(map(bool, steps)) == len(text)
    assert s.flush() == ""


def test_incomplete_character_is_replaced_at_the_end_only():
    s = stream()
    assert [s.step(b) for b in b"a\xf0\x9f\x98"] == ["a", "", "", ""]
    assert s.flush() == "\ufffd"


def test_byte_that_cannot_begin_a_character_does_not_hold_up_the_rest():
    s = stream()
    assert "".join(s.step(b) for b in b"\xffab\xe4\xb8z\x80") + s.flush() == "\ufffdab\ufffdz\ufffd"


def test_first_piece_is_the_first_one_with_bytes():
    pieces = {0: b"", 1: b" a", 2: b" "}
    s = DecodeStream(pieces.__getitem__, lambda token: pieces[token][1:])
    assert [s.step(t) for t in (0, 0, 1, 1, 2)] == ["", "", "a", " a", " "]
