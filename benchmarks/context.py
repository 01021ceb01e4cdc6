# SPDX-License-Identifier: Apache-2.0
"""Time and memory per token must not depend on how long the conversation already is.

    python benchmarks/context.py [MODEL] --lengths 100 1000 100000

For each length: a conversation of so many tokens, then the time of one more token (median of several) and the
private memory of the process. The lengths are visited again and again, so that drift meets them all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rwkv_cpu import Model

PIECE = 256  # tokens handed over at a time, so that the list of them is not counted as memory


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not say how much private memory a process has")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and memory per token, by length of the conversation.")
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 100_000])
    parser.add_argument("--tokens", type=int, default=32, help="tokens to time per turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with Model.load(options.model, threads=options.threads) as model:
        model.advance([1] * 256, model.new_state())  # scratch for a whole chunk exists from here on
        before = private_bytes()
        states, memory = {}, {}
        for length in options.lengths:
            state = model.new_state()
            for begin in range(0, length, PIECE):
                piece = range(begin, min(begin + PIECE, length))
                model.advance([(i * 31 + 7) % model.n_vocab for i in piece], state, logits="none")
            states[length] = state
            memory[length] = private_bytes() - before
            before = private_bytes()
        seconds: dict[int, list[float]] = {length: [] for length in options.lengths}
        for _ in range(options.rounds):
            for length, state in states.items():
                turn = state.copy()
                start = time.perf_counter()
                for token in range(options.tokens):
                    model.advance([(token * 17 + 3) % model.n_vocab], turn)
                seconds[length].append((time.perf_counter() - start) / options.tokens)
    first = statistics.median(seconds[options.lengths[0]])
    result = [
        {
            "tokens": length,
            "milliseconds_per_token": 1e3 * statistics.median(seconds[length]),
            "ratio_to_first": statistics.median(seconds[length]) / first,
            "memory_bytes": memory[length],
        }
        for length in options.lengths
    ]
    print("| tokens so far | ms per token | ratio | memory of this conversation |\n|---|---|---|---|")
    for row in result:
        print(
            f"| {row['tokens']:,} | {row['milliseconds_per_token']:.3f} | {row['ratio_to_first']:.3f} "
            f"| {row['memory_bytes'] / 1e6:.2f} MB |"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
