# SPDX-License-Identifier: Apache-2.0
"""Time from the start of a process to the first token, and where it goes.

    python benchmarks/start.py [MODEL.rwkv] [--runs 9] [--json FILE]

Every figure is the median over fresh processes, after two that are not counted: they bring the file into the page cache
and write the compiled modules, which go to a directory of their own. Environment variables that would forbid either
(PYTHONDONTWRITEBYTECODE) are left out, since an installed package has its modules compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Prints a JSON object of stage → milliseconds; the stages follow each other in one process.
_STAGES = """
import json, sys, time
began = time.perf_counter()
laps = {}
def lap(name):
    global began
    now = time.perf_counter()
    laps[name] = (now - began) * 1e3
    began = time.perf_counter()
import numpy
lap("import numpy")
import rwkv_cpu
lap("import rwkv_cpu")
from rwkv_cpu import Model
lap("import rwkv_cpu.Model")
import rwkv_cpu.generation
lap("import rwkv_cpu.generation")
model = Model.load(sys.argv[1], preload=sys.argv[2] == "preload")
lap("open the model, start threads")
ids = model.tokenizer.encode("Hi") if model.has_tokenizer else [1]
lap("make the tokenizer, encode")
logits, state = model.forward(ids)
lap("first forward (maps the weights)")
model.forward(ids, state)
lap("second forward")
model.close()
lap("close")
print(json.dumps(laps))
"""


def environment(cache: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": cache}


def milliseconds(command: list[str], env: dict[str, str], *, to_first_byte: bool) -> float:
    """From before the process exists until it writes its first byte to stdout, or ends."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.stdout, process.stderr
        if out is None or err is None:
            raise RuntimeError("the process has no pipes")
        if to_first_byte:
            out.read(1)
            ended = time.perf_counter()
        out.read()
        complaint = err.read().decode(errors="replace")
        process.wait()
        if not to_first_byte:
            ended = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {complaint}")
    return (ended - began) * 1e3


def stages(model: str, preload: str, env: dict[str, str]) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", _STAGES, model, preload], env=env, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def measure(model: str, runs: int) -> dict[str, dict[str, float]]:
    """Whole processes, then stages: name → median milliseconds."""
    program = [sys.executable, "-m", "rwkv_cpu"]
    generate = [*program, "generate", model, "-p", "Hi", "--max-tokens", "1"]
    whole = {
        "python alone": ([sys.executable, "-c", "pass"], False),
        "python, numpy": ([sys.executable, "-c", "import numpy"], False),
        "rwkv-cpu --help": ([*program, "--help"], False),
        "rwkv-cpu info MODEL": ([*program, "info", model], False),
        "rwkv-cpu generate: first token": (generate, True),
        "rwkv-cpu generate --no-preload: first token": ([*generate, "--no-preload"], True),
        "rwkv-cpu generate: end": (generate, False),
    }
    times: dict[str, list[float]] = {name: [] for name in whole}
    laps: dict[str, list[dict[str, float]]] = {"stages": [], "stages with preload": []}
    with tempfile.TemporaryDirectory() as cache:
        env = environment(cache)
        for run in range(-2, runs):
            for name, (command, to_first_byte) in whole.items():
                taken = milliseconds(command, env, to_first_byte=to_first_byte)
                if run >= 0:
                    times[name].append(taken)
            for name, preload in (("stages", "no"), ("stages with preload", "preload")):
                found = stages(model, preload, env)
                if run >= 0:
                    laps[name].append(found)
    result = {"processes": {name: statistics.median(values) for name, values in times.items()}}
    for name, rows in laps.items():
        result[name] = {stage: statistics.median(row[stage] for row in rows) for stage in rows[0]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    found = measure(given.model, given.runs)
    for title, rows in found.items():
        print(f"\n{title}, medians of {given.runs}, ms")
        for name, value in rows.items():
            print(f"  {name:45} {value:7.1f}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
