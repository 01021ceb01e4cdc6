# SPDX-License-Identifier: Apache-2.0
"""Calibrated quantisation: closer to the original, to the size asked for, always the same bytes, clear errors."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from rwkv_cpu.cancel import CancelToken
from rwkv_cpu.errors import ArgumentError, Cancelled, ModelNotFoundError, RwkvError
from rwkv_cpu.memory import human_bytes
from rwkv_cpu.quantize import calibration, quantize
from rwkv_cpu.quantize.error_feedback import choose, factor
from rwkv_cpu.softmax import kl_divergence
from tests.pth_writer import rwkv7_tensors, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = {"q8": engine.FORMAT_Q8, "q6": engine.FORMAT_Q6, "q5": engine.FORMAT_Q5, "q4": engine.FORMAT_Q4}


@pytest.fixture(autouse=True)
def few_samples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "shared" in request.fixturenames:
        return  # a trained model: calibrated as users do
    monkeypatch.setattr(calibration, "SAMPLES", 8)
    monkeypatch.setattr(calibration, "SAMPLE_TOKENS", 96)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny.pth", rwkv7_tensors(n_embd=128, n_ffn=320, n_vocab=832), "bf16")


def calibrate(checkpoint: Path, target: Path, **options) -> None:
    quantize(checkpoint, target, format="q4", calibration="default", tokenizer="none", **options)


def info_of(fmt: int, rows: int, cols: int) -> engine.TensorInfo:
    return engine.TensorInfo("x.weight", engine.KIND_MATRIX, fmt, 0, (rows, cols), False, rows, cols)


def all_rows(function, n: int) -> None:
    function(0, n)


@pytest.mark.parametrize("name", FORMATS)
def test_feedback_leaves_less_error_of_the_product(name: str) -> None:
    """Against the same search without feedback, for inputs that are correlated as a model's are."""
    from rwkv_cpu.quantize.calibrated import BOOK

    random = np.random.default_rng(1)
    rows, cols = 48, 320
    weights = random.standard_normal((rows, cols)).astype(np.float32)
    x = random.standard_normal((2000, 40)) @ random.standard_normal((40, cols)) + random.standard_normal((2000, cols))
    hessian = (x.T @ x / len(x)).astype(np.float32)
    book = BOOK if name == "q4" else None
    info = info_of(FORMATS[name], rows, cols)
    costs = {}
    for kind, matrix in (("feedback", hessian.copy()), ("plain", np.diag(hessian.diagonal()).copy())):
        chosen = choose(info, weights, factor(matrix), book, all_rows)
        entries = chosen.integers if book is None else book[chosen.integers.astype(int) + 8]
        stored = entries * np.repeat(chosen.scales.astype(np.float32), 32, axis=1)
        np.testing.assert_allclose(weights - stored, chosen.errors, atol=1e-5)
        costs[kind] = float(((chosen.errors @ hessian) * chosen.errors).sum())
    assert costs["feedback"] < 0.6 * costs["plain"]


def test_a_singular_hessian_is_damped() -> None:
    hessian = np.zeros((64, 64), np.float32)
    hessian[:3, :3] = 1
    found = factor(hessian)
    assert np.isfinite(found.upper).all()
    assert (found.importance > 0).all()
    found = factor(np.zeros((64, 64), np.float32))
    assert np.isfinite(found.upper).all()


def logits_of(path: Path) -> np.ndarray:
    with Model(path) as model:
        return model.forward(np.arange(1, 300) % model.n_vocab, logits="all")[0]


def test_the_trained_model_is_closer_when_calibrated(shared: Path, tmp_path: Path) -> None:
    """On text of the model's own kind that calibration did not see: less than two thirds of the divergence."""
    source = shared / "demo-model" / "pip-demo-rwkv7.pth"
    text = (shared / "demo-model" / "heldout.txt").read_text("utf-8")[:8000].replace("<|eod|>\n", "")
    quantize(source, tmp_path / "f32.rwkv", format="f32")
    rows = {}
    for name, given in (("f32", None), ("plain", None), ("calibrated", "default")):
        path = tmp_path / f"{name}.rwkv"
        if name != "f32":
            report = quantize(source, path, format="q4", calibration=given)
            assert report.calibration == given
        with Model(path) as model:
            rows[name] = model.forward(model.tokenizer.encode(text), logits="all")[0]
    assert (
        kl_divergence(rows["f32"], rows["calibrated"]).mean() < 0.67 * kl_divergence(rows["f32"], rows["plain"]).mean()
    )


def test_the_same_bytes_each_time_and_without_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    found = set()
    for threads in (1, 2):
        target = tmp_path / f"{threads}.rwkv"
        calibrate(checkpoint, target, threads=threads)
        found.add(target.read_bytes())
    assert len(found) == 1
    assert sorted(os.listdir(tmp_path)) == ["1.rwkv", "2.rwkv", "tiny.pth"]  # noqa: PTH208


