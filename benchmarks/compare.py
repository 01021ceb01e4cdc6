# SPDX-License-Identifier: Apache-2.0
"""Speed beside llama.cpp: same weights, same bits, same threads, same minute.

    python benchmarks/compare.py --peer-python ENV/bin/python --size 0.4B --zeros 87 --folder DIR
    python benchmarks/compare.py --peer-python ENV/bin/python --model x.rwkv --peer-model x.gguf

ENV is an environment with llama-cpp-python, and with gguf to make the file of --size. Both programs stay loaded in
processes of their own and take turns, so that the machine's drift meets both; a ratio is taken within a round, and
the median of the rounds is what counts. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PEER_FORMAT = {"q8": "q8_0", "f16": "f16"}  # the formats with an equal on the other side


class Worker:
    """A program under test in a process of its own."""

    def __init__(self, python: str, script: str, *arguments: object) -> None:
        self.script = script
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(
            [python, str(HERE / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # noqa: S101 (asked for above)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.script}: ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, **task: object) -> dict[str, Any]:
        assert self.process.stdin is not None  # noqa: S101 (asked for above)
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None  # noqa: S101 (asked for above)
        self.process.stdin.close()
        self.process.wait()


def prepare(options: argparse.Namespace) -> tuple[Path, Path]:
    """The two model files: as given, or made from a synthetic checkpoint and kept in --folder."""
    if options.model and options.peer_model:
        return options.model, options.peer_model
    if not options.folder:
        raise SystemExit("give --model and --peer-model, or --size and --folder")
    from benchmarks import synthetic
    from rwkv_cpu import quantize

    options.folder.mkdir(parents=True, exist_ok=True)
    stem = options.folder / f"synthetic-{options.size}-zeros{options.zeros:g}"
    source, ours = Path(f"{stem}.pth"), Path(f"{stem}-{options.format}.rwkv")
    peer = Path(f"{stem}-{PEER_FORMAT[options.format]}.gguf")
    if not source.exists():
        synthetic.main([options.size, str(source), "--zeros", str(options.zeros)])
    if not ours.exists():
        quantize.quantize(source, ours, format=options.format)
    if not peer.exists():
        vocabulary = HERE.parent / "rwkv_cpu" / "data" / "rwkv_vocab_v20230424.txt"
        partial = Path(f"{peer}.part")
        command = [options.peer_python, HERE / "peer_gguf.py", source, partial, "--vocabulary", vocabulary]
        subprocess.run([*map(str, command), "--type", PEER_FORMAT[options.format]], check=True)
        partial.rename(peer)
    return ours, peer


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(options: argparse.Namespace, ours: Path, peer: Path) -> dict[str, Any]:
    """All rounds, summarised."""
    longest = options.prompt + options.tokens + 8
    workers = {
        "ours": Worker(sys.executable, "worker_ours.py", ours, options.threads),
        "peer": Worker(options.peer_python, "worker_llama_cpp.py", peer, options.threads, longest),
    }
    n_vocab = min(worker.about["n_vocab"] for worker in workers.values())
    chooser = random.Random(options.seed)
    prompt = [chooser.randrange(1, n_vocab) for _ in range(options.prompt)]
    decode = [chooser.randrange(1, n_vocab) for _ in range(options.tokens)]
    rates: dict[str, list[float]] = {}
    for round_ in range(options.rounds + 1):  # the first warms up
        for name in ("ours", "peer") if round_ % 2 else ("peer", "ours"):
            answer = workers[name].run(prompt=prompt, decode=decode, limits=name == "ours" and round_ > 0)
            if round_ == 0:
                continue
            found: dict[str, float] = {
                f"{name}_prefill": options.prompt / answer["prefill_seconds"],
                f"{name}_decode": options.tokens / answer["decode_seconds"],
                **{key: answer[key] for key in ("read_gbs", "int8_tops") if key in answer},
            }
            for key, value in found.items():
                rates.setdefault(key, []).append(value)
        print(f"\rround {round_}/{options.rounds}", end="" if round_ < options.rounds else "\n", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    result: dict[str, Any] = {key: spread(values) for key, values in rates.items()}
    for work in ("prefill", "decode"):
        pairs = zip(rates[f"ours_{work}"], rates[f"peer_{work}"], strict=True)
        result[f"{work}_ratio"] = spread([mine / theirs for mine, theirs in pairs])
    result["programs"] = {name: worker.about for name, worker in workers.items()}
    return result


def machine() -> dict[str, Any]:
    from rwkv_cpu.benchmark.runner import cpu_name

    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "commit": commit}


def as_markdown(result: dict[str, Any]) -> str:
    def cell(values: dict[str, float], unit: str = "") -> str:
        return f"{values['median']:.2f}{unit} ({values['min']:.2f} … {values['max']:.2f})"

    about, programs, setting = result["machine"], result["programs"], result["settings"]
    limits = f"read {cell(result['read_gbs'], ' GB/s')}, int8 {cell(result['int8_tops'], ' TOPS')}"
    where = f"{about['cpu']} (load {about['load_average']:.1f}), {programs['ours']['isa']}; {limits}"
    return "\n".join(
        [
            f"{setting['model']}, {setting['threads']} threads, {setting['rounds']} rounds on {where}",
            "",
            f"| work | ratio | {programs['ours']['name']}, tokens/s | {programs['peer']['name']}, tokens/s |",
            "|---|---|---|---|",
            *(
                f"| {name} | **{cell(result[f'{work}_ratio'], '×')}** | {cell(result[f'ours_{work}'])} "
                f"| {cell(result[f'peer_{work}'])} |"
                for work, name in (
                    ("decode", f"decode {setting['tokens']}"),
                    ("prefill", f"prefill {setting['prompt']}"),
                )
            ),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare speed with llama.cpp on the same weights.")
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with llama-cpp-python")
    parser.add_argument("--model", type=Path, help="a .rwkv file")
    parser.add_argument("--peer-model", type=Path, help="the same weights as GGUF")
    parser.add_argument("--size", default="0.4B", help="or: synthetic weights of this size (0.4B)")
    parser.add_argument("--zeros", type=float, default=87, help="per cent of relu(k) that are zero (87)")
    parser.add_argument("--format", choices=PEER_FORMAT, default="q8")
    parser.add_argument("--folder", type=Path, help="where the synthetic files are kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    about = machine()
    ours, peer = prepare(options)
    result = measure(options, ours, peer)
    names = ("size", "zeros", "format", "threads", "prompt", "tokens", "rounds")
    settings = {name: getattr(options, name) for name in names}
    result = {"machine": about, "settings": {"model": ours.name, **settings}, **result}
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
