# SPDX-License-Identifier: Apache-2.0
"""ggml's block types against stored vectors, and what does not depend on their values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rwkv_cpu.checkpoint import ggml_blocks
from rwkv_cpu.checkpoint.ggml_blocks import Q4_0, Q8_0, TYPES, dequantise, scale_blocks, type_of
from rwkv_cpu.errors import FormatError, UnsupportedModelError
from tests.ggml_writer import q4_0_blocks, q8_0_blocks

OWN = [kind for kind in TYPES.values() if kind.plain or kind.number in ggml_blocks._DECODERS]


def test_every_type_gives_the_stored_values(shared):
    folder = shared / "goldens"
    entries = json.loads((folder / "index.json").read_text())["dequant"]
    assert len(entries) >= 14
    for entry in entries:
        vectors = np.load(folder / entry["file"])
        kind = TYPES[int(vectors["ggml_type"])]
        assert (kind.name, kind.values, kind.size_bytes) == (
            entry["type"],
            entry["block_elements"],
            entry["block_bytes"],
        )
        got = dequantise(kind, vectors["raw"], vectors["values"].size)
        np.testing.assert_array_equal(got, vectors["values"].reshape(-1))


def test_q8_0_is_scale_times_integer():
    block = np.zeros(34, np.uint8)
    block[:2] = np.array([0.5], "<f2").view(np.uint8)
    block[2:] = np.arange(-16, 16, dtype=np.int8).view(np.uint8)
    np.testing.assert_array_equal(dequantise(Q8_0, block, 32), 0.5 * np.arange(-16, 16))


def test_q4_0_has_the_low_halves_first():
    block = np.zeros(18, np.uint8)
    block[:2] = np.array([2.0], "<f2").view(np.uint8)
    block[2:] = 0x1F
    np.testing.assert_array_equal(dequantise(Q4_0, block, 32), [14.0] * 16 + [-14.0] * 16)


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.name)
def test_a_slice_of_a_tensor_gives_the_values_it_has_in_the_whole(kind, monkeypatch):
    raw = np.random.default_rng(1).integers(0, 256, 6 * kind.size_bytes, dtype=np.uint8)
    whole = dequantise(kind, raw, 6 * kind.values)
    monkeypatch.setattr(ggml_blocks, "_SLICE_VALUES", 2 * kind.values)
    np.testing.assert_array_equal(dequantise(kind, raw, 6 * kind.values), whole)
    middle = raw[2 * kind.size_bytes : 5 * kind.size_bytes]
    np.testing.assert_array_equal(dequantise(kind, middle, 3 * kind.values), whole[2 * kind.values : 5 * kind.values])


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.name)
def test_any_bytes_give_values_without_a_warning(kind):
    raw = np.full(3 * kind.size_bytes, 0xFF, np.uint8)
    assert dequantise(kind, raw, 3 * kind.values).shape == (3 * kind.values,)


@pytest.mark.parametrize(("kind", "blocks"), [(Q8_0, q8_0_blocks(4, 64)), (Q4_0, q4_0_blocks(4, 64))])
@pytest.mark.parametrize("power", [1, 3, -2])
def test_scaling_blocks_is_exact(kind, blocks, power):
    raw = blocks.reshape(-1)
    before = dequantise(kind, raw, 256)
    scaled = scale_blocks(kind, blocks, power)
    np.testing.assert_array_equal(dequantise(kind, scaled.reshape(-1), 256), before * 2.0**power)
    assert scaled.shape == blocks.shape


def test_a_scale_that_does_not_fit_is_refused():
    blocks = q8_0_blocks(1, 32)
    blocks[0, :2] = np.array([60000.0], "<f2").view(np.uint8)
    with pytest.raises(FormatError):
        scale_blocks(Q8_0, blocks, 1)
    blocks[0, :2] = np.array([6e-8], "<f2").view(np.uint8)
    with pytest.raises(FormatError):
        scale_blocks(Q8_0, blocks, -1)


def test_types_that_are_not_read_are_named():
    with pytest.raises(UnsupportedModelError) as caught:
        type_of(4, "x")
    assert "Q4_2" in str(caught.value)
    assert caught.value.hint
    with pytest.raises(FormatError) as unknown:
        type_of(99, "model.gguf: tensor w")
    assert "99" in str(unknown.value)
    assert "model.gguf" in str(unknown.value)


def test_without_the_gguf_package_its_types_are_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    monkeypatch.setattr(ggml_blocks.util, "find_spec", lambda _name: None)
    assert not ggml_blocks.can_decode(TYPES[19])
    with pytest.raises(UnsupportedModelError) as caught:
        dequantise(TYPES[19], np.zeros(50, np.uint8), 256)
    assert "IQ1_S" in str(caught.value)
    assert "gguf" in caught.value.hint


def test_with_the_gguf_package_they_are_read():
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    values = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.TQ1_0)
    got = dequantise(TYPES[34], raw.reshape(-1), 512)
    np.testing.assert_array_equal(got, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.TQ1_0).reshape(-1))
