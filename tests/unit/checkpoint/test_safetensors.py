# SPDX-License-Identifier: Apache-2.0
"""safetensors: every dtype, one file or parts, and the namings that people's files have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.checkpoint import files_of, kind_of, open_checkpoint, open_container
from rwkv_cpu.checkpoint.float8 import from_float8
from rwkv_cpu.errors import FormatError, ModelNotFoundError, RwkvError, UnsupportedModelError
from rwkv_cpu.quantize import quantize
from tests.pth_writer import bf16, rwkv7_tensors, write_checkpoint
from tests.safetensors_writer import (
    Arrays,
    as_fla,
    as_hugging_face,
    as_web_rwkv,
    safetensors_bytes,
    write_safetensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def contents(path: Path) -> Arrays:
    """Everything in a checkpoint, singleton dimensions squeezed."""
    with open_checkpoint(path) as checkpoint:
        return {name: np.array(checkpoint.read(name)).squeeze() for name in checkpoint.tensors}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array.squeeze()), name


def golden(shared: Path, name: str) -> Arrays:
    with open_checkpoint(shared / "goldens" / "models" / f"{name}.pth") as checkpoint:
        return {key: np.array(checkpoint.read(key)) for key in checkpoint.tensors}


# ------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "u2", "i8", "i4", "i2", "i1", "u8", "u4", "u1", "b1"])
def test_every_dtype_reads_back_exactly(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2 if dtype == "b1" else 100, (3, 5)).astype(dtype)
    tensors = {"odd": np.ones(1, "u1"), "w": array, "none": np.empty((0, 4), "f4"), "scalar": np.array(7, "f4")}
    with open_container(write_safetensors(tmp_path / "m.st", tensors)) as checkpoint:
        assert checkpoint.kind == "safetensors"
        for name, expected in tensors.items():
            found = checkpoint.read(name)
            assert found.shape == checkpoint.tensors[name].shape == expected.shape
            assert found.tobytes() == expected.tobytes()


def test_a_tensor_is_a_view_of_the_file_that_nobody_can_write(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.st", {"w": np.arange(8, dtype="f4")}, metadata={"pad": "12345"})
    checkpoint = open_container(path)
    found = checkpoint.read("w")
    checkpoint.close()
    assert found.tolist() == list(range(8))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


E4M3 = {0: 0, 1: 2**-9, 7: 7 * 2**-9, 8: 2**-6, 0x38: 1, 0x7E: 448, 0x80: -0.0, 0xB9: -1.125}
E5M2 = {0: 0, 1: 2**-16, 3: 3 * 2**-16, 4: 2**-14, 0x3C: 1, 0x7B: 57344, 0x7C: np.inf, 0xFC: -np.inf}


@pytest.mark.parametrize(("dtype", "values"), [("F8_E4M3", E4M3), ("F8_E5M2", E5M2)])
def test_float8_widens_exactly(tmp_path: Path, dtype: str, values: dict[int, float]) -> None:
    expected = np.array(list(values.values()), np.float32)
    raw = np.array(list(values), np.uint8).reshape(2, 4)
    with open_container(write_safetensors(tmp_path / "m.st", {"w": raw}, float8=dtype)) as checkpoint:
        meta = checkpoint.tensors["w"]
        assert (meta.dtype, meta.stored, meta.shape) == ("f32", dtype, (2, 4))
        assert checkpoint.read("w").tobytes() == expected.tobytes()
    every = from_float8(np.arange(256, dtype=np.uint8), dtype)
    nan = {"F8_E4M3": [0x7F, 0xFF], "F8_E5M2": [0x7D, 0x7E, 0x7F, 0xFD]}[dtype]
    assert np.isnan(from_float8(np.array(nan, np.uint8), dtype)).all()
    assert np.isfinite(every).sum() == {"F8_E4M3": 254, "F8_E5M2": 248}[dtype]


def test_float8_with_scales_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {"w": np.zeros(4, np.uint8), "w.weight_scale": np.ones(1, "f4")}
    with pytest.raises(UnsupportedModelError, match="weight_scale"):
        open_container(write_safetensors(tmp_path / "m.st", tensors, float8="F8_E4M3"))


# ----------------------------------------------------------------------------------------- namings


def test_blinkdl_names_stay(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    assert_same(contents(write_safetensors(tmp_path / "model.safetensors", tensors)), tensors)


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "model."])
def test_what_trainers_put_before_names_is_dropped(tmp_path: Path, prefix: str) -> None:
    tensors = rwkv7_tensors()
    wrapped = {prefix + name: array for name, array in tensors.items()}
    assert_same(contents(write_safetensors(tmp_path / "m.safetensors", wrapped)), tensors)
    assert_same(contents(write_checkpoint(tmp_path / "m.pth", wrapped)), tensors)


@pytest.mark.parametrize("suffix", [".st", ".safetensors"])
def test_web_rwkv_rwkv7_is_recognised_by_its_shapes(tmp_path: Path, suffix: str) -> None:
    tensors = rwkv7_tensors()
    assert_same(contents(write_safetensors(tmp_path / f"m{suffix}", as_web_rwkv(tensors))), tensors)


def test_square_pairs_are_swapped_in_st_files_only(tmp_path: Path) -> None:
    tensors = rwkv7_tensors(n_embd=32, rank=32)
    assert_same(contents(write_safetensors(tmp_path / "m.st", as_web_rwkv(tensors))), tensors)
    assert_same(contents(write_safetensors(tmp_path / "m.safetensors", tensors)), tensors)


def test_pairs_of_both_orientations_are_refused(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    tensors["blocks.1.att.a1"] = tensors["blocks.1.att.a1"].T
    with pytest.raises(FormatError, match=r"blocks\.1\.att\.a1"):
        open_checkpoint(write_safetensors(tmp_path / "m.st", tensors))


def test_web_rwkv_rwkv6(shared: Path, tmp_path: Path) -> None:
    tensors = golden(shared, "v6-fp16")
    assert_same(contents(write_safetensors(tmp_path / "m.safetensors", as_web_rwkv(tensors))), tensors)


@pytest.mark.parametrize("name", ["v4-fp32", "v5.2-bf16"])
def test_web_rwkv_rwkv4_and_5(shared: Path, tmp_path: Path, name: str) -> None:
    """time_first stays a logarithm in RWKV-4, and is time_faaaa in RWKV-5."""
    tensors = golden(shared, name)
    assert_same(contents(write_safetensors(tmp_path / "m.st", as_web_rwkv(tensors))), tensors)


def test_time_first_of_rwkv5_with_one_value_a_head_stays_a_logarithm(shared: Path, tmp_path: Path) -> None:
    tensors = golden(shared, "v5.0-fp16")
    assert any(name.endswith("time_first") for name in tensors)
    assert_same(contents(write_safetensors(tmp_path / "m.st", tensors)), tensors)


@pytest.mark.parametrize("name", ["v4-fp32", "v5.0-fp16", "v5.1-fp16", "v5.2-bf16", "v6-fp16"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_hugging_face_names(shared: Path, tmp_path: Path, name: str, suffix: str) -> None:
    tensors = golden(shared, name)
    long = as_hugging_face(tensors)
    path = tmp_path / f"m{suffix}"
    if suffix == ".bin":
        write_checkpoint(path, long)
    else:
        write_safetensors(path, long)
    assert_same(contents(path), tensors)


@pytest.mark.parametrize("fused", [False, True])
def test_fla_names(tmp_path: Path, fused: bool) -> None:
    tensors = rwkv7_tensors()
    expected = {name: array for name, array in tensors.items() if not name.startswith("blocks.0.att.v")}
    expected["blocks.0.att.value.weight"] = tensors["blocks.0.att.value.weight"]
    path = write_safetensors(tmp_path / "m.safetensors", as_fla(tensors, fused=fused))
    assert_same(contents(path), expected)


def test_older_fla_names_with_blinkdl_pairs(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    renamed = {
        name.replace("blocks.", "model.blocks.").replace(".att.", ".attention.").replace(".ffn.", ".feed_forward."): a
        for name, a in tensors.items()
        if name.startswith("blocks.") and ".ln0." not in name
    }
    renamed |= {f"model.pre_ln.{w}": tensors[f"blocks.0.ln0.{w}"] for w in ("weight", "bias")}
    renamed |= {f"model.norm.{w}": tensors[f"ln_out.{w}"] for w in ("weight", "bias")}
    renamed |= {"model.embeddings.weight": tensors["emb.weight"], "lm_head.weight": tensors["head.weight"]}
    assert_same(contents(write_safetensors(tmp_path / "m.safetensors", renamed)), tensors)


def test_all_namings_give_the_same_model(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    sources = {
        "blinkdl.pth": write_checkpoint(tmp_path / "blinkdl.pth", tensors),
        "web.st": write_safetensors(tmp_path / "web.st", as_web_rwkv(tensors)),
        "fla.safetensors": write_safetensors(tmp_path / "fla.safetensors", as_fla(tensors, fused=True)),
    }
    found = []
    for source in sources.values():
        target = tmp_path / f"{source.name}.rwkv"
        quantize(source, target, format="f32", tokenizer="none")
        with Model(target) as model:
            found.append(model.forward([1, 2, 3], logits="all")[0])
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"model.layers.0.self_attn.q_proj.weight": 0, "model.embed_tokens.weight": 0}, "q_proj"),
        ({"w": 0, "b": 0}, "names of its tensors"),
        ({"blocks.0.att.key.lora_A": 0, "blocks.0.att.key.lora_B": 0}, "adapter"),
        ({"blocks.0.att.time_state": 0}, "starting state"),
        ({"emb.weight": 0, "model.layers.0.attn.k_proj.weight": 0}, "k_proj"),
        ({"model.embeddings.weight": 0, "rwkv.embeddings.weight": 0}, "two namings"),
        ({"rwkv.embeddings.weight": 0, "rwkv.blocks.0.attention.key.bias": 0}, "key.bias"),
        ({"model.embeddings.weight": 0, "model.layers.0.attn.g_lora.lora.2.bias": 0}, "g_lora"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_names_are_refused_and_named(tmp_path: Path, tensors: dict[str, int], said: str) -> None:
    path = write_safetensors(tmp_path / "m.st", {name: np.zeros((2, 2), "f4") for name in tensors})
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_fused_mix_of_other_size_is_refused(tmp_path: Path) -> None:
    tensors = as_fla(rwkv7_tensors(), fused=True)
    tensors["model.layers.0.attn.x_x"] = tensors["model.layers.0.attn.x_x"][:5]
    with pytest.raises(FormatError, match="x_x"):
        open_checkpoint(write_safetensors(tmp_path / "m.st", tensors))


# --------------------------------------------------------------------------------------- directories


def write_directory(folder: Path, tensors: Arrays, n_parts: int = 3, **config: Any) -> Path:
    """As transformers saves a model in parts."""
    folder.mkdir()
    names = list(tensors)
    places = {}
    for i in range(n_parts):
        part = f"model-{i + 1:05}-of-{n_parts:05}.safetensors"
        own = names[i::n_parts]
        write_safetensors(folder / part, {name: tensors[name] for name in own})
        places |= dict.fromkeys(own, part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv7", **config}), "utf-8")
    return folder


def test_parts_with_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    folder = write_directory(tmp_path / "model", as_fla(tensors))
    whole = contents(write_safetensors(tmp_path / "whole.safetensors", as_fla(tensors)))
    named = (folder, folder / "model.safetensors.index.json", folder / "model-00002-of-00003.safetensors")
    for path in named:
        assert_same(contents(path), whole)
    assert kind_of(folder) == kind_of(named[1]) == "directory"
    with open_checkpoint(folder) as checkpoint:
        assert {file.name for file in files_of(checkpoint)} >= {p.name for p in folder.glob("*-of-*")}


def test_a_directory_converts_with_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_directory(tmp_path / "my model", as_fla(rwkv7_tensors()))
    lines = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    (folder / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    text = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    settings = {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    with open_checkpoint(folder) as checkpoint:
        assert json.loads(checkpoint.chat_template or b"")["jinja"] == text
    report = quantize(folder, tmp_path / "m.rwkv", format="f32")
    assert report.tokenizer == "world"
    assert report.source_bytes > 100_000
    monkeypatch.setenv("RWKV_CPU_HOME", str(tmp_path / "home"))
    with Model.load(folder, format="f32") as model:
        first = model.path
        assert model.tokenizer.encode("a") == [98]
    with Model.load(folder, format="f32") as model:
        assert model.path == first
    part = next(iter(folder.glob("*-00001-*")))
    part.write_bytes(part.read_bytes() + b"\0")
    with Model.load(folder, format="f32") as model:
        assert model.path != first


def test_group_norm_epsilon_of_config_json_counts(tmp_path: Path) -> None:
    tensors = as_fla(rwkv7_tensors())
    usual = write_directory(tmp_path / "usual", tensors, head_dim=64, norm_eps=1e-5)
    other = write_directory(tmp_path / "other", tensors, head_dim=16, norm_eps=1e-5)
    found = []
    for folder, given in ((usual, None), (other, None), (usual, 16e-5)):
        quantize(folder, tmp_path / "m.rwkv", format="f32", tokenizer="none", force=True, gn_eps=given)
        with Model(tmp_path / "m.rwkv") as model:
            found.append(model.forward([1, 2])[0])
    assert np.array_equal(found[1], found[2])
    assert not np.array_equal(found[0], found[1])


def test_another_layer_norm_epsilon_is_refused(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m", as_fla(rwkv7_tensors()), norm_eps=1e-6)
    with pytest.raises(UnsupportedModelError, match="norm_eps"):
        open_checkpoint(folder)


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(edit(index) or index), "utf-8")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "c:x", "x\0y", ""])
def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path, name: str) -> None:
    folder = write_directory(tmp_path / "m", rwkv7_tensors())
    write_safetensors(tmp_path / "outside.safetensors", rwkv7_tensors())
    edit_index(folder, lambda index: index["weight_map"].update({"emb.weight": name}))
    with pytest.raises(FormatError, match="not the name of a file beside it"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (lambda i: i.clear(), FormatError, "weight_map"),
        (lambda i: i.update(weight_map=[]), FormatError, "weight_map"),
        (lambda i: i["weight_map"].update({"x": 3}), FormatError, "weight_map"),
        (lambda i: i["weight_map"].update({"x": "gone.safetensors"}), ModelNotFoundError, "gone"),
        (lambda i: i["weight_map"].update({"x": "config.json"}), RwkvError, "config"),
        (lambda i: i["weight_map"].update({"x": "model-00001-of-00003.safetensors"}), FormatError, "x is missing"),
        (lambda _: [1], FormatError, "no JSON object"),
    ],
)
def test_a_damaged_index_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], error: type[RwkvError], said: str
) -> None:
    folder = write_directory(tmp_path / "m", rwkv7_tensors())
    edit_index(folder, edit)
    with pytest.raises(error, match=said):
        open_checkpoint(folder)


def test_directories_without_a_clear_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="directory without a model"):
        open_checkpoint(tmp_path)
    for name in ("a.st", "b.st"):
        write_safetensors(tmp_path / name, rwkv7_tensors())
    with pytest.raises(FormatError, match="directory") as caught:
        open_checkpoint(tmp_path)
    assert "a.st, b.st" in caught.value.hint


def test_metadata_and_unused_bytes_do_no_harm(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    path = tmp_path / "m.st"
    path.write_bytes(safetensors_bytes({n: bf16(a) for n, a in tensors.items()}, metadata={"format": "pt"}) + bytes(9))
    assert_same(contents(path), {n: bf16(a) for n, a in tensors.items()})


def test_a_tied_head_may_be_left_away(tmp_path: Path) -> None:
    tensors = rwkv7_tensors()
    tied = tensors | {"head.weight": tensors["emb.weight"]}
    found = []
    for name, given in (("full", tied), ("tied", {n: a for n, a in tied.items() if n != "head.weight"})):
        source = write_safetensors(tmp_path / f"{name}.safetensors", as_fla(given))
        quantize(source, tmp_path / f"{name}.rwkv", format="f32", tokenizer="none")
        with Model(tmp_path / f"{name}.rwkv") as model:
            found.append(model.forward([3, 1])[0])
    assert found[0].tobytes() == found[1].tobytes()


def test_another_activation_is_refused(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "m", as_fla(rwkv7_tensors()), hidden_act="swish")
    with pytest.raises(UnsupportedModelError, match="swish"):
        open_checkpoint(folder)


def test_a_state_inside_a_model_is_not_dropped_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = rwkv7_tensors()
    tensors |= {f"blocks.{i}.att.time_state": np.zeros((4, 16, 16), "f4") for i in range(2)}
    source = write_safetensors(tmp_path / "m.safetensors", tensors)
    quantize(source, tmp_path / "m.rwkv", format="f32", tokenizer="none")
    assert "--state" in caplog.text
