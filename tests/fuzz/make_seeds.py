# SPDX-License-Identifier: Apache-2.0
"""Seeds for the C fuzzers: a very small valid .rwkv of each format; vocabularies with a text to encode; state files,
chat templates and answers.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.synthetic import Shape, tensors, write_pth
from rwkv_cpu import quantize
from tests.fuzz import seeds

SHAPE = Shape(n_layer=2, n_embd=64, n_vocab=64, head_size=64, n_ffn=64)


def state_file(version: str, *, logits: bool) -> bytes:
    """A state of the layout in tests/fuzz/app.c; of version 2 with the checksum of no such file, which is refused."""
    header: dict[str, object] = {
        "__metadata__": {
            "rwkv_cpu.state": version,
            "rwkv_cpu.model": "0123456789abcdef" * 2,
            "rwkv_cpu.n_tokens": "7",
            "rwkv_cpu.text_digest": "0" * 32,
            "rwkv_cpu.crc32": "00000000",
        },
        "att_shift": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "wkv": {"dtype": "F16", "shape": [2, 1, 2, 3], "data_offsets": [32, 56]},
    }
    if logits:
        header["logits"] = {"dtype": "F32", "shape": [5], "data_offsets": [56, 76]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(76 if logits else 56)


def app_seeds() -> list[bytes]:
    """What tests/fuzz/app.c reads."""
    templates = ("world", '{"user": "Human", "stop": ["x"], "sampling": {"top_p": 0.5e0}, "raw": false, "new": [{}]}')
    answers = ("<think>a\n</think>b é 中 🙂\n\nUser: c", " <think", "ab")
    states = (state_file(version, logits=logits) for version in "12" for logits in (False, True))
    return [
        *(b"s" + state for state in states),
        *(b"t" + template.encode() for template in templates),
        *(b"a" + answer.encode() for answer in answers),
    ]


def main(models: Path, vocabularies: Path, app: Path) -> None:
    for folder in (models, vocabularies, app):
        folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(app_seeds()):
        (app / f"seed-{i}").write_bytes(seed)
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
    main(*map(Path, sys.argv[1:4]))
