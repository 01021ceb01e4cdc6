# SPDX-License-Identifier: Apache-2.0
"""Write an RWKV-7 checkpoint as GGUF, so that llama.cpp can run the same weights.

    python benchmarks/peer_gguf.py model.pth model.gguf --vocabulary rwkv_vocab.txt --type q8_0

Needs the `gguf` package, which the peer's environment has; rwkv_cpu itself is used for reading only, from the
checkout. What llama-quantize leaves unquantised stays so here: vectors in f32, low-rank pairs in f16.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rwkv_cpu.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Q = gguf.GGMLQuantizationType
MATRIX_TYPES = {"f16": Q.F16, "bf16": Q.BF16, "q8_0": Q.Q8_0, "q5_0": Q.Q5_0, "q4_0": Q.Q4_0}
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}

OUTSIDE = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
LAYER_VECTORS = {
    "ln1.weight": "attn_norm.weight",
    "ln1.bias": "attn_norm.bias",
    "ln2.weight": "attn_norm_2.weight",
    "ln2.bias": "attn_norm_2.bias",
    "att.ln_x.weight": "time_mix_ln.weight",
    "att.ln_x.bias": "time_mix_ln.bias",
    "att.k_k": "time_mix_k_k.weight",
    "att.k_a": "time_mix_k_a.weight",
    "att.r_k": "time_mix_r_k.weight",
    "ffn.x_k": "channel_mix_lerp_k.weight",
    **{f"att.{letter}0": f"time_mix_{letter}0.weight" for letter in "wav"},
}
LAYER_MATRICES = {
    **{f"att.{name}.weight": f"time_mix_{name}.weight" for name in ("receptance", "key", "value", "output")},
    "ffn.key.weight": "channel_mix_key.weight",
    "ffn.value.weight": "channel_mix_value.weight",
}
LOW_RANK = {f"att.{letter}{i}": f"time_mix_{letter}{i}.weight" for letter in "wavg" for i in (1, 2)}


@dataclass(frozen=True)
class Entry:
    """A tensor of the GGUF file: how it is stored and how its values come about."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    values: Callable[[], np.ndarray[Any, Any]]  # float32, of that shape

    def stored(self) -> np.ndarray[Any, Any]:
        packed: np.ndarray[Any, Any] = gguf.quants.quantize(np.ascontiguousarray(self.values()), self.kind)
        return packed

    @property
    def n_bytes(self) -> int:
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64) // per_block * block_bytes)


def as_f32(raw: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def entries(checkpoint: Any, matrix: gguf.GGMLQuantizationType) -> Iterator[Entry]:
    """All tensors of the file, by the names of llama.cpp."""
    metas = checkpoint.tensors
    n_layer = 1 + max(int(name.split(".")[1]) for name in metas if name.startswith("blocks."))

    def read(name: str) -> np.ndarray[Any, Any]:
        return as_f32(checkpoint.read(name), metas[name].dtype)

    def transposed(name: str) -> np.ndarray[Any, Any]:
        return np.transpose(read(name))

    def stacked(names: list[str]) -> np.ndarray[Any, Any]:
        return np.stack([read(name).reshape(1, 1, -1) for name in names])

    def entry(target: str, name: str, kind: gguf.GGMLQuantizationType) -> Entry:
        shape = tuple(size for size in metas[name].shape if size != 1)
        if name.endswith("att.r_k"):
            shape = (shape[0] * shape[1],)
        return Entry(target, shape, kind, lambda: read(name).reshape(shape))

    for name, target in OUTSIDE.items():
        yield entry(target, name, matrix if name in ("emb.weight", "head.weight") else Q.F32)
    for layer in range(n_layer):
        source, blk = f"blocks.{layer}.", f"blk.{layer}."

        def own(name: str, source: str = source, layer: int = layer) -> str:
            # llama.cpp wants layer 0's unused value residual to exist; any values do.
            if layer == 0 and name.startswith("att.v") and name[5:] in ("0", "1", "2"):
                return f"{source}att.a{name[5:]}"
            return source + name

        for name, target in LAYER_VECTORS.items():
            yield entry(blk + target, own(name), Q.F32)
        for name, target in LAYER_MATRICES.items():
            yield entry(blk + target, own(name), matrix)
        for name, target in LOW_RANK.items():
            stored = own(name)
            rows, cols = metas[stored].shape
            yield Entry(blk + target, (cols, rows), Q.F16, partial(transposed, stored))
        mixes = [f"{source}att.x_{letter}" for letter in "rwkvag"]
        width = metas[mixes[0]].elements
        yield Entry(
            f"{blk}time_mix_lerp_fused.weight",
            (len(mixes), 1, 1, width),
            Q.F32,
            partial(stacked, mixes),
        )


def escaped(literal: str) -> str:
    """A vocabulary literal as llama.cpp's rwkv tokenizer reads it: the bytes, Python-escaped."""
    token = ast.literal_eval(literal)
    return repr(token if isinstance(token, bytes) else token.encode())[2:-1]


def add_vocabulary(writer: gguf.GGUFWriter, path: Path, n_vocab: int) -> None:
    tokens, kinds = ["<s>"], [gguf.TokenType.CONTROL]
    for line in path.read_text("utf-8").splitlines():
        parts = line.split(" ")
        if len(tokens) < n_vocab:
            tokens.append(escaped(" ".join(parts[1:-1])))
            kinds.append(gguf.TokenType.NORMAL)
    while len(tokens) < n_vocab:
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)


def write(source: Path, target: Path, vocabulary: Path, kind: str) -> None:
    """Convert tensor by tensor: memory stays at one tensor."""
    with open_checkpoint(source) as checkpoint:
        metas = checkpoint.tensors
        found = list(entries(checkpoint, MATRIX_TYPES[kind]))
        n_vocab, width = metas["emb.weight"].shape
        head_size = metas["blocks.0.att.r_k"].shape[1]
        writer = gguf.GGUFWriter(target, "rwkv7")
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_context_length(1048576)
        writer.add_embedding_length(width)
        writer.add_block_count(1 + max(int(n.split(".")[1]) for n in metas if n.startswith("blocks.")))
        writer.add_layer_norm_eps(1e-5)
        writer.add_wkv_head_size(head_size)
        writer.add_head_count(0)
        writer.add_token_shift_count(2)
        writer.add_feed_forward_length(metas["blocks.0.ffn.key.weight"].shape[0])
        writer.add_decay_lora_rank(metas["blocks.0.att.w1"].shape[1])
        writer.add_iclr_lora_rank(metas["blocks.0.att.a1"].shape[1])
        writer.add_value_residual_mix_lora_rank(metas["blocks.1.att.v1"].shape[1])
        writer.add_gate_lora_rank(metas["blocks.0.att.g1"].shape[1])
        add_vocabulary(writer, vocabulary, n_vocab)
        for item in found:
            shape = item.shape
            writer.add_tensor_info(item.name, shape, np.dtype(np.float32), item.n_bytes, raw_dtype=item.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for item in found:
            writer.write_tensor_data(item.stored())
        writer.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write an RWKV-7 World checkpoint as GGUF for llama.cpp.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True, help="rwkv_vocab_v20230424.txt")
    parser.add_argument("--type", choices=MATRIX_TYPES, default="q8_0")
    options = parser.parse_args(arguments)
    write(options.checkpoint, options.output, options.vocabulary, options.type)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
