# SPDX-License-Identifier: Apache-2.0
"""The generation loop: what is shown, what ends it, and what the state has read then."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.errors import ArgumentError, Cancelled, NonFiniteError
from rwkv_cpu.generation import SamplingParams, generate
from rwkv_cpu.generation.speculative import Workshop
from rwkv_cpu.tokenizer.world import WorldTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

WORLD = WorldTokenizer()
GREEDY = SamplingParams(temperature=0)
PROMPT = WORLD.encode("User: Hi\n\nAssistant:")


class ScriptState:
    def __init__(self) -> None:
        self.n_tokens = 0
        self.read: list[int] = []


class ScriptModel:
    """Its most likely next token is always the script's next one; the rest of the Model interface as it is."""

    n_vocab = 65536
    tokenizer = WORLD
    state_bytes = 1 << 40  # too large for drafts, which test_speculative.py is about

    def __init__(self, script: Sequence[int | bytes | str], *, n_prompt: int = len(PROMPT)) -> None:
        self.script: list[int] = []
        for part in script:
            self.script += [part] if isinstance(part, int) else WORLD.encode(part)
        self.n_prompt = n_prompt
        self.cancel_at: tuple[int, CancelToken] | None = None
        self.calls: list[int] = []
        self.workshop = Workshop(self)

    def advance(self, tokens: list[int], state: ScriptState, *, logits: str, cancel: Any, progress: Any) -> np.ndarray:
        self.calls.append(len(tokens))
        assert logits == "last"
        if self.cancel_at is not None and state.n_tokens + len(tokens) > self.cancel_at[0]:
            n_done = self.cancel_at[0] - state.n_tokens
            state.read += tokens[:n_done]
            state.n_tokens += n_done
            self.cancel_at[1].cancel()
        if cancel is not None and cancel.cancelled:
            raise Cancelled
        state.read += tokens
        state.n_tokens += len(tokens)
        if progress is not None:
            progress(len(tokens), len(tokens))
        result = np.full(self.n_vocab, -5.0, np.float32)
        at = state.n_tokens - self.n_prompt
        result[self.script[at] if at < len(self.script) else 0] = 5.0
        result[65530:] = 9.0  # rows that the tokenizer has no tokens for
        return result


def start(script: Sequence[int | bytes | str], **options: Any) -> Any:
    model = ScriptModel(script)
    options.setdefault("params", GREEDY)
    return generate(model, ScriptState(), PROMPT, options.pop("params"), **options)  # type: ignore[arg-type]


def read_by_state(reply: Any) -> list[int]:
    return reply.state.read[len(PROMPT) :]


def test_end_of_text_ends_it_and_is_neither_shown_nor_read():
    reply = start([" Hello", " there", 0, "never"])
    assert list(reply) == [" Hello", " there"]
    assert reply.text == " Hello there"
    assert (reply.finish_reason, reply.stop) == ("end", None)
    assert reply.tokens == WORLD.encode(" Hello there")
    assert reply.consumed_tokens == len(reply.tokens)
    assert read_by_state(reply) == reply.tokens


def test_length_leaves_the_last_token_unread():
    reply = start(["abc def ghi"], max_tokens=2)
    reply.read()
    assert reply.finish_reason == "length"
    assert len(reply.tokens) == 2
    assert reply.consumed_tokens == 1
    assert read_by_state(reply) == reply.tokens[:1]


def test_no_tokens_wanted_reads_the_prompt_only():
    reply = start(["abc"], max_tokens=0)
    assert list(reply) == []
    assert (reply.finish_reason, reply.tokens, reply.state.n_tokens) == ("length", [], len(PROMPT))


@pytest.mark.parametrize("parts", [[" Hi.\n\nUser: x"], [" Hi.", "\n\n", "User", ":", " x"], [*" Hi.\n\nUser: x"]])
def test_stop_across_token_borders_shows_nothing_of_it(parts):
    reply = start([i for part in parts for i in WORLD.encode(part)], stop=["\n\nUser:"])
    assert "".join(reply) == reply.text == " Hi."
    assert (reply.finish_reason, reply.stop) == ("stop", "\n\nUser:")
    assert reply.consumed_tokens == len(reply.tokens) - 1
    assert read_by_state(reply) == reply.tokens[:-1]
    assert WORLD.decode(reply.tokens).startswith(" Hi.\n\nUser:")


def test_beginning_of_a_stop_is_shown_when_the_text_ends_with_it():
    reply = start([" Hi.\n\nUse", 0], stop=["\n\nUser:"])
    assert "".join(reply) == " Hi.\n\nUse"
    assert reply.finish_reason == "end"


