# SPDX-License-Identifier: Apache-2.0
"""Damaged and malicious ggmf files of rwkv.cpp: one typed error, little memory."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_cpu.checkpoint import open_checkpoint
from rwkv_cpu.errors import RwkvError
from tests import ggml_writer as w

if TYPE_CHECKING:
    from pathlib import Path

MODEL = w.rwkv7()
HEADER_BYTES = 24


def good() -> list[w.Tensor]:
    return w.ggmf_of(MODEL)


def read_everything(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for key in checkpoint.tensors:
            checkpoint.read(key).tobytes()


def refuse(tmp_path: Path, raw: bytes) -> RwkvError:
    """The error that reading *raw* gives, which must come without taking much memory."""
    path = tmp_path / "model.bin"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(RwkvError) as caught:
            read_everything(path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return caught.value


def test_the_undamaged_file_is_read(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(w.ggmf_bytes(good(), w.L))
    read_everything(path)


@pytest.mark.parametrize("at", range(4, HEADER_BYTES, 4))
@pytest.mark.parametrize("number", [-1, 99, 2**31 - 1, -(2**31)])
def test_a_wrong_number_in_the_header(tmp_path, at, number):
    raw = w.ggmf_bytes(good(), w.L)
    refuse(tmp_path, raw[:at] + struct.pack("<i", number) + raw[at + 4 :])


@pytest.mark.parametrize("field", range(5))
@pytest.mark.parametrize("number", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_wrong_number_in_a_record(tmp_path, field, number):
    """Dimensions, key length, type and both sizes of the first tensor."""
    raw = w.ggmf_bytes(good(), w.L)
    at = HEADER_BYTES + 4 * field
    refuse(tmp_path, raw[:at] + struct.pack("<i", number) + raw[at + 4 :])


def test_every_truncation_is_refused(tmp_path):
    raw = w.ggmf_bytes(good(), w.L)
    first = HEADER_BYTES + len(w.ggmf_record(good()[0]))
    for size in [*range(4, HEADER_BYTES + 30), first - 1, first + 3, first + 20, len(raw) // 2, len(raw) - 1]:
        refuse(tmp_path, raw[:size])


def test_bytes_behind_the_end_are_refused(tmp_path):
    refuse(tmp_path, w.ggmf_bytes(good(), w.L) + b"\0" * 5)


def test_a_name_twice(tmp_path):
    assert "head.weight" in str(refuse(tmp_path, w.ggmf_bytes([*good(), *good()[1:2]], w.L)))


def test_two_names_of_one_tensor(tmp_path):
    extra = w.Tensor.of("blocks.0.att.x_k", MODEL["blocks.0.att.x_k"])
    assert "x_k" in str(refuse(tmp_path, w.ggmf_bytes([*good(), extra], w.L)))


def test_low_rank_and_fused_tensors_of_wrong_shape(tmp_path):
    for name, sizes in (("blocks.1.att.w1", (16 * w.C,)), ("blocks.1.att.x_rwkvag", (w.C // 2, 12))):
        tensors = good()
        next(tensor for tensor in tensors if tensor.name == name).sizes = sizes
        refuse(tmp_path, w.ggmf_bytes(tensors, w.L))


def test_an_older_file_of_ggml_is_named(tmp_path):
    raw = w.ggmf_bytes(good(), w.L)
    assert "llama.cpp" in str(refuse(tmp_path, b"lmgg" + raw[4:]))


def test_the_bad_files_of_the_goldens(shared, tmp_path):
    files = sorted((shared / "goldens" / "bad").glob("*.bin"))
    assert len(files) >= 4
    for path in files:
        refuse(tmp_path, path.read_bytes())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_never_does_anything_but_a_typed_error(tmp_path, data):
    tensors = data.draw(st.permutations(good()))[:20]
    tensors = [tensor for tensor in good()[:1] if tensor not in tensors] + tensors
    raw = bytearray(w.ggmf_bytes(tensors, w.L))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 80))
        raw[at : at + 4] = data.draw(st.binary(min_size=0, max_size=5))
    path = tmp_path / "fuzzed.bin"
    path.write_bytes(raw)
    with contextlib.suppress(RwkvError):
        read_everything(path)
