# SPDX-License-Identifier: Apache-2.0
"""Stop strings across the borders of pieces."""

from __future__ import annotations

import pytest

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation import StopMatcher


def run(stops, pieces) -> tuple[list[str], str | None, str]:
    matcher = StopMatcher(stops)
    released = [matcher.feed(piece) for piece in pieces]
    return released, matcher.matched, matcher.flush()


def test_stop_inside_one_piece():
    assert run(["\n\nUser:"], ["Hello.\n\nUser: more"]) == (["Hello."], "\n\nUser:", "")


@pytest.mark.parametrize("pieces", [["Hi", "\n\n", "User", ":"], ["Hi\n", "\nUs", "er: x"], list("Hi\n\nUser:")])
def test_stop_across_pieces_lets_none_of_itself_through(pieces):
    released, matched, rest = run(["\n\nUser:"], pieces)
    assert ("".join(released), matched, rest) == ("Hi", "\n\nUser:", "")


def test_withheld_text_is_released_when_it_turns_out_not_to_be_a_stop():
    assert run(["\n\nUser:"], ["a\n", "\nUse", "ful", "\n"]) == (["a", "", "\n\nUseful", ""], None, "\n")


def test_withheld_text_can_be_seen_and_flushed():
    matcher = StopMatcher("END")
    assert matcher.feed("the EN") == "the "
    assert matcher.withheld == "EN"
    assert matcher.flush() == "EN"
    assert matcher.withheld == matcher.flush() == ""


def test_stop_that_repeats_its_own_beginning():
    assert run(["aab"], list("aaab")) == (["", "", "a", ""], "aab", "")
    assert run(["\n\n"], ["a\n", "b\n", "\n"]) == (["a", "\nb", ""], "\n\n", "")


def test_first_complete_stop_counts_and_the_longer_of_two_that_end_together():
    assert run(["abc", "b"], ["abc"]) == (["a"], "b", "")
    assert run(["abc", "b"], ["a", "bc"]) == (["", "a"], "b", "")
    assert run(["bc", "abc"], ["xabc"]) == (["x"], "abc", "")


def test_nothing_comes_after_a_stop():
    matcher = StopMatcher(["x"])
    assert [matcher.feed("ax"), matcher.feed("b"), matcher.feed("x")] == ["a", "", ""]
    assert matcher.flush() == ""


def test_without_stops_everything_passes():
    assert run([], ["a", "", "\n\n"]) == (["a", "", "\n\n"], None, "")


def test_one_string_is_one_stop():
    assert run("ab", ["xab"]) == (["x"], "ab", "")


@pytest.mark.parametrize("stops", [[""], ["a", ""], [None], [b"a"], ""])
def test_stop_that_is_no_text_is_refused(stops):
    with pytest.raises(ArgumentError, match="stop"):
        StopMatcher(stops)
