# SPDX-License-Identifier: Apache-2.0
"""Function calls in answers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.tools import (
    Tool,
    ToolCall,
    ToolCallParser,
    call_grammar,
    result_message,
    tools_prompt,
)

WEATHER = Tool(
    "get_weather",
    "What the weather\nwill be.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CALL = '{"name": "get_weather", "arguments": {"city": "Paris}` {", "days": 3}}'
EXPECTED = ToolCall("get_weather", {"city": "Paris}` {", "days": 3})


def parse(text: str, cuts: list[int] | None = None, **options):
    parser = ToolCallParser(**options)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts or []), len(text)]
    events = []
    for start, end in itertools.pairwise(places):
        events += parser.feed(text[start:end])
    events += parser.flush()
    joined = []
    for event in events:
        if isinstance(event, str) and joined and isinstance(joined[-1], str):
            joined[-1] += event
        else:
            joined.append(event)
    return joined


CASES = [
    (f"```json\n{CALL}\n```", [EXPECTED]),
    (f"Let me look.\n```json\n{CALL}\n```\nDone.", ["Let me look.\n", EXPECTED, "\nDone."]),
    (f"<tool_call>{CALL}</tool_call>", [EXPECTED]),
    (f"  {CALL}", [EXPECTED]),
    (f"[{CALL}, {CALL}]", [EXPECTED, EXPECTED]),
    ('```json\n{"a": 1}\n```', ['```json\n{"a": 1}\n```']),
    ("```json\nnot json\n```", ["```json\nnot json\n```"]),
    ("```python\nx = {}\n```", ["```python\nx = {}\n```"]),
    ('```json\n{"name": "get_wea', ['```json\n{"name": "get_wea']),
    ("a ``` b `` c", ["a ``` b `` c"]),
    ("", []),
    ("   ", ["   "]),
    ('{"name": 3, "arguments": {}}', ['{"name": 3, "arguments": {}}']),
    ('{"name": "f", "arguments": "{\\"x\\": 1}"}', [ToolCall("f", {"x": 1})]),
    ('{"name": "f"}', [ToolCall("f", {})]),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_calls_are_found_and_everything_else_passes(text, expected):
    assert parse(text) == expected


@given(st.sampled_from([text for text, _ in CASES]), st.lists(st.integers(0, 200), max_size=8))
def test_how_the_text_is_divided_makes_no_difference(text, cuts):
    assert parse(text, cuts) == parse(text)


@given(st.text(alphabet='`json{}[]"<tol_ca>\\ \n:1', max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_text_without_a_call_comes_through_unchanged(text, cuts):
    assert "".join(parse(text, cuts)) == text


def test_after_a_prompt_that_opened_the_block_the_answer_begins_inside():
    assert parse(f"\n{CALL}\n```", inside=True) == [EXPECTED]
    assert parse('\n{"name": "get', inside=True) == ['\n{"name": "get']


def test_nothing_of_a_call_is_shown_before_it_is_complete():
    parser = ToolCallParser()
    text = f"Hm ```json\n{CALL}"
    events = [event for character in text[:-1] for event in parser.feed(character)]
    assert "".join(events) == "Hm "
    assert parser.feed(text[-1]) == [EXPECTED]


def test_a_name_that_is_no_tool_is_text():
    text = '{"name": "rm", "arguments": {}}'
    assert parse(text, tools=[WEATHER]) == [text]
    assert parse(CALL, tools=[WEATHER]) == [EXPECTED]


def test_prompt_is_the_one_the_models_were_trained_on():
    assert tools_prompt([WEATHER]) == (
        "Tools:\n- get_weather(city: string, days?: integer): What the weather will be.\n"
        "Return only a JSON function call."
    )
    assert result_message({"rain": True}) == 'Function output:\n{"rain": true}'


def test_tools_come_from_definitions_of_openai():
    definition = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"x": {"enum": [1, "a"]}}}},
    }
    assert Tool.of_openai(definition).signature == 'f(x?: 1 | "a")'
    for wrong in ({}, {"function": 3}, {"function": {"name": "f", "parameters": {"properties": 3}}}):
        with pytest.raises(ArgumentError):
            Tool.of_openai(wrong)


def test_missing_arguments_are_named():
    assert ToolCall("get_weather", {"days": 1}).missing(WEATHER) == ["city"]


def test_grammar_of_calls_makes_any_model_call_a_tool(demo_model):
    pytest.importorskip("llguidance")
    city = {"type": "string", "maxLength": 12}
    tool = Tool("get_weather", "", {"type": "object", "properties": {"city": city}, "required": ["city"]})
    for seed in range(5):
        reply = demo_model.generate(
            "User: Paris?\n\nAssistant: ```json", grammar=call_grammar([tool]), max_tokens=300, seed=seed, top_p=0.9
        )
        reply.read()
        assert reply.finish_reason == "end"
        (call,) = parse(reply.text, inside=True, tools=[tool])
        assert call.missing(tool) == []
    with pytest.raises(ArgumentError):
        call_grammar([])