def test_characters_in_several_tokens_are_shown_whole():
    ids = [b + 1 for b in " 中😀é".encode()]
    reply = start([*ids, 0])
    assert list(reply) == [" ", "中", "😀", "é"]
    assert reply.tokens == ids


def test_half_a_character_at_the_end_is_shown_as_replaced():
    reply = start([b + 1 for b in "a😀".encode()[:-1]], max_tokens=4)
    assert list(reply) == ["a", "\ufffd"]
    assert reply.text == "a\ufffd"


def test_rows_without_a_token_are_never_chosen():
    reply = start(["ok", 0], params=SamplingParams(seed=1, top_p=1.0, top_k=0, temperature=0.01))
    assert reply.read() == "ok"


def test_own_end_ids_replace_the_tokenizers():
    reply = start(["a", 0, "b", 261], end_ids=[261])
    assert reply.read() == "ab"
    assert reply.finish_reason == "end"
    assert reply.tokens == [98, 0, 99]


def test_cancelled_before_it_began():
    token = CancelToken()
    token.cancel()
    reply = start(["abc"], cancel=token)
    assert list(reply) == []
    assert reply.finish_reason == "cancelled"
    assert reply.state.n_tokens == reply.consumed_tokens == reply.consumed_prompt_tokens == 0


def test_cancelled_while_reading_the_prompt():
    model, token = ScriptModel(["abc"]), CancelToken()
    model.cancel_at = (2, token)
    reply = generate(model, ScriptState(), PROMPT, GREEDY, cancel=token)  # type: ignore[arg-type]
    assert list(reply) == []
    assert reply.finish_reason == "cancelled"
    assert (reply.consumed_prompt_tokens, reply.consumed_tokens, reply.tokens) == (2, 0, [])


def test_cancelled_between_pieces():
    token = CancelToken()
    reply = start(["abc def", "\n\n"], cancel=token)
    shown = [next(reply)]
    token.cancel()
    shown += reply
    assert reply.finish_reason == "cancelled"
    assert "".join(shown) == reply.text == WORLD.decode(reply.tokens)
    assert read_by_state(reply) == reply.tokens[: reply.consumed_tokens]


def test_cancelled_inside_a_step_keeps_the_state_at_a_token():
    model, token = ScriptModel(["one two three four"]), CancelToken()
    model.cancel_at = (len(PROMPT) + 2, token)
    reply = generate(model, ScriptState(), PROMPT, GREEDY, cancel=token)  # type: ignore[arg-type]
    reply.read()
    assert reply.finish_reason == "cancelled"
    assert reply.consumed_tokens == 2
    assert len(reply.tokens) == 3


def test_close_and_leaving_a_with_block_end_it():
    reply = start(["abc def ghi"])
    first = next(reply)
    reply.close()
    reply.close()
    assert list(reply) == []
    assert (reply.finish_reason, reply.text) == ("cancelled", first)
    with start(["abc def"]) as reply:
        pass
    assert (reply.finish_reason, reply.state.n_tokens) == ("cancelled", 0)


def test_close_after_the_end_changes_nothing():
    reply = start(["abc", 0])
    reply.read()
    reply.close()
    assert reply.finish_reason == "end"


def test_callback_that_returns_false_ends_it():
    shown: list[str] = []

    def show(piece: str) -> bool:
        shown.append(piece)
        return len(shown) < 2

    reply = start([*"abcdef"])
    assert reply.read(show) == "ab"
    assert reply.finish_reason == "cancelled"


def test_interrupt_while_a_step_runs_ends_it_with_a_state_that_fits():
    class Interrupted(ScriptModel):
        def advance(self, tokens, state, **options):
            logits = super().advance(tokens, state, **options)
            if state.n_tokens == len(PROMPT) + 2:
                raise KeyboardInterrupt
            return logits

    reply = generate(Interrupted(["one two three"]), ScriptState(), PROMPT, GREEDY)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        reply.read()
    assert reply.finish_reason == "cancelled"
    assert reply.consumed_tokens == 2
    assert read_by_state(reply) == reply.tokens[:2]


def test_error_of_the_model_reaches_the_caller():
    class Broken(ScriptModel):
        def advance(self, tokens, state, **options):
            return np.full(65536, np.nan, np.float32)

    reply = generate(Broken([]), ScriptState(), PROMPT, GREEDY)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError):
        reply.read()
    for _ in range(2):  # it did not come to an end, and does not look like it
        with pytest.raises(NonFiniteError):
            next(reply)


