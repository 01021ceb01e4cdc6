# SPDX-License-Identifier: Apache-2.0
"""Engines of several commits by turns, in C alone: what a change gains, on a machine that drifts.

    python benchmarks/builds.py MODEL.rwkv HEAD .                  # the last commit and the working tree: decode
    python benchmarks/builds.py MODEL.rwkv v0.1 HEAD --prompt 512  # a prompt; --batch 8: eight conversations at once

A build is a commit or the folder of a checkout, followed by @ISA for another instruction set than the machine's best.
In every round each build takes its turn; the ratio to the first is taken within the round. Logits that differ are told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import runpy
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cffi import FFI

CHECKOUT = Path(__file__).resolve().parent.parent
KEPT = CHECKOUT / "build" / "builds"


def checkout_of(name: str) -> Path:
    """The folder of a build: its own, or a worktree made of the commit."""
    if Path(name).is_dir():
        return Path(name).resolve()
    git = ["git", "-C", str(CHECKOUT)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--short", f"{name}^{{commit}}"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise SystemExit(f"builds.py: {name} is neither a folder nor a commit")
    folder = KEPT / found.stdout.strip()
    if not folder.exists():
        subprocess.run([*git, "worktree", "prune"], check=True)
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(folder), name], check=True)
    return folder


def built(folder: Path) -> Path:
    """The shared library of a checkout, made if it is not there or older than its sources."""
    make = ["make", "--silent", "-C", str(folder), f"--jobs={os.cpu_count() or 1}", "lib"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    return next(
        path for name in ("librwkv_cpu.so", "librwkv_cpu.dylib") if (path := folder / "build/lib" / name).exists()
    )


def declarations_of(folder: Path) -> str:
    """Of the C interface as that checkout has it."""
    builder = folder / "src" / "build_engine.py"
    if not builder.exists():
        raise SystemExit(f"builds.py: {folder} is no checkout of rwkv_cpu")
    header = (folder / "src" / "rwkv_cpu.h").read_text("utf-8")
    return str(runpy.run_path(str(builder))["declarations"](header))


@dataclass(frozen=True)
class Row:
    """What is said of a build: a step's median time, its speed beside the first's with quartiles, what it computed."""

    build: str
    milliseconds: float
    speed: float
    quartiles: tuple[float, float]
    logits: str


class Build:
    """An engine with a model open and one conversation for each of `batch`.

    Attributes: seconds: a token's, or a prompt's, in every round so far.
    """

    def __init__(self, name: str, model: str, threads: int, batch: int, prompt: int) -> None:
        self.name, self.prompt, self.batch = name, prompt, batch
        found = re.fullmatch(r"(.+)@([a-z0-9-]+)", name)
        name, isa = found.groups() if found else (name, "")
        folder = checkout_of(name)
        self.ffi = FFI()
        self.ffi.cdef(declarations_of(folder))
        self.lib: Any = self.ffi.dlopen(str(built(folder)))
        self.model = self._made("rwkvc_model **", lambda p: self.lib.rwkvc_model_open_file(model.encode(), p))
        options = self.ffi.new("rwkvc_context_options *")
        self.lib.rwkvc_context_defaults(options)
        self._isa = self.ffi.new("char[]", isa.encode())
        options.threads = threads
        options.isa = self._isa if isa else self.ffi.NULL
        self.context = self._made("rwkvc_context **", lambda p: self.lib.rwkvc_context_create(options, p))
        config = self.ffi.new("rwkvc_config *")
        self.lib.rwkvc_model_config(self.model, config)
        self.n_vocab = config.size[self.lib.RWKVC_SIZE_VOCAB]
        floats = self.lib.rwkvc_state_floats(self.model)
        self._memory: list[Any] = []
        self.states = [[self._aligned(floats) for _ in range(2)] for _ in range(batch)]
        for pair in self.states:
            self.lib.rwkvc_state_init(self.model, pair[0])
        self.logits = self.ffi.new("float[]", batch * self.n_vocab)
        self.tokens = self.ffi.new("uint32_t[]", max(prompt, 1) * batch)
        self.sequences = self.ffi.new("rwkvc_sequence[]", batch)
        self.seed = 1
        self.seconds: list[float] = []
        self._digest = hashlib.sha256()

    def beside(self, first: Build) -> Row:
        """All rounds but the one that warms up."""
        ratios = sorted(one / own for one, own in zip(first.seconds[1:], self.seconds[1:], strict=True))
        quarter = len(ratios) // 4
        return Row(
            self.name,
            1000 * statistics.median(self.seconds[1:]),
            statistics.median(ratios),
            (ratios[quarter], ratios[-1 - quarter]),
            self._digest.hexdigest()[:8],
        )

    def _check(self, status: int) -> None:
        if status:
            raise SystemExit(f"builds.py: {self.name}: {self.ffi.string(self.lib.rwkvc_last_error()).decode()}")

    def _aligned(self, floats: int) -> Any:
        """Memory that begins at a line of the cache."""
        self._memory.append(self.ffi.new("float[]", floats + 16))
        return self._memory[-1] + -int(self.ffi.cast("uintptr_t", self._memory[-1])) % 64 // 4

    def _made(self, kind: str, make: Any) -> Any:
        place = self.ffi.new(kind)
        self._check(make(place))
        return place[0]

    def step(self) -> float:
        """Seconds for one token, or the prompt, of every conversation; a prompt always begins a new one."""
        length = max(self.prompt, 1)
        for i in range(length * self.batch):
            self.seed = (self.seed * 1103515245 + 12345) % 2**31
            self.tokens[i] = (self.seed >> 8) % self.n_vocab
        for i, pair in enumerate(self.states):
            sequence = self.sequences[i]
            sequence.tokens, sequence.n_tokens = self.tokens + i * length, length
            sequence.state_in = self.ffi.NULL if self.prompt else pair[0]
            sequence.state_out, sequence.logits = pair[1], self.lib.RWKVC_LOGITS_LAST
            pair.reverse()
        begin = time.perf_counter()
        status = self.lib.rwkvc_forward(
            self.context, self.model, self.sequences, self.batch, self.logits, self.ffi.NULL
        )
        seconds = time.perf_counter() - begin
        self._check(status)
        self._digest.update(self.ffi.buffer(self.logits))
        return seconds

    def turn(self, times: int) -> None:
        """So many steps."""
        self.seconds.append(sum(self.step() for _ in range(times)) / times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("builds", nargs="+", metavar="BUILD")
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt; 0: one token after the other")
    parser.add_argument("--batch", type=int, default=1, help="conversations at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    builds = [Build(name, options.model, options.threads, options.batch, options.prompt) for name in options.builds]
    times = 1 if options.prompt else 5
    for round_ in range(options.rounds + 1):
        for build in builds if round_ % 2 else builds[::-1]:
            build.turn(times)
    rows = [build.beside(builds[0]) for build in builds]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        low, high = row.quartiles
        speed = f"{row.speed:.3f} times ({low:.3f} … {high:.3f})"
        print(f"{row.build:24} {row.milliseconds:9.2f} ms   {speed}   logits {row.logits}")
    if len({row.logits for row in rows}) > 1:
        print("The logits differ.")


if __name__ == "__main__":
    main()
