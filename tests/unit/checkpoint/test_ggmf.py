# SPDX-License-Identifier: Apache-2.0
"""rwkv.cpp's files: what its converter did is undone or named, for every version; its own models give its own sums."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.checkpoint import open_checkpoint
from rwkv_cpu.checkpoint.ggml_blocks import TYPES, dequantise
from rwkv_cpu.errors import FormatError, UnsupportedModelError
from rwkv_cpu.quantize import quantize
from tests import ggml_writer as w

if TYPE_CHECKING:
    from pathlib import Path

    from rwkv_cpu.checkpoint import Checkpoint

MODELS = {
    "4": w.rwkv4(),
    **{version: w.rwkv5(version) for version in ("5.0", "5.1", "5.2")},
    "6": w.rwkv6(),
    "7": w.rwkv7(),
}


def opened(tmp_path: Path, tensors: list[w.Tensor], **header: int) -> Checkpoint:
    path = tmp_path / "model.bin"
    path.write_bytes(w.ggmf_bytes(tensors, w.L, **header))
    return open_checkpoint(path)


@pytest.mark.parametrize("version", MODELS)
def test_tensors_have_their_original_names_shapes_and_values(tmp_path, version):
    model = MODELS[version]
    transformed = {}
    for name, array in model.items():
        if name.endswith("time_decay") and version[0] in "45":
            done = -np.exp(array) if version == "4" else np.exp(-np.exp(array))
            transformed[f"{name}_done"] = done
        elif name.endswith("time_first") and version[0] == "5":
            transformed[name.replace("time_first", "time_faaaa")] = np.exp(array)
        else:
            transformed[name] = array
    with opened(tmp_path, w.ggmf_of(model)) as checkpoint:
        assert set(checkpoint.tensors) == set(transformed)
        for name, array in transformed.items():
            got = checkpoint.read(name)
            assert got.shape == checkpoint.tensors[name].shape
            np.testing.assert_array_equal(got.squeeze(), array.squeeze(), err_msg=name)


@pytest.mark.parametrize("version", MODELS)
def test_a_model_runs_as_the_one_it_was_made_from(tmp_path, version):
    from rwkv_cpu.export import export

    model = MODELS[version]
    opened(tmp_path, w.ggmf_of(model)).close()
    quantize(tmp_path / "model.bin", tmp_path / "a.rwkv", format="f32", tokenizer="none")
    export(tmp_path / "model.bin", tmp_path / "b.safetensors")
    quantize(tmp_path / "b.safetensors", tmp_path / "b.rwkv", format="f32", tokenizer="none")
    with Model(tmp_path / "a.rwkv") as first, Model(tmp_path / "b.rwkv") as second:
        assert first.config == second.config
        a, b = (m.forward(range(1, 20), logits="all")[0] for m in (first, second))
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("number", "ggml"), [(2, 2), (3, 3), (7, 6), (8, 7), (9, 8)])
def test_quantised_types(tmp_path, number, ggml):
    kind = TYPES[ggml]
    raw = np.random.default_rng(3).integers(0, 60, w.C * w.C // 32 * kind.size_bytes, dtype=np.uint8)
    tensors = w.ggmf_of(MODELS["7"])
    for tensor in tensors:
        if tensor.name == "blocks.1.att.key.weight":
            tensor.kind, tensor.raw = number, raw.tobytes()
    with opened(tmp_path, tensors, data_type=number) as checkpoint:
        meta = checkpoint.tensors["blocks.1.att.key.weight"]
        got = checkpoint.read("blocks.1.att.key.weight")
        if kind.name in ("Q8_0", "Q5_0", "Q4_0"):
            assert meta.dtype == kind.name.lower()
            np.testing.assert_array_equal(got.reshape(-1), raw)
        else:
            assert (meta.dtype, meta.stored) == ("f32", kind.name)
            np.testing.assert_array_equal(got.reshape(-1), dequantise(kind, raw, w.C * w.C))


def test_the_unused_value_residual_of_the_first_layer_is_left_out(tmp_path):
    tensors = w.ggmf_of(MODELS["7"])
    tensors += [w.Tensor.of(f"blocks.0.att.v{i}", np.zeros((3, w.C), np.float32)) for i in range(3)]
    with opened(tmp_path, tensors) as checkpoint:
        assert set(checkpoint.tensors) == set(MODELS["7"])


def test_removed_types_are_named(tmp_path):
    for number, name in ((4, "Q4_1_O"), (5, "Q4_2"), (6, "Q4_3")):
        tensors = w.ggmf_of(MODELS["4"])
        tensors[3].kind = number
        with pytest.raises(UnsupportedModelError) as caught:
            opened(tmp_path, tensors)
        assert name in str(caught.value)
        assert str(number) in str(caught.value)


def test_quantised_files_before_version_101_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError):
        opened(tmp_path, w.ggmf_of(MODELS["4"]), version=100, data_type=2)
    opened(tmp_path, w.ggmf_of(MODELS["4"]), version=100).close()
    with pytest.raises(FormatError):
        opened(tmp_path, w.ggmf_of(MODELS["4"]), version=102)


def test_rwkv_cpps_own_models_give_its_published_sums(shared, tmp_path):
    folder = shared / "goldens"
    for case in json.loads((folder / "index.json").read_text())["rwkv.cpp"]:
        test = case["rwkvcpp_test"]
        expected = np.fromfile(folder / case["rwkvcpp_expected_logits"], "<f4")
        quantize(folder / case["file"], tmp_path / "m.rwkv", format="f32", tokenizer="none", force=True)
        with Model(tmp_path / "m.rwkv") as model:
            whole = model.forward(test["tokens"])[0]
            state = None
            for token in test["tokens"]:
                single, state = model.forward([token], state)
        np.testing.assert_allclose(single, whole, atol=1e-5)
        # The sums of float32 activations; rwkv.cpp's own (rwkvcpp_value) have int8 ones where the file is quantised.
        assert float((whole - expected).sum(dtype=np.float64)) == pytest.approx(test["this_reference_sum"], abs=2e-3)
        np.testing.assert_allclose(np.abs(whole - expected).max(), test["this_reference_maxabs"], atol=1e-4)
        if "FP16" in case["file"]:
            assert abs(float((whole - expected).sum(dtype=np.float64))) <= abs(test["rwkvcpp_value"]) * 1.05
