# SPDX-License-Identifier: Apache-2.0
"""Tensors that are packed and checksummed in parts are the same as whole ones."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError, NonFiniteError
from rwkv_cpu.memory import aligned_zeros
from rwkv_cpu.quantize.checksums import joined_crc32

KINDS = [engine.KIND_MATRIX, engine.KIND_HEAD, engine.KIND_VALUE, engine.KIND_EMBEDDING]


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_checksums_of_parts_join_to_that_of_the_whole(parts: list[bytes]) -> None:
    crc = 0
    for part in parts:
        crc = joined_crc32(crc, zlib.crc32(part), len(part))
    assert crc == zlib.crc32(b"".join(parts))


def tensor(kind: int, preset: str) -> tuple[engine.TensorInfo, np.ndarray]:
    """1,100 rows: three panels of the tallest kind, the last of them short."""
    weights = np.random.default_rng(kind).standard_normal((1100, 72)).astype(np.float32)
    info = engine.TensorInfo("t", kind, engine.format_by_name(preset), None, (1100, 72), False, 1100, 72)
    info.size_bytes = engine.packed_bytes(info)
    return info, weights


@pytest.mark.parametrize("preset", ["q8", "q6", "q5", "q4", "f16", "f32"])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_what_they_are_in_the_whole(kind: int, preset: str) -> None:
    info, weights = tensor(kind, preset)
    panels = engine.packed_panels(info)
    whole, joined = aligned_zeros(info.size_bytes), []
    engine.pack(info, weights, "f32", 0, panels, whole)
    step = 64 if kind == engine.KIND_EMBEDDING else 1
    for first in range(0, panels, step):
        last = min(first + step, panels)
        end = info.size_bytes if last == panels else engine.packed_offset(info, last)
        part = aligned_zeros(end - engine.packed_offset(info, first))
        engine.pack_part(info, weights, "f32", first, last, part)
        joined.append(part.tobytes())
    assert b"".join(joined) == whole.tobytes()


def test_a_part_needs_its_room() -> None:
    info, weights = tensor(engine.KIND_MATRIX, "q8")
    room = engine.packed_offset(info, 3) - engine.packed_offset(info, 1)
    with pytest.raises(ArgumentError, match="panels 1 to 3"):
        engine.pack_part(info, weights, "f32", 1, 3, aligned_zeros(room - 1))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", [*KINDS, engine.KIND_LOW_RANK])
@pytest.mark.parametrize("shape", [(1100, 288), (40, 300), (3, 64)])
def test_however_a_source_lies_it_is_read_alike(kind: int, dtype: engine.Dtype, shape: tuple[int, int]) -> None:
    """Rows in order and columns in order are read 16 rows at a time; with a gap after each value one by one."""
    values = np.random.default_rng(kind).standard_normal(shape).astype(np.float32)
    stored = {
        "f32": values,
        "f16": values.astype(np.float16),
        "bf16": (values.view(np.uint32) >> 16).astype(np.uint16),
    }[dtype]
    gaps = np.zeros((shape[0], shape[1], 2), stored.dtype)
    gaps[..., 0] = stored
    info = engine.TensorInfo("t", kind, engine.FORMAT_Q8, None, shape, False, *shape)
    turned = engine.TensorInfo("t", kind, engine.FORMAT_Q8, None, shape[::-1], True, *shape)
    info.size_bytes = engine.packed_bytes(info)
    packed = []
    sources = [(info, gaps[..., 0]), (info, stored), (turned, np.ascontiguousarray(stored.T)), (turned, stored.T)]
    for how, source in sources:
        out = aligned_zeros(info.size_bytes)
        engine.pack(how, source, dtype, 0, engine.packed_panels(info), out)
        packed.append(out.tobytes())
    assert packed[1:] == packed[:1] * 3


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_one_value_that_is_not_finite_is_named(bad: float, dtype: engine.Dtype) -> None:
    values = np.ones((48, 320), np.float32 if dtype == "f32" else np.float16)
    values[37, 201] = bad
    info = engine.TensorInfo("t", engine.KIND_MATRIX, engine.FORMAT_Q8, None, values.shape, False, *values.shape)
    turned = engine.TensorInfo("t", info.kind, info.format, None, values.shape[::-1], True, *values.shape)
    for how, source in ((info, values), (turned, np.ascontiguousarray(values.T))):
        with pytest.raises(NonFiniteError, match="row 37, column 201"):
            engine.pack(how, source, dtype, 0, engine.packed_panels(info), aligned_zeros(engine.packed_bytes(info)))
