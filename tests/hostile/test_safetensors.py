# SPDX-License-Identifier: Apache-2.0
"""Damaged and malicious safetensors files: one typed error, quickly, little memory."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cpu.checkpoint import open_checkpoint, open_container
from rwkv_cpu.checkpoint.tuned_state import read_tuned_state
from rwkv_cpu.errors import FormatError, RwkvError
from tests.pth_writer import rwkv7_tensors
from tests.safetensors_writer import as_fla, as_web_rwkv, file_bytes, safetensors_bytes

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"emb.weight": np.arange(32, dtype=np.float32).reshape(4, 8), "head.weight": np.arange(16, dtype=np.float16)}
GOOD = safetensors_bytes(SMALL, metadata={"format": "pt"})
HEADER_BYTES = struct.unpack("<Q", GOOD[:8])[0]
MODEL = rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=8, n_ffn=16, rank=4)


def read_everything(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name).tobytes()


def refuse(path: Path, raw: bytes) -> RwkvError:
    """The error that reading *raw* gives, which must come without taking much memory."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(RwkvError) as caught:
            read_everything(path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return caught.value


def header(**changes: Any) -> bytes:
    """A file with 64 bytes of data and one tensor of 4 x 4 f32 over them, changed."""
    fields = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes
    return file_bytes({"emb.weight": {k: v for k, v in fields.items() if v is not ...}}, bytes(64))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "F4"},
        {"dtype": 3},
        {"dtype": None},
        {"dtype": ...},
        {"dtype": "x" * 9999},
        {"shape": [4, 5]},
        {"shape": [4, -4]},
        {"shape": [-4, -4]},
        {"shape": [4.0, 4]},
        {"shape": [True, 16]},
        {"shape": [1 << 32, 1 << 32, 1 << 32]},
        {"shape": [1 << 62, 4]},
        {"shape": [10**30, 0]},
        {"shape": [1] * 9 + [16]},
        {"shape": "4x4"},
        {"shape": ...},
        {"data_offsets": [0, 63]},
        {"data_offsets": [4, 68]},
        {"data_offsets": [64, 0]},
        {"data_offsets": [-64, 0]},
        {"data_offsets": [0, 64, 64]},
        {"data_offsets": [1 << 62, (1 << 62) + 64]},
        {"data_offsets": [0.0, 64]},
        {"data_offsets": {}},
        {"data_offsets": ...},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_entries_that_do_not_hold_together_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = refuse(tmp_path / "m.st", header(**changes))
    assert "emb.weight" in str(found)
    assert len(str(found)) < 600


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"{",
        b"[]",
        b'{"a":3}',
        b'{"a":[]}',
        b'{"a":null}',
        b'{"\xff":{}}',
        b"{" + b'"a":{' * 60_000,
        b'{"a":' + b"[" * 500_000,
        b'{"a":' + b"9" * 500_000 + b"}",
        b'{"a":1e99999}',
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,Infinity]}}',
        b'{"\\u0000\\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
    ],
    ids=lambda text: str(text)[:40],
)
def test_headers_that_are_none_are_refused(tmp_path: Path, text: bytes) -> None:
    found = refuse(tmp_path / "m.st", file_bytes(text, bytes(64)))
    assert "\x1b" not in str(found)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}).encode()
    found = refuse(tmp_path / "m.st", file_bytes(b'{"a":%b,"b":%b,"a":%b}' % (entry, entry, entry), bytes(8)))
    assert "a stands twice" in str(found)


def test_overlapping_tensors_are_refused_and_named(tmp_path: Path) -> None:
    tensors = {
        name: {"dtype": "F32", "shape": [4], "data_offsets": [first, first + 16]}
        for name, first in {"late": 12, "emb.weight": 0}.items()
    }
    found = refuse(tmp_path / "m.st", file_bytes(tensors, bytes(64)))
    assert "emb.weight" in str(found)
    assert "late" in str(found)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES + 1, 1 << 24, 1 << 31, 1 << 60, (1 << 64) - 1])
def test_a_wrong_header_length_is_refused(tmp_path: Path, length: int) -> None:
    refuse(tmp_path / "m.st", struct.pack("<Q", length) + GOOD[8:])


@pytest.mark.parametrize("kept", [*range(0, HEADER_BYTES, 7), HEADER_BYTES + 8, len(GOOD) - 1])
def test_every_cut_is_refused(tmp_path: Path, kept: int) -> None:
    refuse(tmp_path / "m.st", GOOD[:kept])


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.st"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 34) + b"{")
    os.truncate(path, (1 << 34) + 100)  # sparse: takes no room
    tracemalloc.start()
    with pytest.raises(FormatError, match="longer than any model needs"):
        open_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_many_tensors_are_refused_by_their_number(tmp_path: Path) -> None:
    text = b"{" + b",".join(b'"%d":{}' % i for i in range(200_000)) + b"}"
    assert "too many" in str(refuse(tmp_path / "m.st", file_bytes(text, b"")))


RAWS = [GOOD, *(safetensors_bytes(naming(MODEL)) for naming in (dict, as_web_rwkv, as_fla))]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, len(RAWS) - 1),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=6), st.integers(0, 6)), max_size=6),
    kept=st.integers(0, 1 << 17),
)
def test_any_damage_gives_a_typed_error_or_a_checkpoint(
    tmp_path: Path, which: int, edits: list[tuple[int, bytes, int]], kept: int
) -> None:
    raw = bytearray(RAWS[which])
    length = struct.unpack("<Q", raw[:8])[0] + 16  # most of what can go wrong stands in the header
    for at, new, removed in edits:
        at %= length
        raw[at : at + removed] = new
    path = tmp_path / "m.st"
    path.write_bytes(raw[:kept])
    with contextlib.suppress(RwkvError):
        read_everything(path)
    with contextlib.suppress(RwkvError), open_container(path) as checkpoint:
        for name, meta in checkpoint.tensors.items():
            assert checkpoint.read(name).shape == meta.shape
    with contextlib.suppress(RwkvError):
        read_tuned_state(path, 1, 1, 4)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "U8"]) | JSON,
        "shape": st.lists(st.integers(0, 9), max_size=4) | JSON,
        "data_offsets": st.tuples(st.integers(0, 70), st.integers(0, 70)) | JSON,
    }
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["emb.weight", "__metadata__", "blocks.0.att.x", ""]), ENTRY | JSON, min_size=1))
def test_any_header_gives_a_typed_error_or_a_checkpoint(tmp_path: Path, found: dict[str, Any]) -> None:
    path = tmp_path / "m.st"
    path.write_bytes(file_bytes(found, bytes(64)))
    with contextlib.suppress(RwkvError), open_container(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)
