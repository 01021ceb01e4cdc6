# SPDX-License-Identifier: Apache-2.0
"""Tensors that are packed and checksummed in parts are the same as whole ones."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cpu import engine
from rwkv_cpu.errors import ArgumentError
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
