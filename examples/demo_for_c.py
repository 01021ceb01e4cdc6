# SPDX-License-Identifier: Apache-2.0
"""Write the bundled model for programs without Python: with its tokenizer's pieces as a World vocabulary.

    python examples/demo_for_c.py demo-world.rwkv

The bundled model's tokenizer is a sentencepiece model, which takes that library to encode text. The C library has the
World tokenizer, longest match over a list of byte strings, and any list will do: ids and their bytes stay the same, so
what the model writes is decoded exactly. Encoding cuts a few words elsewhere than the model was trained with, which
costs it little (tests/library/test_examples.py measures it). Released World and G1 models need none of this.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rwkv_cpu import Model
from rwkv_cpu.export import export
from rwkv_cpu.quantize import quantize


def vocabulary(model: Model) -> str:
    """Lines "id literal length" of the tokenizer's pieces; of two with the same bytes the one in use."""
    tokenizer, ids = model.tokenizer, {}
    for token in range(2, tokenizer.n_vocab):  # 0: end of text; 1: the unknown piece
        piece = tokenizer.decode_bytes([token])
        if piece not in ids or tokenizer.encode(piece) == [token]:
            ids[piece] = token
    return "".join(
        f"{token} {piece!r} {len(piece)}\n" for piece, token in sorted(ids.items(), key=lambda item: item[1])
    )


def main(target: str) -> None:
    """Convert "demo"."""
    with tempfile.TemporaryDirectory() as folder, Model.load("demo") as model:
        weights, words = Path(folder) / "demo.safetensors", Path(folder) / "words.txt"
        words.write_text(vocabulary(model), "ascii")
        export(model.path, weights)
        quantize(weights, target, format="q8", tokenizer=words, chat_template=model.chat_template, force=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT.rwkv")
    main(sys.argv[1])
