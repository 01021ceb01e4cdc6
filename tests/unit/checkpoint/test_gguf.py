# SPDX-License-Identifier: Apache-2.0
"""GGUF files: names, orientations, blocks passed on, rescaling undone, vocabulary and template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.checkpoint import ggml_file, open_checkpoint
from rwkv_cpu.checkpoint.ggml_blocks import BLOCKS, Q4_0, Q8_0, TYPES, dequantise
from rwkv_cpu.checkpoint.gguf_text import is_standard, vocabulary_from_tokens
from rwkv_cpu.errors import FormatError, RwkvError, ShapeError, UnsupportedModelError
from rwkv_cpu.quantize import quantize
from rwkv_cpu.tokenizer import from_bytes, world_vocabulary
from tests import ggml_writer as w

if TYPE_CHECKING:
    from pathlib import Path

    from rwkv_cpu.checkpoint import Checkpoint


def opened(tmp_path: Path, file: w.Gguf) -> Checkpoint:
    path = tmp_path / "model.gguf"
    path.write_bytes(file.to_bytes())
    return open_checkpoint(path)


def refused(tmp_path: Path, file: w.Gguf, kind: type[RwkvError]) -> str:
    with pytest.raises(kind) as caught:
        opened(tmp_path, file).close()
    assert str(tmp_path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("model", [w.rwkv7(), w.rwkv6()], ids=["rwkv7", "rwkv6"])
def test_tensors_have_their_original_names_shapes_and_values(tmp_path, model):
    with opened(tmp_path, w.gguf_of(model)) as checkpoint:
        assert set(checkpoint.tensors) == set(model)
        for name, array in model.items():
            got = checkpoint.read(name)
            assert got.shape == checkpoint.tensors[name].shape
            np.testing.assert_array_equal(got.squeeze(), array.squeeze(), err_msg=name)


def test_lerps_of_rwkv6_may_be_separate(tmp_path):
    model = w.rwkv6()
    file = w.gguf_of(model)
    file.tensors = [tensor for tensor in file.tensors if "lerp_fused" not in tensor.name]
    for i in range(w.L):
        for letter in "wkvrg":
            array = model[f"blocks.{i}.att.time_maa_{letter}"].squeeze()
            file.tensors.append(w.Tensor.of(f"blk.{i}.time_mix_lerp_{letter}.weight", array))
    with opened(tmp_path, file) as checkpoint:
        for name, array in model.items():
            np.testing.assert_array_equal(checkpoint.read(name).squeeze(), array.squeeze())


def test_the_unused_value_residual_of_the_first_layer_is_left_out(tmp_path):
    model = w.rwkv7()
    file = w.gguf_of(model)
    for i, rank in enumerate((1, 24, 24)):
        file.tensors.append(w.Tensor.of(f"blk.0.time_mix_v{i}.weight", np.zeros((rank, w.C), np.float32)))
    with opened(tmp_path, file) as checkpoint:
        assert set(checkpoint.tensors) == set(model)


def test_quantised_matrices_are_passed_on_as_they_are(tmp_path):
    file = w.gguf_of(w.rwkv7())
    eight, four = w.q8_0_blocks(w.C, w.C), w.q4_0_blocks(w.F, w.C)
    tensor = file.tensor("blk.1.time_mix_key.weight")
    tensor.kind, tensor.raw = w.Q8_0, eight.tobytes()
    tensor = file.tensor("blk.1.channel_mix_key.weight")
    tensor.kind, tensor.raw = w.Q4_0, four.tobytes()
    with opened(tmp_path, file) as checkpoint:
        metas = checkpoint.tensors
        assert metas["blocks.1.att.key.weight"].dtype == "q8_0"
        assert metas["blocks.1.att.key.weight"].shape == (w.C, w.C)
        assert metas["blocks.1.att.key.weight"].size_bytes == eight.nbytes
        assert metas["blocks.1.ffn.key.weight"].dtype == "q4_0"
        np.testing.assert_array_equal(checkpoint.read("blocks.1.att.key.weight"), eight)
        np.testing.assert_array_equal(checkpoint.read("blocks.1.ffn.key.weight"), four)


def test_quantised_low_rank_pairs_and_vectors_are_decoded(tmp_path):
    file = w.gguf_of(w.rwkv7())
    blocks = w.q8_0_blocks(16, w.C)
    tensor = file.tensor("blk.1.time_mix_w1.weight")
    tensor.kind, tensor.raw = w.Q8_0, blocks.tobytes()
    vector = w.q8_0_blocks(1, w.C)
    tensor = file.tensor("blk.1.attn_norm.weight")
    tensor.kind, tensor.raw = w.Q8_0, vector.tobytes()
    fused = w.q8_0_blocks(6, w.C)
    tensor = file.tensor("blk.1.time_mix_lerp_fused.weight")
    tensor.kind, tensor.raw = w.Q8_0, fused.tobytes()
    with opened(tmp_path, file) as checkpoint:
        meta = checkpoint.tensors["blocks.1.att.w1"]
        assert (meta.dtype, meta.stored, meta.shape) == ("f32", "Q8_0", (w.C, 16))
        expected = dequantise(Q8_0, blocks.reshape(-1), 16 * w.C).reshape(16, w.C).T
        np.testing.assert_array_equal(checkpoint.read("blocks.1.att.w1"), expected)
        expected = dequantise(Q8_0, vector.reshape(-1), w.C)
        np.testing.assert_array_equal(checkpoint.read("blocks.1.ln1.weight"), expected)
        expected = dequantise(Q8_0, fused[3], w.C)
        np.testing.assert_array_equal(checkpoint.read("blocks.1.att.x_v").reshape(-1), expected)


@pytest.mark.parametrize("every", [1, 2, 6])
def test_rescaled_weights_are_restored_exactly(tmp_path, every):
    model = w.rwkv6()
    file = w.gguf_of(model)
    file.set("rwkv6.rescale_every_n_layers", w.U32, every)
    for i in range(w.L):
        for name, scaled in (("output", True), ("key", False)):
            tensor = file.tensor(f"blk.{i}.time_mix_{name}.weight")
            array = model[f"blocks.{i}.att.{name}.weight"].astype(np.float16)
            tensor.kind, tensor.raw = w.F16, (array / 2 ** (i // every) if scaled else array).tobytes()
    eight, four = w.q8_0_blocks(w.C, w.F), w.q4_0_blocks(w.C, w.F)
    for i, (blocks, kind) in enumerate([(eight, w.Q8_0), (four, w.Q4_0)]):
        tensor = file.tensor(f"blk.{i}.channel_mix_value.weight")
        tensor.kind, tensor.raw = kind, blocks.tobytes()
    power = 1 // every
    with opened(tmp_path, file) as checkpoint:
        for i in range(w.L):
            for name in ("output", "key"):
                got = checkpoint.read(f"blocks.{i}.att.{name}.weight").astype(np.float32)
                tensor, factor = (
                    file.tensor(f"blk.{i}.time_mix_{name}.weight"),
                    2.0 ** (i // every if name == "output" else 0),
                )
                expected = np.frombuffer(tensor.raw, "<f2").astype(np.float32).reshape(w.C, w.C) * factor
                np.testing.assert_array_equal(got, expected)
        assert checkpoint.tensors["blocks.1.att.output.weight"].dtype == ("f32" if power else "f16")
        np.testing.assert_array_equal(checkpoint.read("blocks.0.ffn.value.weight"), eight)
        assert checkpoint.tensors["blocks.1.ffn.value.weight"].dtype == "q4_0"
        got = checkpoint.read("blocks.1.ffn.value.weight")
        before = dequantise(Q4_0, four.reshape(-1), w.C * w.F)
        np.testing.assert_array_equal(dequantise(Q4_0, got.reshape(-1), w.C * w.F), before * 2.0**power)
        if not power:
            np.testing.assert_array_equal(got, four)


@pytest.mark.parametrize(("version", "alignment"), [(2, 32), (3, 8), (3, 4096)])
def test_versions_and_alignments(tmp_path, version, alignment):
    model = w.rwkv7()
    file = w.gguf_of(model)
    file.version, file.alignment = version, alignment
    file.set("general.alignment", w.U32, alignment)
    with opened(tmp_path, file) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("head.weight"), model["head.weight"])


def test_a_model_from_gguf_runs_as_the_one_from_pth(shared, tmp_path):
    folder = shared / "goldens" / "models"
    logits = []
    for name in ("v7-bf16.pth", "v7-bf16-f16.gguf"):
        target = tmp_path / f"{name}.rwkv"
        quantize(folder / name, target, format="f32", tokenizer="optional")
        with Model(target) as model:
            logits.append(model.forward([1, 2, 3])[0])
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)


@pytest.mark.parametrize("blocks", ["q4_0", "q5_0", "q8_0"])
def test_blocks_survive_exactly_where_their_integers_fit(tmp_path, blocks):
    kind = BLOCKS[blocks]
    raw = np.random.default_rng(1).integers(0, 256, (w.C * w.C // 32, kind.size_bytes), dtype=np.uint8)
    raw[:, :2] = np.random.default_rng(2).uniform(1e-3, 1e-1, (len(raw), 1)).astype("<f2").view(np.uint8)
    file = w.gguf_of(w.rwkv7())
    tensor = next(t for t in file.tensors if t.name == "blk.1.time_mix_key.weight")
    tensor.kind, tensor.raw = next(number for number, found in TYPES.items() if found is kind), raw.tobytes()
    (tmp_path / "m.gguf").write_bytes(file.to_bytes())
    exact = dequantise(kind, raw.reshape(-1), w.C * w.C).reshape(w.C, w.C)
    bits = {"q4_0": 4, "q5_0": 5, "q8_0": 8}[blocks]
    for fmt in ("q8", "q6", "q5", "q4"):
        quantize(tmp_path / "m.gguf", tmp_path / "m.rwkv", format=fmt, tokenizer="none", force=True)
        with Model(tmp_path / "m.rwkv") as model:
            info = next(i for i in model._engine.tensors() if i.name == "blocks.1.att.key.weight")
            got = engine.unpack(info, model._engine.bytes_of(info.name))
        assert np.array_equal(got, exact) == (int(fmt[1]) >= bits)
        assert np.abs(got - exact).max() < 0.2 * np.abs(exact).max()


def test_blocks_survive_into_q8_exactly(shared, tmp_path):
    source = shared / "goldens" / "models" / "v7-bf16-q4_0.gguf"
    logits = []
    for number in ("f32", "q8"):
        target = tmp_path / f"{number}.rwkv"
        report = quantize(source, target, format=number)
        assert report.tokenizer == "world"
        with Model(target) as model:
            weights = model._engine
            info = next(i for i in weights.tensors() if i.name == "blocks.1.ffn.value.weight")
            logits.append(engine.unpack(info, weights.bytes_of(info.name)))
    np.testing.assert_array_equal(logits[0], logits[1])


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["rwkv6qwen2", "arwkv7", "llama", "qwen2"])
def test_other_architectures_are_refused_by_name(tmp_path, name):
    file = w.gguf_of(w.rwkv7())
    file.set("general.architecture", w.STRING, name)
    assert repr(name) in refused(tmp_path, file, UnsupportedModelError)


def test_adapters_and_pieces_of_models_are_refused(tmp_path):
    file = w.gguf_of(w.rwkv7())
    file.set("general.type", w.STRING, "adapter")
    assert "adapter" in refused(tmp_path, file, UnsupportedModelError)
    file = w.gguf_of(w.rwkv7())
    file.set("split.count", 2, 3)
    assert "3 pieces" in refused(tmp_path, file, UnsupportedModelError)


def test_a_tensor_that_the_architecture_does_not_have_is_refused(tmp_path):
    file = w.gguf_of(w.rwkv7())
    file.tensors.append(w.Tensor.of("blk.0.time_mix_key.bias", np.zeros(w.C, np.float32)))
    assert "blk.0.time_mix_key.bias" in refused(tmp_path, file, UnsupportedModelError)


def test_another_epsilon_is_refused(tmp_path):
    file = w.gguf_of(w.rwkv7())
    file.set("rwkv7.attention.layer_norm_epsilon", w.F32_KEY, 1e-6)
    assert "1e-06" in refused(tmp_path, file, UnsupportedModelError)


def test_old_and_big_endian_files_are_named(tmp_path):
    file = w.gguf_of(w.rwkv7())
    file.version = 1
    assert "version 1" in refused(tmp_path, file, UnsupportedModelError)
    file.version = 3 << 24
    assert "big-endian" in refused(tmp_path, file, UnsupportedModelError)
    file.version = 77
    assert "77" in refused(tmp_path, file, FormatError)


def test_types_that_need_a_package_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ggml_file, "can_decode", lambda kind: kind.number != 34)
    file = w.gguf_of(w.rwkv7())
    tensor = file.tensor("blk.1.time_mix_key.weight")
    tensor.kind, tensor.sizes, tensor.raw = 34, (256, 64), bytes(64 * 54)
    assert "TQ1_0" in refused(tmp_path, file, UnsupportedModelError)


def test_an_incomplete_model_names_what_is_missing(tmp_path):
    file = w.gguf_of(w.rwkv7())
    file.tensors.remove(file.tensor("blk.1.time_mix_g2.weight"))
    with opened(tmp_path, file), pytest.raises(ShapeError) as caught:
        quantize(tmp_path / "model.gguf", tmp_path / "out.rwkv", tokenizer="none")
    assert "blocks.1.att.g2" in str(caught.value)


# ------------------------------------------------------------------------------ vocabulary, template


def escaped_standard() -> tuple[list[bytes], list[int]]:
    tokenizer = from_bytes("world", world_vocabulary())
    tokens = [repr(tokenizer.decode_bytes([i]))[2:-1].encode() for i in range(1, 65530)]
    padding = [b"[PAD%d]" % i for i in range(65530, 65536)]
    return [b"<s>", *tokens, *padding], [3, *[1] * 65529, *[5] * 6]


def test_the_standard_vocabulary_is_recognised():
    tokens, kinds = escaped_standard()
    assert vocabulary_from_tokens(tokens, kinds) == world_vocabulary()
    assert vocabulary_from_tokens(tokens, []) == world_vocabulary()


def test_the_standard_vocabulary_is_recognised_by_its_bytes():
    tokens, kinds = escaped_standard()
    strings = b"".join(w.string(token) for token in tokens)
    assert is_standard(strings, kinds)
    assert is_standard(strings, [])
    assert not is_standard(strings, [3, 3, *kinds[2:]])
    assert not is_standard(strings.replace(b"a", b"b"), kinds)


def test_tokens_are_unescaped_and_only_text_matches_text():
    tokens = [b"<s>", b"a", b"\\n", b"\\x80", b"\\\\", b"\\'", b"<x>", b"[PAD7]", "ä b".encode(), b'"']
    tokenizer = from_bytes("world", vocabulary_from_tokens(tokens, [3, 1, 1, 1, 1, 1, 3, 5, 1, 4]))
    assert [tokenizer.decode_bytes([i]) for i in (1, 2, 3, 4, 5, 8, 9)] == [
        b"a", b"\n", b"\x80", b"\\", b"'", "ä b".encode(), b'"',
    ]  # fmt: skip
    assert tokenizer.encode(b"a\n\x80\\'\"") == [1, 2, 3, 4, 5, 9]
    with pytest.raises(RwkvError):
        tokenizer.encode("<x>")
    with pytest.raises(RwkvError):
        tokenizer.encode("<s>")


@pytest.mark.parametrize("damaged", [b"\\", b"\\x", b"\\x4", b"\\xzz"])
def test_a_cut_escape_is_an_error(damaged):
    with pytest.raises(FormatError):
        vocabulary_from_tokens([b"<s>", damaged], [])


def tokens_of(tmp_path: Path, model: str, tokens: list[bytes]) -> Checkpoint:
    file = w.gguf_of(w.rwkv7())
    file.set("tokenizer.ggml.model", w.STRING, model)
    file.set("tokenizer.ggml.tokens", w.ARRAY, (w.STRING, tokens))
    file.set("tokenizer.ggml.token_type", w.ARRAY, (w.I32, [3] + [1] * (len(tokens) - 1)))
    return opened(tmp_path, file)


def test_the_tokenizer_comes_from_the_file(tmp_path):
    with tokens_of(tmp_path, "rwkv", [b"<s>", b"a", b"b"]) as checkpoint:
        assert checkpoint.tokenizer == ("world", b"1 'a' 1\n2 'b' 1\n")
    with opened(tmp_path, w.gguf_of(w.rwkv7())) as checkpoint:
        assert checkpoint.tokenizer is None
        assert checkpoint.chat_template is None


def test_another_kind_of_tokenizer_is_named(tmp_path):
    with tokens_of(tmp_path, "gpt2", [b"<s>", b"a"]) as checkpoint:
        with pytest.raises(UnsupportedModelError) as caught:
            checkpoint.tokenizer  # noqa: B018
        assert "gpt2" in str(caught.value)
        assert "--tokenizer" in caught.value.hint


def test_the_chat_template_is_kept_and_readable(tmp_path):
    text = (
        "{% for m in messages %}{{ {'user': 'User', 'assistant': 'Assistant'}[m.role] }}: {{ m.content }}\n\n"
        "{% endfor %}Assistant:"
    )
    file = w.gguf_of(w.rwkv7())
    file.set("tokenizer.chat_template", w.STRING, text)
    with opened(tmp_path, file) as checkpoint:
        data = checkpoint.chat_template
    assert json.loads(data)["jinja"] == text
    assert ChatTemplate.from_bytes(data) == ChatTemplate()


def test_a_tokenizer_that_cannot_be_read_stops_only_those_who_want_it(tmp_path):
    tokens_of(tmp_path, "gpt2", [b"<s>", b"a"]).close()
    with pytest.raises(UnsupportedModelError):
        quantize(tmp_path / "model.gguf", tmp_path / "out.rwkv")
    report = quantize(tmp_path / "model.gguf", tmp_path / "out.rwkv", tokenizer="none")
    assert report.tokenizer == "none"
