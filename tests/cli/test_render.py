# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pyte
import pytest

from rwkv_cpu.terminal.render import WordWrap, harmless

TEXT = "Token shift mixes each token with the token just before it. It is a simple way to look one step back."


def shown(text, width, size=1):
    """What a terminal of that width shows when *text* comes in pieces of *size* characters."""
    screen = pyte.Screen(width, 60)
    screen.set_mode(pyte.modes.LNM)  # "\n" goes to the line's start, as a terminal's driver makes it
    stream = pyte.Stream(screen)
    wrap = WordWrap(width)
    for i in range(0, len(text), size):
        stream.feed(wrap.feed(text[i : i + size]))
    return [line.rstrip() for line in screen.display]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("width", [8, 10, 11, 20, 37, 40, 80])
def test_no_word_is_broken_and_none_is_lost(width, size):
    lines = [line for line in shown(TEXT, width, size) if line]
    assert " ".join(lines) == TEXT
    assert all(len(line) <= width for line in lines)


def test_a_word_longer_than_the_line_goes_over_the_edge():
    assert "".join(shown("x" * 25, 10)).startswith("x" * 25)


def test_lines_of_the_text_stay():
    assert shown("one\n\ntwo three", 9)[:4] == ["one", "", "two three", ""]


def test_a_text_that_fills_the_line_exactly_leaves_no_empty_line():
    assert shown("12345 7890 next", 10)[:3] == ["12345 7890", "next", ""]
    assert shown("1234567890\nnext", 10)[:3] == ["1234567890", "next", ""]


def test_east_asian_text_breaks_anywhere():
    lines = [line for line in shown("你好世界" * 5, 10) if line]
    assert len(lines) == 4


def test_code_is_left_to_the_terminal():
    code = "```\nfor x in range(10): print(x)\n```\n"
    wrap = WordWrap(12)
    assert wrap.feed(code) == code
    assert WordWrap(12).feed("    indented code here") == "    indented code here"


def test_a_model_cannot_control_the_terminal():
    assert harmless("a\x1b]0;title\x07b\x1b[2Jc\rd\x9be\x7f") == "a]0;titleb[2Jcde"
    assert harmless("a\tb\nc") == "a\tb\nc"
