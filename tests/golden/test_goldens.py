# SPDX-License-Identifier: Apache-2.0
"""Against the golden data: logits, states and greedy continuations by a float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_cpu import Model, engine
from rwkv_cpu.quantize import quantize

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "goldens"
ISAS = [isa.name for isa in engine.isas() if isa.usable]
TOLERANCE, TOLERANCE_KL = 2e-3, 1e-5  # of goldens/index.json


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl_divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference‖other) of each row, nats."""
    a, b = log_softmax(reference), log_softmax(other)
    return (np.exp(a) * (a - b)).sum(-1)


@pytest.fixture(scope="module")
def golden_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("golden") / "v7.rwkv"
    quantize(DATA / "v7-bf16.pth", target, format="f32", tokenizer="none")
    return target


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_rwkv7_equals_the_reference(golden_f32: Path, isa: str, prompt: int) -> None:
    golden = {name[3:]: value for name, value in np.load(DATA / "v7-bf16.pth.npz").items() if name[:3] == f"p{prompt}_"}
    with Model(golden_f32, isa=isa) as model:
        logits, state = model.forward(golden["tokens"], logits="all")
        got = logits[golden["positions"]]
        assert np.abs(got - golden["logits"]).max() <= TOLERANCE
        assert kl_divergence(golden["logits"], got).max() <= TOLERANCE_KL
        if "state_att_x" in golden:
            parts = state.parts()
            for name, value in (
                ("att_x", parts["att_shift"]),
                ("ffn_x", parts["ffn_shift"]),
                ("wkv", parts["wkv"].transpose(0, 1, 3, 2)),
            ):
                expected = golden[f"state_{name}"]
                assert np.abs(value - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())
        row = logits[-1]
        for token, margin in zip(golden["greedy"], golden["greedy_margin"], strict=True):
            if margin < 2 * TOLERANCE:
                break  # from here on either choice is right
            assert row.argmax() == token
            row = model.advance([int(token)], state)


SCORED = ["--only", ".pth", "--impl", "adapter:logits", "--state", "adapter:final_state"]


@pytest.mark.parametrize("isa", ISAS)
def test_the_scorer_of_the_golden_data_passes(shared: Path, isa: str) -> None:
    assert "PASS: 7/7 cases" in run_scorer(shared, SCORED, RWKV_CPU_ISA=isa)


def test_every_hostile_checkpoint_is_refused(shared: Path) -> None:
    """Code is not run, time and memory stay bounded: the scorer watches."""
    lines = [line for line in run_scorer(shared, ["--bad", "adapter:load"]).splitlines() if "bad/" in line]
    assert len(lines) >= 43
    assert [line for line in lines if not line.startswith("PASS")] == []


def run_scorer(shared: Path, arguments: list[str], **environment: str) -> str:
    goldens = shared / "goldens"
    run = subprocess.run(
        [sys.executable, goldens / "check_goldens.py", "--goldens", goldens, *arguments],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={**os.environ, **environment},
        timeout=600,
        check=False,
    )
    assert run.stdout.count("\n") > 1, run.stderr
    return run.stdout


# --------------------------------------------------------------------------------- quality of formats


def test_q8_stays_close_to_f32_on_held_out_text(shared: Path, tmp_path: Path) -> None:
    """Top-1 agreement ≥ 99.7 %, mean KL ≤ 4e-5 nats, perplexity within 0.05 %, document by document."""
    source = shared / "demo-model" / "pip-demo-rwkv7.pth"
    for fmt in ("f32", "q8"):
        quantize(source, tmp_path / f"{fmt}.rwkv", format=fmt)
    text = (shared / "demo-model" / "heldout.txt").read_text("utf-8")
    documents = [document for document in text.split("<|eod|>\n") if document.strip()]
    divergence, agree, losses = [], [], []
    with Model(tmp_path / "f32.rwkv") as exact, Model(tmp_path / "q8.rwkv") as q8:
        for document in documents:
            ids = np.array([0, *exact.tokenizer.encode(document), 0])
            reference, got = (model.forward(ids[:-1], logits="all")[0] for model in (exact, q8))
            divergence.append(kl_divergence(reference, got))
            agree.append(reference.argmax(-1) == got.argmax(-1))
            at = np.arange(len(ids) - 1)
            losses.append([-log_softmax(rows)[at, ids[1:]] for rows in (reference, got)])
    perplexity = np.exp(np.concatenate(losses, axis=1).mean(axis=1))
    print(
        f"KL {np.concatenate(divergence).mean():.3g}, top-1 {np.concatenate(agree).mean():.4%},"
        f" perplexity {perplexity[0]:.5f} → {perplexity[1]:.5f}"
    )
    assert abs(perplexity[0] - 1.7266) < 0.002  # the model card's figure
    assert np.concatenate(divergence).mean() <= 4e-5
    assert np.concatenate(agree).mean() >= 0.997
    assert abs(perplexity[1] / perplexity[0] - 1) <= 5e-4


@pytest.mark.parametrize(("fmt", "most"), [("q6", 2.0e-4), ("q5", 8.0e-4), ("q4", 2.6e-3)])
def test_fewer_bits_stay_close_too(shared: Path, tmp_path: Path, fmt: str, most: float) -> None:
    """Mean KL divergence in nats over the first documents."""
    source = shared / "demo-model" / "pip-demo-rwkv7.pth"
    for name in ("f32", fmt):
        quantize(source, tmp_path / f"{name}.rwkv", format=name)
    text = (shared / "demo-model" / "heldout.txt").read_text("utf-8")
    divergence = []
    with Model(tmp_path / "f32.rwkv") as exact, Model(tmp_path / f"{fmt}.rwkv") as fewer:
        for document in [document for document in text.split("<|eod|>\n") if document.strip()][:12]:
            ids = [0, *exact.tokenizer.encode(document), 0]
            reference, got = (model.forward(ids[:-1], logits="all")[0] for model in (exact, fewer))
            divergence.append(kl_divergence(reference, got))
    print(f"{fmt}: KL {np.concatenate(divergence).mean():.3g}")
    assert np.concatenate(divergence).mean() <= most
