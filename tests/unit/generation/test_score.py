# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of texts, and vectors for them."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_cpu.errors import ArgumentError, TokenError
from rwkv_cpu.generation import score as package_score
from rwkv_cpu.generation.sampling import logprobs_of

TEXT = "User: What is 7 plus 5?\n\nAssistant: 7 plus 5 is 12. " * 12


def by_numpy(model, before: list[int], tokens: list[int]) -> np.ndarray:
    logits, _ = model.forward([*before, *tokens], logits="all")
    x = logits[len(before) - 1 : -1].astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x[np.arange(len(tokens)), tokens]


def test_logprobs_are_those_of_the_softmax(demo_model):
    tokens = demo_model.tokenizer.encode(TEXT)
    assert len(tokens) > 260  # more than two pieces
    found = demo_model.score(TEXT)
    assert found.tokens == tuple(tokens)
    np.testing.assert_allclose(found.logprobs, by_numpy(demo_model, [0], tokens), atol=2e-6)
    assert found.total == pytest.approx(float(found.logprobs.astype(np.float64).sum()))
    assert found.perplexity == pytest.approx(np.exp(-found.total / len(tokens)))


def test_context_and_state_say_what_stands_before(demo_model):
    context, text = "User: What is 7 plus 5?\n\nAssistant:", " 7 plus 5 is 12."
    ids = demo_model.tokenizer.encode
    expected = by_numpy(demo_model, ids(context), ids(text))
    np.testing.assert_allclose(demo_model.score(text, context=context).logprobs, expected, atol=2e-6)
    _, state = demo_model.forward(ids(context))
    before = state.data.tobytes()
    np.testing.assert_allclose(demo_model.score(text, state=state).logprobs, expected, atol=2e-6)
    assert state.data.tobytes() == before


def test_rank_0_is_what_the_model_would_write(demo_model):
    prompt = "User: What is 7 plus 5?\n\nAssistant:"
    written = demo_model.generate(prompt, temperature=0, max_tokens=12)
    written.read()
    assert demo_model.score(written.tokens, context=prompt).greedy
    other = demo_model.score(" zebra", context=prompt)
    assert not other.greedy
    assert other.ranks.max() > 10


def test_logprobs_agree_with_those_of_generation(demo_model):
    reply = demo_model.generate("User: Hi!\n\nAssistant:", seed=3, max_tokens=20, logprobs=True, top_logprobs=4)
    reply.read()
    found = demo_model.score(reply.tokens, context="User: Hi!\n\nAssistant:")
    assert found.logprobs.tolist() == pytest.approx(reply.logprobs, abs=1e-6)
    for token, logprob, top in zip(reply.tokens, reply.logprobs, reply.top_logprobs, strict=True):
        assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
        assert len({one for one, _ in top}) == 4
        assert dict(top).get(token, logprob) == pytest.approx(logprob, abs=1e-6)


def test_progress_and_errors(demo_model):
    seen = []
    demo_model.score(TEXT, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(demo_model.tokenizer.encode(TEXT))
    with pytest.raises(ArgumentError):
        package_score(demo_model, "")
    with pytest.raises(TokenError):
        demo_model.score([1, 10**6])
    with pytest.raises(TokenError):
        demo_model.score([-3])
    with pytest.raises(ArgumentError):
        demo_model.score("a", state=demo_model.new_state())
    with pytest.raises(ArgumentError):
        logprobs_of(np.zeros((2, 5), np.float32), np.zeros(3, np.uint32))


@pytest.mark.parametrize("n_vocab", [1, 3, 63, 64, 65, 1000])
def test_any_size_of_vocabulary(n_vocab):
    random = np.random.default_rng(n_vocab)
    logits = random.normal(0, 5, (4, n_vocab)).astype(np.float32)
    tokens = random.integers(0, n_vocab, 4).astype(np.uint32)
    logprobs, ranks = logprobs_of(logits, tokens)
    x = logits.astype(np.float64)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logprobs, x[np.arange(4), tokens], atol=2e-6)
    assert ranks.tolist() == [(logits[i] > logits[i, tokens[i]]).sum() for i in range(4)]


def test_vectors_have_length_1_and_similar_texts_are_nearer(demo_model):
    a, b, c = (demo_model.embed(text) for text in ("What is 7 plus 5?", "What is 8 plus 5?", "My name is Ada, hello"))
    assert a.shape == (demo_model.config.n_embd,)
    assert float(a @ a) == pytest.approx(1, abs=1e-5)
    assert a @ b > a @ c
    assert demo_model.embed("What is 7 plus 5?").tobytes() == a.tobytes()


def test_pooling_is_the_mean_or_the_last_hidden_state(demo_model):
    ids = demo_model.tokenizer.encode(TEXT)
    hidden = demo_model.hidden_states(ids, demo_model.new_state())
    np.testing.assert_allclose(demo_model.embed(TEXT, normalize=False), hidden.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert demo_model.embed(ids, pooling="last", normalize=False).tobytes() == hidden[-1].tobytes()
    for wrong in ({"text": ""}, {"text": "a", "pooling": "max"}):
        with pytest.raises(ArgumentError):
            demo_model.embed(**wrong)
