# SPDX-License-Identifier: Apache-2.0
"""Drafts change the time an answer takes and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation import SamplingParams, generate, speculative
from rwkv_cpu.generation.pass_costs import PassCosts
from rwkv_cpu.generation.sampling import make_sampler
from rwkv_cpu.generation.speculative import Drafts

PROMPTS = [
    "User: Hello! My name is Ada.\n\nAssistant:",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 1 2 3 4 5 6 7 8",
    "User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is 12.\n\nUser: What is 7 plus 6?\n\nAssistant:",
    "the cat sat on the mat. the cat sat on the mat. the cat sat on",
    "日本語。日本語。日本",
    "a",
]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts as long and as often as possible, whether they pay or not."""
    monkeypatch.setattr(Drafts, "_best_length", lambda _self, rates, _seconds=0.0: len(rates))


def run(model, prompt, params, *, state=None, max_tokens=60, **options):
    state = model.new_state() if state is None else state
    reply = generate(model, state, model.tokenizer.encode(prompt), params, max_tokens=max_tokens, **options)
    pieces = list(reply)
    assert "".join(pieces) == reply.text
    return reply


def same(a, b):
    assert a.tokens == b.tokens
    assert (a.text, a.finish_reason, a.stop, a.consumed_tokens) == (b.text, b.finish_reason, b.stop, b.consumed_tokens)
    assert a.state.data.tobytes() == b.state.data.tobytes()
    assert (a.state.n_tokens, a.state.digest) == (b.state.n_tokens, b.state.digest)
    assert a.logprobs == b.logprobs
    assert a.top_logprobs == b.top_logprobs


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "settings_of_it",
    [
        {"temperature": 0},
        {"seed": 1},
        {"temperature": 1.3, "top_p": 1, "top_k": 0, "seed": 2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
        {"mirostat_tau": 4, "seed": 3, "dry_multiplier": 0.7, "repetition_penalty": 1.1},
        {"xtc_probability": 0.5, "typical_p": 0.9, "seed": 4},
    ],
    ids=",".join,
)
def test_text_state_and_logprobs_are_the_same_with_and_without_drafts(demo_model, prompt, settings_of_it):
    params = SamplingParams(**settings_of_it)
    options = {"logprobs": True, "top_logprobs": 3}
    plain = run(demo_model, prompt, params, speculative=False, **options)
    same(run(demo_model, prompt, params, **options), plain)
    same(run(demo_model, prompt, params, draft_model=demo_model, **options), plain)


@pytest.mark.usefixtures("eager")
@settings(max_examples=40)
@given(
    text=st.text(alphabet="ab 12.\n", min_size=1, max_size=40),
    seed=st.integers(0, 99),
    max_tokens=st.integers(1, 30),
    stop=st.sampled_from([(), ("a",), ("12", "\n\n"), (" b",)]),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
)
def test_limits_and_stops_end_at_the_same_place(demo_model, text, seed, max_tokens, stop, temperature):
    params = SamplingParams(temperature=temperature, seed=seed, top_p=0.9)
    options = {"max_tokens": max_tokens, "stop": stop}
    same(run(demo_model, text * 2, params, **options), run(demo_model, text * 2, params, speculative=False, **options))


@pytest.mark.usefixtures("eager")
def test_a_model_that_drafts_for_itself_is_always_right(demo_model):
    for seed in range(3):
        params = SamplingParams(seed=seed, temperature=1.2, top_p=0.95)
        reply = run(demo_model, "User: Tell me a story.\n\nAssistant:", params, draft_model=demo_model)
        wrong = reply.stats.drafted_tokens - reply.stats.accepted_tokens
        assert reply.stats.accepted_tokens > 10
        assert wrong <= 12  # of the last draft, which the end of the answer cut short, and of repetitions in the text


@pytest.mark.usefixtures("eager")
def test_repetition_in_the_prompt_is_drafted_and_found_right(demo_model):
    turn = "User: What is the sun?\n\nAssistant:"
    prompt = f"{turn} The sun is a star. It gives the Earth light and heat.\n\n" * 3 + turn
    reply = run(demo_model, prompt, SamplingParams(temperature=0), max_tokens=40)
    assert reply.stats.drafted_tokens >= reply.stats.accepted_tokens > 0
    assert reply.stats.decode_steps == reply.consumed_tokens


def test_what_is_left_of_a_closed_reply_is_consistent(demo_model):
    with generate(demo_model, demo_model.new_state(), demo_model.tokenizer.encode(PROMPTS[3] * 3)) as reply:
        for _ in zip(range(5), reply, strict=False):
            pass
    again = demo_model.new_state()
    demo_model.advance([*demo_model.tokenizer.encode(PROMPTS[3] * 3), *reply.tokens[: reply.consumed_tokens]], again)
    assert again.data.tobytes() == reply.state.data.tobytes()


def test_a_draft_model_with_another_vocabulary_is_refused(demo_model, make_rwkv):
    from rwkv_cpu import Model

    with Model(make_rwkv(n_vocab=300)) as other, pytest.raises(ArgumentError, match="vocabulary"):
        generate(demo_model, demo_model.new_state(), [1], draft_model=other)


# ------------------------------------------------------------------------------------------ what it learns


def drafts_of(demo_model, text: list[int], seconds: float = 1.0) -> Drafts:
    demo_model._workshop = None  # nothing that other tests taught
    drafts = Drafts(demo_model, SamplingParams(), 0)
    drafts.begin(text)
    drafts.note_pass(seconds)
    return drafts


