# SPDX-License-Identifier: Apache-2.0
"""rwkv_cpu under test: worker_ours.py MODEL THREADS LONGEST [--first-token]. Speaks protocol.py."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rwkv_cpu import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def first_token(path: str, threads: int) -> None:
    """A whole run as short as can be, for the time from the process's start to its first token."""
    from benchmarks.protocol import serve

    with Model.load(path, threads=threads) as model:
        logits = model.advance([token % model.n_vocab for token in (33155, 45, 40213, 34)], model.new_state())
        serve({"token": int(logits.argmax())}, {})


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    if "--first-token" in sys.argv:
        first_token(path, threads)
        return
    from benchmarks.protocol import serve
    from rwkv_cpu import engine
    from rwkv_cpu.benchmark import traffic

    model = Model.load(path, threads=threads)
    limits = engine.Context(threads=threads)

    def measure_limits() -> dict[str, float]:
        return {"read_gbs": limits.measure_read(512 << 20) / 1e9, "int8_tops": limits.measure_int8() / 1e12}

    def prefill(tokens: list[int]) -> dict[str, float]:
        state = model.new_state()
        start = time.perf_counter()
        model.advance(tokens, state)
        return {"seconds": time.perf_counter() - start}

    def decode(prompt: list[int], tokens: list[int], limit: bool = False) -> dict[str, Any]:
        state = model.new_state()
        model.advance(prompt, state, logits="none")
        read = [limits.measure_read(512 << 20)] if limit else []
        before = model.context.value_reads
        start = time.perf_counter()
        for token in tokens:
            model.advance([token], state)
        seconds = time.perf_counter() - start
        reads = model.context.value_reads.since(before)
        read += [limits.measure_read(512 << 20)] if limit else []
        found: dict[str, Any] = {
            "seconds": seconds,
            "bytes_per_token": traffic.bytes_per_token(model, reads, len(tokens)),
            "zeros": traffic.zero_share(reads),
        }
        if read:
            found["read_gbs"] = max(read) / 1e9
        return found

    def batch(prompt: list[int], sequences: int, steps: int) -> dict[str, float]:
        states = [model.forward(prompt, logits="none")[1] for _ in range(sequences)]
        start = time.perf_counter()
        for step in range(steps):
            tokens = [[(31 * (step * sequences + i) + 7) % model.n_vocab] for i in range(sequences)]
            model.advance_batch(tokens, states)
        return {"seconds": time.perf_counter() - start}

    def tokenize(text: str) -> dict[str, list[int]]:
        return {"ids": model.tokenizer.encode(text) if model.has_tokenizer else []}

    about = {
        "name": f"rwkv_cpu {engine.version()}",
        "isa": model.isa,
        "n_vocab": model.n_vocab,
        "multiply_adds": traffic.multiply_adds_per_token(model),
        "state_bytes": model.state_bytes,
    }
    tasks: dict[str, Callable[..., Mapping[str, Any]]] = {"prefill": prefill, "decode": decode, "batch": batch}
    serve(about, {**tasks, "limits": measure_limits, "tokenize": tokenize})


if __name__ == "__main__":
    main()
