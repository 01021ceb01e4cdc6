# SPDX-License-Identifier: Apache-2.0
"""Speed beside a busy neighbour, and with more threads than cores: a laptop with a browser open.

    python benchmarks/neighbour.py --folder MODELS --peer-python ENV/bin/python --size 0.4B --out RESULTS

A neighbour is a process that spins on one of the cores. Decode and prefill with 1, 2, 4 and 8 threads are measured
beside it, and beside what one thread alone reaches on the quiet machine in the same round; 4 and 8 threads also without
the neighbour; llama.cpp with as many threads as cores both ways. --peer-python may be left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, tables
from benchmarks.models import EQUAL, Files, Weights
from benchmarks.protocol import Worker
from benchmarks.synthetic import SIZES

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = 0.8  # of one thread on a quiet machine
SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True:\n    pass\n"


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    """A process that keeps *core* busy meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(core)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None  # noqa: S101 (asked for above)
        process.stdout.readline()  # it has begun
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def summarise(rates: dict[str, dict[str, list[float]]], base: str) -> list[dict[str, Any]]:
    """Per case and kind of work: rates, and their share of the base case's, round by round."""
    rows = []
    for case, works in rates.items():
        row: dict[str, Any] = {"case": case}
        for work, values in works.items():
            shares = [mine / one for mine, one in zip(values, rates[base][work], strict=True)]
            row[work] = {"rate": spread(values), "share": spread(shares)}
        rows.append(row)
    return rows


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def as_markdown(result: dict[str, Any]) -> str:
    about, setting = result["machine"], result["settings"]
    head = ["program", "decode, tokens/s", "of 1 quiet thread", "prefill, tokens/s", "of 1 quiet thread"]
    rows = []
    for row in result["rows"]:
        cells = [row["case"]]
        for work in ("decode", "prefill"):
            cells += [tables.spread(row[work]["rate"]), f"{100 * row[work]['share']['median']:.0f} %"]
        rows.append(cells)
    where = f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}"
    how = f"{setting['model']}, prompt {setting['prompt']}, {setting['tokens']} tokens, {setting['rounds']} rounds"
    wanted = f"Beside the neighbour and with too many threads ours should keep {100 * TARGET:.0f} %."
    return f"{how}; {where}.\n\n{tables.table(head, rows)}\n\n{wanted}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed beside a busy neighbour, and with more threads than cores.")
    parser.add_argument("--folder", type=Path, required=True, help="where model files are kept")
    parser.add_argument("--peer-python", default="", help="interpreter of an environment with llama-cpp-python")
    parser.add_argument("--size", choices=SIZES, default="0.4B")
    parser.add_argument("--zeros", type=float, default=87)
    parser.add_argument("--format", choices=EQUAL, default="q8")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, help="the neighbour's (the last one)")
    parser.add_argument("--out", type=Path, help="folder for neighbour.json and neighbour.md")
    options = parser.parse_args(arguments)
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system cannot bind a process to a core")
    cores = machine.cores()
    core = cores[-1] if options.core is None else options.core
    files, weights = Files(options.folder, options.peer_python), Weights(options.size, options.zeros)
    ours = files.ours(weights, options.format)
    longest = options.prompt + options.tokens + 8

    def start(threads: int) -> Worker:
        return Worker(sys.executable, "worker_ours.py", ours, threads, longest)

    def name(threads: int) -> str:
        return f"rwkv_cpu {options.format}, {threads} thread{'s' if threads > 1 else ''}"

    workers = {name(threads): start(threads) for threads in sorted({1, *options.threads})}
    base = name(1)
    peer = f"llama.cpp {EQUAL[options.format]}, {len(cores)} threads"
    if options.peer_python:
        path = files.gguf(weights, EQUAL[options.format])
        workers[peer] = Worker(options.peer_python, "worker_llama_cpp.py", path, len(cores), longest)
    chooser = random.Random(1)
    n_vocab = min(worker.about["n_vocab"] for worker in workers.values())
    ids = [chooser.randrange(1, n_vocab) for _ in range(options.prompt + options.tokens)]
    prompt, tokens = ids[: options.prompt], ids[options.prompt :]
    rates: dict[str, dict[str, list[float]]] = {}

    def measure(case: str, worker: Worker) -> None:
        decoded = len(tokens) / worker.run("decode", prompt=prompt[:8], tokens=tokens)["seconds"]
        prefilled = len(prompt) / worker.run("prefill", tokens=prompt)["seconds"]
        into = rates.setdefault(case, {"decode": [], "prefill": []})
        into["decode"].append(decoded)
        into["prefill"].append(prefilled)
        time.sleep(0.05)

    for worker in workers.values():
        worker.run("prefill", tokens=prompt[:64])
        worker.run("decode", prompt=prompt[:8], tokens=tokens[:4])
    for round_ in range(options.rounds):
        for case, worker in workers.items():
            measure(case, worker)
        with neighbour(core):
            for case, worker in workers.items():
                measure(f"{case}, busy neighbour", worker)
        print(f"\rround {round_ + 1}/{options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for worker in workers.values():
        worker.close()
    names = ("prompt", "tokens", "rounds")
    settings = {"model": weights.label, **{key: getattr(options, key) for key in names}}
    result = {"machine": machine.about(), "settings": settings, "rows": summarise(rates, base)}
    text = as_markdown(result)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "neighbour.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        (options.out / "neighbour.md").write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
