# SPDX-License-Identifier: Apache-2.0
"""Completions in OpenAI's and llama-cpp-python's shape. The sets of keys are those of llama_cpp.llama_types."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import CancelToken, Model
from rwkv_cpu.compat.llama_cpp import Llama
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPLETION = {"id", "object", "created", "model", "choices", "usage"}
COMPLETION_CHOICE = {"text", "index", "logprobs", "finish_reason"}
LOGPROBS = {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
CHAT_CHOICE = {"index", "message", "logprobs", "finish_reason"}
CHUNK_CHOICE = {"index", "delta", "logprobs", "finish_reason"}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}

QUESTION = [{"role": "user", "content": "What is 7 plus 5?"}]
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "required": ["zone"]},
    },
}


@pytest.fixture(scope="module")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=2) as model:
        yield model


def test_completion_and_its_stream_say_the_same(demo: Model):
    options = {"max_tokens": 4, "temperature": 0, "logprobs": 3}
    whole = demo.create_completion("Once upon a time", **options)
    assert whole.keys() == COMPLETION
    assert whole["usage"].keys() == USAGE
    assert whole["object"] == "text_completion"
    (choice,) = whole["choices"]
    assert choice.keys() == COMPLETION_CHOICE
    assert choice["finish_reason"] == "length"
    logs = choice["logprobs"]
    assert logs.keys() == LOGPROBS
    assert len(logs["tokens"]) == whole["usage"]["completion_tokens"] == 4
    for text, logprob, top in zip(logs["tokens"], logs["token_logprobs"], logs["top_logprobs"], strict=True):
        assert top[text] == logprob == max(top.values()) <= 0  # greedy
    chunks = list(demo.create_completion("Once upon a time", stream=True, **options))
    assert all(chunk.keys() == COMPLETION - {"usage"} for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    told = [chunk["choices"][0]["logprobs"] or {"tokens": []} for chunk in chunks]
    assert [token for log in told for token in log["tokens"]] == logs["tokens"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_logprobs_alone_name_the_chosen_token(demo: Model):
    options = {"max_tokens": 4, "temperature": 0}
    logs = demo.create_completion("Once upon a time", logprobs=0, **options)["choices"][0]["logprobs"]
    for text, logprob, top in zip(logs["tokens"], logs["token_logprobs"], logs["top_logprobs"], strict=True):
        assert top == {text: logprob}
    last = list(demo.create_completion("Once upon a time", logprobs=0, stream=True, **options))[-1]["choices"][0]
    assert (last["text"], last["logprobs"], last["finish_reason"]) == ("", None, "length")
    (choice,) = demo.create_chat_completion(QUESTION, logprobs=True, **options)["choices"]
    assert len(choice["logprobs"]["content"]) == 4
    assert all(place["top_logprobs"] == [] for place in choice["logprobs"]["content"])


def test_echo_scores_the_prompt_as_the_model_does(demo: Model):
    """What evaluation harnesses ask for: ids, echo, one generated token."""
    ids = demo.tokenizer.encode("The capital of France is Paris. " * 60)
    found = demo.create_completion(ids, max_tokens=1, temperature=0, logprobs=1, echo=True)
    logs = found["choices"][0]["logprobs"]
    assert logs["token_logprobs"][0] is None
    assert logs["top_logprobs"][0] is None
    rows = demo.forward(ids, logits="all")[0].astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1))[:, None]
    expected = [float(rows[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    assert logs["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)
    assert logs["token_logprobs"][-1] == pytest.approx(float(rows[-1].max()), abs=1e-4)
    for i in range(len(ids) - 1):
        assert max(logs["top_logprobs"][i + 1].values()) == pytest.approx(float(rows[i].max()), abs=1e-4)
    assert found["choices"][0]["text"].startswith("The capital of France")


def test_chat_completion_and_its_stream_say_the_same(demo: Model):
    whole = demo.create_chat_completion(QUESTION, temperature=0, logprobs=True, top_logprobs=2)
    assert whole.keys() == COMPLETION
    assert whole["object"] == "chat.completion"
    (choice,) = whole["choices"]
    assert choice.keys() == CHAT_CHOICE
    assert choice["message"] == {"role": "assistant", "content": "7 plus 5 is 12."}
    assert choice["finish_reason"] == "stop"
    place = choice["logprobs"]["content"][0]
    assert place.keys() == {"token", "logprob", "bytes", "top_logprobs"}
    assert len(place["top_logprobs"]) == 2
    chunks = list(demo.create_chat_completion(QUESTION, temperature=0, stream=True))
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(chunk["choices"][0].keys() == CHUNK_CHOICE for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == "7 plus 5 is 12."


def test_chat_completion_is_what_a_chat_answers(demo: Model):
    chat = demo.chat(system="Be kind.", temperature=0)
    messages = [{"role": "system", "content": "Be kind."}]
    for text in ("My name is Ada.", "What is 7 plus 5?", "What is my name?"):
        messages.append({"role": "user", "content": [{"type": "text", "text": text}]})
        found = demo.create_chat_completion(messages, temperature=0)["choices"][0]["message"]
        assert found["content"] == chat.send(text).read()
        messages.append(found)


def test_stop_seed_and_leaving_a_stream(demo: Model):
    found = demo.create_chat_completion(QUESTION, temperature=0, stop="12")
    assert found["choices"][0]["message"]["content"] == "7 plus 5 is"
    texts = {demo.create_completion("Once", max_tokens=20, seed=4)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 1
    stream = demo.create_completion("Once", max_tokens=None, stream=True)
    next(stream)
    stream.close()
    token = CancelToken()
    token.cancel()
    assert demo.create_completion("Once", cancel=token)["choices"][0]["text"] == ""


def test_response_format_is_kept_to(demo: Model):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for form in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    ):
        found = demo.create_chat_completion(QUESTION, response_format=form, temperature=0)
        assert 0 <= json.loads(found["choices"][0]["message"]["content"])["n"] <= 99
    text = demo.create_completion("A", grammar='root ::= "yes" | "no"')["choices"][0]["text"]
    assert text in ("yes", "no")


def test_a_required_tool_is_called(demo: Model):
    pytest.importorskip("llguidance")
    options = {"tools": [CLOCK], "tool_choice": "required", "temperature": 0}
    (choice,) = demo.create_chat_completion([{"role": "user", "content": "What time is it?"}], **options)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call.keys() == {"id", "type", "function"}
    assert call["function"]["name"] == "clock"
    assert json.loads(call["function"]["arguments"]) == {"zone": "UTC"}
    # And its result goes back.
    messages = [QUESTION[0], choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "12:00"}]
    assert demo.create_chat_completion(messages, max_tokens=5)["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    "options",
    [
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"tool_choice": "required"},
        {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"response_format": {"type": "xml"}},
        {"response_format": "json"},
        {"logit_bias": [1]},
        {"logit_bias": {"a": 1}},
        {"stop": 5},
        {"max_tokens": "5"},
        {"top_k": "5"},
        {"seed": "5"},
        {"mirostat_mode": 1},
        {"tfs_z": 0.5},
        {"no_such": 1},
        {"functions": [CLOCK["function"]]},
        {"temperature": -1},
    ],
)
def test_wrong_arguments_are_told_at_once(demo: Model, options: dict):
    messages = options.pop("messages", QUESTION)
    with pytest.raises(ArgumentError):
        demo.create_chat_completion(messages, stream=True, **options)


def test_llama_has_the_names_people_type(demo_path: Path):
    with Llama(str(demo_path), n_ctx=2048, n_gpu_layers=0, verbose=False, seed=1) as llm:
        assert llm.n_ctx() == 2048
        assert llm.detokenize(llm.tokenize(b"Hello there")) == b"Hello there"
        found = llm("Q: What is 7 plus 5? A:", max_tokens=8, echo=True, stop=["\n"])
        assert found["choices"][0]["text"].startswith("Q: What is 7 plus 5? A:")
        assert found["model"] == str(demo_path)
        assert found == {**llm("Q: What is 7 plus 5? A:", max_tokens=8, echo=True, stop=["\n"]), "id": found["id"]} | {
            "created": found["created"]
        }
        assert math.isfinite(llm.token_eos())
        assert llm.n_vocab() > 256
    with pytest.raises(TypeError):
        Llama(str(demo_path), no_such=1)
