# SPDX-License-Identifier: Apache-2.0
"""From the names and orientations that checkpoints come with to BlinkDL's, which the engine's tables are written in.

    BlinkDL        blocks.0.att.key.weight         as it is, whatever the container
    web-rwkv       blocks.0.att.time_mix_x         time_maa → time_mix, time_faaaa → time_first, low-rank pairs swapped
    Hugging Face   rwkv.blocks.0.attention.key.weight                 RWKV-4, 5, 6
    fla            model.layers.0.attn.k_proj.weight                  RWKV-7; low-rank pairs are linear layers

Source: web-rwkv assets/scripts/convert_safetensors.py; transformers models/rwkv; flash-linear-attention
utils/convert_from_rwkv7.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rwkv_cpu.checkpoint.base import TensorMeta
from rwkv_cpu.checkpoint.recognise import shown
from rwkv_cpu.checkpoint.wrapped import WrappedCheckpoint
from rwkv_cpu.errors import FormatError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from rwkv_cpu.checkpoint.base import Checkpoint

__all__ = ["Source", "canonical", "canonical_sources", "is_swapped"]

EMBEDDING = "emb.weight"
# What trainers and wrappers put before every name.
_WRAPPERS = ("_forward_module.", "module.", "model.")
_HINT = "BlinkDL's names, web-rwkv's, Hugging Face's (RWKV-4, 5, 6) and fla's (RWKV-7) are read."


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor comes from: *name* in the container, one *row* of it (None: all), its last two dims *swap*ped."""

    name: str
    row: int | None = None
    swap: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape it has, for the shape that is stored."""
        if self.row is not None:
            stored = stored[1:]
        return (*stored[:-2], stored[-1], stored[-2]) if self.swap else stored


def canonical(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with BlinkDL's names and orientations; closes it when that fails.

    Raises: UnsupportedModelError: names of another kind of model, or of two namings; FormatError.
    """
    try:
        sources = canonical_sources(checkpoint.path, checkpoint.kind, checkpoint.tensors)
    except BaseException:
        checkpoint.close()
        raise
    if all(source == Source(name) for name, source in sources.items()) and len(sources) == len(checkpoint.tensors):
        return checkpoint
    return _Renamed(checkpoint, sources)


def canonical_sources(path: Path, kind: str, tensors: Mapping[str, TensorMeta]) -> dict[str, Source]:
    """BlinkDL's names → where they come from, in the container's order.

    Args:
        path: for messages; its suffix decides what nothing else can (web-rwkv writes .st).
        kind: of the container.
        tensors: as they stand in it.

    Raises: as canonical().
    """
    wrapper = next((w for w in _WRAPPERS if w + EMBEDDING in tensors), "")
    if wrapper or EMBEDDING in tensors:
        found = _blinkdl(path, tensors, wrapper)
        if kind == "safetensors":
            found = _from_web_rwkv(path, tensors, found)
        return found
    return _long_names(path, tensors)


# --------------------------------------------------------------------------------- BlinkDL, web-rwkv


