# SPDX-License-Identifier: Apache-2.0
"""Models written as safetensors and GGUF: values, names, exactness, and what is refused."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from rwkv_cpu import Model
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.checkpoint import open_checkpoint
from rwkv_cpu.checkpoint.ggml_blocks import Q8_0, dequantise
from rwkv_cpu.cli import main
from rwkv_cpu.errors import ArgumentError, Cancelled, FormatError, NonFiniteError, RwkvError, UnsupportedModelError
from rwkv_cpu.export import export
from rwkv_cpu.export.dtypes import blocks_of_q8, converted, float32_of
from rwkv_cpu.export.gguf_text import jinja_from_template, tokens_from_vocabulary
from rwkv_cpu.export.sentencepiece_model import sentencepiece_keys
from rwkv_cpu.quantize import quantize
from rwkv_cpu.tokenizer import world_vocabulary
from tests import ggml_writer as w

if TYPE_CHECKING:
    from pathlib import Path

MODELS = {
    "4": w.rwkv4(),
    **{version: w.rwkv5(version) for version in ("5.0", "5.1", "5.2")},
    "6": w.rwkv6(),
    "7": w.rwkv7(),
}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    entries: dict[str, Any] = {}
    data = b""
    for name, (dtype, array) in tensors.items():
        entries[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.fixture(scope="module", params=MODELS)
def version(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(version, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    return write_safetensors(path, {name: ("F32", array) for name, array in MODELS[version].items()})


def logits(path: Path, number: str = "f32") -> np.ndarray:
    target = path.with_name(f"{path.name}-{number}.rwkv")
    quantize(path, target, format=number, tokenizer="none", force=True)
    with Model(target) as model:
        return model.forward(range(1, 25), logits="all")[0]


def test_safetensors_of_a_checkpoint_is_the_checkpoint(version, source, tmp_path):
    report = export(source, tmp_path / "out.safetensors")
    assert report.exact
    assert report.target_bytes == (tmp_path / "out.safetensors").stat().st_size
    with open_checkpoint(tmp_path / "out.safetensors") as checkpoint:
        assert set(checkpoint.tensors) == set(MODELS[version])
        for name, array in MODELS[version].items():
            assert checkpoint.tensors[name].shape == array.shape
            np.testing.assert_array_equal(checkpoint.read(name), array)


def test_safetensors_of_a_model_file_runs_the_same(version, source, tmp_path):
    quantize(source, tmp_path / "model.rwkv", format="q8", tokenizer="none")
    with Model(tmp_path / "model.rwkv") as model:
        before = model.forward(range(1, 25), logits="all")[0]
    report = export(tmp_path / "model.rwkv", tmp_path / "out.safetensors")
    # Decays of 4 and 5 are computed back; everything else is the stored value.
    assert report.exact == (version[0] in "67")
    # Values that came from q8 go into the same q8 again.
    after = logits(tmp_path / "out.safetensors", "q8")
    np.testing.assert_allclose(before, after, atol=0 if report.exact else 2e-4)


def test_gguf_of_rwkv_6_and_7_and_back(version, source, tmp_path):
    if version[0] not in "67":
        with pytest.raises(UnsupportedModelError) as caught:
            export(source, tmp_path / "out.gguf")
        assert f"RWKV-{version[0]}" in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        return
    report = export(source, tmp_path / "out.gguf")
    assert (report.exact, report.tokenizer) == (True, "none")
    with open_checkpoint(tmp_path / "out.gguf") as checkpoint:
        assert set(checkpoint.tensors) == set(MODELS[version])
        for name, array in MODELS[version].items():
            np.testing.assert_array_equal(checkpoint.read(name).squeeze(), array.squeeze(), err_msg=name)


@pytest.mark.parametrize("name", ["6", "7"])
def test_gguf_of_q8_has_its_blocks(name, tmp_path):
    tensors = {key: ("F32", array) for key, array in MODELS[name].items()}
    path = write_safetensors(tmp_path / "model.safetensors", tensors)
    quantize(path, tmp_path / "model.rwkv", format="q8", tokenizer="none")
    report = export(tmp_path / "model.rwkv", tmp_path / "out.gguf")
    assert report.exact
    assert report.dtypes["q8_0"] == (18 if name == "6" else 14)
    quantize(tmp_path / "out.gguf", tmp_path / "again.rwkv", format="q8", tokenizer="none")
    with Model(tmp_path / "model.rwkv") as first, Model(tmp_path / "again.rwkv") as second:
        a, b = (m.forward(range(1, 25), logits="all")[0] for m in (first, second))
    np.testing.assert_array_equal(a, b)


def test_blocks_of_a_gguf_come_out_as_they_went_in(tmp_path):
    file = w.gguf_of(MODELS["7"])
    for name, kind, blocks in (
        ("blk.0.time_mix_key.weight", w.Q8_0, w.q8_0_blocks(w.C, w.C)),
        ("blk.1.time_mix_key.weight", w.Q4_0, w.q4_0_blocks(w.C, w.C)),
    ):
        tensor = file.tensor(name)
        tensor.kind, tensor.raw = kind, blocks.tobytes()
    (tmp_path / "in.gguf").write_bytes(file.to_bytes())
    report = export(tmp_path / "in.gguf", tmp_path / "out.gguf")
    assert report.exact
    with open_checkpoint(tmp_path / "in.gguf") as first, open_checkpoint(tmp_path / "out.gguf") as second:
        for name in ("blocks.0.att.key.weight", "blocks.1.att.key.weight"):
            assert first.tensors[name].dtype == second.tensors[name].dtype
            np.testing.assert_array_equal(first.read(name), second.read(name))
    assert export(tmp_path / "in.gguf", tmp_path / "out.safetensors").exact
    with open_checkpoint(tmp_path / "in.gguf") as first, open_checkpoint(tmp_path / "out.safetensors") as second:
        name = "blocks.0.att.key.weight"
        np.testing.assert_array_equal(float32_of(first.read(name), "q8_0"), second.read(name))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_rounding_to_a_dtype(tmp_path, dtype, suffix):
    source = write_safetensors(
        tmp_path / "model.safetensors", {key: ("F32", array) for key, array in MODELS["7"].items()}
    )
    target = tmp_path / f"out.{suffix}"
    report = export(source, target, dtype=dtype)
    assert report.exact == (dtype == "f32")
    with open_checkpoint(target) as checkpoint:
        for name, array in MODELS["7"].items():
            matrix = array.squeeze().ndim == 2 and not name.endswith("r_k")
            expected = dtype if matrix or suffix == "safetensors" else "f32"
            assert checkpoint.tensors[name].dtype == expected
            got = float32_of(checkpoint.read(name), expected)
            np.testing.assert_allclose(got.squeeze(), array.squeeze(), rtol=1 / 256, atol=1e-7)


def test_bf16_is_rounded_to_the_nearest_even():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000], np.uint32)
    got = converted("x", bits.view(np.float32), "f32", "bf16")
    np.testing.assert_array_equal(got, [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82])


@pytest.mark.parametrize(("values", "wanted"), [([1e5], "f16"), ([3.4e38], "bf16"), ([np.nan], "bf16")])
def test_values_that_do_not_fit_are_an_error(values, wanted):
    with pytest.raises(NonFiniteError) as caught:
        converted("blocks.0.att.w0", np.array(values, np.float32), "f32", wanted)
    assert "blocks.0.att.w0" in str(caught.value)


def test_q8_blocks_are_found_whatever_their_integers():
    rng = np.random.default_rng(0)
    for largest in (127, 128, 100, 64, 3, 1):
        integers = rng.integers(-largest, min(largest, 127) + 1, (64, 32))
        integers[:, 0] = -largest
        scales = rng.uniform(1e-7, 1, (64, 1)).astype(np.float16).astype(np.float32)
        values = (scales * integers).astype(np.float32)
        values[5] = 0
        blocks = blocks_of_q8("x", values)
        np.testing.assert_array_equal(dequantise(Q8_0, blocks.reshape(-1), values.size).reshape(values.shape), values)
    with pytest.raises(FormatError):
        blocks_of_q8("x", rng.standard_normal((1, 32)).astype(np.float32))


# --------------------------------------------------------------------------------- tokenizer, template


def test_the_standard_vocabulary_survives_gguf():
    from rwkv_cpu.checkpoint.gguf_text import vocabulary_from_tokens

    tokens, kinds = tokens_from_vocabulary(world_vocabulary(), 65536)
    assert len(tokens) == len(kinds) == 65536
    assert (tokens[0], kinds[0], kinds[65530]) == (b"<s>", 3, 5)
    assert vocabulary_from_tokens(tokens, kinds) == world_vocabulary()
    with pytest.raises(FormatError):
        tokens_from_vocabulary(world_vocabulary(), 65529)


def test_the_tokenizer_and_the_original_template_go_along(tmp_path):
    text = "{% for m in messages %}User: {{ m }} Assistant:{% endfor %}"
    file = w.gguf_of(MODELS["7"])
    file.set("tokenizer.ggml.model", w.STRING, "rwkv")
    file.set("tokenizer.ggml.tokens", w.ARRAY, (w.STRING, [b"<s>", b"a", b"\\xff", "ä'\"".encode()]))
    file.set("tokenizer.chat_template", w.STRING, text)
    (tmp_path / "in.gguf").write_bytes(file.to_bytes())
    quantize(tmp_path / "in.gguf", tmp_path / "model.rwkv", format="q8")
    with Model(tmp_path / "model.rwkv") as model:
        assert model.tokenizer.encode("aä'\"") == [1, 3]
        assert ChatTemplate.from_bytes(model.chat_template).name == "world"
    assert export(tmp_path / "model.rwkv", tmp_path / "out.gguf").tokenizer == "world"
    with open_checkpoint(tmp_path / "in.gguf") as first, open_checkpoint(tmp_path / "out.gguf") as second:
        assert first.tokenizer == second.tokenizer
        assert first.chat_template == second.chat_template


def test_a_template_of_our_own_becomes_jinja():
    jinja2 = pytest.importorskip("jinja2", reason="needs jinja2")
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello\n"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "?"},
    ]
    text = jinja2.Template(jinja_from_template(b"world")).render(messages=messages, add_generation_prompt=True)
    assert text == "System: Be kind.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: ?\n\nAssistant:"


def test_damaged_templates_become_the_usual_one():
    assert jinja_from_template(b"\xff{") == jinja_from_template(None) == jinja_from_template(b"world")


# -------------------------------------------------------------------------------------------- the file


def test_refusals_before_anything_is_written(tmp_path, source):
    target = tmp_path / "out.safetensors"
    with pytest.raises(ArgumentError):
        export(source, tmp_path / "out.onnx")
    with pytest.raises(ArgumentError):
        export(source, target, dtype="q8")
    with pytest.raises(ArgumentError):
        export(source, source, force=True)
    target.write_bytes(b"x")
    with pytest.raises(RwkvError) as caught:
        export(source, target)
    assert "--force" in caught.value.hint
    assert target.read_bytes() == b"x"
    export(source, target, force=True)
    assert target.stat().st_size > 1000


def test_cancelling_and_failing_leave_nothing(tmp_path):
    tensors = {key: ("F32", array) for key, array in MODELS["7"].items()}
    source = write_safetensors(tmp_path / "model.safetensors", tensors)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        export(source, tmp_path / "out.gguf", cancel=cancel)
    large = MODELS["7"] | {"ln_out.bias": np.full(w.C, 1e6, np.float32)}
    write_safetensors(source, {key: ("F32", array) for key, array in large.items()})
    with pytest.raises(NonFiniteError):
        export(source, tmp_path / "out.safetensors", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_progress_ends_at_the_size_of_the_file(tmp_path, source):
    seen: list[tuple[int, int]] = []
    report = export(source, tmp_path / "out.safetensors", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.target_bytes, report.target_bytes)
    assert seen == sorted(seen)


def test_the_command(tmp_path, source):
    target = tmp_path / "out.safetensors"
    result = CliRunner().invoke(main, ["convert", str(source), str(target)])
    assert result.exit_code == 0, result.output
    assert "every value exact" in result.output
    result = CliRunner().invoke(main, ["convert", str(source), str(target), "--force", "--dtype", "bf16", "--json"])
    found = json.loads(result.output)
    assert found["dtypes"] == {"bf16": sum(found["dtypes"].values())}
    assert found["target"] == str(target)


def test_the_demo_model_goes_to_gguf(demo_path, tmp_path):
    report = export(demo_path, tmp_path / "demo.gguf")
    assert report.exact
    assert report.target_bytes < 1.25 * report.source_bytes  # low-rank pairs are f32 there


@pytest.mark.parametrize("name", ["tiny-bpe.model", "tiny-unigram.model"])
def test_a_sentencepiece_model_says_what_its_package_says(shared, name):
    sentencepiece = pytest.importorskip("sentencepiece")
    data = (shared / "goldens" / "tokenizer" / name).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    size = processor.get_piece_size()
    keys = dict(sentencepiece_keys(data, size + 3))
    assert keys["tokenizer.ggml.model"] == ("t5" if "unigram" in name else "llama")
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    assert len(tokens) == size + 3
    for i in range(size):
        assert tokens[i].decode() == processor.id_to_piece(i)
        assert scores[i] == pytest.approx(processor.get_score(i))
        kind = keys["tokenizer.ggml.token_type"][i]
        assert (kind == 2, kind == 3, kind == 6) == (
            processor.is_unknown(i),
            processor.is_control(i),
            processor.is_byte(i),
        )
    assert keys.get("tokenizer.ggml.eos_token_id", -1) == processor.eos_id()
    with pytest.raises(FormatError):
        dict(sentencepiece_keys(data, size - 1))
    for cut in (1, 100, len(data) - 1):
        with pytest.raises(FormatError):
            dict(sentencepiece_keys(data[:cut], size))