def test_moments_in_several_passes_are_the_same(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(checkpoint, tmp_path / "one.rwkv")
    monkeypatch.setattr("rwkv_cpu.quantize.calibrated._MIN_BUDGET_BYTES", 0)
    monkeypatch.setattr("rwkv_cpu.quantize.calibrated.available_bytes", lambda: 1 << 20)
    passes: list[int] = []
    hessians = calibration.Reference.hessians

    def count(self, *arguments):
        passes.append(1)
        return hessians(self, *arguments)

    monkeypatch.setattr(calibration.Reference, "hessians", count)
    token = CancelToken()
    calibrate(checkpoint, tmp_path / "several.rwkv", cancel=token)
    assert len(passes) > 2
    assert not token.cancelled
    assert (tmp_path / "several.rwkv").read_bytes() == (tmp_path / "one.rwkv").read_bytes()


@pytest.mark.parametrize("bits", [4.5, 5.0, 6.3, 8.5])
def test_bits_are_reached_and_not_passed(checkpoint: Path, tmp_path: Path, bits: float) -> None:
    report = quantize(checkpoint, tmp_path / "m.rwkv", bits=bits, tokenizer="none")
    assert bits - 0.35 < report.bits_per_weight < bits + 0.06  # tiny tensors: steps are coarse, padding counts
    assert report.format == "mixed"
    assert np.isfinite(logits_of(tmp_path / "m.rwkv")).all()


def test_size_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    small = quantize(checkpoint, tmp_path / "a.rwkv", bits=4.5, tokenizer="none").target_bytes
    large = quantize(checkpoint, tmp_path / "b.rwkv", format="q8", tokenizer="none").target_bytes
    wanted = (small + large) // 2
    report = quantize(checkpoint, tmp_path / "c.rwkv", size_bytes=wanted, tokenizer="none")
    assert 0.9 * wanted < report.target_bytes <= wanted
    assert (tmp_path / "c.rwkv").stat().st_size == report.target_bytes


@pytest.mark.parametrize("size", [1, 1000])
def test_an_impossible_size_is_named_as_it_was_asked(checkpoint: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(ArgumentError, match=f"as small as {human_bytes(size)}: "):
        quantize(checkpoint, tmp_path / "m.rwkv", size_bytes=size, tokenizer="none")


@pytest.mark.parametrize("arguments", [{"bits": 4.2}, {"size_bytes": 50_000}])
def test_a_size_that_is_impossible(checkpoint: Path, tmp_path: Path, arguments: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="cannot be made as small") as caught:
        quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none", **arguments)  # type: ignore[arg-type]
    assert caught.value.hint
    assert os.listdir(tmp_path) == ["tiny.pth"]  # noqa: PTH208


def test_contradictions_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for arguments in ({"format": "q4", "bits": 5}, {"bits": 5, "size_bytes": 10**9}):
        with pytest.raises(ArgumentError, match="three ways"):
            quantize(checkpoint, tmp_path / "m.rwkv", tokenizer="none", **arguments)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="needs no calibration"):
        quantize(checkpoint, tmp_path / "m.rwkv", format="f16", calibration="default", tokenizer="none")


# --------------------------------------------------------------------------------- calibration texts


def test_texts_that_cannot_be_used(shared: Path, tmp_path: Path) -> None:
    source, target = shared / "demo-model" / "pip-demo-rwkv7.pth", tmp_path / "m.rwkv"
    with pytest.raises(ModelNotFoundError):
        quantize(source, target, format="q4", calibration=tmp_path / "missing.txt")
    (tmp_path / "t.txt").write_text("Too short.")
    with pytest.raises(ArgumentError, match=r"t\.txt: \d+ tokens are too few"):
        quantize(source, target, format="q4", calibration=tmp_path / "t.txt")
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe" * 9999)
    with pytest.raises(ArgumentError, match="not UTF-8"):
        quantize(source, target, format="q4", calibration=tmp_path / "t.txt")
    assert os.listdir(tmp_path) == ["t.txt"]  # noqa: PTH208


def test_another_models_tokenizer_is_noticed(shared: Path, tmp_path: Path) -> None:
    source, foreign = shared / "demo-model" / "pip-demo-rwkv7.pth", shared / "code-model" / "code-rwkv7.model"
    (tmp_path / "t.txt").write_text(calibration.default_text(), "utf-8")
    with pytest.raises(ArgumentError, match="not trained with this tokenizer") as caught:
        quantize(source, tmp_path / "m.rwkv", format="q4", calibration=tmp_path / "t.txt", tokenizer=foreign)
    assert "--tokenizer" in caught.value.hint
    assert os.listdir(tmp_path) == ["t.txt"]  # noqa: PTH208


def test_the_built_in_text_is_long_enough_and_says_whose_it_is() -> None:
    text = calibration.default_text()
    assert 30_000 < len(text.encode()) < 300_000
    assert "Apache-2.0" in text[:600]


# ------------------------------------------------------------------------------ what goes wrong on the way


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_cancelled_at_any_time_leaves_nothing(
    checkpoint: Path, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkv_cpu.quantize.workers._PROGRESS_SECONDS", 0.0)  # a call for every step
    token = CancelToken()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done >= share * total:
            token.cancel()

    with pytest.raises(Cancelled):
        calibrate(checkpoint, tmp_path / "m.rwkv", on_progress=progress, cancel=token)
    assert seen == sorted(seen)
    assert os.listdir(tmp_path) == ["tiny.pth"]  # noqa: PTH208


def test_progress_knows_of_calibration_from_the_beginning(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkv_cpu.quantize.workers._PROGRESS_SECONDS", 0.0)
    shares: list[float] = []
    calibrate(checkpoint, tmp_path / "m.rwkv", on_progress=lambda done, total: shares.append(done / total))
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == 1.0


@pytest.mark.parametrize("after", [0, 5, 75, 100])
def test_a_full_disk_is_said_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Before the first byte, while the reference is written, and in the file itself."""
    from rwkv_cpu import modelfile

    write, calls = modelfile._write_at, [0]

    def fail(fd: int, data: memoryview, offset: int) -> int:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(modelfile, "_write_at", fail)
    with pytest.raises(RwkvError, match=r"[Nn]o space|full") as caught:
        calibrate(checkpoint, tmp_path / "m.rwkv")
    assert caught.value.hint
    assert calls[0] > after
    assert os.listdir(tmp_path) == ["tiny.pth"]  # noqa: PTH208
