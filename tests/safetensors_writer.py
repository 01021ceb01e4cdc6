# SPDX-License-Identifier: Apache-2.0
"""Write safetensors files, correct ones and damaged ones, and give tensors the names that other programs use."""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Arrays = dict[str, "np.ndarray[Any, Any]"]

DTYPES = {
    "f8": "F64",
    "f4": "F32",
    "f2": "F16",
    "u2": "BF16",
    "i8": "I64",
    "i4": "I32",
    "i2": "I16",
    "i1": "I8",
    "u8": "U64",
    "u4": "U32",
    "u1": "U8",
    "b1": "BOOL",
}


def safetensors_bytes(
    tensors: Mapping[str, np.ndarray[Any, Any]], *, float8: str = "", metadata: Mapping[str, str] | None = None
) -> bytes:
    """A file of these arrays; uint16 stands for bf16, uint8 for *float8* if that is given."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    body = b""
    for name, array in tensors.items():
        dtype = float8 if float8 and array.dtype == np.uint8 else DTYPES[array.dtype.str[1:]]
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    return file_bytes(header, body)


def file_bytes(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], **options: Any) -> Path:
    path.write_bytes(safetensors_bytes(tensors, **options))
    return path


# ------------------------------------------------------------------------------------------ namings


def as_web_rwkv(tensors: Arrays) -> Arrays:
    """As web-rwkv's converter names and turns them."""
    swapped = re.compile(r"time_maa_w[12]|time_decay_w[12]|\.[wavg][12]$|time_state")
    found = {}
    for name, array in tensors.items():
        if swapped.search(name):
            array = np.ascontiguousarray(array.swapaxes(-1, -2))
        found[name.lower().replace("time_faaaa", "time_first").replace("time_maa", "time_mix")] = array
    return found


def as_hugging_face(tensors: Arrays) -> Arrays:
    """As RWKV-4, 5 and 6 are called in transformers."""
    found = {}
    for name, array in tensors.items():
        new = re.sub(r"^emb\.", "embeddings.", name).replace(".ln0.", ".pre_ln.")
        new = new.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        for long in ("key", "value", "receptance", "gate"):
            new = re.sub(rf"\.time_mix_{long[0]}$", f".time_mix_{long}", new)
        found[new if name.startswith("head.") else f"rwkv.{new}"] = array
    return found


def as_fla(tensors: Arrays, *, fused: bool = False) -> Arrays:
    """As RWKV-7 is called in flash-linear-attention; *fused*: the older layout with one x_x."""
    top = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}
    modules = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att": "attn", "ffn": "ffn"}
    leaves = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    found: Arrays = {}
    for name, array in tensors.items():
        if name in top or name.startswith("ln_out"):
            found[top.get(name, name.replace("ln_out", "model.norm"))] = array
            continue
        _, layer, module, leaf = name.split(".", 3)
        start = f"model.layers.{layer}.{modules[module]}."
        pair = re.fullmatch(r"([wavg])([012])", leaf)
        if layer == "0" and leaf in ("v0", "v1", "v2"):
            continue
        if pair:
            place = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[pair[2]]
            found[f"{start}{pair[1]}_lora.lora.{place}"] = array.reshape(-1) if pair[2] == "0" else array.T
        elif module == "att":
            first, dot, rest = leaf.partition(".")
            found[start + leaves.get(first, first) + dot + rest] = array
        else:
            found[start + leaf] = array
    if fused:
        for layer in {name.split(".")[2] for name in found if name.startswith("model.layers.")}:
            rows = [found.pop(f"model.layers.{layer}.attn.x_{letter}").reshape(-1) for letter in "rwkvag"]
            found[f"model.layers.{layer}.attn.x_x"] = np.stack(rows)
    return found
