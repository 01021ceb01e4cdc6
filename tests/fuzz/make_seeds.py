# SPDX-License-Identifier: Apache-2.0
"""Seeds for the C fuzzers: a very small valid .rwkv of each format; vocabularies with a text to encode."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.synthetic import Shape, tensors, write_pth
from rwkv_cpu import quantize
from tests.fuzz import seeds

SHAPE = Shape(n_layer=2, n_embd=64, n_vocab=64, head_size=64, n_ffn=64)


def main(models: Path, vocabularies: Path) -> None:
    for folder in (models, vocabularies):
        folder.mkdir(parents=True, exist_ok=True)
    for i, vocabulary in enumerate(seeds.world()):
        text = "ab the é 中\n\n".encode()
        (vocabularies / f"world-{i}").write_bytes(bytes([len(text)]) + text + vocabulary)
    for path in sorted(seeds.GOLDENS.glob("models/*.pth")):  # the other versions of RWKV, if the golden data is there
        quantize.quantize(path, models / f"{path.stem}.rwkv", tokenizer="none", force=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "tiny.pth"
        write_pth(source, list(tensors(SHAPE)))
        for name in ("f32", "f16", "q8", "q6", "q5", "q4"):
            quantize.quantize(source, models / f"tiny-{name}.rwkv", format=name, tokenizer="none", force=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
