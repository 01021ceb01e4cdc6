# SPDX-License-Identifier: Apache-2.0
"""What several processes that have the same model open take together (Linux).

    python benchmarks/shared_memory.py MODEL.rwkv --processes 4

Each opens the model, reads all of it and answers. Then /proc/PID/smaps_rollup says what is resident in each (Rss), what
of it only this process has (private), and its share when pages are divided among those who have them (Pss).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import tables

CODE = """
import sys
from rwkv_cpu import Model
model = Model.load(sys.argv[1], threads=1)
model.preload()
model.generate([1, 2, 3], max_tokens=8).read()
print("ready", flush=True)
sys.stdin.read()
"""
FIELDS = {"resident": ("Rss",), "private": ("Private_Clean", "Private_Dirty"), "share (Pss)": ("Pss",)}


def megabytes(pid: int) -> dict[str, float]:
    """Of one process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {name: sum(kilobytes[field] for field in fields) * 1024 / 1e6 for name, fields in FIELDS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("this needs /proc/PID/smaps_rollup (Linux)")
    started: list[subprocess.Popen[str]] = []
    rows = []
    try:
        for n in range(options.processes):
            command = [sys.executable, "-c", CODE, str(options.model)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            if started[-1].stdout is None or not started[-1].stdout.readline():
                raise SystemExit("a process could not open the model")
            found = [megabytes(process.pid) for process in started]
            means = [tables.number(sum(one[name] for one in found) / len(found)) for name in FIELDS]
            rows.append([str(n + 1), *means, tables.number(sum(one["share (Pss)"] for one in found))])
    finally:
        for process in started:
            process.communicate()
    print(f"{options.model.name}: {options.model.stat().st_size / 1e6:.0f} MB; MB per process")
    print(tables.table(["processes", *FIELDS, "all together"], rows))


if __name__ == "__main__":
    main()
