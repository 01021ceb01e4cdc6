# SPDX-License-Identifier: Apache-2.0
"""Small valid files of every kind, made on the spot; with the golden data beside the checkout, its files too."""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.pth_writer import Archive, bf16, rwkv7_tensors

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = CHECKOUT / "tests" / "data"
GOLDENS = CHECKOUT.parent / "shared" / "goldens"
_MAX_SEED_BYTES = 1 << 20
_GGUF_U32, _GGUF_F32, _GGUF_STRING, _GGUF_ARRAY, _GGUF_I32 = 4, 6, 8, 9, 5
_F32, _F16, _Q8_0 = 0, 1, 8

Tensors = dict[str, np.ndarray[Any, Any]]


@lru_cache(maxsize=1)
def tiny() -> Tensors:
    """A complete RWKV-7 of 320 tokens, width 32."""
    return rwkv7_tensors(n_layer=2, n_embd=32, n_vocab=320, head_size=16, n_ffn=64, rank=8)


def goldens(*patterns: str) -> list[bytes]:
    """Golden files by glob pattern, if they are there and not too large to mutate often."""
    found = [path for pattern in patterns for path in sorted(GOLDENS.glob(pattern))]
    return [path.read_bytes() for path in found if path.is_file() and path.stat().st_size <= _MAX_SEED_BYTES]


def pth() -> list[bytes]:
    archive = Archive()
    for name, array in tiny().items():
        archive.add(name, bf16(array))
    return [archive.zip_bytes(), archive.legacy_bytes(), *goldens("bad/control-good.pth", "models/v[46]*.pth")]


def adapters() -> list[bytes]:
    """State-tuning files and LoRAs of the tiny model."""
    state: Tensors = {}
    lora: Tensors = {}
    for layer in range(2):
        state[f"blocks.{layer}.att.time_state"] = bf16(np.ones((2, 16, 16), np.float32))
        lora[f"blocks.{layer}.att.key.lora_A"] = bf16(np.ones((4, 32), np.float32))
        lora[f"blocks.{layer}.att.key.lora_B"] = bf16(np.ones((32, 4), np.float32))
    found = []
    for tensors in (state, lora):
        archive = Archive()
        for name, array in tensors.items():
            archive.add(name, array)
        found += [archive.zip_bytes(), safetensors_file(tensors)]
    return [*found, *goldens("adapters/*.pth")]


def safetensors_file(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    body = b""
    for name, array in tensors.items():
        dtype = {"f4": "F32", "f2": "F16", "u2": "BF16"}[array.dtype.str[1:]]
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + body


def safetensors() -> list[bytes]:
    half = {name: bf16(array) for name, array in tiny().items()}
    return [safetensors_file(half), *goldens("bad/control-good.st", "models/*.safetensors", "models/v6*.st")]


def directory() -> list[bytes]:
    """A Hugging Face directory (two shards, an index, config, tokenizer), as a zip file of its members."""
    names = list(tiny())
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    members = {
        shard: safetensors_file({name: bf16(tiny()[name]) for name in members}) for shard, members in shards.items()
    }
    index = {name: shard for shard, members in shards.items() for name in members}
    members["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": index}).encode()
    members["config.json"] = json.dumps({"model_type": "rwkv7", "hidden_size": 32, "num_hidden_layers": 2}).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return [out.getvalue()]


# ------------------------------------------------------------------------------------- gguf and ggmf


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf_value(value: Any) -> bytes:
    match value:
        case int():
            return struct.pack("<II", _GGUF_U32, value)
        case float():
            return struct.pack("<If", _GGUF_F32, value)
        case str():
            return struct.pack("<I", _GGUF_STRING) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", _GGUF_ARRAY, _GGUF_STRING, len(value)) + b"".join(map(_text, value))
    return struct.pack("<IIQ", _GGUF_ARRAY, _GGUF_I32, len(value)) + struct.pack(f"<{len(value)}i", *value)


def gguf_header(about: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], int]]) -> tuple[bytes, int]:
    """*tensors*: name → (type, shape as numpy has it, bytes). Returns what stands before the data, and their size."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(about))
    out += b"".join(_text(key) + _gguf_value(value) for key, value in about.items())
    offset = 0
    for name, (kind, shape, size_bytes) in tensors.items():
        out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)
        offset += size_bytes + -size_bytes % 32
    return out + b"\0" * (-len(out) % 32), offset


def q8_0(array: np.ndarray[Any, Any]) -> bytes:
    blocks = np.ascontiguousarray(array, np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = np.round(blocks / scale).astype(np.int8).view(np.uint8)
    return out.tobytes()


_GGUF_NAMES = {
    "emb.weight": "token_embd.weight", "head.weight": "output.weight", "blocks.0.ln0": "token_embd_norm",
    "ln_out": "output_norm", "blocks.": "blk.", ".ln1": ".attn_norm", ".ln2": ".attn_norm_2",
    ".att.ln_x": ".time_mix_ln", ".att.": ".time_mix_", ".ffn.key": ".channel_mix_key",
    ".ffn.value": ".channel_mix_value", ".ffn.x_k": ".channel_mix_lerp_k",
}  # fmt: skip


def in_gguf(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape that an RWKV-7 tensor has in a GGUF file; None: it is part of the one for x_r."""
    target = name
    for old, new in _GGUF_NAMES.items():
        target = target.replace(old, new)
    target += "" if target.endswith((".weight", ".bias")) else ".weight"
    if "att.x_" in name:
        return (target.replace("x_r", "lerp_fused"), (6, 1, 1, shape[-1])) if name.endswith("x_r") else None
    if is_turned(name):
        return target, shape[::-1]
    return target, shape if name.endswith(".weight") else (int(np.prod(shape)),)


