# SPDX-License-Identifier: Apache-2.0
"""Starting states as RWKV-PEFT's state tuning writes them: blocks.N.att.time_state [H, N, N] for every layer, in a .pth
or .st file, alone or inside a whole model.

They take the place of the zeros that the recurrence begins with; the token shifts begin with zeros as ever.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np

from rwkv_cpu.checkpoint.adapters import as_f32
from rwkv_cpu.checkpoint.base import FLOAT_DTYPES, TensorMeta, open_container
from rwkv_cpu.checkpoint.names import is_swapped
from rwkv_cpu.checkpoint.recognise import shown
from rwkv_cpu.errors import FormatError, StateError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rwkv_cpu.checkpoint.base import Checkpoint

__all__ = ["is_tuned_state", "read_tuned_state"]

_NAME = re.compile(r"(?:_forward_module\.|module\.|model\.)*blocks\.(\d{1,6})\.att\.time_state")
_OTHER_MODEL = "It was tuned for another model."
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 8 << 20


def is_tuned_state(path: Path) -> bool:
    """Whether read_tuned_state() is the one to ask: a PyTorch file, or safetensors with such tensors.

    Raises: OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_LENGTH.size + 2)
        if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            return True
        if len(head) < _LENGTH.size + 2 or head[_LENGTH.size : _LENGTH.size + 1] != b"{":
            return False
        header = head[_LENGTH.size :] + file.read(min(_LENGTH.unpack_from(head)[0], _MAX_HEADER_BYTES))
        return b".att.time_state" in header


def read_tuned_state(path: Path, n_layer: int, n_head: int, head_size: int) -> NDArray[np.float32]:
    """The states of all layers, f32 [n_layer, n_head, key channel, value channel].

    .pth files have [head, value channel, key channel], .st files of web-rwkv the swapped one.

    Raises:
        FormatError: no such file, or a damaged one. StateError: of a model of other sizes, or with NaN or Inf.
        UnsupportedModelError, ModelNotFoundError, RwkvError: it cannot be read.
    """
    with open_container(path) as file:
        metas = _by_layer(path, file)
        missing = [layer for layer in range(n_layer) if layer not in metas]
        if missing or len(metas) != n_layer:
            raise StateError(
                f"{path}: a state for {len(metas)} layers, the model has {n_layer}"
                + (f" (blocks.{missing[0]}.att.time_state is missing)" if missing else ""),
                hint=_OTHER_MODEL,
            )
        swapped = file.kind == "safetensors" and is_swapped(path, {m.name: m.shape for m in file.tensors.values()})
        shape = (n_head, head_size, head_size)
        states = np.empty((n_layer, *shape), np.float32)
        for layer, meta in metas.items():
            if meta.shape != shape:
                raise StateError(
                    f"{path}: {shown(meta.name)} has shape {list(meta.shape)}, the model needs {list(shape)}",
                    hint=_OTHER_MODEL,
                )
            stored = as_f32(file.read(meta.name), meta.dtype)
            if not np.isfinite(stored).all():
                raise StateError(f"{path}: {shown(meta.name)} holds NaN or Inf")
            states[layer] = stored if swapped else stored.swapaxes(1, 2)
    return states


def _by_layer(path: Path, file: Checkpoint) -> dict[int, TensorMeta]:
    found: dict[int, TensorMeta] = {}
    for meta in file.tensors.values():
        match = _NAME.fullmatch(meta.name)
        if match is None:
            continue
        if meta.dtype not in FLOAT_DTYPES:
            raise FormatError(f"{path}: {shown(meta.name)} is stored as {meta.dtype}: states are floating point")
        if int(match[1]) in found:
            raise FormatError(f"{path}: {shown(meta.name)} stands twice in it")
        found[int(match[1])] = meta
    if not found:
        listed = ", ".join(shown(name) for name in list(file.tensors)[:3])
        raise FormatError(
            f"{path}: no state file: neither one that was saved here nor one of state tuning ({listed})",
            hint="A tuned state has tensors called blocks.N.att.time_state.",
        )
    return found