def play(
    demo_model, accept: float, cost_of_one_more: float, *, seed: int = 3, n_tokens: int = 400, interrupted: float = 0.0
) -> float:
    """Speed against none at all, on a clock of its own, with that share of guesses right.

    interrupted: share of the passes that take four times as long, for other reasons.
    """
    random = np.random.default_rng(seed)
    cycle = [5, 6, 7, 8, 9]

    def took(seconds: float) -> float:
        return seconds * (4 if interrupted and random.random() < interrupted else 1)

    drafts = drafts_of(demo_model, cycle * 20)
    sampler = make_sampler(demo_model, SamplingParams())
    clock, written = 1.0, 1
    while written < n_tokens:
        draft = drafts.propose(sampler, None, None)
        drafts._drafting = 0.0
        right = 0
        while right < len(draft) and random.random() < accept:
            drafts._compare(draft[right])
            right += 1
        if draft:
            drafts._checking = took(1 + cost_of_one_more * len(draft))
            clock += drafts._checking
            drafts.learn(len(draft), right)
        else:
            seconds = took(1.0)
            drafts.note_pass(seconds)
            clock += seconds
        if right < len(draft) or (drafts._guess and random.random() >= accept):
            drafts._compare(99)
        elif drafts._n_seen < len(drafts._guess):
            drafts._compare(drafts._guess[drafts._n_seen][0])
        written += 1 + right
        drafts._text.append(cycle)
    return written / clock * (1 + 3 * interrupted)


@pytest.mark.parametrize(
    ("accept", "cost", "at_least"),
    [
        (0.95, 0.07, 4.0),
        (0.95, 0.2, 2.0),
        (0.8, 0.2, 1.5),
        (0.5, 0.07, 1.4),
        (0.5, 0.2, 1.0),
        (0.3, 0.4, 0.96),
        (0.0, 0.07, 0.96),
        (0.0, 0.2, 0.96),
        (0.0, 0.9, 0.96),
        (0.9, 1.1, 0.96),
    ],
)
def test_length_of_drafts_follows_from_what_they_bring(demo_model, accept, cost, at_least):
    assert play(demo_model, accept, cost) >= at_least


def test_passes_that_something_else_interrupts_do_not_end_drafts(demo_model):
    speeds = [play(demo_model, 0.9, 0.2, seed=seed, n_tokens=150, interrupted=0.15) for seed in range(20)]
    assert min(speeds) >= 1.1
    assert np.mean(speeds) >= 2.1


def test_guesses_teach_whether_they_were_drafted_or_not(demo_model):
    passages = [[100 * i + j for j in range(1, 13)] for i in range(1, 10)]
    drafts = drafts_of(demo_model, [token for passage in passages for token in passage])
    for _ in range(3):
        drafts._costs.learn(2, 1.5)  # an engine that gains little from more tokens
    drafts._ledger._balance = 10.0
    sampler, drafted = make_sampler(demo_model, SamplingParams()), []
    for passage in passages:
        drafts.note_token(99)
        drafts.note_token(passage[0])
        drafts.note_token(passage[1])
        drafted.append(drafts.propose(sampler, None, None))
        for token in passage[2:]:
            drafts.note_token(token)
            drafts._resting = 0
            if token != passage[-1]:
                drafts.propose(sampler, None, None)
    assert drafted[0] == []
    assert drafted[-1] == passages[-1][2 : 2 + len(drafted[-1])] != []


def test_answers_share_what_passes_cost_and_the_memory_for_states(demo_model):
    first = drafts_of(demo_model, [1, 2])
    state = demo_model.new_state()
    demo_model.advance([1, 2], state)
    first.check(2, [3, 4], state, None)
    states = first._states
    first.end()
    first.end()
    second = Drafts(demo_model, SamplingParams(), 0)
    assert second._costs.one == 1.0
    second.check(2, [3], state, None)
    assert second._states is states
    third = Drafts(demo_model, SamplingParams(), 0)  # while the second is at work
    third.check(2, [3], state, None)
    assert third._states is not states


def test_small_models_rest_after_a_search_that_costs_as_much_as_a_token(demo_model, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(speculative, "perf_counter", lambda: float(next(clock)))
    drafts = drafts_of(demo_model, list(range(1, 200)))
    sampler, searches = make_sampler(demo_model, SamplingParams()), []
    monkeypatch.setattr(drafts._text, "guesses", lambda most: searches.append(most) or iter(()))
    for _ in range(101):
        drafts.propose(sampler, None, None)
    assert len(searches) == 2


def test_no_draft_where_nothing_repeats(demo_model):
    drafts = drafts_of(demo_model, list(range(1, 200)))
    assert drafts.propose(make_sampler(demo_model, SamplingParams()), None, None) == []


def test_a_pass_of_unknown_length_is_guessed_from_others_and_never_below_one():
    costs = PassCosts()
    for _ in range(3):
        costs.learn(1, 2.0)
    for _ in range(20):
        costs.learn(5, 2.0 * 1.4)
    assert costs.expect(5) == pytest.approx(2.8)
    assert costs.expect(9) == pytest.approx(2.0 * 1.8)
    for _ in range(20):
        costs.learn(3, 1.0)
    assert costs.expect(3) == 2.0
