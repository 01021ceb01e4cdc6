# SPDX-License-Identifier: Apache-2.0
"""quantize(): the file holds the checkpoint's numbers, always the same bytes, with little memory."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.describe import describe_file, verify_file
from rwkv_cpu.errors import (
    ArgumentError,
    Cancelled,
    FormatError,
    ModelNotFoundError,
    NonFiniteError,
    RwkvError,
    ShapeError,
    UnsupportedModelError,
)
from rwkv_cpu.modelfile import ModelFile
from rwkv_cpu.quantize import quantize
from tests.pth_writer import bf16, rwkv7_tensors, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = rwkv7_tensors()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny.pth", TENSORS)


def stored_values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every weight of a .rwkv file as f32 [rows, cols]."""
    with ModelFile(path) as file:
        model = engine.OpenModel(file.buffer)
        try:
            found = {}
            for info in model.tensors():
                if info.kind != engine.KIND_BYTES:
                    start = file.info.data_offset + info.offset
                    found[info.name] = engine.unpack(info, file.buffer[start : start + info.size_bytes])
            return found
        finally:
            model.close()


def as_stored(name: str, array: np.ndarray[Any, Any], like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A checkpoint's tensor as [rows, cols]: low-rank matrices are [in, out] there."""
    low_rank = name.rpartition(".")[2] in {f"{pair}{i}" for pair in "wavg" for i in (1, 2)}
    return (array.T if low_rank else array).reshape(like.shape)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
def test_f32_files_hold_exactly_the_checkpoints_numbers(tmp_path: Path, dtype: str) -> None:
    source = write_checkpoint(tmp_path / "m.pth", TENSORS, dtype)
    quantize(source, tmp_path / "m.rwkv", format="f32", tokenizer="none")
    values = stored_values(tmp_path / "m.rwkv")
    assert set(values) == set(TENSORS) - {f"blocks.0.att.v{i}" for i in range(3)}
    for name, found in values.items():
        array = TENSORS[name]
        if dtype == "f16":
            array = array.astype(np.float16).astype(np.float32)
        elif dtype == "bf16":
            array = (bf16(array).astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(found, as_stored(name, array, found))


def test_q8_is_within_half_a_step_and_vectors_stay_exact(checkpoint: Path, tmp_path: Path) -> None:
    report = quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none")
    assert set(report.formats) == {"q8", "f32"}
    for name, found in stored_values(tmp_path / "m.rwkv").items():
        exact = as_stored(name, TENSORS[name], found)
        if found.shape[0] == 1:
            np.testing.assert_array_equal(found, exact)
        else:
            assert np.abs(found - exact).max() <= 0.505 * np.abs(exact).max() / 124  # the largest scale that is tried
            assert (group_errors(found, exact) <= 1.0001 * group_errors(rounded_by_the_largest(exact), exact)).all()


def in_groups(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[rows, groups, 32], filled up with zeros."""
    rows, columns = array.shape
    return np.pad(array, ((0, 0), (0, -columns % 32))).reshape(rows, -1, 32)


def group_errors(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.square(in_groups(found).astype(np.float64) - in_groups(exact)).sum(axis=2)


def rounded_by_the_largest(exact: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Q8_0: the largest value of each group becomes 127, the scale a half."""
    groups = in_groups(exact).astype(np.float64)
    scales = (np.abs(groups).max(axis=2, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    rounded = np.rint(groups / np.where(scales == 0, 1, scales)) * scales
    return rounded.reshape(exact.shape[0], -1)[:, : exact.shape[1]]


@pytest.mark.parametrize("preset", ["q8", "q6", "q5", "q4", "f16", "f32"])
def test_same_bytes_for_any_number_of_threads(tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_cpu.quantize.workers._UNIT_BYTES", 1 << 10)  # so that tiny tensors are split too
    source = write_checkpoint(tmp_path / "m.pth", rwkv7_tensors(n_embd=128, n_ffn=320), "bf16")
    digests = set()
    for threads in (1, 2, 3, 7):
        quantize(source, tmp_path / "m.rwkv", format=preset, tokenizer="none", threads=threads, force=True)
        digests.add(hashlib.sha256((tmp_path / "m.rwkv").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_report_and_metadata_tell_the_truth(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.rwkv"
    report = quantize(checkpoint, target, tokenizer="none", threads=2, source_digest=True)
    assert report.target_bytes == target.stat().st_size
    assert report.source_bytes == checkpoint.stat().st_size
    used = [
        a.size
        for name, a in TENSORS.items()
        if not name.startswith(("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"))
    ]
    assert report.parameters == sum(used)
    assert report.file_bits_per_weight == 8 * report.target_bytes / sum(used)
    assert report.to_dict()["target"] == str(target)
    about = describe_file(target, tensors=True)
    assert about["parameters"] == report.parameters
    assert about["bits_per_weight"] == report.bits_per_weight
    assert about["formats"] == report.formats
    assert about["tokenizer"] == report.tokenizer == "none"
    assert about["n_vocab"] == 320
    assert about["metadata"]["rwkv_cpu.source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert about["metadata"]["rwkv_cpu.source"] == "tiny.pth"
    without = tmp_path / "without.rwkv"
    quantize(checkpoint, without, tokenizer="none")
    assert "rwkv_cpu.source_sha256" not in describe_file(without)["metadata"]
    assert verify_file(without) == len(about["tensors"])
    assert len(about["tensors"]) == verify_file(target)
    assert all(tensor["offset"] % 64 == 0 for tensor in about["tensors"])


def test_transposed_storage_and_missing_v_of_the_first_layer(tmp_path: Path) -> None:
    tensors = {k: np.asfortranarray(v) for k, v in TENSORS.items() if not k.startswith("blocks.0.att.v")}
    tensors |= {k: v for k, v in TENSORS.items() if k.startswith("blocks.0.att.value")}
    quantize(write_checkpoint(tmp_path / "a.pth", tensors), tmp_path / "a.rwkv", tokenizer="none")
    quantize(write_checkpoint(tmp_path / "b.pth", TENSORS), tmp_path / "b.rwkv", tokenizer="none")
    a, b = stored_values(tmp_path / "a.rwkv"), stored_values(tmp_path / "b.rwkv")
    for name in b:
        np.testing.assert_array_equal(a[name], b[name])


def test_progress_rises_to_the_end_on_the_callers_thread(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, bool]] = []
    main = threading.current_thread()
    quantize(
        checkpoint,
        tmp_path / "m.rwkv",
        tokenizer="none",
        on_progress=lambda done, total: calls.append((done, total, threading.current_thread() is main)),
    )
    done = [c[0] for c in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1]
    assert all(c[2] for c in calls)


def test_cancelling_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none", cancel=token)
    token = CancelToken()
    with pytest.raises(Cancelled):
        quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none", cancel=token, on_progress=lambda *_: token.cancel())
    assert os.listdir(tmp_path) == ["tiny.pth"]  # noqa: PTH208


def test_a_callback_that_raises_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def fail(*_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none", on_progress=fail)
    assert os.listdir(tmp_path) == ["tiny.pth"]  # noqa: PTH208


def test_arguments_are_checked(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.rwkv"
    with pytest.raises(ArgumentError, match="q9"):
        quantize(checkpoint, target, format="q9", tokenizer="none")
    with pytest.raises(ArgumentError, match="threads"):
        quantize(checkpoint, target, threads=0, tokenizer="none")
    with pytest.raises(ArgumentError, match="the checkpoint itself"):
        quantize(checkpoint, checkpoint, tokenizer="none", force=True)
    with pytest.raises(RwkvError, match="exists already"):
        quantize(checkpoint, checkpoint, tokenizer="none")
    with pytest.raises(ModelNotFoundError):
        quantize(tmp_path / "missing.pth", target)
    quantize(checkpoint, target, tokenizer="none")
    with pytest.raises(UnsupportedModelError, match="file already"):
        quantize(target, tmp_path / "again.rwkv")


# -------------------------------------------------------------------------- what cannot be converted


def refused(tmp_path: Path, changes: dict[str, Any], error: type[RwkvError]) -> RwkvError:
    tensors = {k: v for k, v in (TENSORS | changes).items() if v is not None}
    source = write_checkpoint(tmp_path / "bad.pth", tensors)
    with pytest.raises(error) as caught:
        quantize(source, tmp_path / "m.rwkv", tokenizer="none")
    assert "bad.pth" in str(caught.value)
    assert os.listdir(tmp_path) == ["bad.pth"]  # noqa: PTH208
    return caught.value


def with_value(name: str, value: float) -> np.ndarray[Any, Any]:
    array = TENSORS[name].copy()
    array.flat[array.size // 2] = value
    return array


@pytest.mark.parametrize("name", ["emb.weight", "blocks.1.ffn.value.weight", "blocks.0.att.w1", "ln_out.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_naming_the_tensor(tmp_path: Path, name: str, value: float) -> None:
    assert name in str(refused(tmp_path, {name: with_value(name, value)}, NonFiniteError))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    assert "blocks.1.att.v2" in str(refused(tmp_path, {"blocks.1.att.v2": None}, ShapeError))


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    said = str(refused(tmp_path, {"blocks.1.att.key.weight": np.zeros((63, 64), np.float32)}, ShapeError))
    assert "blocks.1.att.key.weight" in said
    assert "63" in said
    assert "64" in said


def test_integers_are_refused_only_where_weights_should_be(tmp_path: Path) -> None:
    said = str(refused(tmp_path, {"blocks.1.att.key.weight": np.zeros((64, 64), np.int64)}, UnsupportedModelError))
    assert "blocks.1.att.key.weight" in said
    assert "i64" in said
    source = write_checkpoint(tmp_path / "fine.pth", TENSORS | {"step": np.zeros(1, np.int64)})
    quantize(source, tmp_path / "m.rwkv", tokenizer="none")


def test_another_model_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "llama.pth", {"model.embed_tokens.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"llama\.pth"):
        quantize(source, tmp_path / "m.rwkv")


# ---------------------------------------------------------------------------------------- tokenizers


def texts_of(path: Path) -> dict[str, bytes]:
    with ModelFile(path) as file:
        model = engine.OpenModel(file.buffer)
        try:
            names = [info.name for info in model.tensors() if info.kind == engine.KIND_BYTES]
            return {name: bytes(model.bytes_of(name) or b"") for name in names}
        finally:
            model.close()


def test_no_tokenizer_is_an_error_with_a_hint_unless_it_is_meant(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RwkvError, match="no tokenizer is known for a vocabulary of 320") as caught:
        quantize(checkpoint, tmp_path / "m.rwkv")
    assert "--tokenizer FILE" in caught.value.hint
    quantize(checkpoint, tmp_path / "none.rwkv", tokenizer="none")
    quantize(checkpoint, tmp_path / "optional.rwkv", tokenizer="optional", chat_template="world-paragraph")
    assert texts_of(tmp_path / "none.rwkv") == {"chat_template": b"world"}
    assert texts_of(tmp_path / "optional.rwkv") == {"chat_template": b"world-paragraph"}


def test_world_vocabulary_comes_by_itself(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "w.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=65536), "bf16")
    assert quantize(source, tmp_path / "w.rwkv").tokenizer == "world"
    vocabulary = texts_of(tmp_path / "w.rwkv")["tokenizer.world"]
    assert vocabulary.startswith(b"1 ")
    (tmp_path / "vocab.txt").write_bytes(vocabulary)
    assert quantize(source, tmp_path / "x.rwkv", tokenizer=tmp_path / "vocab.txt").tokenizer == "world"


def test_files_that_are_no_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    for content, error in [
        (b"hello", FormatError),
        (b'{"version": "1.0"}', FormatError),
        (b"\x0a\xff", FormatError),
    ]:
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(error, match="t"):
            quantize(checkpoint, tmp_path / "m.rwkv", tokenizer=tmp_path / "t")
    with pytest.raises(ModelNotFoundError):
        quantize(checkpoint, tmp_path / "m.rwkv", tokenizer=tmp_path / "missing")


def test_sentencepiece_is_found_beside_the_checkpoint(shared: Path, tmp_path: Path) -> None:
    model = (shared / "goldens" / "tokenizer" / "tiny-bpe.model").read_bytes()
    source = write_checkpoint(tmp_path / "m.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=8192))
    (tmp_path / "m.model").write_bytes(model)
    assert quantize(source, tmp_path / "m.rwkv").tokenizer == "sentencepiece"
    assert texts_of(tmp_path / "m.rwkv")["tokenizer.sentencepiece"] == model
    small = write_checkpoint(tmp_path / "s.pth", TENSORS)
    with pytest.raises(ShapeError, match=r"8192|tokens"):
        quantize(small, tmp_path / "s.rwkv", tokenizer=tmp_path / "m.model")


def test_tokenizer_json_travels_inside_and_must_fit(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    definition = checkout / "tests" / "data" / "tiny-bytelevel.json"
    fits = write_checkpoint(tmp_path / "fits.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=832), "bf16")
    assert quantize(fits, tmp_path / "m.rwkv", tokenizer=definition).tokenizer == "huggingface"
    assert texts_of(tmp_path / "m.rwkv")["tokenizer.huggingface"] == definition.read_bytes()
    with Model(tmp_path / "m.rwkv") as model:
        assert model.tokenizer.decode(model.tokenizer.encode("Hello, 世界")) == "Hello, 世界"
    small = write_checkpoint(tmp_path / "small.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=800), "bf16")
    with pytest.raises(ShapeError, match="has 807 tokens, the model only 800"):
        quantize(small, tmp_path / "n.rwkv", tokenizer=definition)


def test_tokenizer_json_beside_the_checkpoint_is_taken_if_it_fits(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_bytes((checkout / "tests" / "data" / "tiny-bytelevel.json").read_bytes())
    fits = write_checkpoint(tmp_path / "fits.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=832), "bf16")
    assert quantize(fits, tmp_path / "fits.rwkv").tokenizer == "huggingface"
    for n_vocab in (800, 2000):
        other = write_checkpoint(tmp_path / "other.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=n_vocab), "bf16")
        with pytest.raises(RwkvError, match="no tokenizer is known") as caught:
            quantize(other, tmp_path / "other.rwkv")
        assert "--tokenizer" in caught.value.hint
    (tmp_path / "tokenizer.json").write_bytes(b"{")
    assert quantize(fits, tmp_path / "none.rwkv", tokenizer="optional").tokenizer == "none"


def test_pile_models_are_told_which_tokenizer_they_need(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "pile.pth", rwkv7_tensors(n_layer=1, n_embd=16, n_vocab=50277), "bf16")
    with pytest.raises(RwkvError, match="50277") as caught:
        quantize(source, tmp_path / "pile.rwkv")
    assert "20B_tokenizer.json" in caught.value.hint


# ------------------------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize("fmt", ["q8", "q6", "q5", "q4"])
def test_the_same_bytes_on_every_instruction_set_and_thread_count(
    checkpoint: Path, tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = [isa.name for isa in engine.isas() if isa.usable]
    assert "scalar" in usable
    found = set()
    for isa in usable:
        monkeypatch.setenv("RWKV_CPU_ISA", isa)
        for threads in (1, 2, 3) if isa == usable[0] else (1,):
            target = tmp_path / f"{isa}-{threads}.rwkv"
            quantize(checkpoint, target, format=fmt, tokenizer="none", threads=threads)
            found.add(target.read_bytes())
    assert len(found) == 1
