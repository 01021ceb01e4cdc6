# SPDX-License-Identifier: Apache-2.0
"""What will be written: which tensors, in which formats, where. Decided completely before a byte is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_cpu import engine
from rwkv_cpu.checkpoint.base import FLOAT_DTYPES, shown
from rwkv_cpu.errors import RwkvError, UnsupportedModelError

# GGML blocks, which the engine packs as they are.
BLOCK_DTYPES = frozenset({"q8_0", "q5_0", "q4_0"})

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rwkv_cpu.checkpoint import Checkpoint

__all__ = ["Plan", "make_plan", "mix", "recognise"]

_MAX_NAME = 95
_MAX_DIMS = 4


@dataclass(frozen=True)
class Plan:
    """A laid out file: *weights* in the order of the file, then *texts* with the bytes they hold."""

    config: engine.Config
    weights: list[engine.TensorInfo]
    texts: list[engine.TensorInfo]
    contents: Mapping[str, bytes]
    data_bytes: int

    @property
    def all(self) -> list[engine.TensorInfo]:
        """Every tensor but the table."""
        return self.weights + self.texts

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return sum(info.rows * info.cols for info in self.weights)

    @property
    def bits_per_weight(self) -> float:
        """Of embedding, head and matrices; see engine.bits_per_weight."""
        return engine.bits_per_weight(self.weights)

    @property
    def formats(self) -> dict[str, int]:
        """How many tensors are stored in which format."""
        return dict(Counter(engine.format_name(info.format) for info in self.weights))


def recognise(checkpoint: Checkpoint) -> engine.Config:
    """The architecture and sizes of a checkpoint.

    Raises: UnsupportedModelError, ShapeError (with the file's name and the tensor's).
    """
    try:
        return engine.detect_config(_named_shapes(checkpoint))
    except RwkvError as error:
        raise type(error)(f"{checkpoint.path}: {error}", hint=error.hint) from error


def make_plan(checkpoint: Checkpoint, config: engine.Config, preset: str, contents: Mapping[str, bytes]) -> Plan:
    """Choose formats and lay the file out.

    Args:
        checkpoint: open; only its names, shapes and dtypes are looked at.
        config: from recognise().
        preset: "q8", "q6", "q5", "q4", "f16" or "f32".
        contents: byte tensors by name, none empty.

    Raises:
        ArgumentError: unknown preset.
        UnsupportedModelError: a tensor that the model needs is not floating point.
    """
    number = engine.format_by_name(preset)
    weights = engine.plan(config)
    for info in weights:
        meta = checkpoint.tensors[info.source]
        if meta.dtype not in FLOAT_DTYPES | BLOCK_DTYPES:
            raise UnsupportedModelError(
                f"{checkpoint.path}: {shown(info.source)} is stored as {meta.dtype}: weights must be floating point",
                hint="Use the original checkpoint, not one that another program has quantised.",
            )
        info.format = engine.format_for(number, info.kind)
    texts = [engine.TensorInfo.of_bytes(name, len(data)) for name, data in contents.items()]
    data_bytes = engine.layout(config, weights + texts)
    return Plan(config, weights, texts, dict(contents), data_bytes)


def mix(plan: Plan, formats: Mapping[str, int]) -> Plan:
    """The same file with other formats for some tensors, by name."""
    weights = [info.with_format(formats.get(info.name, info.format)) for info in plan.weights]
    data_bytes = engine.layout(plan.config, weights + plan.texts)
    return Plan(plan.config, weights, plan.texts, plan.contents, data_bytes)


def _named_shapes(checkpoint: Checkpoint) -> Iterable[tuple[str, tuple[int, ...]]]:
    """What an RWKV model can consist of; other tensors (of a trainer, of an adapter) are nobody's business here."""
    for meta in checkpoint.tensors.values():
        shape = meta.shape
        if len(shape) > _MAX_DIMS:
            shape = tuple(size for size in shape if size != 1)
        if len(shape) <= _MAX_DIMS and len(meta.name) <= _MAX_NAME and meta.name.isascii() and meta.name.isprintable():
            yield meta.name, shape
