# SPDX-License-Identifier: Apache-2.0
"""Continuations of two models: what is greedy, where they part, and the divergence on the way."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from rwkv_cpu import Model
from rwkv_cpu.errors import ArgumentError, Cancelled
from rwkv_cpu.evaluation.continuations import compare_continuations
from rwkv_cpu.loading import bundled_model
from rwkv_cpu.terminal import comparison
from tests.pth_writer import rwkv7_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "User: What is the sun?\n\nAssistant:"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Model]]:
    """The demonstration model, and one of the same vocabulary that knows nothing."""
    from rwkv_cpu.quantize import quantize

    folder = tmp_path_factory.mktemp("continuations")
    with Model(bundled_model()) as demo:
        (folder / "tokenizer.model").write_bytes(demo.tokenizer.to_bytes())
        source = write_checkpoint(folder / "m.pth", rwkv7_tensors(n_embd=64, n_ffn=128, n_vocab=demo.n_vocab))
        quantize(source, folder / "other.rwkv", tokenizer=folder / "tokenizer.model")
        with Model(folder / "other.rwkv") as other:
            yield demo, other


def test_a_model_beside_itself(models: tuple[Model, Model]) -> None:
    demo, _ = models
    found = compare_continuations(demo, demo, PROMPT, tokens=12)
    assert found.divergence is None
    assert found.top1 == 1
    assert found.kl_max == 0
    assert [token.token for token in found.tokens] == list(found.other_ids)
    reply = demo.generate(PROMPT, temperature=0, max_tokens=12, stop=())
    assert "".join(token.text for token in found.tokens).startswith(reply.text.rstrip()[:20])


def test_two_models_by_the_definition(models: tuple[Model, Model]) -> None:
    first, second = models
    found = compare_continuations(first, second, PROMPT, tokens=8)
    ids = first.tokenizer.encode(PROMPT)
    own, other = [token.token for token in found.tokens], list(found.other_ids)
    text = [*ids, *own]
    rows = [model.forward(text[:-1], logits="all")[0][len(ids) - 1 :].astype(np.float64) for model in models]
    assert own == rows[0].argmax(1).tolist()
    logs = [row - np.log(np.exp(row).sum(1, keepdims=True)) for row in rows]
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1)
    np.testing.assert_allclose([token.kl for token in found.tokens], kl, rtol=1e-4, atol=1e-6)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.divergence == next(i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    parted = found.tokens[found.divergence]
    assert parted.first[0].token == own[found.divergence]
    assert parted.second[0].token == other[found.divergence]
    assert parted.first[0].probability == pytest.approx(float(np.exp(logs[0][found.divergence].max())), rel=1e-4)
    assert len(parted.first) == len(parted.second) == 3


def test_different_vocabularies_are_refused(models: tuple[Model, Model], tmp_path: Path) -> None:
    from rwkv_cpu.quantize import quantize

    source = write_checkpoint(tmp_path / "m.pth", rwkv7_tensors(n_embd=64, n_ffn=128, n_vocab=320))
    quantize(source, tmp_path / "small.rwkv", tokenizer="none")
    with Model(tmp_path / "small.rwkv") as small, pytest.raises(ArgumentError, match=r"small\.rwkv of 320") as caught:
        compare_continuations(models[0], small, "x")
    assert caught.value.hint
    with pytest.raises(ArgumentError, match="at least 1"):
        compare_continuations(*models, "x", tokens=0)


def test_it_can_be_cancelled(models: tuple[Model, Model]) -> None:
    from rwkv_cpu.cancel import CancelToken

    token = CancelToken()
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 4:
            token.cancel()

    with pytest.raises(Cancelled):
        compare_continuations(*models, PROMPT, tokens=50, cancel=token, on_progress=progress)
    assert seen == sorted(seen)


def test_plain_text_marks_where_they_part(models: tuple[Model, Model]) -> None:
    found = compare_continuations(*models, PROMPT, tokens=8)
    text = comparison.as_text([found, found], ("a", "b"))
    assert text.count("▶") == 4
    assert f"they part at token {(found.divergence or 0) + 1}" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("colourless", [False, True])
def test_levels_can_be_told_apart_without_colours(models: tuple[Model, Model], colourless: bool) -> None:
    """Every level of the legend is drawn in its own way; without colours by lines and weight alone."""
    found = compare_continuations(*models, PROMPT, tokens=20)
    levels = comparison._COLOURLESS if colourless else comparison._LEVELS
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, no_color=colourless)
    console.print(comparison._drawn(found, ("a.rwkv", "b.rwkv"), console.width, levels))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    codes = re.findall(r"\x1b\[([\d;]+)mfrom ", shown)
    assert len(codes) == len(set(codes)) == len(levels) - 1
    assert any(re.search(r"\b3[1-7]\b", code) for code in codes) != colourless
    assert f"and at {sum(bool(token.first) for token in found.tokens) - 8} more tokens" in shown