def is_turned(name: str) -> bool:
    """Whether ggml's formats store the matrix transposed."""
    return ".att." in name and name.endswith(("1", "2"))


def values_in_ggml(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A tiny model's tensor as ggml's formats hold it, in the given shape."""
    if name.endswith("att.x_r"):
        return np.stack([tiny()[name[:-1] + letter].ravel() for letter in "rwkvag"]).reshape(shape)
    return (tiny()[name].T if is_turned(name) else tiny()[name]).reshape(shape)


def gguf_about(n_layer: int, n_embd: int, n_ffn: int, head_size: int, n_vocab: int) -> dict[str, Any]:
    """The keys of an RWKV-7 file with a World-like vocabulary."""
    tokens = ["<s>", *(f"\\x{i:02x}" for i in range(256)), "ab", "\\n\\n"]
    rest = n_vocab - len(tokens)
    return {
        "general.architecture": "rwkv7",
        "rwkv7.block_count": n_layer,
        "rwkv7.embedding_length": n_embd,
        "rwkv7.feed_forward_length": n_ffn,
        "rwkv7.wkv.head_size": head_size,
        "rwkv7.attention.layer_norm_epsilon": 1e-5,
        "rwkv7.attention.head_count": 0,
        "rwkv7.token_shift_count": 2,
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), n_vocab))],
        "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1), *[5] * rest],
        "tokenizer.chat_template": "rwkv-world",
    }


def gguf() -> list[bytes]:
    infos: dict[str, tuple[int, tuple[int, ...], int]] = {}
    body = b""
    for name, array in tiny().items():
        found = in_gguf(name, array.shape)
        if found is not None:
            values = np.ascontiguousarray(values_in_ggml(name, found[1]))
            is_q8 = name.endswith(".weight") and values.ndim == 2
            raw = q8_0(values) if is_q8 else values.tobytes()
            infos[found[0]] = (_Q8_0 if is_q8 else _F32, found[1], len(raw))
            body += raw + b"\0" * (-len(raw) % 32)
    header, size = gguf_header(gguf_about(2, 32, 64, 16, 320), infos)
    assert size == len(body)
    return [header + body, *goldens("bad/control-good.gguf", "models/*q?_0.gguf")]


def in_ggmf(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape that an RWKV-7 tensor has in a ggmf file; None: it is part of the one for x_r."""
    if "att.x_" in name:
        return (name.replace("x_r", "x_rwkvag"), (6, 1, shape[-1])) if name.endswith("x_r") else None
    return name, shape[::-1] if is_turned(name) else shape


def ggmf_record(name: str, shape: tuple[int, ...], kind: int) -> bytes:
    """What stands before a tensor's data."""
    return struct.pack(f"<3i{len(shape)}i", len(shape), len(name), kind, *reversed(shape)) + name.encode()


def ggmf() -> list[bytes]:
    out = struct.pack("<6i", 0x67676D66, 101, 320, 32, 2, _F16)
    for name, array in tiny().items():
        found = in_ggmf(name, array.shape)
        if found is not None:
            kind = _F16 if array.ndim == 2 and name.endswith(".weight") else _F32
            values = values_in_ggml(name, found[1])
            out += ggmf_record(*found, kind) + values.astype("<f2" if kind == _F16 else "<f4").tobytes()
    return [out, *goldens("rwkv.cpp/tiny-rwkv-[45]*Q5_1.bin")]


# ------------------------------------------------------------------------------------ our own files


@lru_cache(maxsize=1)
def rwkv() -> list[bytes]:
    from rwkv_cpu.quantize import quantize

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tiny.pth").write_bytes(pth()[0])
        (folder / "vocabulary.txt").write_bytes(world()[0])
        for kind in ("f32", "f16", "q8", "q6", "q5", "q4"):
            quantize(folder / "tiny.pth", folder / kind, format=kind, tokenizer=folder / "vocabulary.txt")
        return [(folder / kind).read_bytes() for kind in ("q8", "q6", "q5", "q4", "f16", "f32")]


def state() -> list[bytes]:
    from rwkv_cpu import Model

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "model.rwkv").write_bytes(rwkv()[0])
        with Model(Path(scratch) / "model.rwkv", threads=1) as model:
            found = model.forward([1, 2, 3])[1]
            found.save(Path(scratch) / "state")
        return [(Path(scratch) / "state").read_bytes(), *adapters()[:2]]


def world() -> list[bytes]:
    def literal(piece: bytes) -> str:
        try:
            return repr(piece.decode())
        except UnicodeDecodeError:
            return repr(piece)

    pieces = [bytes([i]) for i in range(256)]
    pieces += [text.encode() for text in ("ab", " the", "é", "\n\n", "'\"", "中", "a" * 128)] + [b"\xe4\xb8"]
    lines = [f"{i + 1} {literal(piece)} {len(piece)}" for i, piece in enumerate(pieces)]
    lines.append("300 '\\u4e2d\\x41' 4")
    return ["\n".join(lines).encode() + b"\n", "\r\n".join(lines).encode() + b"\r\n"]


def sentencepiece() -> list[bytes]:
    return [(DATA / "tiny-bpe.model").read_bytes(), *goldens("tokenizer/tiny-unigram.model")]


def huggingface() -> list[bytes]:
    small = json.loads((DATA / "tiny-bytelevel.json").read_bytes())
    model = small["model"]
    model["merges"] = model["merges"][:40]
    kept = {entry["content"] for entry in small["added_tokens"]}
    model["vocab"] = {token: number for token, number in model["vocab"].items() if len(token) <= 3 or token in kept}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    for number, entry in enumerate(small["added_tokens"]):
        entry["id"] = model["vocab"].get(entry["content"], 1000 + number)
    return [json.dumps(small).encode(), (DATA / "tiny-bytelevel.json").read_bytes()]
