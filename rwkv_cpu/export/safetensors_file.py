# SPDX-License-Identifier: Apache-2.0
"""safetensors with BlinkDL's names and shapes: what every RWKV program that reads the format understands."""

from __future__ import annotations

import functools
import json
import struct
from typing import TYPE_CHECKING, Any

from rwkv_cpu.checkpoint.base import ITEM_BYTES
from rwkv_cpu.export.dtypes import BLOCKS, converted
from rwkv_cpu.export.layout import Output, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from rwkv_cpu.export.tensors import ExportTensor, ModelTensors

__all__ = ["SafetensorsLayout"]

_LENGTH = struct.Struct("<Q")
_ALIGN_BYTES = 64
_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


class SafetensorsLayout:
    """See export.layout.Layout. *dtype* for all tensors; None: each as it is stored, quantised ones in f32."""

    tokenizer = "none"

    def __init__(self, model: ModelTensors, dtype: str | None) -> None:
        self._model = model
        self.dtypes: list[str] = []
        self.exact = True
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor in model.tensors.values():
            wanted = dtype or ("f32" if tensor.dtype in BLOCKS else tensor.dtype)
            size = tensor.elements * ITEM_BYTES[wanted]
            entries[tensor.name] = {
                "dtype": _NAMES[wanted],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + size],
            }
            at += size
            self.dtypes.append(wanted)
            self.exact &= tensor.exact and wanted in (tensor.dtype, "f32")
        raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        raw += b" " * (-(_LENGTH.size + len(raw)) % _ALIGN_BYTES)
        self._header = _LENGTH.pack(len(raw)) + raw
        self.size_bytes = len(self._header) + at
        self._outputs = [
            Output(
                tensor.name,
                wanted,
                tensor.shape,
                len(self._header) + entries[tensor.name]["data_offsets"][0],
                tensor.elements * ITEM_BYTES[wanted],
                functools.partial(self._pieces, tensor, wanted),
            )
            for tensor, wanted in zip(model.tensors.values(), self.dtypes, strict=True)
        ]

    def parts(self) -> Iterator[tuple[int, Buffer]]:
        """(offset, bytes) of the whole file."""
        return parts_of(self._header, self._outputs, self.size_bytes)

    def _pieces(self, tensor: ExportTensor, wanted: str) -> Iterator[Buffer]:
        for piece in self._model.pieces(tensor.name):
            yield converted(tensor.name, piece, tensor.dtype, wanted).data
