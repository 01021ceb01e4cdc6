# SPDX-License-Identifier: Apache-2.0
"""Every public bad checkpoint, converted: an error that names the reason, and no file left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.errors import FormatError, NonFiniteError, RwkvError, ShapeError, UnsupportedModelError
from rwkv_cpu.quantize import quantize

if TYPE_CHECKING:
    from pathlib import Path

CASES: dict[str, tuple[type[RwkvError], str]] = {
    "truncated-60pct": (FormatError, "cut short"),
    "truncated-legacy": (FormatError, "cut short"),
    "evil-os-system": (FormatError, r"posix\.system"),
    "evil-os-system2": (FormatError, r"os\.system"),
    "evil-subprocess-legacy": (FormatError, r"subprocess\.getoutput"),
    "evil-numpy-global": (FormatError, r"numpy\.load"),
    "evil-torch-global": (FormatError, r"torch\.load"),
    "zip-declared-2e40": (FormatError, "4294967280"),
    "storage-numel-2e45": (FormatError, r"emb\.weight"),
    "zip-path-traversal": (RwkvError, "."),
    "zip-no-pickle": (FormatError, r"data\.pkl"),
    "pickle-long4-2e31": (FormatError, "2147483647"),
    "full-stride-out-of-range": (FormatError, r"blocks\.0\.ffn\.key\.weight"),
    "text": (FormatError, "text file"),
    "empty": (FormatError, "empty"),
    "directory": (FormatError, "directory"),
    "int64-weights": (UnsupportedModelError, r"\.weight is stored as i64"),
    "wrong-shape": (ShapeError, r"att\.key\.weight is \[\d+, \d+\], expected \[\d+, \d+\]"),
    "missing-tensor": (ShapeError, r"blocks\.1\.att\.output\.weight is missing"),
    "inf-weight": (NonFiniteError, "holds Inf"),
}


@pytest.mark.parametrize("name", CASES)
def test_public_bad_checkpoints_cannot_be_converted(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error, said = CASES[name]
    with pytest.raises(error, match=said) as caught:
        quantize(shared / "goldens" / "bad" / f"{name}.pth", tmp_path / "out.rwkv", tokenizer="none")
    assert f"{name}.pth" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_public_bad_checkpoint_is_listed(shared: Path) -> None:
    found = {path.stem for path in (shared / "goldens" / "bad").glob("*.pth")}
    assert found - {"control-good"} == set(CASES)


@pytest.mark.parametrize("preset", ["q8", "q6", "q5", "q4", "f16", "f32"])
@pytest.mark.parametrize("suffix", ["pth", "st"])
def test_the_public_control_runs(shared: Path, tmp_path: Path, preset: str, suffix: str) -> None:
    """It is what the damaged files were made from."""
    source, target = shared / "goldens" / "bad" / f"control-good.{suffix}", tmp_path / "out.rwkv"
    quantize(source, target, format=preset, tokenizer="none")
    with Model(target) as model:
        assert np.isfinite(model.forward([1, 2, 3])[0]).all()
