# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError, FormatError

WORLD = ChatTemplate.named("world")


def test_prompt_ends_at_the_label_without_a_space():
    assert WORLD.user_part("Hello") == "User: Hello\n\nAssistant:"


def test_system_text_comes_first_and_ends_in_a_blank_line():
    assert WORLD.system_part("Be kind.") == "System: Be kind.\n\n"
    assert WORLD.system_part("  \n ") == ""


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a\n\nb", "a\nb"),
        ("a\r\n\r\n\r\nb", "a\nb"),
        ("\n\n a \n\n", "a"),
        ("one\ntwo", "one\ntwo"),
        ("a\n\nUser: b\n\nAssistant: c", "a\nUser: b\nAssistant: c"),
    ],
)
def test_blank_lines_of_a_user_are_closed_up(typed, read):
    assert WORLD.clean(typed) == read


def test_an_empty_message_is_refused():
    with pytest.raises(ArgumentError):
        WORLD.user_part(" \n\n ")


def test_an_answer_in_the_history_has_one_space_before_and_one_blank_line_after():
    assert WORLD.answer_part("  Yes. \n") == " Yes.\n\n"
    assert WORLD.answer_part("") == "\n\n"


@pytest.mark.parametrize("name", ["world", "world-paragraph"])
def test_templates_survive_the_model_file(name):
    template = ChatTemplate.named(name)
    assert ChatTemplate.from_bytes(template.to_bytes()) == template
    assert ChatTemplate.from_bytes(template.to_bytes().decode()) == template
    assert ChatTemplate.from_bytes(template.to_bytes() + b"\0" * 7) == template
    assert ChatTemplate.from_bytes(name.encode()) == template


@pytest.mark.parametrize("nothing", [None, b"", ""])
def test_a_file_without_a_template_has_the_world_template(nothing):
    assert ChatTemplate.from_bytes(nothing) == WORLD


def test_fields_a_newer_file_adds_are_ignored_and_missing_ones_are_worlds():
    template = ChatTemplate.from_bytes(json.dumps({"name": "mine", "user": "Human", "tools": [1]}))
    assert template.user_part("x") == "Human: x\n\nAssistant:"


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff\xfe", b"{", b"[]", b"3", b"[" * 70000, b"[" * 60000, b"unknown-name",
        b'{"user": 3}', b'{"user": ""}', b'{"stop": "x"}', b'{"stop": [""]}', b'{"sampling": []}',
        b'{"sampling": {"temperature": "hot"}}',
    ],
)  # fmt: skip
def test_a_damaged_template_is_a_format_error(damaged):
    with pytest.raises(FormatError):
        ChatTemplate.from_bytes(damaged)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ArgumentError) as caught:
        ChatTemplate.named("chatml")
    assert "world-paragraph" in caught.value.hint
