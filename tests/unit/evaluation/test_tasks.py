# SPDX-License-Identifier: Apache-2.0
"""Last words and multiple choice: what is read from a line, and the figures by their definition in the harness."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.evaluation import likelihood
from rwkv_cpu.evaluation.items import ChoiceItem, LastWordItem, parse_items
from rwkv_cpu.evaluation.likelihood import encode_pair
from rwkv_cpu.evaluation.tasks import compare_tasks, run_task

TEXTS = [
    "User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is 12.",
    "User: My name is Ada.\n\nAssistant: Hello, Ada!\n\nUser: What is my name?\n\nAssistant: Your name is Ada.",
    "User: What is the capital of Italy?\n\nAssistant: The capital of Italy is zebra",
]
CAPITALS = {"Italy": "Rome", "Spain": "Madrid", "France": "Paris", "Portugal": "Lisbon"}


@pytest.fixture(scope="module")
def demo(demo_path):
    with Model.load(demo_path) as model:
        yield model


def lines(*objects) -> str:
    return "".join(json.dumps(found) + "\n" for found in objects)


def by_forward(model: Model, context: str, continuation: str) -> tuple[float, bool]:
    """The harness's loglikelihood: both as one text, divided behind the context's tokens; token 0 first."""
    before = model.tokenizer.encode(context)
    after = model.tokenizer.encode(context + continuation)[len(before) :]
    x = model.forward([0, *before, *after], logits="all")[0].astype(np.float64)[len(before) : -1]
    log_p = x - x.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    return float(log_p[np.arange(len(after)), after].sum()), log_p.argmax(1).tolist() == after


def test_last_words_are_lambada_s():
    items = parse_items(lines(*({"text": text} for text in TEXTS)), "x")
    assert items[0] == LastWordItem("User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is", " 12.")
    assert [item.context + item.target for item in items] == TEXTS  # text.split(" ")[:-1], " " + text.split(" ")[-1]
    assert parse_items(lines({"text": "a b \n"}), "x") == [LastWordItem("a", " b")]


@pytest.mark.parametrize("pass_tokens", [1, 40, 1024])
def test_last_word_figures_by_definition(demo, monkeypatch, pass_tokens):
    monkeypatch.setattr(likelihood, "_PASS_TOKENS", pass_tokens)
    items = parse_items(lines(*({"text": text} for text in TEXTS)), "x")
    expected = [by_forward(demo, item.context, item.target) for item in items]
    found = run_task(demo, items)
    assert found.kind == "last_word"
    assert found.correct.tolist() == [greedy for _, greedy in expected] == [True, True, False]
    loss = [-logprob for logprob, _ in expected]
    assert found.scores["perplexity"].estimate.value == pytest.approx(math.exp(np.mean(loss)), rel=1e-9)
    error = math.exp(np.mean(loss)) * np.std(loss, ddof=1) / math.sqrt(3)
    assert found.scores["perplexity"].stderr == pytest.approx(error, rel=1e-9)
    assert found.scores["acc"].estimate.value == pytest.approx(2 / 3)
    assert found.scores["acc"].stderr == pytest.approx(math.sqrt(2 / 9 / 2))


def choice_items() -> list[dict]:
    names = [f"{town}." for town in CAPITALS.values()] + ["The large old town in the south of the land."]
    return [
        {
            "query": f"User: What is the capital of {country}?\n\nAssistant: The capital of {country} is",
            "choices": names,
            "gold": i,
        }
        for i, country in enumerate(CAPITALS)
    ]


def test_choices_by_definition(demo):
    raw = choice_items()
    raw[0]["gold"] = 4  # a wrong one
    items = parse_items(lines(*raw), "x")
    found = run_task(demo, items)
    right, right_by_byte = [], []
    for item in raw:
        logprobs = np.array([by_forward(demo, item["query"], f" {choice}")[0] for choice in item["choices"]])
        sizes = np.array([len(choice.encode()) for choice in item["choices"]])
        right.append(logprobs.argmax() == item["gold"])
        right_by_byte.append((logprobs / sizes).argmax() == item["gold"])
    assert found.correct.tolist() == right == [False, True, True, True]
    assert found.scores["acc"].estimate.value == np.mean(right)
    assert found.scores["acc_norm"].estimate.value == np.mean(right_by_byte)
    assert found.scores["acc"].stderr == pytest.approx(np.std(right, ddof=1) / 2)
    assert found.chance == pytest.approx(1 / 5)
    assert found.to_dict()["acc"]["value"] == 0.75


def test_samples_of_the_harness_are_the_same_items(demo):
    """Its older and its newer form, with the target as a number, as its text, and as a list."""
    simple, samples = choice_items(), []
    for i, item in enumerate(simple):
        pairs = [[item["query"], f" {choice}"] for choice in item["choices"]]
        newer = {f"gen_args_{j}": {"arg_0": pair[0], "arg_1": pair[1]} for j, pair in enumerate(pairs)}
        target = [item["gold"], str(item["gold"]), item["choices"][item["gold"]], f"[{item['gold']}, 4]"][i]
        logged = {"doc_id": i, "doc": {"q": "…"}, "arguments": newer if i % 2 else pairs, "target": target}
        samples.append({**logged, "resps": [], "filtered_resps": [], "doc_hash": "x"})
    items, logged_items = parse_items(lines(*simple), "x"), parse_items(lines(*samples), "x")
    assert [item.pairs for item in items] == [item.pairs for item in logged_items]
    assert [item.gold for item in logged_items] == [(0,), (1,), (2,), (3, 4)]
    assert run_task(demo, items).chosen.tolist() == run_task(demo, logged_items).chosen.tolist()


def test_a_logged_lambada_sample_is_a_last_word():
    sample = {"doc": {"text": "one two three"}, "target": " three", "arguments": [["one two", " three"]]}
    assert parse_items(lines(sample), "x") == [LastWordItem("one two", " three")]


@pytest.mark.parametrize(
    ("found", "gold"),
    [
        ({"question": "Q", "choices": ["a", "b"], "answer": "b"}, 1),
        ({"context": "Q", "choices": ["a", "b"], "answer": "B"}, 1),
        ({"ctx": "Q", "endings": ["a", "b", "c"], "label": "2"}, 2),
        ({"query": "Q", "choices": ["3", "2"], "gold": "3"}, 0),
        ({"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, 1),
    ],
)
def test_names_that_data_sets_have_for_the_same(found, gold):
    (item,) = parse_items(lines(found), "x")
    assert isinstance(item, ChoiceItem)
    assert item.gold == (gold,)
    assert {context for context, _ in item.pairs} == {"Q"}
    assert all(text.startswith(" ") for _, text in item.pairs)


def test_contexts_that_differ_between_choices(demo):
    """Winogrande's form: the choice stands in the context, and what follows is the same."""
    pairs = [["User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is", " 12."], ["User: Hi!\n\nAssistant: I am", " 12."]]
    (item,) = parse_items(lines({"arguments": pairs, "target": 0}), "x")
    found = run_task(demo, [item])
    assert found.correct.tolist() == [True]
    assert found.scores["acc"].stderr is None


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON list"),
        ("{}", "unknown keys: none"),
        ('{"story": "x"}', "unknown keys: 'story'"),
        ('{"text": 3}', "not a text"),
        ('{"text": "word"}', "only one word"),
        ('{"choices": ["a", "b"], "gold": 0}', "no text under"),
        ('{"query": "Q", "choices": ["a"], "gold": 0}', "at least two"),
        ('{"query": "Q", "choices": "ab", "gold": 0}', "at least two"),
        ('{"query": "Q", "choices": ["a", "b"], "gold": 2}', "none of the 2 choices"),
        ('{"query": "Q", "choices": ["a", "b"]}', "none of the 2 choices"),
        ('{"query": "Q", "choices": ["a", "b"], "gold": true}', "none of the 2 choices"),
        ('{"arguments": [["ctx", {"until": []}]], "target": "x"}', "only samples of loglikelihood"),
        ('{"arguments": [], "target": 0}', "must be a list"),
        ('{"arguments": [["a", ""], ["a", "b"]], "target": 0}', "empty continuation"),
        ('{"query": "Q", "choices": ["a", "b"], "gold": 0}', "another kind"),
    ],
)
def test_a_wrong_line_is_named(wrong, what):
    with pytest.raises(ArgumentError, match=rf"file\.jsonl, line 3: .*{what}") as caught:
        parse_items(f'{{"text": "a b"}}\n\n{wrong}\n', "file.jsonl")
    assert "text" in caught.value.hint


