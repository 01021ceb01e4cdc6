# SPDX-License-Identifier: Apache-2.0
"""What a token costs after a long conversation, beside a Transformer of equal depth, width and size.

    python benchmarks/context.py [MODEL] --lengths 100 1000 10000 100000 1000000 --out RESULTS
    python benchmarks/context.py [MODEL] --peer-python ENV/bin/python --folder MODELS

Ours: one conversation grows to the longest length; at each length its state is kept, then the time of a further token
is measured from each of them by turns, so that drift meets them all. Memory is what the process holds of its own.

The Transformer: its cache takes 2 x layers x width f16 numbers per token, and a token must read all of it besides the
weights, so at best it takes (weights + cache) / read bandwidth. With --peer-python llama.cpp runs such a model (llama
architecture, made-up weights, Q8_0) up to --peer-longest tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, tables
from benchmarks.protocol import HERE, Worker
from rwkv_cpu import Model

PIECE = 256  # tokens handed over at a time, so that the list of them is not counted as memory
LENGTHS = [100, 1000, 10_000, 100_000, 1_000_000]


@dataclass(frozen=True)
class Transformer:
    """A Transformer with multi-head attention and a gated MLP, as Llama has them."""

    n_layer: int
    width: int

    @property
    def ffn(self) -> int:
        """Wide enough for 12 width² weights a layer, as RWKV-7 has."""
        return -(-8 * self.width // 3 // 32) * 32

    @property
    def weights(self) -> int:
        """In all layers; without embedding and head."""
        return self.n_layer * (4 * self.width**2 + 3 * self.width * self.ffn)

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of all layers, f16."""
        return 2 * 2 * self.n_layer * self.width * tokens

    def seconds_at_best(self, tokens: int, bits: float, bytes_per_second: float) -> float:
        """Reading the weights and the cache once."""
        return (self.weights * bits / 8 + self.cache_bytes(tokens)) / bytes_per_second


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not say how much private memory a process has")


def ids(n_vocab: int, first: int, last: int) -> list[int]:
    return [(i * 31 + 7) % n_vocab for i in range(first, last)]


def measure_ours(model: Model, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows by length: milliseconds per token, ratio to the first, memory of the conversation."""
    growing = model.new_state()
    model.advance(ids(model.n_vocab, 0, PIECE), model.new_state())  # scratch for a whole chunk exists from here on
    states, memory, at = {}, {}, 0
    for length in options.lengths:
        before = private_bytes()
        while at < length:
            end = min(at + PIECE, length)
            model.advance(ids(model.n_vocab, at, end), growing, logits="none")
            at = end
        states[length] = growing.copy()
        memory[length] = max(private_bytes() - before, model.state_bytes)
    seconds: dict[int, list[float]] = {length: [] for length in options.lengths}
    for _ in range(options.rounds):
        for length, state in states.items():
            turn = state.copy()
            start = time.perf_counter()
            for token in ids(model.n_vocab, 0, options.tokens):
                model.advance([token], turn)
            seconds[length].append((time.perf_counter() - start) / options.tokens)
    first = seconds[options.lengths[0]]
    return [
        {
            "tokens": length,
            "ms": 1e3 * statistics.median(values),
            "ratio": statistics.median([mine / base for mine, base in zip(values, first, strict=True)]),
            "memory_bytes": memory[length],
        }
        for length, values in seconds.items()
    ]


def measure_peer(options: argparse.Namespace, shape: Transformer) -> dict[int, float]:
    """Milliseconds per token of llama.cpp by length."""
    lengths = [length for length in options.lengths if length <= options.peer_longest]
    if not options.peer_python or not lengths:
        return {}
    path = options.folder / f"transformer-{shape.n_layer}x{shape.width}-q8_0.gguf"
    if not path.exists():
        command = [HERE / "peer_llama.py", path, shape.n_layer, shape.width, shape.ffn]
        subprocess.run([options.peer_python, *map(str, command)], check=True)
    room = max(lengths) + options.tokens + 8
    worker = Worker(options.peer_python, "worker_llama_cpp.py", path, options.threads or len(machine.cores()), room)
    found = {}
    for length in lengths:
        times = []
        for _ in range(options.peer_rounds):
            prompt = ids(worker.about["n_vocab"], 0, length)
            answer = worker.run("decode", prompt=prompt, tokens=ids(worker.about["n_vocab"], 0, options.tokens))
            times.append(1e3 * answer["seconds"] / options.tokens)
        found[length] = statistics.median(times)
    worker.close()
    return found


def as_markdown(result: dict[str, Any]) -> str:
    about = result["machine"]
    head = ["tokens so far", "rwkv_cpu, ms/token", "ratio", "memory"]
    head += ["Transformer at best, ms/token", "llama.cpp, ms/token", "its cache"]
    rows = []
    for ours, other in zip(result["rows"], result["transformer"], strict=True):
        measured = "" if other["ms"] is None else tables.number(other["ms"])
        row = [f"{ours['tokens']:,}", f"{ours['ms']:.3f}", f"{ours['ratio']:.3f}", size(ours["memory_bytes"])]
        rows.append([*row, tables.number(other["ms_formula"]), measured, size(other["kv_bytes"])])
    shape = result["shape"]
    what = f"{result['model']} ({shape['n_layer']} layers of {shape['width']}), {result['threads']} threads"
    return f"{what}; {about['cpu']}, commit {about['commit']}.\n\n{tables.table(head, rows)}"


def size(n_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{tables.number(n_bytes / factor)} {unit}"
    return f"{tables.number(n_bytes / 1e3)} kB"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time and memory per token, by length of the conversation.")
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--tokens", type=int, default=32, help="tokens to time per turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--peer-python", default="", help="interpreter of an environment with llama-cpp-python and gguf"
    )
    parser.add_argument("--peer-longest", type=int, default=10_000, help="its prompts take time with their square")
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the Transformer's file is kept")
    parser.add_argument("--out", type=Path, help="folder for context.json, context.md and a plot")
    options = parser.parse_args(arguments)
    options.lengths = sorted(set(options.lengths))
    with Model.load(options.model, threads=options.threads) as model:
        rows = measure_ours(model, options)
        bandwidth = model.context.measure_read(512 << 20)
        shape = Transformer(model.config.n_layer, model.config.n_embd)
        threads, name = model.threads, model.path.stem
    measured = measure_peer(options, shape)
    transformer = [
        {
            "tokens": length,
            "ms": measured.get(length),
            "ms_formula": 1e3 * shape.seconds_at_best(length, 8.5, bandwidth),
            "kv_bytes": shape.cache_bytes(length),
        }
        for length in options.lengths
    ]
    result = {
        "machine": machine.about(),
        "model": name,
        "threads": threads,
        "shape": {"n_layer": shape.n_layer, "width": shape.width},
        "read_gbs": bandwidth / 1e9,
        "rows": rows,
        "transformer": transformer,
    }
    text = as_markdown(result)
    print(text)
    if options.out:
        from benchmarks import plots

        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "context.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        (options.out / "context.md").write_text(text + "\n", "utf-8")
        plots.context(result, options.out / "context.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
