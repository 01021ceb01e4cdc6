# SPDX-License-Identifier: Apache-2.0
"""How llama.cpp calls and turns RWKV's tensors in GGUF files: one table for reading and for writing.

Canonical names are BlinkDL's. All GGUF names end in .weight or .bias, vectors' too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ARCHITECTURES", "OUTSIDE", "REFUSED", "Architecture", "Fused", "Row"]

# "": as it is. "transposed": the last two dimensions change places. "heads": [n_head, head_size], maybe stored flat.
Change = Literal["", "transposed", "heads"]


@dataclass(frozen=True)
class Row:
    """A tensor of a layer: its name in GGUF (behind "blk.0.") and BlinkDL's (behind "blocks.0.")."""

    gguf: str
    name: str
    change: Change = ""


@dataclass(frozen=True)
class Fused:
    """Several vectors stacked in one tensor of GGUF, [len(names), 1, 1, n_embd]."""

    gguf: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's: the tensors of its layers, and what its keys call the sizes of low-rank pairs.

    ranks: key behind "<architecture>." → (canonical name in a layer, which dimension). The first layer that has the
    tensor counts.
    """

    name: str
    rows: tuple[Row, ...]
    fused: Fused
    ranks: Mapping[str, tuple[str, int]]


OUTSIDE: Mapping[str, str] = {
    "token_embd.weight": "emb.weight",
    "token_embd_norm.weight": "blocks.0.ln0.weight",
    "token_embd_norm.bias": "blocks.0.ln0.bias",
    "output_norm.weight": "ln_out.weight",
    "output_norm.bias": "ln_out.bias",
    "output.weight": "head.weight",
}


def _both(gguf: str, name: str) -> tuple[Row, Row]:
    return Row(f"{gguf}.weight", f"{name}.weight"), Row(f"{gguf}.bias", f"{name}.bias")


def _same(gguf: str, name: str, *leaves: str) -> tuple[Row, ...]:
    return tuple(Row(f"{gguf}_{leaf}.weight", f"{name}.{leaf}.weight") for leaf in leaves)


_NORMS = (*_both("attn_norm", "ln1"), *_both("attn_norm_2", "ln2"), *_both("time_mix_ln", "att.ln_x"))

_RWKV6 = Architecture(
    "rwkv6",
    (
        *_NORMS,
        *_same("time_mix", "att", "receptance", "key", "value", "gate", "output"),
        *_same("channel_mix", "ffn", "key", "value", "receptance"),
        Row("time_mix_lerp_x.weight", "att.time_maa_x"),
        Row("time_mix_w1.weight", "att.time_maa_w1", "transposed"),
        Row("time_mix_w2.weight", "att.time_maa_w2", "transposed"),
        Row("time_mix_decay.weight", "att.time_decay"),
        Row("time_mix_decay_w1.weight", "att.time_decay_w1", "transposed"),
        Row("time_mix_decay_w2.weight", "att.time_decay_w2", "transposed"),
        Row("time_mix_first.weight", "att.time_faaaa", "heads"),
        Row("channel_mix_lerp_k.weight", "ffn.time_maa_k"),
        Row("channel_mix_lerp_r.weight", "ffn.time_maa_r"),
        # Older files have them one by one.
        *(Row(f"time_mix_lerp_{letter}.weight", f"att.time_maa_{letter}") for letter in "wkvrg"),
    ),
    Fused("time_mix_lerp_fused.weight", tuple(f"att.time_maa_{letter}" for letter in "wkvrg")),
    {"time_mix_extra_dim": ("att.time_maa_w2", 1), "time_decay_extra_dim": ("att.time_decay_w1", 1)},
)

_RWKV7 = Architecture(
    "rwkv7",
    (
        *_NORMS,
        *_same("time_mix", "att", "receptance", "key", "value", "output"),
        *_same("channel_mix", "ffn", "key", "value"),
        *(Row(f"time_mix_{letter}0.weight", f"att.{letter}0") for letter in "wav"),
        *(Row(f"time_mix_{letter}{i}.weight", f"att.{letter}{i}", "transposed") for letter in "wavg" for i in (1, 2)),
        Row("time_mix_k_k.weight", "att.k_k"),
        Row("time_mix_k_a.weight", "att.k_a"),
        Row("time_mix_r_k.weight", "att.r_k", "heads"),
        Row("channel_mix_lerp_k.weight", "ffn.x_k"),
    ),
    Fused("time_mix_lerp_fused.weight", tuple(f"att.x_{letter}" for letter in "rwkvag")),
    {
        "attention.decay_lora_rank": ("att.w1", 1),
        "attention.iclr_lora_rank": ("att.a1", 1),
        "attention.value_residual_mix_lora_rank": ("att.v1", 1),
        "attention.gate_lora_rank": ("att.g1", 1),
    },
)

ARCHITECTURES: Mapping[str, Architecture] = {"rwkv6": _RWKV6, "rwkv7": _RWKV7}

# Related, but with other mathematics in places that matter.
REFUSED: Mapping[str, str] = {
    "rwkv6qwen2": "a Qwen2 whose attention was replaced by a gated linear one of its own: RMS norms, no token shift in "
    "its gated FFN, fewer key than query heads, no bonus and no group norm",
    "arwkv7": "a Qwen2 with RWKV-7 attention: RMS norms instead of layer norms and a gated FFN without token shift",
}
