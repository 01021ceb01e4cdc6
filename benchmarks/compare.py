# SPDX-License-Identifier: Apache-2.0
"""Speed beside llama.cpp and the rwkv package: same weights, same threads, same minutes.

    python benchmarks/compare.py --peer-python ENV/bin/python --folder MODELS --out RESULTS --sizes 0.1B 0.4B 1.5B
    python benchmarks/compare.py --peer-python ENV/bin/python --folder MODELS --quick

ENV is an environment with llama-cpp-python and gguf, and with torch and rwkv for --torch. Every program stays loaded in
a process of its own that sleeps while the others are measured; in each round they take turns at each kind of work, so
that the machine's drift meets all of them; a ratio is taken within a round and the median of the rounds counts. The
machine's limits are measured in the same rounds. Nothing else should run meanwhile.

--out gets results.json, results.md and plots (which need matplotlib); --render RESULTS.json writes them again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, tables
from benchmarks.models import BITS, EQUAL, GGUF_BITS, Files, Weights, uncache
from benchmarks.protocol import Worker, WorkerError
from benchmarks.synthetic import SIZES

SEQUENCES = 8
WORK = ["decode", "prefill", "batch"]
MEMORY_SHARE = 0.9  # of what is available that the programs of one run may take together
OURS, PEER, TORCH = "rwkv_cpu", "llama.cpp", "rwkv"
SCRIPTS = {OURS: "worker_ours.py", PEER: "worker_llama_cpp.py", TORCH: "worker_rwkv.py"}


@dataclass(frozen=True)
class Program:
    """A program with one file in one format."""

    family: str
    format: str
    path: Path
    python: str

    @property
    def name(self) -> str:
        return f"{self.family} {self.format}"

    def start(self, threads: int, longest: int, *more: object) -> Worker:
        extra = ["--dtype", self.format] if self.family == TORCH else []
        return Worker(self.python, SCRIPTS[self.family], self.path, threads, longest, *extra, *more)

    @property
    def memory_gb(self) -> float:
        """What it holds once loaded: the file, for torch in its own type, and room to convert."""
        size = self.path.stat().st_size / 1e9
        return size * BITS[self.format] / 16 * 1.1 if self.family == TORCH else size * 1.02 + 0.1


def programs(options: argparse.Namespace, files: Files, weights: Weights) -> list[Program]:
    """What runs these weights, ours first, each of ours followed by its equal."""
    found = []
    peers = list(options.peer_formats)
    for ours in options.formats:
        found.append(Program(OURS, ours, files.ours(weights, ours), sys.executable))
        if EQUAL[ours] in peers:
            peers.remove(EQUAL[ours])
            found.append(Program(PEER, EQUAL[ours], files.gguf(weights, EQUAL[ours]), options.peer_python))
    found += [Program(PEER, kind, files.gguf(weights, kind), options.peer_python) for kind in peers]
    found += [Program(TORCH, dtype, files.checkpoint(weights), options.peer_python) for dtype in options.torch]
    return found


def groups_that_fit(found: list[Program], room_gb: float) -> tuple[list[list[Program]], list[str]]:
    """Programs that can be loaded together, and why others cannot run. A program of ours stays with its equal."""
    groups: list[list[Program]] = []
    left_out = []
    unit: list[Program] = []
    units: list[list[Program]] = []
    for program in found:
        if unit and program.family == PEER and EQUAL.get(unit[0].format) == program.format:
            unit.append(program)
            continue
        unit = [program]
        units.append(unit)
    for unit in units:
        need = sum(program.memory_gb for program in unit)
        if need > room_gb:
            left_out += [f"{p.name}: {need:.1f} GB are needed, {room_gb:.1f} GB are free" for p in unit]
        elif groups and sum(p.memory_gb for p in groups[-1]) + need <= room_gb:
            groups[-1] += unit
        else:
            groups.append(list(unit))
    return groups, left_out


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def prompt_and_tokens(options: argparse.Namespace, worker: Worker | None, n_vocab: int) -> tuple[list[int], list[int]]:
    """Prose where the model has its own tokenizer (zeros depend on sense), else any ids."""
    from rwkv_cpu.benchmark.runner import PROSE

    chooser = random.Random(options.seed)
    ids: list[int] = [chooser.randrange(1, n_vocab) for _ in range(options.prompt + options.tokens)]
    if worker is not None:
        prose: list[int] = worker.run("tokenize", text=PROSE)["ids"]
        if prose:
            ids = [prose[i % len(prose)] for i in range(len(ids))]
    return ids[: options.prompt], ids[options.prompt :]


def one(worker: Worker, work: str, prompt: list[int], tokens: list[int]) -> dict[str, Any]:
    """Measure once: the rate in tokens per second, and what else the worker says of it."""
    if work == "prefill":
        found = worker.run("prefill", tokens=prompt)
        count = len(prompt)
    elif work == "decode":
        extra = {"limit": True} if worker.can("limits") else {}
        found = worker.run("decode", prompt=prompt[:64], tokens=tokens, **extra)
        count = len(tokens)
    else:
        steps = max(4, len(tokens) // 4)
        found = worker.run("batch", prompt=prompt[:8], sequences=SEQUENCES, steps=steps)
        count = SEQUENCES * steps
    return {**found, "rate": count / found["seconds"]}


def measure_group(options: argparse.Namespace, group: list[Program], weights: Weights) -> dict[str, Any]:
    """All rounds of programs that are loaded together."""
    longest = options.prompt + options.tokens + 8
    workers = {program.name: program.start(options.threads, longest) for program in group}
    ours = next((workers[p.name] for p in group if p.family == OURS), None)
    n_vocab = min(worker.about["n_vocab"] for worker in workers.values())
    prompt, tokens = prompt_and_tokens(options, ours if weights.zeros is None else None, n_vocab)
    for worker in workers.values():  # pages, just-in-time compilers, scratch memory
        for _ in range(2):
            one(worker, "prefill", prompt[:64], tokens)
            one(worker, "decode", prompt[:8], tokens[:4])
    found: dict[str, dict[str, list[dict[str, Any]]]] = {
        work: {name: [] for name, worker in workers.items() if worker.can(work)} for work in options.work
    }
    int8: list[float] = []
    for round_ in range(options.rounds):
        for work, per_program in found.items():
            names = list(per_program)
            for name in names if round_ % 2 == 0 else reversed(names):
                time.sleep(0.05)  # spinning threads of the one before go to sleep
                per_program[name].append(one(workers[name], work, prompt, tokens))
            if work == "prefill" and ours is not None:
                int8.append(ours.run("limits")["int8_tops"])
        print(f"\r{weights.label}: round {round_ + 1}/{options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    about = {program.name: {**workers[program.name].about, **facts(program)} for program in group}
    for worker in workers.values():
        worker.close()
    return summarise(found, about, int8)


def facts(program: Program) -> dict[str, Any]:
    return {"family": program.family, "format": program.format, "file_bytes": program.path.stat().st_size}


def summarise(
    found: dict[str, dict[str, list[dict[str, Any]]]], about: dict[str, dict[str, Any]], int8: list[float]
) -> dict[str, Any]:
    """Spreads per program and work; shares of a limit are taken within a round."""
    result: dict[str, Any] = {"programs": about, "work": {}, "rates": {}}
    for work, per_program in found.items():
        result["rates"][work] = {name: [one["rate"] for one in ones] for name, ones in per_program.items()}
        result["work"][work] = {name: {"rate": spread(rates)} for name, rates in result["rates"][work].items()}
        for name, ones in per_program.items():
            into = result["work"][work][name]
            if "bytes_per_token" in ones[0]:
                gbs = [one["bytes_per_token"] * one["rate"] / 1e9 for one in ones]
                limits = [one["read_gbs"] for one in ones]
                into["gbs"], into["read_gbs"] = spread(gbs), spread(limits)
                into["share"] = spread([mine / limit for mine, limit in zip(gbs, limits, strict=True)])
                into["zeros"] = statistics.median([one["zeros"] for one in ones])
                into["bytes_per_token"] = statistics.median([one["bytes_per_token"] for one in ones])
            if work == "prefill" and about[name]["family"] == OURS and int8:
                tops = [2e-12 * about[name]["multiply_adds"] * one["rate"] for one in ones]
                into["tops"] = spread(tops)
                into["share"] = spread([mine / peak for mine, peak in zip(tops, int8, strict=True)])
    if int8:
        result["int8_tops"] = spread(int8)
    return result


def measure(options: argparse.Namespace, files: Files, weights: Weights) -> dict[str, Any]:
    """Everything about one set of weights."""
    found = programs(options, files, weights)
    for path in {program.path for program in found}:
        uncache(path)
    groups, left_out = groups_that_fit(found, machine.available_gb() * MEMORY_SHARE)
    result: dict[str, Any] = {"size": weights.size, "zeros": weights.zeros, "label": weights.label}
    result["left_out"] = left_out
    result["groups"] = [measure_group(options, group, weights) for group in groups]
    if options.startup:
        result["startup"] = startup(options, [program for group in groups for program in group])
    return result


def startup(options: argparse.Namespace, found: list[Program]) -> dict[str, dict[str, float]]:
    """Seconds from a process's start to its first token, by turns; the page cache is warm."""
    seconds: dict[str, list[float]] = {program.name: [] for program in found}
    for _ in range(options.rounds):
        for program in found:
            worker = program.start(options.threads, 64, "--first-token")
            seconds[program.name].append(worker.seconds_to_answer)
            worker.close()
    return {name: spread(values) for name, values in seconds.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare speed with llama.cpp and the rwkv package.")
    parser.add_argument("--peer-python", help="interpreter of an environment with llama-cpp-python, gguf, torch, rwkv")
    parser.add_argument("--folder", type=Path, help="where model files are kept, and made when they are missing")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=["0.4B"], help="synthetic weights (0.4B)")
    parser.add_argument("--zeros", nargs="+", type=float, default=[87.0], help="per cent of relu(k) that are zero (87)")
    parser.add_argument("--checkpoint", nargs="*", type=Path, default=[], help="real RWKV-7 .pth files besides")
    parser.add_argument("--formats", nargs="+", choices=list(EQUAL), help="ours (all quantised ones)")
    parser.add_argument("--peer-formats", nargs="*", choices=list(GGUF_BITS), help="llama.cpp's (ours' equals)")
    parser.add_argument("--torch", nargs="*", choices=["bf16", "fp32"], default=[], help="types of the rwkv package")
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK, help="what to measure (all)")
    parser.add_argument("--startup", action="store_true", help="measure process start to first token too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="2 rounds, 128 tokens of prompt, 16 decoded")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for results.json, results.md and plots")
    parser.add_argument("--render", type=Path, metavar="JSON", help="measure nothing: tables and plots of this result")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.prompt, options.tokens = 2, 128, 16
    if options.render is None:
        if not (options.peer_python and options.folder):
            parser.error("--peer-python and --folder are needed (or --render)")
        from rwkv_cpu import engine

        known = [name for name in engine.quantised_formats() if name in EQUAL]
        options.formats = options.formats or known
        unknown = [name for name in options.formats if name not in [*known, "f16"]]
        if unknown:
            parser.error(f"this engine has no {', '.join(unknown)}; it has {', '.join(known)} and f16")
        if options.peer_formats is None:
            options.peer_formats = [EQUAL[name] for name in options.formats]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.render:
        result = json.loads(options.render.read_text("utf-8"))
    else:
        names = ("threads", "prompt", "tokens", "rounds", "seed")
        result = {"machine": machine.about(), "settings": {name: getattr(options, name) for name in names}, "runs": []}
        files = Files(options.folder, options.peer_python)
        wanted = [Weights(size, zeros) for size in options.sizes for zeros in options.zeros]
        wanted += [Weights(path.stem, None, path) for path in options.checkpoint]
        for weights in wanted:
            try:
                result["runs"].append(measure(options, files, weights))
            except WorkerError as error:
                print(f"{weights.label}: {error}", file=sys.stderr)
                return 1
            if options.out:  # after each, so that an interrupted run has its first results
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    text = tables.comparison(result)
    print(text)
    if options.out:
        from benchmarks import plots

        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.md").write_text(text + "\n", "utf-8")
        plots.comparison(result, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
