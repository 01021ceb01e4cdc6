# SPDX-License-Identifier: Apache-2.0
"""LoRA and PiSSA files as RWKV-PEFT writes them, merged into a checkpoint tensor by tensor while it is read.

    LoRA    W + (alpha / rank) · B A      for X.lora_A [rank, in] and X.lora_B [out, rank] on the matrix X.weight
    PiSSA   W - B₀ A₀ + B A               B₀, A₀ from the file that was written when the training began

All other tensors of the file replace the checkpoint's. Merged in f32. Source: RWKV-PEFT merge/merge.py.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.checkpoint.base import BLOCK_BYTES, FLOAT_DTYPES, TensorMeta, open_container
from rwkv_cpu.checkpoint.recognise import shown
from rwkv_cpu.checkpoint.wrapped import WrappedCheckpoint
from rwkv_cpu.errors import ArgumentError, FormatError, ShapeError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from rwkv_cpu.checkpoint.base import Checkpoint

__all__ = ["AdaptedCheckpoint", "as_f32"]

_log = logging.getLogger("rwkv_cpu")
_PREFIXES = ("_forward_module.", "module.", "model.")
# Products are made for so many rows at a time: little beside the tensor itself.
_ROWS = 1024
_UNUSED = re.compile(r"blocks\.0\.att\.v[012]|blocks\.\d+\.att\.time_state")

# Parts of a name that tell other kinds of adapters → (what it is, why it cannot be merged).
_OTHER_KINDS = {
    ".bone": ("Bone", "which formula it was trained with (rows or columns, W·b + b or b alone) does not stand in it"),
    ".disha": ("DiSHA", "which formula it was trained with (DiSHA, Bat) does not stand in it"),
    ".miss": ("MiSS", "which formula it was trained with does not stand in it"),
    ".magnitude": ("DoRA", "it rescales whole columns of the matrices"),
    "lora_magnitude_vector": ("DoRA", "it rescales whole columns of the matrices"),
}
_MERGE_FIRST = "Merge it with the tool that trained it, then convert the merged checkpoint."


@dataclass(frozen=True)
class _Pair:
    """Low-rank factors of one matrix. a: name of A. b: name of B. swapped: A is stored [in, rank] (web-rwkv)."""

    a: str
    b: str
    swapped: bool = False


class AdaptedCheckpoint(WrappedCheckpoint):
    """*base* with an adapter merged in; reading a tensor merges it. See checkpoint.base.Checkpoint.

    Attributes:
        adapter_files: the adapter, and PiSSA's file of initial factors if there is one.
        alpha: of LoRA; None for PiSSA and where there are no pairs.
    """

    def __init__(
        self, base: Checkpoint, lora: Path, alpha: float | None = None, pissa_init: Path | None = None
    ) -> None:
        """Takes *base* over: close() closes it. When this raises, *base* is closed too.

        Args:
            base: with BlinkDL's names.
            lora: the adapter, .pth or safetensors.
            alpha: LoRA's scale times rank; it does not stand in the file. PiSSA has none: it is ignored there.
            pissa_init: PiSSA's file of initial factors.

        Raises:
            ArgumentError: alpha is needed and not given, or no positive number.
            UnsupportedModelError: another kind of adapter, named.
            ShapeError: it does not fit the checkpoint. FormatError: a damaged file. RwkvError: cannot be read.
        """
        super().__init__(base)
        self._opened: list[Checkpoint] = [base]
        try:
            self._adapter = self._open(lora)
            self._names = _plain_names(self._adapter)
            _refuse_other_kinds(self._adapter.path, self._names)
            self._pairs = _pairs_of(self._adapter, self._names)
            self._init: dict[str, _Pair] = {}
            if pissa_init is not None:
                self._initial = self._open(pissa_init)
                self._init = _initial_pairs(self._initial, self._pairs)
            self.alpha = None if pissa_init is not None or not self._pairs else _checked_alpha(lora, alpha)
            self.adapter_files = (lora,) if pissa_init is None else (lora, pissa_init)
            factors = {name for pair in self._pairs.values() for name in (pair.a, pair.b)}
            self._replaced = {name: stored for name, stored in self._names.items() if stored not in factors}
            self.tensors: Mapping[str, TensorMeta] = MappingProxyType(self._merged_metas())
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        """As Checkpoint.read; merged tensors are new arrays of f32."""
        if name in self._replaced:
            return self._adapter.read(self._replaced[name]).reshape(self.tensors[name].shape)
        pair = self._pairs.get(name)
        if pair is None:
            return self._base.read(name)
        meta = self._base.tensors[name]
        merged = as_f32(self._base.read(name), meta.dtype).reshape(meta.shape)
        rank = self._shape_a(self._adapter, pair)[0]
        scale = 1.0 if self.alpha is None else self.alpha / rank
        self._add_product(merged, self._adapter, pair, scale)
        if name in self._init:
            self._add_product(merged, self._initial, self._init[name], -1.0)
        return merged

    def close(self) -> None:
        """Close the checkpoint and the adapter."""
        for opened in self._opened:
            opened.close()

    # -------------------------------------------------------------------------------------- inside

    def _open(self, path: Path) -> Checkpoint:
        opened = open_container(path)
        self._opened.append(opened)
        return opened

    def _merged_metas(self) -> dict[str, TensorMeta]:
        metas = dict(self._base.tensors)
        for name, pair in self._pairs.items():
            self._check_pair(self._adapter, name, pair)
            metas[name] = TensorMeta(name, "f32", metas[name].shape)
        for name, pair in self._init.items():
            self._check_pair(self._initial, name, pair)
        for name, stored in self._replaced.items():
            meta = self._adapter.tensors[stored]
            self._check_float(self._adapter.path, meta)
            if name not in metas:
                if not _UNUSED.fullmatch(name):
                    raise ShapeError(
                        f"{self._adapter.path}: {shown(stored)} is no tensor of {self.path}",
                        hint="The adapter was trained on another model.",
                    )
                if name.endswith("time_state"):
                    _log.warning(
                        "%s: it holds a tuned starting state too, which is given to chat and generate as --state",
                        self._adapter.path,
                    )
                continue
            shape = metas[name].shape
            if [n for n in meta.shape if n != 1] != [n for n in shape if n != 1]:
                raise self._misfit(self._adapter, meta.name, meta.shape, name, shape)
            metas[name] = TensorMeta(name, meta.dtype, shape, meta.stored)
        self._replaced = {name: stored for name, stored in self._replaced.items() if name in metas}
        return metas

    def _check_pair(self, file: Checkpoint, name: str, pair: _Pair) -> None:
        if name not in self._base.tensors:
            raise ShapeError(
                f"{file.path}: {shown(pair.a)} changes {shown(name)}, which {self.path} does not have",
                hint="The adapter was trained on another model.",
            )
        for part in (pair.a, pair.b):
            self._check_float(file.path, file.tensors[part])
        shape = self._base.tensors[name].shape
        a, b = self._shape_a(file, pair), file.tensors[pair.b].shape
        if len(shape) != 2 or len(a) != 2 or len(b) != 2 or (b[0], a[1]) != shape or a[0] != b[1] or a[0] == 0:
            raise self._misfit(file, f"{pair.a} · {pair.b}", (*a, *b), name, shape)

    def _check_float(self, path: Path, meta: TensorMeta) -> None:
        if meta.dtype not in FLOAT_DTYPES:
            raise UnsupportedModelError(
                f"{path}: {shown(meta.name)} is stored as {meta.dtype}: weights must be floating point"
            )

    def _misfit(
        self, file: Checkpoint, part: str, shape: Iterable[int], name: str, expected: Iterable[int]
    ) -> ShapeError:
        return ShapeError(
            f"{file.path}: {shown(part)} {list(shape)} does not fit {shown(name)} {list(expected)} of {self.path}",
            hint="The adapter was trained on another model.",
        )

    @staticmethod
    def _shape_a(file: Checkpoint, pair: _Pair) -> tuple[int, ...]:
        shape = file.tensors[pair.a].shape
        return shape[::-1] if pair.swapped else shape

    @staticmethod
    def _add_product(merged: NDArray[np.float32], file: Checkpoint, pair: _Pair, scale: float) -> None:
        """merged += scale · B A. What overflows becomes Inf and is refused when it is packed, by name."""
        a = as_f32(file.read(pair.a), file.tensors[pair.a].dtype)
        a = a.T if pair.swapped else a
        b = as_f32(file.read(pair.b), file.tensors[pair.b].dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            b *= np.float32(scale)
            for first in range(0, len(merged), _ROWS):
                merged[first : first + _ROWS] += b[first : first + _ROWS] @ a


def as_f32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """What a reader gave, widened to f32: a new array. Args: dtype: of its TensorMeta; GGML's blocks too."""
    if dtype == "bf16":
        bits = array.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)
    if dtype in BLOCK_BYTES:
        from rwkv_cpu.checkpoint.ggml_blocks import BLOCKS, dequantise

        kind = BLOCKS[dtype]
        blocks = np.ascontiguousarray(array, np.uint8).reshape(-1)
        return dequantise(kind, blocks, blocks.size // kind.size_bytes * kind.values)
    with np.errstate(over="ignore"):  # what becomes Inf is refused by name when it is packed
        return array.astype(np.float32, order="C")


def _plain_names(file: Checkpoint) -> dict[str, str]:
    """Names without what trainers put before them → names as stored."""
    found: dict[str, str] = {}
    for stored in file.tensors:
        name = stored
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name in found:
            raise FormatError(f"{file.path}: {shown(found[name])} and {shown(stored)} are the same tensor")
        found[name] = stored
    return found


def _refuse_other_kinds(path: Path, names: Iterable[str]) -> None:
    for name in names:
        for part, (kind, reason) in _OTHER_KINDS.items():
            if part in name:
                raise UnsupportedModelError(
                    f"{path}: this is a {kind} adapter (it holds {shown(name)}): {reason}", hint=_MERGE_FIRST
                )
        if name.startswith("base_model."):
            raise UnsupportedModelError(
                f"{path}: an adapter of Hugging Face's PEFT (it holds {shown(name)}), not of RWKV-PEFT",
                hint=_MERGE_FIRST,
            )


def _pairs_of(file: Checkpoint, names: Mapping[str, str]) -> dict[str, _Pair]:
    """Name of the matrix → its factors."""
    found: dict[str, _Pair] = {}
    for name, stored in names.items():
        for a, b, swapped in ((".lora_A", ".lora_B", False), (".lora.0", ".lora.1", True)):
            if name.endswith((a, b)):
                stem = name.removesuffix(a).removesuffix(b)
                if stem + a not in names or stem + b not in names:
                    raise FormatError(f"{file.path}: {shown(stored)} stands without its partner")
                found[f"{stem}.weight"] = _Pair(names[stem + a], names[stem + b], swapped)
    if not found and not any(_looks_like_a_tensor(name) for name in names):
        listed = ", ".join(shown(name) for name in list(names)[:3])
        raise UnsupportedModelError(f"{file.path}: no adapter by the names of its tensors ({listed})")
    return found


def _looks_like_a_tensor(name: str) -> bool:
    return name.startswith("blocks.") or name in ("emb.weight", "head.weight", "ln_out.weight", "ln_out.bias")


def _initial_pairs(file: Checkpoint, pairs: Mapping[str, _Pair]) -> dict[str, _Pair]:
    names = _plain_names(file)
    found = {}
    for name in pairs:
        a, b = (f"{name.removesuffix('.weight')}.init_lora_{part}" for part in "AB")
        if a not in names or b not in names:
            raise FormatError(
                f"{file.path}: {shown(a)} or {shown(b)} is missing", hint="Give the init_pissa.pth of this training."
            )
        found[name] = _Pair(names[a], names[b])
    return found


def _checked_alpha(lora: Path, alpha: float | None) -> float:
    if alpha is None:
        raise ArgumentError(
            f"{lora}: LoRA's alpha does not stand in the file, and the merge depends on it",
            hint="Give the --lora-alpha of the training (RWKV-PEFT's scripts use 16, 32 or 64); "
            "for PiSSA give --pissa-init FILE instead.",
        )
    if not math.isfinite(alpha) or alpha <= 0:
        raise ArgumentError(f"lora_alpha is {alpha}: a positive number is needed")
    return float(alpha)
