# SPDX-License-Identifier: Apache-2.0
"""Write a synthetic RWKV-7 checkpoint: released names, shapes and initial values, random matrices, bf16.

    python benchmarks/synthetic.py 0.4B out.pth --zeros 87

Speed depends on the sizes and on how many of the channel mix's relu(k) are zero, not on what the weights know; so
this stands in for a released model of the same size. The file is a BlinkDL .pth as torch.save writes it, made
without torch and tensor by tensor: memory stays at one block of rows whatever the size.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

BLOCK_VALUES = 1 << 22  # values generated at a time
ALIGNMENT = 64  # of a storage in the archive, as torch.save does


@dataclass(frozen=True)
class Shape:
    """The sizes of an RWKV-7 model; ranks follow the released models' rule."""

    n_layer: int
    n_embd: int
    n_vocab: int = 65536
    head_size: int = 64
    n_ffn: int = 0  # 0: 4 * n_embd

    @property
    def ffn(self) -> int:
        return self.n_ffn or 4 * self.n_embd

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_size

    def rank(self, factor: float, power: float) -> int:
        size: float = factor * self.n_embd**power
        return max(32, round(size / 32) * 32)

    @property
    def ranks(self) -> dict[str, int]:
        """Of the decay, in-context learning rate, value residual and gate pairs."""
        return {"w": self.rank(1.8, 0.5), "a": self.rank(1.8, 0.5), "v": self.rank(1.3, 0.5), "g": self.rank(0.6, 0.8)}


SIZES = {
    "0.1B": Shape(12, 768),
    "0.4B": Shape(24, 1024),
    "1.5B": Shape(24, 2048),
    "2.9B": Shape(32, 2560),
    "7.2B": Shape(32, 4096),
}

Rows = Callable[[np.random.Generator, int, int], "Floats"]  # (random, first, last) -> values first..last-1, flat


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint, generated on demand in blocks."""

    name: str
    shape: tuple[int, ...]
    values: Rows

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def blocks(self, seed: int) -> Iterator[NDArray[np.uint16]]:
        """The values in order as bf16 bits; the same for the same seed, whatever else is generated."""
        random = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        for first in range(0, self.size, BLOCK_VALUES):
            yield to_bf16(self.values(random, first, min(first + BLOCK_VALUES, self.size)))


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Round float32 to the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def normal(std: float, mean: float = 0.0) -> Rows:
    def values(random: np.random.Generator, first: int, last: int) -> Floats:
        block = random.standard_normal(last - first, dtype=np.float32)
        block *= np.float32(std)
        block += np.float32(mean)
        return block

    return values


def uniform(low: float, high: float) -> Rows:
    def values(random: np.random.Generator, first: int, last: int) -> Floats:
        return (low + (high - low) * random.random(last - first, dtype=np.float32)).astype(np.float32)

    return values


def ramp(low: float, high: float, n: int, power: float = 1.0) -> Rows:
    """low to high along the channels, as the released models' decay starts out."""

    def values(_random: np.random.Generator, first: int, last: int) -> Floats:
        position = np.arange(first, last, dtype=np.float32) / max(n - 1, 1)
        return (low + (high - low) * position**power).astype(np.float32)

    return values


def channel_mix_shift(zeros: float) -> float:
    """By how many standard deviations k must be shifted down so that this share of relu(k) is zero."""
    if not 0.0 <= zeros < 1.0:
        raise ValueError(f"share of zeros {zeros}: must lie in [0, 1)")
    return NormalDist().inv_cdf(min(max(zeros, 1e-6), 1 - 1e-6))


