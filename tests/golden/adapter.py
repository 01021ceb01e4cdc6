# SPDX-License-Identifier: Apache-2.0
"""What the golden data's scorer (check_goldens.py) asks of an implementation."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_cpu import Model
from rwkv_cpu.quantize import quantize

if TYPE_CHECKING:
    import numpy as np


@functools.lru_cache(maxsize=2)
def exact(path: str) -> Model:
    """The checkpoint in f32, without a tokenizer."""
    target = Path(tempfile.mkdtemp()) / "golden.rwkv"
    quantize(path, target, format="f32", tokenizer="none")
    return Model(target)


def logits(path: str, tokens: list[int]) -> np.ndarray:
    """f32 [T, V] after every token from the initial state."""
    return exact(path).forward(tokens, logits="all")[0]


def final_state(path: str, tokens: list[int]) -> dict[str, np.ndarray]:
    """The state in the golden data's layout: wkv is [layer, head, value channel, key channel] there."""
    parts = dict(exact(path).forward(tokens, logits="none")[1].parts())
    named = {"att_x": parts.pop("att_shift"), "ffn_x": parts.pop("ffn_shift")}
    if "wkv" in parts:
        named["wkv"] = parts.pop("wkv").transpose(0, 1, 3, 2)
    return named | parts  # RWKV-4: aa, bb, pp


def load(path: str) -> np.ndarray:
    """Load a possibly damaged checkpoint and run one token."""
    return exact(path).forward([1], logits="all")[0]


def logits_with(
    path: str, tokens: list[int], state_path: str | None, lora_path: str | None, lora_alpha: float | None
) -> np.ndarray:
    """f32 [T, V] with a tuned starting state or a merged adapter."""
    if lora_path is None:
        model = exact(path)
    else:
        target = Path(tempfile.mkdtemp()) / "adapted.rwkv"
        quantize(path, target, format="f32", tokenizer="none", lora=lora_path, lora_alpha=lora_alpha)
        model = Model(target)
    state = None if state_path is None else model.load_state(state_path)
    return model.forward(tokens, state, logits="all")[0]


def encode_world(vocabulary: str, data: str | bytes) -> list[int]:
    """Ids by the World tokenizer."""
    return _tokenizer("world", vocabulary).encode(data)


def encode_sentencepiece(vocabulary: str, data: str | bytes) -> list[int]:
    """Ids by a sentencepiece model."""
    return _tokenizer("sentencepiece", vocabulary).encode(data)


def encode_huggingface(vocabulary: str, data: str | bytes) -> list[int]:
    """Ids by a tokenizer.json."""
    return _tokenizer("huggingface", vocabulary).encode(data)


@functools.lru_cache(maxsize=2)
def _tokenizer(kind: str, path: str):
    from rwkv_cpu.tokenizer import from_bytes

    return from_bytes(kind, Path(path).read_bytes())
