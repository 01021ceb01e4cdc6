# SPDX-License-Identifier: Apache-2.0
"""llama.cpp reads what export() writes and says the same.

Needs llama-cpp-python here or in the interpreter that RWKV_CPU_PEER_PYTHON names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkv_cpu import Model
from rwkv_cpu.export import export
from rwkv_cpu.quantize import quantize

pytestmark = pytest.mark.slow

PROMPT = [34, 105, 110, 7, 200, 33]
COUNT = 24


@pytest.fixture(scope="module")
def peer() -> str:
    """An interpreter with llama-cpp-python."""
    named = os.environ.get("RWKV_CPU_PEER_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python, here or in the interpreter named by RWKV_CPU_PEER_PYTHON")
    return sys.executable


def by_llama_cpp(peer: str, path: Path, text: str = "") -> dict[str, Any]:
    script = Path(__file__).with_name("llama_cpp_greedy.py")
    command = [peer, str(script), str(path), json.dumps(PROMPT), text, str(COUNT)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def by_us(path: Path) -> tuple[np.ndarray, list[int], list[float]]:
    """Logits after the prompt, greedy ids, and by how much each led."""
    with Model(path) as model:
        logits, state = model.forward(PROMPT)
        first, ids, leads = logits, [], []
        for _ in range(COUNT):
            best = np.sort(logits)[-2:]
            ids.append(int(logits.argmax()))
            leads.append(float(best[1] - best[0]))
            logits, state = model.forward(ids[-1:], state)
    return first, ids, leads


@pytest.mark.parametrize(
    "name", ["v7-bf16.pth", "v6-fp16.pth", "v7-bf16-q8_0.gguf", "v7-bf16-q4_0.gguf", "v6-fp16-q8_0.gguf", "v6-fp16.bin"]
)
def test_in_f32_llama_cpp_computes_the_same(shared, tmp_path, peer, name):
    source = shared / "goldens" / "models" / name
    quantize(source, tmp_path / "model.rwkv", format="f32", tokenizer="optional")
    report = export(tmp_path / "model.rwkv", tmp_path / "model.gguf")
    assert report.exact
    world = report.tokenizer == "world"
    found = by_llama_cpp(peer, tmp_path / "model.gguf", "Hello, World!\n\n" if world else "")
    logits, ids, leads = by_us(tmp_path / "model.rwkv")
    np.testing.assert_allclose(logits, found["logits"], atol=1e-3)
    assert min(leads) > 2e-3
    assert ids == found["ids"]
    if world:
        with Model(tmp_path / "model.rwkv") as model:
            assert model.tokenizer.encode("Hello, World!\n\n") == found["text_ids"]


@pytest.mark.parametrize("name", ["v7-bf16.pth", "v6-fp16-q8_0.gguf"])
def test_blocks_are_read_as_we_read_them(shared, tmp_path, peer, name):
    """Activations are rounded to int8 on both sides, each in its own way: the difference is theirs."""
    quantize(shared / "goldens" / "models" / name, tmp_path / "model.rwkv", format="q8", tokenizer="optional")
    assert export(tmp_path / "model.rwkv", tmp_path / "model.gguf").exact
    found = by_llama_cpp(peer, tmp_path / "model.gguf")
    logits, ids, leads = by_us(tmp_path / "model.rwkv")
    difference = float(np.abs(logits - np.array(found["logits"])).max())
    assert difference < 0.5
    same = next((i for i, (a, b) in enumerate(zip(ids, found["ids"], strict=True)) if a != b), COUNT)
    assert same == COUNT or leads[same] < 1.0


def test_the_demo_model_says_the_same(demo_path, tmp_path, peer):
    assert export(demo_path, tmp_path / "demo.gguf").exact
    text = "User: Tell me a story.\n\nAssistant: Once upon a time"
    found = by_llama_cpp(peer, tmp_path / "demo.gguf", text)
    _, ids, _ = by_us(demo_path)
    assert ids == found["ids"]
    with Model(demo_path) as model:
        assert model.tokenizer.encode(text) == found["text_ids"]
        assert model.tokenizer.decode(ids) == found["text"]