def _blinkdl(path: Path, tensors: Mapping[str, TensorMeta], wrapper: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for name in tensors:
        new = name.removeprefix(wrapper)
        if _LONG.match(new):
            raise UnsupportedModelError(
                f"{path}: two namings are mixed: {EMBEDDING} is BlinkDL's, {shown(name)} is not", hint=_HINT
            )
        _add(path, found, new, Source(name))
    return found


# Stored [C, rank] by BlinkDL; web-rwkv swaps them and their partners.
_PAIR_FIRST = re.compile(r"blocks\.\d+\.att\.(time_(?:maa|mix|decay)_w1|[wavg]1)")
_SWAPPED = re.compile(r"blocks\.\d+\.att\.(time_(?:maa|mix|decay)_w[12]|[wavg][12])")
_STATE = re.compile(r"blocks\.\d+\.att\.time_state")


def _from_web_rwkv(path: Path, tensors: Mapping[str, TensorMeta], found: dict[str, Source]) -> dict[str, Source]:
    shapes = {name: tensors[source.name].shape for name, source in found.items()}
    is_v6 = any(name.endswith((".att.time_mix_x", ".att.time_mix_w1")) for name in found)
    swapped = is_swapped(path, shapes)
    renamed: dict[str, Source] = {}
    for name, source in found.items():
        new, swap = name, swapped and bool(_SWAPPED.fullmatch(name) or _STATE.fullmatch(name))
        if is_v6:
            new = new.replace(".time_mix_", ".time_maa_")
        if name.endswith(".att.time_first"):
            # In RWKV-5 time_first is a logarithm of one value per head; web-rwkv gives this name to time_faaaa, which
            # is none and has a value for every channel.
            per_channel = len(shapes[name]) >= 2 and shapes[name][-1] > 1
            if is_v6 or (per_channel and name.replace("time_first", "ln_x.weight") in found):
                new = name.replace("time_first", "time_faaaa")
        _add(path, renamed, new, replace(source, swap=swap))
    return renamed


def is_swapped(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the low-rank pairs (and time_state) are stored with their last two dimensions swapped, as web-rwkv does.

    The shapes of the pairs tell. Where there are none, or all are square, its renaming does, else its suffix .st.
    Raises: FormatError: some are and some are not.
    """
    width = shapes.get(EMBEDDING, (0,))[-1]
    straight = swapped = ""
    for name, shape in shapes.items():
        if _PAIR_FIRST.fullmatch(name) and len(shape) == 2 and shape[0] != shape[1]:
            straight = straight or (name if shape[0] == width else "")
            swapped = swapped or (name if shape[1] == width else "")
    if straight and swapped:
        raise FormatError(
            f"{path}: {shown(straight)} is stored [in, out] and {shown(swapped)} [out, in]",
            hint="The file was put together from two: use the original checkpoint.",
        )
    if straight or swapped:
        return bool(swapped)
    return any(name.endswith(".att.time_mix_x") for name in shapes) or path.suffix.lower() == ".st"


# ------------------------------------------------------------------------------- Hugging Face and fla

_LONG = re.compile(r"(?:model|rwkv|transformer)\.(?:layers|blocks)\.(\d{1,6})\.([^.]+)\.(.+)")
_TOP = {
    "embeddings.weight": EMBEDDING,
    "embed_tokens.weight": EMBEDDING,
    "emb.weight": EMBEDDING,
    "lm_head.weight": "head.weight",
    "head.weight": "head.weight",
}
_TOP_NORMS = {"norm": "ln_out", "ln_out": "ln_out", "pre_ln": "blocks.0.ln0", "pre_norm": "blocks.0.ln0"}
_NORMS = {
    "pre_ln": "ln0", "pre_norm": "ln0", "ln0": "ln0", "attn_norm": "ln1", "ln1": "ln1", "ffn_norm": "ln2", "ln2": "ln2",
}  # fmt: skip
_MODULES = {
    "attn": "att", "attention": "att", "self_attn": "att", "att": "att", "ffn": "ffn", "feed_forward": "ffn",
}  # fmt: skip
_MATRICES = {
    "r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output", "g_proj": "gate",
    "receptance": "receptance", "key": "key", "value": "value", "output": "output", "gate": "gate",
}  # fmt: skip
_TIME_MIX = {
    f"time_mix_{long}": f"time_mix_{long[0]}" for long in ("key", "value", "receptance", "gate")
}  # RWKV-4 and 5
_AS_THEY_ARE = re.compile(
    r"att\.(time_decay|time_first|time_faaaa|time_state|time_maa_[xwkvrg]|time_(maa|decay)_w[12]|time_mix_[kvrg]"
    r"|x_[rwkvag]|[wav][012]|g[12]|k_k|k_a|r_k)|ffn\.(time_maa_[kr]|time_mix_[kr]|x_k|s[012]|s_emb(_x)?\.weight)"
)
_LINEAR_LORA = {
    "lora.0.weight": ("1", True),
    "lora.2.weight": ("2", True),
    "lora.2.bias": ("0", False),
}
_FUSED = "x_x"
_FUSED_ORDER = "rwkvag"


def _long_names(path: Path, tensors: Mapping[str, TensorMeta]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    unknown = []
    for name in tensors:
        layer = _LONG.fullmatch(name)
        if layer is not None and layer[3].removeprefix("time_mixer.") == _FUSED:
            _add_fused(path, found, f"blocks.{int(layer[1])}.att.x_", tensors[name])
            continue
        new, swap = _long_top(name) if layer is None else _long_leaf(int(layer[1]), layer[2], layer[3])
        if new:
            _add(path, found, new, Source(name, swap=swap))
        else:
            unknown.append(name)
    if EMBEDDING not in found or unknown:
        raise _unknown(path, tensors, found, unknown)
    return found


def _long_top(name: str) -> tuple[str, bool]:
    for prefix in ("model.", "rwkv.", "transformer."):
        name = name.removeprefix(prefix)
    if name in _TOP:
        return _TOP[name], False
    norm, _, which = name.rpartition(".")
    return (f"{_TOP_NORMS[norm]}.{which}" if norm in _TOP_NORMS and which in ("weight", "bias") else ""), False


def _long_leaf(layer: int, module: str, leaf: str) -> tuple[str, bool]:
    """BlinkDL's name ("" if there is none), and whether the tensor is stored swapped."""
    block = f"blocks.{layer}."
    if module in _NORMS:
        return (f"{block}{_NORMS[module]}.{leaf}" if leaf in ("weight", "bias") else ""), False
    if module not in _MODULES:
        return "", False
    module = _MODULES[module]
    leaf = leaf.removeprefix("time_mixer.")
    first, _, rest = leaf.partition(".")
    if module == "att" and first in ("g_norm", "ln_x") and rest in ("weight", "bias"):
        return f"{block}att.ln_x.{rest}", False
    if first in _MATRICES and rest == "weight":
        return f"{block}{module}.{_MATRICES[first]}.weight", False
    if module == "att" and first in ("w_lora", "a_lora", "v_lora", "g_lora") and rest in _LINEAR_LORA:
        number, swap = _LINEAR_LORA[rest]
        return (f"{block}att.{first[0]}{number}" if first[0] + number != "g0" else ""), swap
    leaf = _TIME_MIX.get(leaf, leaf)
    return (f"{block}{module}.{leaf}" if _AS_THEY_ARE.fullmatch(f"{module}.{leaf}") else ""), False


def _add_fused(path: Path, found: dict[str, Source], start: str, meta: TensorMeta) -> None:
    if not meta.shape or meta.shape[0] != len(_FUSED_ORDER):
        raise FormatError(f"{path}: {shown(meta.name)} has shape {list(meta.shape)}, not {len(_FUSED_ORDER)} rows")
    for row, letter in enumerate(_FUSED_ORDER):
        _add(path, found, start + letter, Source(meta.name, row=row))


def _unknown(
    path: Path, tensors: Mapping[str, TensorMeta], found: Mapping[str, Source], unknown: list[str]
) -> UnsupportedModelError:
    names = list(tensors)
    if any(".lora_" in n or ".lora." in n for n in names) and not any(_LONG.match(n) for n in names):
        return UnsupportedModelError(
            f"{path}: this is an adapter (LoRA), not a model", hint="Give it with the model: --lora FILE."
        )
    if names and all(_STATE.fullmatch(n) for n in names):
        return UnsupportedModelError(
            f"{path}: this is a tuned starting state, not a model", hint="Give it with the model: --state FILE."
        )
    if len(found) > len(unknown):
        what = f"{shown(unknown[0])} is no tensor of an RWKV model" if unknown else f"it has no {EMBEDDING}"
        return UnsupportedModelError(f"{path}: {what} in the naming of its other tensors", hint=_HINT)
    listed = ", ".join(shown(n) for n in names[:3])
    return UnsupportedModelError(f"{path}: not an RWKV model by the names of its tensors ({listed})", hint=_HINT)


# -------------------------------------------------------------------------------------------- wrapper


def _add(path: Path, found: dict[str, Source], name: str, source: Source) -> None:
    if name in found:
        raise UnsupportedModelError(
            f"{path}: {shown(found[name].name)} and {shown(source.name)} are both {shown(name)}: two namings are mixed",
            hint=_HINT,
        )
    found[name] = source


class _Renamed(WrappedCheckpoint):
    """A checkpoint under other names. See checkpoint.base.Checkpoint."""

    def __init__(self, inner: Checkpoint, sources: dict[str, Source]) -> None:
        super().__init__(inner)
        self._sources = sources
        metas = {}
        for name, source in sources.items():
            meta = inner.tensors[source.name]
            if source.swap and len(meta.shape) < 2:
                inner.close()
                raise FormatError(f"{inner.path}: {shown(source.name)} has shape {list(meta.shape)}: it is no matrix")
            metas[name] = TensorMeta(name, meta.dtype, source.shape(meta.shape), meta.stored)
        self.tensors: Mapping[str, TensorMeta] = MappingProxyType(metas)

    def read(self, name: str) -> NDArray[Any]:
        """As Checkpoint.read; a view."""
        source = self._sources[name]
        array = self._base.read(source.name)
        if source.row is not None:
            array = array[source.row]
        return array.swapaxes(-1, -2) if source.swap else array
