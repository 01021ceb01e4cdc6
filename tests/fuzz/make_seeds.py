# SPDX-License-Identifier: Apache-2.0
"""Seeds for the fuzzer: a very small valid .rwkv of each format."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.synthetic import Shape, tensors, write_pth
from rwkv_cpu import quantize

SHAPE = Shape(n_layer=2, n_embd=64, n_vocab=64, head_size=64, n_ffn=64)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "tiny.pth"
        write_pth(source, list(tensors(SHAPE)))
        for name in ("f32", "f16", "q8"):
            quantize.quantize(source, folder / f"tiny-{name}.rwkv", format=name, tokenizer="none", force=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
