# SPDX-License-Identifier: Apache-2.0
"""Jinja templates of other people's files: run in a sandbox, and used where they write something else."""

from __future__ import annotations

import json

import pytest

from rwkv_cpu.chat import Chat, ChatTemplate, jinja
from rwkv_cpu.errors import ArgumentError, FormatError, UnsupportedModelError
from rwkv_cpu.export.gguf_text import jinja_from_template
from rwkv_cpu.generation.sampling import SamplingParams
from tests.unit.chat.test_conversation import seen_at_next_message

pytest.importorskip("jinja2")

GREEDY = SamplingParams(temperature=0.0)
LOOP = "{% for m in messages %}[{{ m.role }}] {{ m.content }} [/]\n{% endfor %}"
BRACKETS = LOOP + "{% if add_generation_prompt %}[assistant]{% endif %}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('No system text') }}{% endif %}" + BRACKETS


def chat_with(fake_model, text, **options):
    template = json.dumps({"name": "jinja", "jinja": text})
    chat = Chat(fake_model(template=template), params=GREEDY, **options)
    chat.model._next = lambda state: next_of(chat.model, state)
    return chat


def next_of(model, state):
    """ " Yes." and the end of the turn after every "[assistant]"."""
    said = model.tokenizer.decode(state.ids).rpartition("[assistant]")[2]
    whole = " Yes. [/]"
    return ord(whole[len(said)]) if len(said) < len(whole) else 0


def test_the_model_reads_what_the_template_writes_and_nothing_twice(fake_model):
    chat = chat_with(fake_model, BRACKETS, system="Be kind.")
    for message in ("one", "two", "three"):
        answer = chat.send(message)
        assert answer.read() == "Yes."
    before = chat.model.computed
    chat.send("four").read()
    assert chat.model.computed - before < 60
    chat.undo(2)
    expected = "".join(f"[user] {m} [/]\n[assistant] Yes. [/]\n" for m in ("one", "two"))
    chat.fork().send("x").read()
    goal = chat.history.goal("x")
    ids = [token for node in reversed([*goal.base.path()]) for token in node.ids] + goal.ids
    text = chat.model.tokenizer.decode(ids)
    assert text == f"[system] Be kind. [/]\n{expected}[user] x [/]\n[assistant]"


def test_a_template_that_writes_the_past_anew_is_read_anew(fake_model):
    last_only = "{% for m in messages[-1:] %}[{{ m.role }}] {{ m.content }} [/]\n{% endfor %}[assistant]"
    chat = chat_with(fake_model, last_only)
    chat.send("one").read()
    goal = chat.history.goal("two")
    assert (goal.base, chat.model.tokenizer.decode(goal.ids)) == (chat.history.root, "[user] two [/]\n[assistant]")


def test_what_a_template_refuses_is_an_argument_error(fake_model):
    chat = chat_with(fake_model, STRICT, system="Be kind.")
    with pytest.raises(ArgumentError, match="No system text"):
        chat.send("x")
    chat.reset("")
    assert chat.send("x").read() == "Yes."
    with pytest.raises(ArgumentError, match="think"):
        chat.send("x", think="on")
    with pytest.raises(ArgumentError, match="empty"):
        chat.send(" ")


def test_saved_conversations_go_on(fake_model, tmp_path):
    chat = chat_with(fake_model, BRACKETS)
    chat.send("one").read()
    chat.save(tmp_path / "talk.json")
    loaded = Chat.load(tmp_path / "talk.json", chat.model)
    assert loaded.template == chat.template
    assert loaded.send("two").read() == "Yes."


@pytest.mark.parametrize("text", ["rwkv-world", jinja_from_template(b"world")])
def test_templates_that_write_the_world_format_are_the_world_template(fake_model, text):
    template = ChatTemplate.from_bytes(json.dumps({"name": "world", "jinja": text}))
    assert template == ChatTemplate()
    chat = Chat(fake_model(template=json.dumps({"name": "world", "jinja": text})), params=GREEDY)
    chat.send("x").read()
    assert seen_at_next_message(chat).startswith("User: x\n\nAssistant: You said x.\n\nUser: probe")


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}xxxxxxxxxx{% endfor %}{% endfor %}",
        "{% if %}",
        "{{ messages[99].content }}",
        "{{ 1 // 0 }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_and_wrong_templates_are_format_errors(text):
    with pytest.raises(FormatError):
        jinja.render(text, [{"role": "user", "content": "x"}])


def test_ends_of_answers_are_found_in_the_template():
    assert jinja.stops_of(BRACKETS) == (" [/]",)
    chatml = "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|e|>\n{% endfor %}<|s|>assistant\n"
    assert jinja.stops_of(chatml) == ("<|e|>",)
    assert jinja.stops_of("{{ 1 // 0 }}") == ()


def test_without_jinja2_the_extra_is_named(monkeypatch):
    import sys

    jinja._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    with pytest.raises(UnsupportedModelError) as caught:
        jinja.render(BRACKETS, [])
    assert "rwkv-cpu[jinja]" in caught.value.hint
    assert jinja.writes_world(jinja_from_template(b"world"))
