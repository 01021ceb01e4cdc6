# SPDX-License-Identifier: Apache-2.0
"""The sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint's tensors say of the model.

    Attributes:
        version: "7.0"; name: "RWKV-7".
        n_layer, n_embd, n_vocab, n_ffn, n_head, head_size: the usual sizes; attention width = n_head * head_size.
        ranks: rank of each low-rank pair by letter ("w", "a", "v", "g" in RWKV-7).
        ln_eps, gn_eps: epsilon of layer norm, and of the group norm after the recurrence.
    """

    version: str
    name: str
    n_layer: int
    n_embd: int
    n_vocab: int
    n_ffn: int
    n_head: int
    head_size: int
    ln_eps: float
    gn_eps: float
    ranks: Mapping[str, int] = field(default_factory=dict)