def test_nothing_in_it_is_told_and_limits_hold():
    with pytest.raises(ArgumentError, match="no item"):
        parse_items("\n\n", "x")
    assert len(parse_items(lines(*choice_items()), "x", 2)) == 2
    assert len(parse_items('{"text": "a b"}\nnot JSON', "x", 1)) == 1


def test_pairs_are_divided_where_the_text_of_both_is(demo):
    tokenizer = demo.tokenizer
    before, after = encode_pair(tokenizer, "The capital of Italy is ", "Rome.")
    assert tokenizer.decode([*before, *after]) == "The capital of Italy is Rome."
    assert before == tokenizer.encode("The capital of Italy is")
    before, after = encode_pair(tokenizer, "The capi", "tal")  # a token reaches over the border
    assert (before, after) == (tokenizer.encode("The capi"), tokenizer.encode("tal"))
    assert encode_pair(tokenizer, "", " word") == ([], tokenizer.encode(" word"))


def test_two_models_are_compared_item_by_item(demo):
    items = parse_items(lines(*choice_items()), "x")
    one = run_task(demo, items)
    same = compare_tasks(one, one)
    assert same["agreement"].estimate.value == 1
    assert same["acc_difference"].estimate.value == 0
    assert same["acc_difference"].stderr == 0
    with pytest.raises(ArgumentError):
        run_task(demo, [])
