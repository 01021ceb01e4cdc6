# SPDX-License-Identifier: Apache-2.0
"""How much memory a conversion takes: `rwkv-cpu quantize` of a checkpoint of any size, watched from outside.

    python benchmarks/convert_memory.py --size 7.2B --scratch DIRECTORY [--format q8]
    python benchmarks/convert_memory.py --checkpoint model.pth --scratch DIRECTORY

Counted is the memory that is the process's own (RssAnon and RssShmem of Linux: heap, stacks, buffers). Pages of the
mapped checkpoint (RssFile) are the system's cache: they are listed apart, and given back whenever someone needs them.
Without --checkpoint a synthetic one is written whose weights are holes in the file: zeros, which take no disk; what
the conversion reads, packs and writes does not depend on the values. Both files are deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.synthetic import SIZES, Shape, pickle_of, tensors

SAMPLE_SECONDS = 0.01
ROOM = 1.3  # free disk needed, in sizes of the result


def write_hollow_pth(path: Path, shape: Shape) -> None:
    """A checkpoint as torch.save lays it out (stored entries, a zip64 directory) whose weights are holes."""
    entries = list(tensors(shape))
    directory, count = b"", 0
    with path.open("wb") as file:

        def add(name: str, size: int, data: bytes = b"") -> None:
            nonlocal directory, count
            raw, start = f"archive/{name}".encode(), file.tell()
            padding = -(start + 30 + len(raw) + 4) % 64
            sizes = struct.pack("<3L2H", 0, size, size, len(raw), 4 + padding)
            file.write(b"PK\x03\x04" + struct.pack("<5H", 45, 0, 0, 0, 0) + sizes + raw)
            file.write(b"FB" + struct.pack("<H", padding) + b"Z" * padding + data)
            file.seek(size - len(data), 1)
            extra = struct.pack("<2HQ", 1, 8, start)
            directory += b"PK\x01\x02" + struct.pack("<6H3L", 45, 45, 0, 0, 0, 0, 0, size, size)
            directory += struct.pack("<5H2L", len(raw), len(extra), 0, 0, 0, 0, 0xFFFFFFFF) + raw + extra
            count += 1

        data = pickle_of(entries)
        add("data.pkl", len(data), data)
        for key, tensor in enumerate(entries):
            add(f"data/{key}", 2 * tensor.size)
        start = file.tell()
        file.write(directory)
        end = start + len(directory)
        file.write(b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, len(directory), start))
        file.write(b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def resident_kb(pid: int) -> dict[str, int]:
    """RssAnon, RssFile and RssShmem of a process; {} once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return {}
    return {key: int(value.split()[0]) for key, _, value in (s.partition(":") for s in lines) if key.startswith("Rss")}


def convert(source: Path, target: Path, weight_format: str) -> dict[str, float]:
    """Run the conversion; peaks in MB and the seconds it took."""
    command = [sys.executable, "-m", "rwkv_cpu", "quantize", str(source), str(target), "--format", weight_format]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--tokenizer", "none"], stdout=subprocess.DEVNULL)
    own = mapped = samples = 0
    while process.poll() is None:
        found = resident_kb(process.pid)
        own = max(own, found.get("RssAnon", 0) + found.get("RssShmem", 0))
        mapped = max(mapped, found.get("RssFile", 0))
        samples += 1
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {
        "peak_own_mb": round(own / 1024, 1),
        "peak_mapped_mb": round(mapped / 1024, 1),
        "samples": samples,
        "seconds": round(time.monotonic() - began, 1),
        "source_gb": round(source.stat().st_size / 1e9, 2),
        "target_gb": round(target.stat().st_size / 1e9, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Peak memory of rwkv-cpu quantize.")
    parser.add_argument("--size", choices=SIZES, default="7.2B")
    parser.add_argument("--checkpoint", type=Path, help="a real one instead of a synthetic one")
    parser.add_argument("--scratch", type=Path, required=True, help="a directory with room for the result")
    parser.add_argument("--format", choices=["q8", "f16", "f32"], default="q8")
    parser.add_argument("--limit-mb", type=float, default=2048, help="fail above this (2048)")
    options = parser.parse_args(arguments)
    source = options.checkpoint or options.scratch / f"hollow-{options.size}.pth"
    target = options.scratch / f"convert-memory-{options.format}.rwkv"
    try:
        if options.checkpoint is None:
            write_hollow_pth(source, SIZES[options.size])
        wanted = source.stat().st_size * {"q8": 0.55, "f16": 1, "f32": 2}[options.format] * ROOM
        if shutil.disk_usage(options.scratch).free < wanted:
            print(f"{options.scratch}: {wanted / 1e9:.0f} GB of room are needed", file=sys.stderr)
            return 2
        found = convert(source, target, options.format)
    finally:
        target.unlink(missing_ok=True)
        if options.checkpoint is None:
            source.unlink(missing_ok=True)
    print(json.dumps({"size": options.size, "format": options.format, **found}))
    return 1 if found["peak_own_mb"] > options.limit_mb else 0


if __name__ == "__main__":
    raise SystemExit(main())
