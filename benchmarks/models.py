# SPDX-License-Identifier: Apache-2.0
"""The same weights as each program wants them: synthetic or real checkpoints, made once and kept in a folder."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import synthetic
from benchmarks.protocol import HERE

if TYPE_CHECKING:
    from pathlib import Path

    from rwkv_cpu import Model

__all__ = ["BITS", "EQUAL", "GGUF_BITS", "Files", "Weights", "give_tokenizer", "uncache"]

VOCABULARY = HERE.parent / "rwkv_cpu" / "data" / "rwkv_vocab_v20230424.txt"

# Bits per weight of a format's matrices: ours, GGML's, torch's.
OUR_BITS = {"q8": 8.5, "q6": 6.5, "q5": 5.5, "q4": 4.5, "f16": 16.0}
GGUF_BITS = {"q8_0": 8.5, "q6_k": 6.5625, "q5_0": 5.5, "q5_k": 5.5, "q4_0": 4.5, "q4_k": 4.5, "f16": 16.0, "bf16": 16.0}
BITS = {**OUR_BITS, **GGUF_BITS, "fp32": 32.0}
# Formats of llama.cpp with as many bits as ours.
EQUAL = {"q8": "q8_0", "q6": "q6_k", "q5": "q5_0", "q4": "q4_0", "f16": "f16"}


@dataclass(frozen=True)
class Weights:
    """A checkpoint: synthetic of a size and share of zeros in per cent, or a real one by its path."""

    size: str
    zeros: float | None = None
    checkpoint: Path | None = None

    @property
    def stem(self) -> str:
        return self.size if self.zeros is None else f"synthetic-{self.size}-zeros{self.zeros:g}"

    @property
    def label(self) -> str:
        return self.size if self.zeros is None else f"{self.size}, {self.zeros:g} % zeros"


@dataclass(frozen=True)
class Files:
    """Where the files are kept; peer_python has `gguf` and llama-cpp-python."""

    folder: Path
    peer_python: str

    def checkpoint(self, weights: Weights) -> Path:
        """The .pth, written if it is not there yet."""
        if weights.checkpoint is not None:
            return weights.checkpoint
        path = self.folder / f"{weights.stem}.pth"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            synthetic.main([weights.size, str(partial), "--zeros", f"{weights.zeros:g}"])
            partial.rename(path)
        return path

    def ours(self, weights: Weights, weight_format: str) -> Path:
        """The .rwkv file in that format."""
        from rwkv_cpu import quantize

        path = self.folder / f"{weights.stem}-{weight_format}.rwkv"
        if not path.exists():
            source = self.checkpoint(weights)
            self.folder.mkdir(parents=True, exist_ok=True)
            quantize.quantize(source, path, format=weight_format)
        return path

    def gguf(self, weights: Weights, kind: str) -> Path:
        """The GGUF file of that type; K-quants and Q4_0, whose head is Q6_K, go through llama.cpp's own quantiser."""
        path = self.folder / f"{weights.stem}-{kind}.gguf"
        if path.exists():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        if kind.endswith("_k") or kind == "q4_0":
            source = self.gguf(weights, "bf16")
            command = [HERE / "peer_quantise.py", source, partial, kind]
        else:
            command = [HERE / "peer_gguf.py", self.checkpoint(weights), partial, "--vocabulary", VOCABULARY]
            command += ["--type", kind]
        subprocess.run([self.peer_python, *map(str, command)], check=True)
        partial.rename(path)
        return path


def uncache(path: Path) -> None:
    """Take the file out of the system's page cache, so that it is read in anew as after a start of the machine.

    How a file came into the cache decides the size of its pages there: written in small pieces it lies in small ones,
    read in it lies in huge ones, where the file system has them (ext4 since Linux 6.16, xfs).
    """
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def give_tokenizer(model: Model) -> None:
    """The World's, where the file has none, as synthetic ones do."""
    from rwkv_cpu.checkpoint.gguf_text import standard_vocabulary
    from rwkv_cpu.tokenizer import from_bytes

    if not model.has_tokenizer:
        model._tokenizer = from_bytes("world", standard_vocabulary())  # noqa: SLF001
