# SPDX-License-Identifier: Apache-2.0
"""How long quantising takes, ours beside llama.cpp's, alternating in one run.

    python benchmarks/quantise_speed.py CHECKPOINT.pth PEER.gguf --peer-python PYTHON [--rounds 3] [--digest]

Both read the same weights from the page cache, into which a first pass of each, not counted, reads them anew
(benchmarks/models.py says why), and write to the same file system; neither waits for the disk (fsync is left out on our
side, llama.cpp has none). PEER.gguf is the checkpoint in bf16 (benchmarks/peer_gguf.py). Each program uses all cores.
With --digest ours also takes the checkpoint's sha256, which a processor can do on one core only and no faster.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import uncache
from benchmarks.protocol import HERE

PAIRS = {"q8": "Q8_0", "q4": "Q4_K_M"}


def ours(checkpoint: Path, target: Path, kind: str, digest: bool) -> float:
    """Seconds of quantize(), in this process."""
    from rwkv_cpu.quantize import quantize

    began = time.perf_counter()
    quantize(checkpoint, target, format=kind, source_digest=digest, force=True)
    return time.perf_counter() - began


def theirs(peer: str, source: Path, target: Path, kind: str) -> float:
    """Seconds of llama_model_quantize, as its worker says."""
    run: list[str | Path] = [peer, HERE / "worker_llama_quantize.py", source, target, kind]
    said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    return float(said.rpartition("seconds: ")[2].split()[0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How long quantising takes, ours beside llama.cpp's.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument(
        "--digest", action="store_true", help="take the checkpoint's sha256 too, of which llama.cpp takes none"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    for source in (options.checkpoint, options.gguf):
        uncache(source)
    os.fsync = lambda _fd: None  # type: ignore[assignment]
    found = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        target = Path(folder) / "x"
        for kind in options.pairs:
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            for n in range(options.rounds + 1):
                one = ours(options.checkpoint, target, kind, options.digest)
                target.unlink()
                other = theirs(options.peer_python, options.gguf, target, PAIRS[kind])
                target.unlink()
                print(f"{kind} {one:.2f} s, {PAIRS[kind]} {other:.2f} s{' (not counted)' if not n else ''}", flush=True)
                if n:
                    times["ours"].append(one)
                    times["theirs"].append(other)
            ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
            found[kind] = times | {"ratio": ratio}
            print(f"{kind}: {ratio:.2f} times as fast as {PAIRS[kind]}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
