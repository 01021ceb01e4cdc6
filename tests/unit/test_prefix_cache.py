# SPDX-License-Identifier: Apache-2.0
"""What prompts have in common is computed once, with the same results."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_cpu import CancelToken, Model, PrefixCache
from rwkv_cpu.errors import Cancelled, FormatError, RwkvError, StateError

DOCUMENT = "The river is long and slow. " * 40
QUESTIONS = ["Who is there?", "What is it? Tell me more.", "Why is the river slow, and where does it go?"]


@pytest.fixture
def model(demo_path):
    with Model.load(demo_path) as opened:
        yield opened


@pytest.fixture
def computed(monkeypatch):
    """computed() → tokens that were computed since it was last called."""
    counts = [0]
    advance = Model.advance

    def counting(self, tokens, state, **options):
        counts[0] += len(tokens)
        return advance(self, tokens, state, **options)

    monkeypatch.setattr(Model, "advance", counting)

    def taken():
        found, counts[0] = counts[0], 0
        return found

    return taken


def answer(model, question):
    return model.generate(f"{DOCUMENT}\n{question}", temperature=0, max_tokens=1).read()


def test_a_common_beginning_is_read_once_and_the_answers_are_the_same(model, computed):
    expected = [answer(model, question) for question in QUESTIONS]
    whole = computed()
    model.prefix_cache = PrefixCache()
    assert [answer(model, question) for question in QUESTIONS] == expected
    # The first is read whole; the second from a point not far before its question; the third has its very beginning.
    assert computed() < whole / len(QUESTIONS) + 200
    n = len(model.tokenizer.encode(f"{DOCUMENT}\nWho knows?"))
    answer(model, "Who knows?")
    assert computed() < 20 < n
    answer(model, "Who knows?")
    assert computed() == 0


def test_states_and_logits_are_those_of_reading_it_all(model):
    cache = PrefixCache()
    tokens = [model.tokenizer.encode(f"{DOCUMENT}{question}") for question in QUESTIONS]
    for ids in [*tokens, tokens[0]]:
        state = model.new_state()
        logits = cache.advance(model, ids, state)
        expected, end = model.forward(ids)
        assert np.array_equal(logits, expected)
        assert np.array_equal(state.data, end.data)
        assert (state.n_tokens, state.digest) == (len(ids), end.digest)
        logits[:] = 0  # the caller's own


def test_another_starting_state_is_another_prompt(model):
    cache = PrefixCache()
    ids = model.tokenizer.encode(DOCUMENT)
    cache.advance(model, ids, model.new_state())
    _, other = model.forward([5])
    assert cache.find(other, ids) == 0
    assert cache.find(model.new_state(), ids) > 0


def test_memory_has_a_limit_and_the_oldest_goes(model):
    cache = PrefixCache(max_bytes=3 * (model.state_bytes + 4 * model.n_vocab))
    for start in range(8):
        cache.advance(model, [start + 1] * 40, model.new_state())
    assert len(cache) == 3
    assert cache.size_bytes <= cache.max_bytes
    assert cache.find(model.new_state(), [8] * 41) == 40
    assert cache.find(model.new_state(), [1] * 41) == 0
    cache.clear()
    assert len(cache) == 0


def test_a_cancelled_prompt_goes_on_where_it_stopped(model, computed):
    model.prefix_cache = PrefixCache()
    ids = model.tokenizer.encode(DOCUMENT)
    cancel = CancelToken()
    state = model.new_state()

    def stop(done, _total):
        if done > 100:
            cancel.cancel()

    with pytest.raises(Cancelled) as caught:
        model.prefix_cache.advance(model, ids, state, cancel=cancel, progress=stop)
    assert 0 < caught.value.n_done == state.n_tokens < len(ids)
    computed()
    state = model.new_state()
    assert np.array_equal(model.prefix_cache.advance(model, ids, state), model.forward(ids)[0])
    assert computed() < len(ids)


def test_a_system_text_is_read_once_for_all_chats(model, computed):
    model.prefix_cache = PrefixCache()
    system = "You are Pip. " * 30
    first = model.chat(system, temperature=0).send("Hello!").read()
    computed()
    second = model.chat(system, temperature=0).send("Hello!")
    assert second.read() == first
    assert second.stats.prompt_tokens < 20
    assert computed() < 20 + len(second.tokens)


def test_a_cache_is_kept_in_a_file(model, computed, tmp_path):
    path = tmp_path / "document.cache"
    model.prefix_cache = PrefixCache.open(path, model)
    expected = [answer(model, question) for question in QUESTIONS]
    model.prefix_cache.save(path)
    model.prefix_cache.save(path)
    assert path.stat().st_mode & 0o077 == 0
    assert [file.name for file in tmp_path.iterdir()] == ["document.cache"]
    model.prefix_cache = PrefixCache.open(path, model)
    computed()
    assert [answer(model, question) for question in QUESTIONS] == expected
    assert computed() == 0


def test_a_file_of_another_model_or_kind_is_refused(model, make_rwkv, tmp_path):
    path = tmp_path / "x.cache"
    model.prefix_cache = PrefixCache()
    answer(model, QUESTIONS[0])
    model.prefix_cache.save(path)
    with Model(make_rwkv()) as other, pytest.raises(StateError, match="another model"):
        PrefixCache.open(path, other)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError):
        PrefixCache.open(path, model)
    path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    with pytest.raises((FormatError, StateError)):
        PrefixCache.open(path, model)
    path.write_text("precious")
    with pytest.raises(RwkvError, match="not replaced"):
        model.prefix_cache.save(path)
    assert path.read_text() == "precious"
    with pytest.raises(RwkvError, match="ordinary"):
        PrefixCache.open(tmp_path, model)
