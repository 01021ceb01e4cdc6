# SPDX-License-Identifier: Apache-2.0
"""Writes GGUF and ggmf files byte by byte, so that tests can write wrong ones too; and small random models."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

U32, I32, F32_KEY, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
_PACKED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        of, items = content
        return struct.pack("<IQ", of, len(items)) + b"".join(value(of, item) for item in items)
    return struct.pack(_PACKED[kind], content)


def q8_0_blocks(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Random Q8_0 blocks, uint8 [rows, cols / 32 * 34], with ordinary scales."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * cols // 32, 34), dtype=np.uint8)
    blocks[:, :2] = rng.uniform(1e-4, 1e-2, (len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def q4_0_blocks(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Random Q4_0 blocks, uint8 [rows, cols / 32 * 18], with ordinary scales."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * cols // 32, 18), dtype=np.uint8)
    blocks[:, :2] = rng.uniform(1e-3, 1e-1, (len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


@dataclass
class Tensor:
    """As in the file: sizes fastest first, ggml's (or rwkv.cpp's) type number, raw bytes."""

    name: str
    sizes: tuple[int, ...]
    kind: int
    raw: bytes
    offset: int | None = None

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Tensor:
        array = np.ascontiguousarray(array)
        return cls(name, array.shape[::-1], {"f4": F32, "f2": F16}[array.dtype.str[1:]], array.tobytes())


@dataclass
class Gguf:
    keys: list[tuple[str, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_keys: int | None = None

    def set(self, key: str, kind: int, content: Any) -> None:
        self.keys = [entry for entry in self.keys if entry[0] != key] + [(key, kind, content)]

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def to_bytes(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        raw = b"GGUF" + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        for key, kind, content in self.keys:
            raw += string(key) + struct.pack("<I", kind) + value(kind, content)
        data = b""
        for tensor in self.tensors:
            data += bytes(-len(data) % self.alignment)
            offset = len(data) if tensor.offset is None else tensor.offset
            raw += string(tensor.name) + struct.pack(f"<I{len(tensor.sizes)}Q", len(tensor.sizes), *tensor.sizes)
            raw += struct.pack("<IQ", tensor.kind, offset)
            data += tensor.raw
        return raw + bytes(-len(raw) % self.alignment) + data


def ggmf_record(tensor: Tensor) -> bytes:
    name = tensor.name.encode()
    head = struct.pack("<3i", len(tensor.sizes), len(name), tensor.kind)
    return head + struct.pack(f"<{len(tensor.sizes)}i", *tensor.sizes) + name + tensor.raw


def ggmf_bytes(tensors: list[Tensor], n_layer: int, *, version: int = 101, data_type: int = 0) -> bytes:
    emb = next(tensor for tensor in tensors if tensor.name == "emb.weight")
    raw = struct.pack("<6i", 0x67676D66, version, emb.sizes[1], emb.sizes[0], n_layer, data_type)
    return raw + b"".join(ggmf_record(tensor) for tensor in tensors)


# -------------------------------------------------------------------------- models, BlinkDL's names

C, V, F, L, H, N = 128, 48, 96, 2, 2, 64


def _common(rng: np.random.Generator, gated: bool) -> dict[str, np.ndarray]:
    def normal(*shape: int) -> np.ndarray:
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    found = {"emb.weight": normal(V, C), "head.weight": normal(V, C)}
    for name in ("blocks.0.ln0", "ln_out"):
        found |= {f"{name}.weight": 1 + normal(C), f"{name}.bias": normal(C)}
    for i in range(L):
        b = f"blocks.{i}."
        for name in ("ln1", "ln2", "att.ln_x"):
            found |= {f"{b}{name}.weight": 1 + normal(C), f"{b}{name}.bias": normal(C)}
        for name in ("receptance", "key", "value", "output", *(["gate"] if gated else [])):
            found[f"{b}att.{name}.weight"] = normal(C, C)
        found[f"{b}ffn.key.weight"], found[f"{b}ffn.value.weight"] = normal(F, C), normal(C, F)
    return found


def rwkv7(seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of an RWKV-7 with two layers, float32."""
    rng = np.random.default_rng(seed)
    found = _common(rng, gated=False)
    ranks = {"w": 16, "a": 24, "v": 8, "g": 40}
    for i in range(L):
        a = f"blocks.{i}.att."
        for letter in "rwkvag":
            found[f"{a}x_{letter}"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        for letter, rank in ranks.items():
            if letter == "v" and i == 0:
                continue
            if letter != "g":
                found[f"{a}{letter}0"] = rng.standard_normal((1, 1, C)).astype(np.float32)
            found[f"{a}{letter}1"] = (0.1 * rng.standard_normal((C, rank))).astype(np.float32)
            found[f"{a}{letter}2"] = (0.1 * rng.standard_normal((rank, C))).astype(np.float32)
        found |= {f"{a}{name}": rng.uniform(0.5, 1, (1, 1, C)).astype(np.float32) for name in ("k_k", "k_a")}
        found[f"{a}r_k"] = rng.standard_normal((H, N)).astype(np.float32)
        found[f"blocks.{i}.ffn.x_k"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
    return found


def rwkv6(seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of an RWKV-6 with two layers, float32."""
    rng = np.random.default_rng(seed)
    found = _common(rng, gated=True)
    rank, decay_rank = 8, 16
    for i in range(L):
        a, f = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        for letter in "xwkvrg":
            found[f"{a}time_maa_{letter}"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        found[f"{a}time_maa_w1"] = (0.1 * rng.standard_normal((C, 5 * rank))).astype(np.float32)
        found[f"{a}time_maa_w2"] = (0.1 * rng.standard_normal((5, rank, C))).astype(np.float32)
        found[f"{a}time_decay"] = rng.uniform(-6, 1, (1, 1, C)).astype(np.float32)
        found[f"{a}time_decay_w1"] = (0.1 * rng.standard_normal((C, decay_rank))).astype(np.float32)
        found[f"{a}time_decay_w2"] = (0.1 * rng.standard_normal((decay_rank, C))).astype(np.float32)
        found[f"{a}time_faaaa"] = rng.standard_normal((H, N)).astype(np.float32)
        found[f"{f}receptance.weight"] = (0.2 * rng.standard_normal((C, C))).astype(np.float32)
        for letter in "kr":
            found[f"{f}time_maa_{letter}"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
    return found


def rwkv5(version: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of an RWKV-5.0, 5.1 or 5.2 with two layers, float32."""
    rng = np.random.default_rng(seed)
    found = _common(rng, gated=version != "5.0")
    each = (H, N) if version == "5.2" else (H,)
    for i in range(L):
        a, f = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        for letter in "kvr" if version == "5.0" else "kvrg":
            found[f"{a}time_mix_{letter}"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        found[f"{a}time_decay"] = rng.uniform(-6, 1, each).astype(np.float32)
        bonus = "time_faaaa" if version == "5.2" else "time_first"
        found[a + bonus] = rng.uniform(-1, 1, each).astype(np.float32)
        found[f"{f}receptance.weight"] = (0.2 * rng.standard_normal((C, C))).astype(np.float32)
        for letter in "kr":
            found[f"{f}time_mix_{letter}"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
    return found


def rwkv4(seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of an RWKV-4 with two layers, float32."""
    found = {name: array for name, array in rwkv5("5.0", seed).items() if ".att.ln_x." not in name}
    rng = np.random.default_rng(seed + 1)
    for i in range(L):
        for name in ("time_decay", "time_first"):
            found[f"blocks.{i}.att.{name}"] = rng.uniform(-3, 1, C).astype(np.float32)
    return found


# ------------------------------------------------------------------------ as the converters write them

_OUTSIDE = {"emb": "token_embd", "blocks.0.ln0": "token_embd_norm", "ln_out": "output_norm", "head": "output"}
_LAYER = {
    "ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln",
    **{f"att.{x}": f"time_mix_{x}" for x in ("receptance", "key", "value", "gate", "output")},
    **{f"ffn.{x}": f"channel_mix_{x}" for x in ("receptance", "key", "value")},
    **{f"att.{x}{i}": f"time_mix_{x}{i}" for x in "wavg" for i in (0, 1, 2)},
    "att.k_k": "time_mix_k_k", "att.k_a": "time_mix_k_a", "att.r_k": "time_mix_r_k", "ffn.x_k": "channel_mix_lerp_k",
    "att.time_maa_x": "time_mix_lerp_x", "att.time_maa_w1": "time_mix_w1", "att.time_maa_w2": "time_mix_w2",
    "att.time_decay": "time_mix_decay", "att.time_decay_w1": "time_mix_decay_w1",
    "att.time_decay_w2": "time_mix_decay_w2", "att.time_faaaa": "time_mix_first",
    "ffn.time_maa_k": "channel_mix_lerp_k", "ffn.time_maa_r": "channel_mix_lerp_r",
}  # fmt: skip


def gguf_of(model: dict[str, np.ndarray]) -> Gguf:
    """The model as llama.cpp's converter writes it, in float32, without a tokenizer."""
    is_7 = "blocks.0.att.r_k" in model
    letters, prefix, name = ("rwkvag", "x_", "rwkv7") if is_7 else ("wkvrg", "time_maa_", "rwkv6")
    file = Gguf()
    file.keys = [
        ("general.architecture", STRING, name),
        (f"{name}.block_count", U32, L),
        (f"{name}.embedding_length", U32, C),
        (f"{name}.attention.layer_norm_epsilon", F32_KEY, 1e-5),
        (f"{name}.wkv.head_size", U32, N),
    ]
    for key, array in model.items():
        root, _, leaf = key.rpartition(".")
        if root in _OUTSIDE:
            file.tensors.append(Tensor.of(f"{_OUTSIDE[root]}.{leaf}", array))
            continue
        _, layer, rest = key.split(".", 2)
        if rest.startswith(f"att.{prefix}") and rest[-1] in letters and rest[-2] == "_":
            continue
        stem, _, last = rest.rpartition(".")
        if last in ("weight", "bias"):
            target = f"blk.{layer}.{_LAYER[stem]}.{last}"
        else:
            target = f"blk.{layer}.{_LAYER[rest]}.weight"
            if last[-2:] in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
                array = array.swapaxes(-1, -2)
            elif last == "r_k":
                array = array.reshape(-1)
            elif last != "time_faaaa":
                array = array.squeeze()
        file.tensors.append(Tensor.of(target, array))
    for i in range(L):
        fused = np.stack([model[f"blocks.{i}.att.{prefix}{x}"] for x in letters]).reshape(len(letters), 1, 1, C)
        file.tensors.append(Tensor.of(f"blk.{i}.time_mix_lerp_fused.weight", fused))
    return file


def ggmf_of(model: dict[str, np.ndarray]) -> list[Tensor]:
    """The records that rwkv.cpp's converter writes, in float32."""
    tensors = []
    is_7, is_6 = "blocks.0.att.r_k" in model, "blocks.0.att.time_maa_x" in model
    is_5 = not is_7 and not is_6 and "blocks.0.att.ln_x.weight" in model
    for name, array in model.items():
        leaf = name.rpartition(".")[2]
        if is_7 and leaf.startswith("x_") and ".att." in name:
            if leaf == "x_r":
                fused = np.concatenate([model[f"{name[:-1]}{x}"] for x in "rwkvag"])
                tensors.append(Tensor.of(f"{name[:-3]}x_rwkvag", fused))
            continue
        if ".time_" in name:
            array = array.squeeze()
        if leaf == "time_decay":
            if is_6:
                array = array.reshape(H, N, 1)
            elif is_5:
                array = np.exp(-np.exp(array)).reshape(H, -1, 1)
            else:
                array = -np.exp(array)
        elif leaf == "time_first" and is_5:
            array = np.exp(array).reshape(H, -1, 1)
        elif leaf == "time_faaaa":
            array = array.reshape(H, -1, 1)
        elif leaf[-2:] in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
            array = array.swapaxes(-1, -2)
        tensors.append(Tensor.of(name, array))
    return tensors
