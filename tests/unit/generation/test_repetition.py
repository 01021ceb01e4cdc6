# SPDX-License-Identifier: Apache-2.0
"""What a text says of its own continuation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu.generation import repetition
from rwkv_cpu.generation.repetition import FIRST_CHANCES, Repetition, SpacelessIds


@pytest.fixture(scope="module")
def spaceless(demo_model):
    return SpacelessIds(demo_model.tokenizer, 70000)


def guess(spaceless, text: list[int], most: int = 5) -> list[int]:
    repetition_of = Repetition(spaceless)
    repetition_of.append(text)
    return [token for token, _ in repetition_of.guesses(most)]


def test_nothing_is_guessed_where_nothing_repeats(spaceless):
    assert guess(spaceless, []) == []
    assert guess(spaceless, [1001]) == []
    assert guess(spaceless, list(range(1001, 1100))) == []


def test_the_longest_agreement_decides_and_of_equals_the_last(spaceless):
    text = [1001, 1002, 1003, 1004, 1050, 1009, 1002, 1003, 1004, 1060, 1008, 1003, 1004, 1070, 1001, 1002, 1003, 1004]
    assert guess(spaceless, text, 3) == [1050, 1009, 1002]
    assert guess(spaceless, [*text, 1050, 1009, 1002, 1003, 1004], 2) == [1060, 1008]
    assert guess(spaceless, [1001, 1010, 1001, 1020, 1001], 1) == [1020]


def test_many_short_agreements_outvote_the_last(spaceless):
    assert guess(spaceless, [1001, 1010, 1001, 1010, 1001, 1010, 1001, 1020, 1001], 1) == [1010]


def test_a_text_that_repeats_itself_goes_on_doing_so(spaceless):
    assert guess(spaceless, [1007, 1008, 1007, 1008, 1007, 1008]) == [1007, 1008, 1007, 1008, 1007]
    assert guess(spaceless, [1007, 1007]) == [1007] * 5


def test_longer_agreements_and_agreement_of_several_promise_more(spaceless):
    def first_chance(text: list[int]) -> float:
        repetition_of = Repetition(spaceless)
        repetition_of.append(text)
        return FIRST_CHANCES[next(iter(repetition_of.guesses(1)))[1]]

    passage = list(range(1101, 1120))
    chances = [first_chance([*passage, 1000, *passage[10 - n : 10]]) for n in (1, 2, 3, 6, 9)]
    assert chances == sorted(set(chances))
    assert first_chance([1001, 1010, 1001, 1010, 1001]) > first_chance([1001, 1010, 1001, 1020, 1001])


def test_a_word_is_the_same_with_a_space_before_it(demo_model, spaceless):
    encode = demo_model.tokenizer.encode
    pairs = [(encode(" " + word), encode(word)) for word in ("the", "is", "a", "of", "in", "model")]
    single = [(spaced[0], bare[0]) for spaced, bare in pairs if len(spaced) == len(bare) == 1 and spaced != bare]
    assert single
    for spaced, bare in single:
        assert spaceless.of_one(spaced) == spaceless.of_one(bare) == bare
        assert guess(spaceless, [spaced, 301, 302, bare], 2) == [301, 302]


def test_ids_beyond_the_vocabulary_stand_for_themselves(spaceless):
    assert spaceless.of_one(69999) == 69999
    assert spaceless.of_one(0) == 0


def test_a_long_text_is_searched_in_its_end_only(spaceless):
    text = Repetition(spaceless)
    for start in range(0, 60000, 1000):
        text.append(list(range(start, start + 1000)))
    text.append([59990, 59991])
    assert [token for token, _ in text.guesses(2)] == [59992, 59993]
    text.append([2, 3])
    assert list(text.guesses(2)) == []
    assert len(text._ids) == 2 * repetition.WINDOW


@settings(max_examples=60)
@given(st.lists(st.integers(1001, 1004), min_size=1, max_size=60), st.integers(1, 59))
def test_it_does_not_matter_how_a_text_was_cut(spaceless, text, cut):
    whole, parts = Repetition(spaceless), Repetition(spaceless)
    whole.append(text)
    for part in (text[:cut], text[cut:]):
        parts.append(part)
        list(parts.guesses(4))
    assert list(whole.guesses(8)) == list(parts.guesses(8))


@settings(max_examples=60)
@given(st.lists(st.integers(1001, 1006), min_size=2, max_size=60))
def test_a_guess_stood_in_the_text_after_the_longest_agreement(spaceless, text):
    found = guess(spaceless, text, 1)
    followers = {b for a, b in itertools.pairwise(text) if a == text[-1]}
    assert set(found) <= followers
    assert bool(found) == bool(followers)
