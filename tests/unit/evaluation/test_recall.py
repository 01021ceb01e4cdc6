# SPDX-License-Identifier: Apache-2.0
"""Recall over distance: what is planted is asked for, and the demonstration model remembers it for a while."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from rwkv_cpu import Model
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError, Cancelled, UnsupportedModelError
from rwkv_cpu.evaluation import recall
from rwkv_cpu.evaluation.facts import FACTS, Chat, Plain, chat_filler, text_filler
from rwkv_cpu.evaluation.recall import RecallRow, _ask, _Due, _holds, _one_text, _verdict
from rwkv_cpu.evaluation.statistics import proportion

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def demo(demo_path):
    with Model.load(demo_path) as model:
        yield model


def test_the_demonstration_model_remembers_near_facts_and_forgets_far_ones(demo):
    found = recall(demo, distances=(64, 4096), seeds=2)
    near, far = found.rows
    assert near.answered.value >= 0.75
    assert near.likeliest.value >= 0.9
    assert far.answered.value <= 0.25
    assert far.likeliest.value <= 0.5
    assert (near.asked, far.asked) == (12, 12)
    assert found.style == "chat"
    assert found.chance == pytest.approx(0.1)
    assert "4,096" in found.verdict or "4096" in found.verdict
    assert found.to_dict()["rows"][0]["distance"] == 64


def test_the_same_seeds_give_the_same_result(demo):
    one, other = (recall(demo, distances=(100,), seeds=1).to_dict() for _ in range(2))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_every_fact_is_asked_once_at_every_distance(demo):
    style = Chat(ChatTemplate.from_bytes(demo.chat_template))
    dues = list(_one_text(demo, style, chat_filler(style, 3), [64, 300], 3, None, lambda _: None))
    assert Counter((due.fact.name, due.distance) for due in dues) == Counter(
        (fact.name, distance) for fact in FACTS for distance in (64, 300)
    )
    for due in dues:
        assert due.distance <= due.tokens < due.distance + 120
        assert due.value in due.fact.values
        assert due.state.n_tokens >= due.tokens
    assert len({due.state.digest for due in dues}) > 6


def test_a_fork_answers_as_if_the_whole_text_had_been_read_for_it(demo):
    style = Chat(ChatTemplate.from_bytes(demo.chat_template))
    fact = FACTS[0]
    text = style.opening() + style.plant(fact, "Ada") + "".join(islice(chat_filler(style, 1), 3))
    _, state = demo.forward([0, *demo.tokenizer.encode(text)])
    digest = state.digest
    (answer,) = _ask(demo, style, [_Due(fact, "Ada", 1, 1, state)], None)
    prompt, lead = style.ask(fact)
    reply = demo.generate([0, *demo.tokenizer.encode(text + prompt)], temperature=0, max_tokens=24, stop=["\n\n"])
    assert answer.text.strip() == reply.read().strip() == "Your name is Ada."
    assert answer.answered
    assert answer.likeliest
    assert state.digest == digest
    scores = {
        value: demo.score(f" {value}", context=[0, *demo.tokenizer.encode(text + prompt + lead)]).total
        for value in fact.values
    }
    assert max(scores, key=scores.get) == "Ada"


def test_a_text_of_the_user_and_the_plain_style(demo):
    filler = "One paragraph of the text.\n\nAnother one.\n\n" + "word " * 200
    for style in ("chat", "plain"):
        found = recall(demo, distances=(32,), seeds=1, filler=filler, filler_name="own.txt", style=style)
        assert (found.style, found.filler) == (style, "own.txt")
        assert found.rows[0].asked == len(FACTS)
    pieces = list(islice(text_filler(Plain(), filler, 0), 12))
    assert max(len(piece.split()) for piece in pieces) == 60
    assert pieces[0] == pieces[6]  # six pieces, and from the beginning again


def test_fillers_hold_no_value_of_a_fact():
    style = Chat(ChatTemplate())
    said = " ".join(islice(chat_filler(style, 0), 3000))
    assert not [value for fact in FACTS for value in fact.values if _holds(said, value, begins=False)]


def test_a_jinja_template_writes_the_same_turns():
    pytest.importorskip("jinja2")
    style = Chat(ChatTemplate(jinja=CHATML))
    assert style.opening().startswith("<|im_start|>user\nHello!<|im_end|>")
    assert style.plant(FACTS[0], "Ada") == (
        "<|im_start|>user\nMy name is Ada.<|im_end|>\n<|im_start|>assistant\nI will remember that.<|im_end|>\n"
    )
    prompt, lead = style.ask(FACTS[0])
    assert prompt == "<|im_start|>user\nWhat is my name?<|im_end|>\n<|im_start|>assistant\n"
    assert lead == "Your name is"
    assert style.stops()
    anew = "{{ messages | length }}" + CHATML
    with pytest.raises(UnsupportedModelError) as caught:
        Chat(ChatTemplate(jinja=anew)).ask(FACTS[0])
    assert "plain" in caught.value.hint


def test_an_answer_holds_a_value_as_a_word():
    assert _holds(" Your name is Ada.", "Ada", begins=False)
    assert _holds(" ada", "Ada", begins=True)
    assert not _holds(" Your name is Adam.", "Ada", begins=False)
    assert not _holds(" the Ada", "Ada", begins=True)


@pytest.mark.parametrize(
    ("right", "says"),
    [
        ((20, 20, 19), "holds at every distance"),
        ((20, 18, 3), "holds up to 20 tokens (90%) and falls to 15% at 30"),
        ((2, 1, 0), "fails already at 10 tokens: 10%"),
        ((5, 20, 20), "uneven: 25% at 10"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(right, says):
    rows = [
        RecallRow(10 * (i + 1), 10.0 * (i + 1), 20, proportion(n, 20), proportion(n, 20)) for i, n in enumerate(right)
    ]
    assert says in _verdict(rows)


def test_progress_cancelling_and_wrong_arguments(demo):
    seen = []
    recall(demo, distances=(50, 20), seeds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        recall(demo, distances=(50,), cancel=cancel)
    for wrong in ({"distances": ()}, {"distances": (0,)}, {"seeds": 0}, {"style": "poem"}, {"filler": " \n"}):
        with pytest.raises(ArgumentError):
            recall(demo, **wrong)
    with pytest.raises(ArgumentError):
        Chat(ChatTemplate.named("raw"))