def tensors(shape: Shape, zeros: float = 0.87) -> Iterator[Tensor]:
    """All tensors of the checkpoint in the released order.

    ln2 has a constant bias and the key matrix a constant mean: the layer norm's own output sums to zero, so the mean
    acts on the bias alone and shifts every k by the same amount, which sets how many relu(k) are zero.
    """
    c, f, v, h, n = shape.n_embd, shape.ffn, shape.n_vocab, shape.n_head, shape.head_size
    std = c**-0.5
    bias = 0.5
    # Of f + (p - f) * x_k with x_k uniform in 0..1, f and p independent of unit variance, beside the bias.
    spread = (2 / 3 + bias**2) ** 0.5
    shift = channel_mix_shift(zeros)
    key_std = std
    key_mean = -shift * key_std * spread * c**0.5 / (bias * c)
    # E[relu(k)^4] keeps the channel mix's output near 0.1 whatever the shift is.
    sample = np.maximum(np.random.default_rng(0).standard_normal(100_000) - shift, 0.0)
    value_std = 0.1 / (spread**2 * (f * float(np.mean(sample**4))) ** 0.5)

    def vector(name: str, values: Rows) -> Tensor:
        return Tensor(name, (c,), values)

    def mix(name: str, values: Rows) -> Tensor:
        return Tensor(name, (1, 1, c), values)

    def constant(value: float) -> Rows:
        return uniform(value, value)

    yield Tensor("emb.weight", (v, c), normal(0.05))
    for layer in range(shape.n_layer):
        block = f"blocks.{layer}"
        att, ffn = f"{block}.att", f"{block}.ffn"
        for name in ("ln1", "ln2", *(["ln0"] if layer == 0 else [])):
            yield vector(f"{block}.{name}.weight", constant(1.0))
            yield vector(f"{block}.{name}.bias", constant(bias if name == "ln2" else 0.0))
        for letter in "rwkvag":
            yield mix(f"{att}.x_{letter}", uniform(0.0, 1.0))
        starts = {"w": ramp(-7.0, -1.0, c, 0.85), "a": uniform(-0.6, 0.2), "v": uniform(0.5, 0.9)}
        for letter, rank in shape.ranks.items():
            if letter in starts:
                yield mix(f"{att}.{letter}0", starts[letter])
            yield Tensor(f"{att}.{letter}1", (c, rank), normal(std))
            yield Tensor(f"{att}.{letter}2", (rank, c), normal(0.5 * rank**-0.5))
        yield mix(f"{att}.k_k", uniform(0.6, 0.9))
        yield mix(f"{att}.k_a", uniform(0.9, 1.1))
        yield Tensor(f"{att}.r_k", (h, n), normal(0.02, -0.04))
        for name in ("receptance", "key", "value"):
            yield Tensor(f"{att}.{name}.weight", (c, c), normal(std))
        yield Tensor(f"{att}.output.weight", (c, c), normal(0.2 * std))
        yield vector(f"{att}.ln_x.weight", constant(1.0))
        yield vector(f"{att}.ln_x.bias", constant(0.0))
        yield mix(f"{ffn}.x_k", uniform(0.0, 1.0))
        yield Tensor(f"{ffn}.key.weight", (f, c), normal(key_std, key_mean))
        yield Tensor(f"{ffn}.value.weight", (c, f), normal(value_std))
    yield vector("ln_out.weight", constant(1.0))
    yield vector("ln_out.bias", constant(0.0))
    yield Tensor("head.weight", (v, c), normal(2 * std))


# ------------------------------------------------------------------------------------------ torch.save, without torch


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 0x80000000:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def pickle_of(entries: list[Tensor]) -> bytes:
    """Protocol-2 pickle of {name: bf16 tensor}, each in a storage of its own called by its index."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"ctorch\nBFloat16Storage\n"
    no_hooks = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02}("]
    for key, entry in enumerate(entries):
        strides = [int(np.prod(entry.shape[i + 1 :], dtype=np.int64)) for i in range(len(entry.shape))]
        where = _tuple(_text("storage"), storage, _text(str(key)), _text("cpu"), _integer(entry.size)) + b"Q"
        arguments = _tuple(
            where,
            _integer(0),
            _tuple(*map(_integer, entry.shape)),
            _tuple(*map(_integer, strides)),
            b"\x89",  # requires_grad = False
            no_hooks,
        )
        parts += [_text(entry.name), rebuild, arguments, b"R"]
    return b"".join([*parts, b"u."])


def write_pth(path: Path, entries: list[Tensor], seed: int = 0) -> int:
    """Write the checkpoint; returns its size in bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(name: str, size: int, blocks: Iterator[bytes]) -> None:
            info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            info.file_size = size
            start = archive.start_dir + 30 + len(info.filename) + 4
            padding = -start % ALIGNMENT
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            with archive.open(info, "w") as entry:
                for block in blocks:
                    entry.write(block)

        data = pickle_of(entries)
        add("data.pkl", len(data), iter([data]))
        add("byteorder", 6, iter([b"little"]))
        for key, tensor in enumerate(entries):
            add(f"data/{key}", 2 * tensor.size, (block.tobytes() for block in tensor.blocks(seed)))
        add("version", 2, iter([b"3\n"]))
    return path.stat().st_size


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a synthetic RWKV-7 checkpoint (.pth, bf16).")
    parser.add_argument("size", choices=SIZES, help="layers and width of the released model of that name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--zeros", type=float, default=87, metavar="PERCENT", help="of relu(k) in the channel mix (87)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=65536, help="vocabulary size (65536)")
    options = parser.parse_args(arguments)
    size = SIZES[options.size]
    shape = Shape(size.n_layer, size.n_embd, options.vocab)
    entries = list(tensors(shape, options.zeros / 100))
    n_bytes = write_pth(options.output, entries, options.seed)
    parameters = sum(entry.size for entry in entries)
    print(f"{options.output}: {parameters / 1e9:.2f} B parameters, {n_bytes / 1e9:.2f} GB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