def test_progress_is_that_of_the_prompt():
    seen: list[tuple[int, int]] = []
    start(["abc", 0], on_progress=lambda done, total: seen.append((done, total))).read()
    assert seen == [(len(PROMPT), len(PROMPT))]


def test_continues_from_logits_without_a_prompt():
    model = ScriptModel(["b", 0], n_prompt=-1)
    state = ScriptState()
    logits = np.full(65536, -5, np.float32)
    logits[98] = 5
    reply = generate(model, state, [], GREEDY, logits=logits)  # type: ignore[arg-type]
    model.script = [0, 98, 99, 0]
    assert reply.read() == "ab"
    assert state.read == [98, 99]


def test_stats_count_tokens_and_time():
    reply = start(["one two three", 0])
    assert reply.stats.first_token_seconds == 0
    reply.read()
    stats = reply.stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (len(PROMPT), len(reply.tokens))
    assert stats.decode_steps == len(reply.tokens)
    assert 0 < stats.prefill_seconds < stats.first_token_seconds
    assert stats.tokens_per_second == pytest.approx(stats.decode_steps / stats.decode_seconds)
    assert stats.prefill_tokens_per_second > 0


def test_prompt_is_read_in_one_call_and_tokens_one_by_one():
    model = ScriptModel(["one two", 0])
    generate(model, ScriptState(), PROMPT, GREEDY).read()  # type: ignore[arg-type]
    assert model.calls == [len(PROMPT)] + [1] * len(WORLD.encode("one two"))


def test_logprobs_are_collected_when_asked_for():
    reply = start(["one two", 0], logprobs=True)
    reply.read()
    assert len(reply.logprobs) == len(reply.tokens)
    assert all(p < 0 for p in reply.logprobs)
    assert start(["one", 0]).logprobs == []


@pytest.mark.parametrize(
    "options", [{"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": True}, {"stop": [""]}, {"logits": np.zeros(3)}]
)
def test_wrong_arguments_are_refused_at_once(options):
    with pytest.raises(ArgumentError):
        start(["a"], **options)


def test_empty_prompt_is_refused():
    with pytest.raises(ArgumentError, match="empty") as caught:
        generate(ScriptModel([]), ScriptState(), [])  # type: ignore[arg-type]
    assert caught.value.hint


# ------------------------------------------------------------------------------- the demonstration model


@pytest.fixture(scope="module")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model.load(demo_path, threads=1) as model:
        yield model


QUESTION = "User: What is the capital of France?\n\nAssistant:"


def test_demonstration_model_answers(demo):
    reply = generate(demo, demo.new_state(), demo.tokenizer.encode(QUESTION), GREEDY, stop="\n\n")
    assert reply.read() == " The capital of France is Paris."
    assert reply.finish_reason == "stop"


def test_state_is_where_consumed_tokens_say(demo):
    ids = demo.tokenizer.encode("User: Tell me a story.\n\nAssistant:")
    reply = generate(demo, demo.new_state(), ids, SamplingParams(seed=3), max_tokens=25)
    reply.read()
    again = demo.new_state()
    demo.advance(ids + reply.tokens[: reply.consumed_tokens], again, logits="none")
    assert np.array_equal(again.data, reply.state.data)
    assert again.n_tokens == reply.state.n_tokens


def test_same_seed_same_text_and_reported_seed_repeats_it(demo):
    ids = demo.tokenizer.encode("User: Tell me a story.\n\nAssistant:")

    def run(seed: int | None) -> tuple[str, int]:
        reply = generate(demo, demo.new_state(), ids, SamplingParams(seed=seed, top_p=1.0), max_tokens=40)
        return reply.read(), reply.seed

    text, seed = run(None)
    assert run(seed)[0] == text
    assert run(7) == run(7)


def test_cancel_from_another_thread_ends_a_long_prompt(demo):
    token = CancelToken()
    ids = demo.tokenizer.encode(QUESTION) * 20_000
    begun = threading.Event()
    reply = generate(demo, demo.new_state(), ids, GREEDY, cancel=token, on_progress=lambda _done, _total: begun.set())

    def stop() -> None:
        begun.wait()
        token.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    assert list(reply) == []
    thread.join()
    assert reply.finish_reason == "cancelled"
    assert 0 < reply.consumed_prompt_tokens < len(ids)
    again = demo.new_state()
    demo.advance(ids[: reply.consumed_prompt_tokens], again, logits="none")
    assert np.array_equal(again.data, reply.state.data)
