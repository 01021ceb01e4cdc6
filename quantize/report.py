# SPDX-License-Identifier: Apache-2.0
"""What a conversion did, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Report", "Sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """A part of the model: its tensors, and the divergence (nats a token) that all of them in q4 cost."""

    name: str
    tensors: tuple[str, ...]
    divergence: float


@dataclass(frozen=True)
class Report:
    """The result of quantize().

    Attributes:
        source: the checkpoint.
        target: the file that was written.
        format: what was asked for: "q8", "q6", "q5", "q4", "f16", "f32"; "mixed" for bits and size.
        architecture: "RWKV-7".
        tokenizer: "world", "sentencepiece" or "none".
        parameters: weights in the model.
        source_bytes: size of the checkpoint.
        target_bytes: size of the file, tokenizer included.
        bits_per_weight: of embedding, head and matrices: 8 × packed bytes / weights. Low-rank pairs are q8 always.
        file_bits_per_weight: 8 × target_bytes / parameters.
        formats: how many tensors are stored in which format.
        calibration: "default", the text's file name, or None.
        sensitivity: what each part of the model costs in q4, where bits or a size was asked for; else empty.
        seconds: from start to the file on the disk.
    """

    source: Path
    target: Path
    format: str
    architecture: str
    tokenizer: str
    parameters: int
    source_bytes: int
    target_bytes: int
    bits_per_weight: float
    file_bits_per_weight: float
    formats: dict[str, int]
    calibration: str | None
    sensitivity: tuple[Sensitivity, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the paths as text."""
        return asdict(self) | {"source": str(self.source), "target": str(self.target)}
