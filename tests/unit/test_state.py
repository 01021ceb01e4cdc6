# SPDX-License-Identifier: Apache-2.0
"""States as files and as points to go on from."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.errors import ArgumentError, FormatError, RwkvError, StateError
from rwkv_cpu.state import State, prefix_digests

TEXT = "User: Tell me a story\n\nAssistant:"


@pytest.fixture(scope="module")
def model(demo_path):
    with Model.load(demo_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def read(model):
    ids = model.tokenizer.encode(TEXT)
    return ids, *model.forward(ids)


def test_a_saved_state_brings_everything_back(model, read, tmp_path):
    ids, logits, state = read
    state.save(tmp_path / "x.state")
    loaded = model.load_state(tmp_path / "x.state")
    assert np.array_equal(loaded.data, state.data)
    assert np.array_equal(loaded.logits, logits)
    assert (loaded.n_tokens, loaded.digest) == (len(ids), state.digest)
    assert [path.name for path in tmp_path.iterdir()] == ["x.state"]


def test_a_loaded_state_gives_its_next_token_without_computing(model, read, tmp_path, monkeypatch):
    _, _, state = read
    state.save(tmp_path / "x.state")
    expected = model.generate(TEXT, temperature=0, max_tokens=20).read()
    loaded = model.load_state(tmp_path / "x.state")
    monkeypatch.setattr(Model, "advance", lambda *_args, **_kwargs: pytest.fail("it computed"))
    assert expected.startswith(next(model.generate("", state=loaded, temperature=0)))
    monkeypatch.undo()
    loaded = model.load_state(tmp_path / "x.state")
    assert model.generate("", state=loaded, temperature=0, max_tokens=20).read() == expected


def test_f16_halves_the_file_and_keeps_what_it_cannot_hold(model, read, tmp_path):
    _, logits, state = read
    state.save(tmp_path / "half.state", f16=True)
    state.save(tmp_path / "whole.state")
    saved = state.data.nbytes // 2
    assert (tmp_path / "whole.state").stat().st_size - (tmp_path / "half.state").stat().st_size == pytest.approx(
        saved, abs=256
    )
    half = model.load_state(tmp_path / "half.state")
    assert np.array_equal(half.logits, logits)
    assert np.allclose(half.data, state.data, rtol=1e-3, atol=1e-4)
    assert not np.array_equal(half.data, state.data)
    large = state.copy()
    large.parts()["wkv"][0, 0, 0, 0] = 1e6
    large.save(tmp_path / "large.state", f16=True)
    assert model.load_state(tmp_path / "large.state").parts()["wkv"][0, 0, 0, 0] == np.float32(1e6)


def test_the_digest_is_of_the_text_however_it_was_read(model, read):
    ids, _, state = read
    piecewise = model.new_state()
    for token in ids:
        model.advance([token], piecewise, logits="none")
    assert piecewise.digest == state.digest == list(prefix_digests(ids))[-1]
    assert piecewise.logits is None
    _, other = model.forward([*ids[:-1], 5])
    assert other.digest != state.digest
    assert (other.n_tokens, model.new_state().digest) == (state.n_tokens, bytes(16))


def test_forward_changes_neither_the_state_nor_its_forks(model, read):
    ids, logits, state = read
    before, digest = state.data.copy(), state.digest
    forks = state.fork(3)
    model.forward(ids, state)
    model.advance(ids, forks[0])
    logits[:] = 0  # the caller's own
    for one in (state, *forks[1:]):
        assert np.array_equal(one.data, before)
        assert (one.digest, one.n_tokens) == (digest, len(ids))
        assert one.logits is not None
        assert one.logits.any()
    with pytest.raises(ArgumentError):
        state.fork(0)


def _edited(raw: bytes, **about: object) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"].update({f"rwkv_cpu.{name}": value for name, value in about.items()})
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), StateError, "damaged"),
        (lambda raw: raw[:-4], StateError, "damaged"),
        (lambda raw: _edited(raw, n_tokens="7"), StateError, "damaged"),
        (lambda raw: _edited(raw, text_digest="00" * 16), StateError, "damaged"),
        (lambda raw: _edited(raw, state="99"), StateError, "newer"),
        (lambda raw: _edited(raw, model="0" * 32), StateError, "another model"),
        (lambda raw: b"", FormatError, "no|not a state"),
        (lambda raw: b"\xff" * 100, FormatError, "not a state"),
    ],
)
def test_what_is_not_this_models_whole_state_is_refused(model, read, tmp_path, damage, error, says):
    path = tmp_path / "x.state"
    read[2].save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(error, match=says) as caught:
        model.load_state(path)
    assert str(path) in str(caught.value)


def test_a_state_of_version_1_is_still_read(model, read, tmp_path):
    import zlib

    _, _, state = read
    arrays = state.parts()
    body = b"".join(array.tobytes() for array in arrays.values())
    header = {
        "__metadata__": {
            "rwkv_cpu.state": "1",
            "rwkv_cpu.model": state.layout.fingerprint,
            "rwkv_cpu.n_tokens": str(state.n_tokens),
            "rwkv_cpu.crc32": f"{zlib.crc32(body):08x}",
        }
    }
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (tmp_path / "old.state").write_bytes(struct.pack("<Q", len(text)) + text + body)
    loaded = model.load_state(tmp_path / "old.state")
    assert np.array_equal(loaded.data, state.data)
    assert loaded.digest not in (state.digest, bytes(16))


def test_a_state_is_not_written_where_it_cannot(read, tmp_path):
    with pytest.raises(RwkvError, match="cannot be written"):
        read[2].save(tmp_path / "none" / "x.state")
    assert isinstance(read[2], State)
