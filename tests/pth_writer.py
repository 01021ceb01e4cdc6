# SPDX-License-Identifier: Apache-2.0
"""Write PyTorch checkpoints without torch, correct ones and (through the same few pieces) damaged ones."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STORAGE_NAMES = {
    "f64": "DoubleStorage",
    "f32": "FloatStorage",
    "f16": "HalfStorage",
    "bf16": "BFloat16Storage",
    "i64": "LongStorage",
    "i32": "IntStorage",
    "i16": "ShortStorage",
    "i8": "CharStorage",
    "u8": "ByteStorage",
    "bool": "BoolStorage",
}
DTYPE_OF = {"f8": "f64", "f4": "f32", "f2": "f16", "u2": "bf16", "i8": "i64", "i4": "i32", "i2": "i16", "i1": "i8"}


@dataclass
class Stored:
    """A tensor in the pickle; *key* names its storage of *numel* elements."""

    key: str
    dtype: str
    numel: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    parameter: bool = False


@dataclass
class Archive:
    """Storages by key, and the object that the pickle describes."""

    storages: dict[str, bytes] = field(default_factory=dict)
    found: Any = field(default_factory=dict)

    def add(self, name: str, array: np.ndarray[Any, Any], *, parameter: bool = False) -> Stored:
        """An array as a tensor with its own storage, transposed if it is; uint16 stands for bf16."""
        if not array.flags.f_contiguous:
            array = np.asarray(array, order="C")
        key = str(len(self.storages))
        self.storages[key] = array.tobytes("A")
        dtype = "bool" if array.dtype == np.bool_ else DTYPE_OF[array.dtype.str[1:]]
        strides = tuple(s // array.itemsize for s in array.strides)
        self.found[name] = Stored(key, dtype, array.size, array.shape, strides, parameter=parameter)
        return self.found[name]

    def pickle(self, *, legacy: bool = False) -> bytes:
        return b"\x80\x02" + emit(self.found, legacy=legacy) + b"."

    def zip_bytes(self, *, compression: int = zipfile.ZIP_STORED, extra: Mapping[str, bytes] | None = None) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as archive:
            archive.writestr("model/data.pkl", self.pickle())
            for key, raw in self.storages.items():
                archive.writestr(f"model/data/{key}", raw)
            archive.writestr("model/version", b"3\n")
            for name, raw in (extra or {}).items():
                archive.writestr(name, raw)
        return out.getvalue()

    def legacy_bytes(self) -> bytes:
        parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
        out = b"".join(b"\x80\x02" + emit(part) + b"." for part in parts) + self.pickle(legacy=True)
        out += b"\x80\x02" + emit(list(self.storages)) + b"."
        sizes = {s.key: s.numel for s in self.found.values() if isinstance(s, Stored)}
        for key, raw in self.storages.items():
            out += struct.pack("<q", sizes.get(key, 0)) + raw
        return out


def emit(value: Any, *, legacy: bool = False) -> bytes:
    """Opcodes that build *value*; no memo, so sharing is not kept."""
    match value:
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case str():
            raw = value.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case tuple():
            return b"(" + b"".join(emit(v, legacy=legacy) for v in value) + b"t"
        case list():
            return b"](" + b"".join(emit(v, legacy=legacy) for v in value) + b"e"
        case dict():
            return b"}(" + b"".join(emit(k) + emit(v, legacy=legacy) for k, v in value.items()) + b"u"
        case Stored() as s:
            pid = emit(("storage",))[:-1] + name("torch", STORAGE_NAMES[s.dtype]) + emit(s.key) + emit("cpu")
            pid += emit(s.numel) + (b"N" if legacy else b"") + b"tQ"
            tensor = name("torch._utils", "_rebuild_tensor_v2") + b"(" + pid + emit(s.offset) + emit(s.shape)
            tensor += emit(s.stride) + b"\x89" + name("collections", "OrderedDict") + b")RtR"
            if s.parameter:
                ordered = name("collections", "OrderedDict") + b")R"
                return name("torch._utils", "_rebuild_parameter") + b"(" + tensor + b"\x88" + ordered + b"tR"
            return tensor
        case bytes():
            return value  # raw opcodes, for what no value can say
    raise TypeError(type(value))


def name(module: str, attribute: str) -> bytes:
    """The GLOBAL opcode."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def bf16(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Nearest bfloat16 below in magnitude, as its bits."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def rwkv7_tensors(
    *, n_layer: int = 2, n_embd: int = 64, n_vocab: int = 320, head_size: int = 16, n_ffn: int = 96, rank: int = 16
) -> dict[str, np.ndarray[Any, Any]]:
    """A complete tiny RWKV-7 in f32 with released names and shapes; every value is finite and reproducible."""
    rng = np.random.default_rng(7)
    c, v, f, h = n_embd, n_vocab, n_ffn, n_embd // head_size

    def random(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    tensors = {"emb.weight": random(v, c)}
    for i in range(n_layer):
        b = f"blocks.{i}."
        for norm in ["ln1", "ln2"] + ["ln0"] * (i == 0):
            tensors[b + norm + ".weight"] = 1 + random(c)
            tensors[b + norm + ".bias"] = random(c)
        for x in "rwkvag":
            tensors[f"{b}att.x_{x}"] = random(1, 1, c)
        for pair in "wavg":
            if pair != "g":
                tensors[f"{b}att.{pair}0"] = random(1, 1, c)
            tensors[f"{b}att.{pair}1"] = random(c, rank)
            tensors[f"{b}att.{pair}2"] = random(rank, c)
        for vector in ("k_k", "k_a"):
            tensors[f"{b}att.{vector}"] = random(1, 1, c)
        tensors[b + "att.r_k"] = random(h, head_size)
        for matrix in ("receptance", "key", "value", "output"):
            tensors[f"{b}att.{matrix}.weight"] = random(c, c)
        tensors[b + "att.ln_x.weight"] = 1 + random(c)
        tensors[b + "att.ln_x.bias"] = random(c)
        tensors[b + "ffn.x_k"] = random(1, 1, c)
        tensors[b + "ffn.key.weight"] = random(f, c)
        tensors[b + "ffn.value.weight"] = random(c, f)
    tensors |= {"ln_out.weight": 1 + random(c), "ln_out.bias": random(c), "head.weight": random(v, c)}
    return tensors


def write_checkpoint(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], dtype: str = "f32") -> Path:
    """A zip .pth of these tensors in one dtype (f32, f16, bf16, f64); other arrays than f32 as they are."""
    archive = Archive()
    for key, array in tensors.items():
        if array.dtype == np.float32:
            array = bf16(array) if dtype == "bf16" else array.astype({"f16": "f2", "f32": "f4", "f64": "f8"}[dtype])
        archive.add(key, array)
    path.write_bytes(archive.zip_bytes())
    return path
