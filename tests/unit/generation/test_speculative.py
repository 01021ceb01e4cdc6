# SPDX-License-Identifier: Apache-2.0
"""Drafts change the time an answer takes and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation import SamplingParams, generate, speculative
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
    monkeypatch.setattr(Drafts, "_best_length", lambda _self, most, _seconds: most)


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
    drafts = Drafts(demo_model, SamplingParams(), 0)
    drafts.begin(text)
    drafts.note_pass(seconds)
    return drafts


def play(
    demo_model, accept: float, cost_of_one_more: float, *, seed: int = 3, n_tokens: int = 400, interrupted: float = 0.0
) -> float:
    """Speed against none at all, on a clock of its own, with that share of draft tokens right.

    interrupted: share of the passes that take four times as long, for other reasons.
    """
    random = np.random.default_rng(seed)

    def took(seconds: float) -> float:
        return seconds * (4 if interrupted and random.random() < interrupted else 1)

    drafts = drafts_of(demo_model, [5, 6, 7, 8, 9] * 20)
    sampler = make_sampler(demo_model, SamplingParams())
    clock, written = 1.0, 1
    while written < n_tokens:
        draft = drafts.propose(sampler, None, None)
        drafts._drafting = 0.0
        if not draft:
            seconds = took(1.0)
            drafts.note_pass(seconds)
            if drafts._watched:
                right = random.random() < accept
                drafts.note_token(drafts._watched[drafts._watched_right] if right else 99)
            clock, written = clock + seconds, written + 1
        else:
            right = next((i for i in range(len(draft)) if random.random() >= accept), len(draft))
            drafts._checking = took(1 + cost_of_one_more * len(draft))
            clock, written = clock + drafts._checking, written + 1 + right
            drafts.learn(len(draft), right)
        drafts._append([5, 6, 7, 8, 9])
    return written / clock * (1 + 3 * interrupted)


@pytest.mark.parametrize(
    ("accept", "cost", "at_least"),
    [
        (0.95, 0.2, 2.0),
        (0.8, 0.2, 1.5),
        (0.5, 0.2, 1.0),
        (0.3, 0.4, 0.96),
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


def test_drafts_that_seem_not_to_pay_are_watched_until_they_do(demo_model):
    passages = [[100 * i + j for j in range(1, 13)] for i in range(1, 10)]
    drafts = drafts_of(demo_model, [token for passage in passages for token in passage])
    sampler, drafted = make_sampler(demo_model, SamplingParams()), []
    for passage in passages:
        drafts.note_token(99)
        drafts.note_token(passage[0])
        drafts.note_token(passage[1])  # an agreement of two is weak
        drafted.append(drafts.propose(sampler, None, None))
        for token in passage[2:]:
            drafts.note_token(token)
    assert drafted[0] == []
    assert drafted[-1] == passages[-1][2 : 2 + len(drafted[-1])] != []


def test_no_draft_where_nothing_repeats(demo_model):
    drafts = drafts_of(demo_model, list(range(1, 200)))
    assert drafts.propose(make_sampler(demo_model, SamplingParams()), None, None) == []


def test_the_longest_and_last_repetition_is_followed(demo_model):
    drafts = drafts_of(demo_model, [1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 8, 3, 4, 70, 1, 2, 3, 4])
    assert drafts._look_up(3) == ([50, 9, 2], 4)
    drafts.begin([50, 9, 2, 3, 4])
    assert drafts._look_up(2) == ([60, 8], 9)
    short = drafts_of(demo_model, [7, 8, 7, 8, 7, 8])
    assert short._look_up(5)[0] == [7, 8, 7, 8, 7]


def test_a_long_text_is_searched_in_its_end_only(demo_model):
    drafts = drafts_of(demo_model, [1, 2, 3])
    for start in range(0, 60000, 1000):
        drafts.begin(list(range(start, start + 1000)))
    drafts.begin([59990, 59991])
    assert drafts._look_up(2) == ([59992, 59993], 2)
    drafts.begin([2, 3])
    assert drafts._look_up(2) == ([], 0)
    assert drafts._n_text <= 2 * speculative._WINDOW
