# SPDX-License-Identifier: Apache-2.0
"""What `info` says of checkpoints, also of 14 GB ones, whose weights it must not touch: here they are holes."""

from __future__ import annotations

import json
import resource
import struct
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.convert_memory import write_hollow_pth
from benchmarks.synthetic import SIZES, tensors
from rwkv_cpu.describe import describe_file
from tests.fuzz import seeds

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = SIZES["7.2B"]
TENSORS = [(tensor.name, tensor.shape, tensor.size) for tensor in tensors(SHAPE)]
F32, F16 = 0, 1


class Sparse:
    """A file of headers and holes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self._file = path.open("wb")

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self.at += len(data)

    def skip(self, count: int) -> None:
        self.at += count
        self._file.seek(self.at)

    def done(self) -> Path:
        self._file.truncate(self.at)
        self._file.close()
        return self.path


def pth(path: Path) -> Path:
    write_hollow_pth(path, SHAPE)
    return path


def safetensors(path: Path) -> Path:
    header: dict[str, Any] = {}
    end = 0
    for name, shape, size in TENSORS:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + 2 * size]}
        end += 2 * size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = Sparse(path)
    file.add(struct.pack("<Q", len(text)) + text)
    file.skip(end)
    return file.done()


def gguf(path: Path) -> Path:
    infos = {}
    for name, shape, size in TENSORS:
        found = seeds.in_gguf(name, shape)
        if found is not None:
            kind = F16 if len(found[1]) == 2 else F32
            infos[found[0]] = (kind, found[1], (2 if kind == F16 else 4) * size * (6 if name.endswith("x_r") else 1))
        # llama.cpp wants layer 0's unused value residual to exist.
        if name.startswith("blocks.0.att.a") and found is not None and name[-1] in "012":
            infos[found[0].replace("_a", "_v")] = infos[found[0]]
    file = Sparse(path)
    header, size = seeds.gguf_header(
        seeds.gguf_about(SHAPE.n_layer, SHAPE.n_embd, SHAPE.ffn, SHAPE.head_size, SHAPE.n_vocab), infos
    )
    file.add(header)
    file.skip(size)
    return file.done()


def ggmf(path: Path) -> Path:
    file = Sparse(path)
    file.add(struct.pack("<6i", 0x67676D66, 101, SHAPE.n_vocab, SHAPE.n_embd, SHAPE.n_layer, F16))
    for name, shape, size in TENSORS:
        found = seeds.in_ggmf(name, shape)
        if found is not None:
            kind = F16 if len(shape) == 2 and name.endswith(".weight") else F32
            file.add(seeds.ggmf_record(*found, kind))
            file.skip((2 if kind == F16 else 4) * size * (6 if name.endswith("x_r") else 1))
    return file.done()


@pytest.mark.parametrize("write", [pth, safetensors, gguf, ggmf])
def test_info_of_14_gigabytes_reads_names_and_shapes_only(write, tmp_path):
    path = write(tmp_path / "model")
    if path.stat().st_blocks * 512 > 1 << 26:
        pytest.skip("this file system keeps no holes")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = describe_file(path)
    assert found["size_bytes"] > 14e9
    assert found["architecture"] == "RWKV-7"
    assert (found["n_layer"], found["n_embd"], found["n_vocab"]) == (32, 4096, 65536)
    assert (found["n_head"], found["head_size"], found["n_ffn"]) == (64, 64, 16384)
    assert 7.1e9 < found["parameters"] < 7.3e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB: no weights


@pytest.mark.parametrize(
    ("file", "version", "stored"),
    [
        ("models/v4-fp32.pth", "RWKV-4", {"f32"}),
        ("models/v5.0-fp16.pth", "RWKV-5.0", {"f16"}),
        ("models/v5.1-fp16.pth", "RWKV-5.1", {"f16"}),
        ("models/v5.2-bf16.pth", "RWKV-5.2", {"bf16"}),
        ("models/v6-fp16.st", "RWKV-6", {"f16"}),
        ("models/v6-fp16.bin", "RWKV-6", {"f16", "f32"}),
        ("models/v6-fp16-q8_0.gguf", "RWKV-6", {"q8_0", "f32"}),
        ("models/v7-bf16-q4_0.gguf", "RWKV-7", {"q8_0", "q4_0", "f32"}),
        ("models/v7-fla.safetensors", "RWKV-7", {"bf16"}),
        ("models/v7a-fp16.pth", "RWKV-7a", {"f16"}),
        ("rwkv.cpp/tiny-rwkv-4v0-660K-Q5_1.bin", "RWKV-4", {"q5_1", "f32"}),
    ],
)
def test_info_tells_version_and_stored_types_of_every_format(shared, file, version, stored):
    found = describe_file(shared / "goldens" / file, tensors=True)
    assert found["architecture"] == version
    assert set(found["formats"]) == stored
    assert {tensor["format"] for tensor in found["tensors"]} == stored
    assert found["size_bytes"] == (shared / "goldens" / file).stat().st_size
