# SPDX-License-Identifier: Apache-2.0
"""Write a small Transformer (llama architecture, made-up weights) as GGUF: peer_llama.py OUT LAYERS WIDTH FFN [TYPE].

For context.py: a Transformer of the same depth and width beside an RWKV model. Runs in the peer's environment.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAD = 64
VOCABULARY = 512  # the head of a real one costs the same at any length of the conversation
Q = gguf.GGMLQuantizationType


def write(target: str, n_layer: int, width: int, ffn: int, kind: gguf.GGMLQuantizationType) -> None:
    """Matrices in *kind*, norms in f32."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(width // HEAD)
    writer.add_head_count_kv(width // HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, rows: int, cols: int) -> None:
        values: NDArray[Any] = random.standard_normal((rows, cols), dtype=np.float32) * np.float32(cols**-0.5)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    matrix("token_embd.weight", VOCABULARY, width)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm.weight")
        norm(f"{block}.ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{name}.weight", width, width)
        matrix(f"{block}.ffn_gate.weight", ffn, width)
        matrix(f"{block}.ffn_up.weight", ffn, width)
        matrix(f"{block}.ffn_down.weight", width, ffn)
    norm("output_norm.weight")
    matrix("output.weight", VOCABULARY, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    target, n_layer, width, ffn = sys.argv[1], *map(int, sys.argv[2:5])
    write(target, n_layer, width, ffn, {"q8_0": Q.Q8_0, "q4_0": Q.Q4_0}[sys.argv[5] if len(sys.argv) > 5 else "q8_0"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
