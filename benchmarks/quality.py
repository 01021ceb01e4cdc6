# SPDX-License-Identifier: Apache-2.0
"""What quantisation costs: ours and llama.cpp's formats on a trained checkpoint and its held-out text, by one measure.

    python benchmarks/quality.py CHECKPOINT HELD_OUT.txt --peer-python PYTHON [--tokens 12000] [--json MODEL.json]
    python -m benchmarks.quality --render MODEL.json [MODEL.json …] --plot OUT.svg

Each format's matrices, head and embedding are put into the f32 model in our engine, so that only the weights differ;
with --end-to-end also as each program runs its own file. Documents end with a line "<|eod|>"; they form one stream,
token 0 before each. llama.cpp gets an importance matrix from the same calibration as ours. bpw: bits per weight of
embedding, head and matrices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu import Model, engine
from rwkv_cpu.evaluation.divergence import joined, summary
from rwkv_cpu.evaluation.texts import stream_of
from rwkv_cpu.export import export
from rwkv_cpu.memory import aligned_zeros
from rwkv_cpu.modelfile import ModelFile
from rwkv_cpu.quantize import quantize
from rwkv_cpu.quantize.calibration import Reference, default_text, sample, text_sequences
from rwkv_cpu.softmax import compare_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
KINDS = (engine.KIND_MATRIX, engine.KIND_VALUE, engine.KIND_HEAD, engine.KIND_EMBEDDING)
STEP = 1024
OURS: dict[str, dict[str, Any]] = {
    "q8 --no-calibration": {"format": "q8"},
    "q6 --no-calibration": {"format": "q6"},
    "q5 --no-calibration": {"format": "q5"},
    "q4 --no-calibration": {"format": "q4"},
    "q8": {"format": "q8", "calibration": "default"},
    "q6": {"format": "q6", "calibration": "default"},
    "q5": {"format": "q5", "calibration": "default"},
    "q4": {"format": "q4", "calibration": "default"},
    "--bits 4.5": {"bits": 4.5, "calibration": "default"},
    "--bits 4.75": {"bits": 4.75, "calibration": "default"},
    "--bits 5.6": {"bits": 5.6, "calibration": "default"},
    "--bits 6.55": {"bits": 6.55, "calibration": "default"},
}
THEIRS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS")
GGUF_NAMES = {
    "att.receptance": "time_mix_receptance",
    "att.key": "time_mix_key",
    "att.value": "time_mix_value",
    "att.output": "time_mix_output",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
}


@dataclass(frozen=True)
class Row:
    """One format: *kl* mean, median and 99 % (nats a token), *top1* agreement, *perplexity* and relative to f32."""

    name: str
    bits_per_weight: float
    file_bytes: int
    kl: float
    kl_median: float
    kl_99: float
    top1: float
    perplexity: float
    ratio: float
    end_to_end_kl: float | None = None


class Judge:
    """The model in f32, whose weights are replaced by what a file holds; compares logits token by token."""

    def __init__(self, path: Path, ids: NDArray[np.uint32]) -> None:
        self.ids = ids
        self._file = ModelFile(path)
        self._exact = np.frombuffer(self._file.buffer, np.uint8)
        self._bytes = aligned_zeros(len(self._exact))
        self._bytes[:] = self._exact
        self._model = engine.OpenModel(self._bytes)
        self._infos = {info.name: info for info in self._model.tensors()}
        self._context = engine.Context()
        self._reference = list(self._run())

    def _run(self) -> Iterator[NDArray[np.float32]]:
        state = np.empty(self._model.state_floats, np.float32)
        after = np.empty_like(state)
        self._model.init_state(state)
        for at in range(0, len(self.ids) - 1, STEP):
            tokens = np.ascontiguousarray(self.ids[at : min(at + STEP, len(self.ids) - 1)])
            yield self._context.forward(self._model, [engine.SequenceRun(tokens, state, after, "all")])
            state, after = after, state

    def weights_of(self, path: Path, name: str) -> Row:
        """Of a .rwkv file's weights."""
        with ModelFile(path) as file:
            opened = engine.OpenModel(file.buffer, str(path))
            offset, raw = file.info.data_offset, np.frombuffer(file.buffer, np.uint8)
            infos = opened.tensors()
            for info in infos:
                if info.kind in KINDS:
                    at = offset + info.offset
                    self._put(info.name, engine.unpack(info, raw[at : at + info.size_bytes]))
            size = file.info.size_bytes
            del raw
            opened.close()
        try:
            return self.compare(self._run(), name, engine.bits_per_weight(infos), size)
        finally:
            self._bytes[:] = self._exact

    def _put(self, name: str, values: NDArray[np.float32]) -> None:
        info = self._infos[name]
        packed = aligned_zeros(info.size_bytes)
        source = np.ascontiguousarray(values.T) if info.transposed else values
        engine.pack(info, source.reshape(info.shape), "f32", 0, engine.packed_panels(info), packed)
        at = self._file.info.data_offset + info.offset
        self._bytes[at : at + info.size_bytes] = packed

    def compare(self, parts: Iterator[NDArray[np.float32]], name: str, bits: float, size: int) -> Row:
        """Logits, part by part, against the reference's."""
        compared, row = [], 0
        for logits, exact in zip(parts, self._reference, strict=True):
            compared.append(compare_rows(exact, logits, self.ids[row + 1 : row + 1 + len(logits)]))
            row += len(logits)
        rows = joined(compared)
        found = summary(rows)
        return Row(
            name,
            bits,
            size,
            found.kl_mean.value,
            found.kl_median.value,
            found.kl_99.value,
            found.top1.value,
            float(np.exp(rows.loss.mean())),
            found.perplexity_ratio.value - 1,
        )

    def parts_of(self, logits: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """A whole array, cut as the reference is."""
        row = 0
        for exact in self._reference:
            yield logits[row : row + len(exact)]
            row += len(exact)


def importance(checkpoint: Path, folder: Path) -> Path:
    """llama.cpp's importance matrix from our own calibration: mean squares of the inputs, by GGUF name."""
    copy = folder / "calibration.rwkv"
    quantize(checkpoint, copy, format="f32")
    with Model(copy) as model:
        tokenizer = model.tokenizer
        with Reference(copy, None, None) as reference:
            where = "the built-in text"
            text = text_sequences(reference, tokenizer, default_text(), where, lambda _: None, required=False)
            found: dict[str, list[NDArray[np.float32]]] = {}

            def see(name: str, x: NDArray[np.float32]) -> None:
                found.setdefault(name, []).append(np.square(x).mean(0))

            for batch in reference.batches(sample(reference, lambda _: None) + text):
                reference.run(batch, True, see)
    named: dict[str, Any] = {"output.weight": np.mean(found["head.weight"], axis=0)}
    for name, squares in found.items():
        place = name.split(".", 2)
        if place[0] == "blocks" and (role := place[2].removesuffix(".weight")) in GGUF_NAMES:
            named[f"blk.{place[1]}.{GGUF_NAMES[role]}.weight"] = np.mean(squares, axis=0)
    target = folder / "importance.npz"
    np.savez(target, **named)
    return target


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    exact = folder / "f32.rwkv"
    quantize(options.checkpoint, exact, format="f32")
    with Model(exact) as model:
        ids = stream_of(model.tokenizer, options.text.read_text("utf-8"), options.tokens)
    judge = Judge(exact, ids)
    file = folder / "x.rwkv"
    for name, arguments in OURS.items() if options.only != "theirs" else ():
        quantize(options.checkpoint, file, force=True, **arguments)
        row = judge.weights_of(file, name)
        if options.end_to_end:
            with Model(file) as model:
                logits = model.forward(ids[:-1], logits="all")[0]
            kl = judge.compare(judge.parts_of(logits), name, 0, 0).kl
            row = Row(**{**asdict(row), "end_to_end_kl": kl})
        yield row
    if options.peer_python is None or options.only == "ours":
        return
    whole, theirs = folder / "f32.gguf", folder / "x.gguf"
    export(exact, whole, dtype="f32")
    matrix = importance(options.checkpoint, folder)
    np.save(folder / "ids.npy", ids[:-1])
    for kind in THEIRS:
        for extra in ([], [str(matrix)]) if kind not in ("Q8_0", "Q4_0") else ([],):
            run = [options.peer_python, HERE / "worker_llama_quantize.py", whole, theirs, kind, *extra]
            said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            bits = float(said.rpartition("bits per weight: ")[2])
            quantize(theirs, file, format="f32", tokenizer="none", force=True)
            row = judge.weights_of(file, f"{kind}{' (imatrix)' if extra else ''}")
            changes: dict[str, Any] = {"bits_per_weight": bits, "file_bytes": theirs.stat().st_size}
            if options.end_to_end:
                run = [options.peer_python, HERE / "worker_llama_logits.py", theirs, folder / "ids.npy"]
                subprocess.run([*run, folder / "logits.npy"], check=True)
                logits = np.load(folder / "logits.npy")
                changes["end_to_end_kl"] = judge.compare(judge.parts_of(logits), kind, 0, 0).kl
            yield Row(**{**asdict(row), **changes})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What quantisation costs, ours beside llama.cpp's.")
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("text", type=Path, nargs="?", help="held-out text; documents end with a line <|eod|>")
    parser.add_argument("--tokens", type=int, help="the first N of them (default: all)")
    parser.add_argument("--peer-python", help="a Python with llama-cpp-python")
    parser.add_argument("--end-to-end", action="store_true", help="also as each program runs its own file")
    parser.add_argument("--only", choices=["ours", "theirs"])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--render", type=Path, nargs="+", metavar="JSON", help="measure nothing: plot these, by name")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="divergence over bits per weight (with --render)")
    options = parser.parse_args(arguments)
    if (options.render is None) != (options.plot is None):
        parser.error("--render and --plot belong together")
    if options.render:
        from benchmarks import plots

        plots.quantisation({file.stem: json.loads(file.read_text("utf-8")) for file in options.render}, options.plot)
        return 0
    if options.text is None:
        parser.error("CHECKPOINT and HELD_OUT.txt are needed (or --render and --plot)")
    found = []
    print("| format | bpw | file | KL | median | 99 % | top-1 | perplexity | | end to end KL |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options, Path(folder)):
            found.append(asdict(row))
            end = "" if row.end_to_end_kl is None else f"{row.end_to_end_kl:.2e}"
            print(
                f"| {row.name} | {row.bits_per_weight:.3f} | {row.file_bytes / 1e6:.2f} MB | {row.kl:.2e}"
                f" | {row.kl_median:.1e} | {row.kl_99:.1e} | {row.top1:.2%} | {row.perplexity:.4f} | {row.ratio:+.3%}"
                f" | {end} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
