# SPDX-License-Identifier: Apache-2.0
"""Fuzz everything that reads a stranger's file: only RwkvError may come out, in bounded time and memory.

    python tests/fuzz/readers.py --seconds 60 [--reader gguf] [--seed 1] [--artifacts build/fuzz/readers]
    python tests/fuzz/readers.py --reader gguf --replay build/fuzz/readers/gguf-….bin

Each reader runs in a child process with limited memory, which writes every input to a file before it reads it: when
the child dies, that file is the culprit. Inputs that lead to an error not seen before become seeds themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
_INPUT_SECONDS = 8.0  # of the processor's time, for one input of at most 4 MB
_PATIENCE_SECONDS = 60.0  # beyond the time asked for, on a busy machine
_EXTRA_BYTES = 1 << 30  # address space beyond what importing and the seeds take
_GROWTH_BYTES = 300 << 20  # resident memory, likewise
_MAX_CORPUS = 400
_MAX_FAILURES = 20
READERS = (
    "pth", "safetensors", "directory", "gguf", "ggmf", "rwkv", "state", "adapter",
    "world", "sentencepiece", "huggingface",
)  # fmt: skip


def fuzz(reader: str, seconds: float, *, seed: int = 0, artifacts: Path | None = None) -> dict[str, Any]:
    """Fuzz one reader in a child process.

    Returns: inputs, corpus, peak_mb, outcomes (error → count) and failures (what, file).
    """
    with tempfile.TemporaryDirectory(prefix="rwkv_cpu-fuzz-", dir=_quick_folder()) as scratch:
        folder = Path(scratch)
        command = [sys.executable, __file__, "--worker", scratch, "--reader", reader]
        command += ["--seconds", str(seconds), "--seed", str(seed)]
        died = ""
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds + _PATIENCE_SECONDS,
                check=False,
            )
            if run.returncode:
                died = f"the process died with status {run.returncode}: {run.stderr[-2000:]}"
        except subprocess.TimeoutExpired:
            died = "an input took longer than a minute"
        report: dict[str, Any] = {"reader": reader, "inputs": 0, "failures": []}
        with contextlib.suppress(FileNotFoundError, ValueError):
            report |= json.loads((folder / "report.json").read_text("utf-8"))
        if died:
            report["failures"].append({"what": died, "file": str(folder / "input")})
        for failure in report["failures"]:
            failure["file"] = str(_keep(reader, Path(failure["file"]), artifacts))
    return report


def _quick_folder() -> str | None:
    """Memory rather than a disk: every conversion is synced."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _keep(reader: str, culprit: Path, artifacts: Path | None) -> Path:
    if artifacts is None or not culprit.is_file():
        return culprit
    artifacts.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(culprit.read_bytes()).hexdigest()[:12]
    return Path(shutil.copy(culprit, artifacts / f"{reader}-{digest}.bin"))


# ----------------------------------------------------------------------------------- inside the child


class Worker:
    """Mutates, runs, and remembers what happened."""

    def __init__(self, reader: str, folder: Path, seed: int) -> None:
        sys.path.insert(0, str(CHECKOUT))
        from rwkv_cpu.errors import OutOfMemory, RwkvError
        from tests.fuzz import mutate, targets

        self._allowed, self._out_of_memory, self._mutated = RwkvError, OutOfMemory, mutate.mutated
        self._target = targets.TARGETS[reader]
        self._folder = folder
        self._path = folder / "input"
        self._random = random.Random(f"{reader} {seed}")
        self.corpus = self._target.seeds()
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.inputs = 0
        warnings.simplefilter("error")

    def check_seeds(self) -> None:
        """Files as they should be must be read; also warms up, so that memory is measured from here."""
        for data in self.corpus:
            outcome = self._run(data)
            if self._target.seeds_are_read and outcome != "read":
                self._fail(data, f"a seed is refused: {outcome}")
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + _EXTRA_BYTES, hard))
        self._peak = _peak_bytes()

    def step(self) -> None:
        """One input."""
        data = self._mutated(self._random, self._random.choice(self.corpus), self._target.informed, self.corpus)
        outcome = self._run(data)
        self.outcomes[outcome] += 1
        if self.outcomes[outcome] == 1 and len(self.corpus) < _MAX_CORPUS:
            self.corpus.append(data)

    def _run(self, data: bytes) -> str:
        """How it ended: "read", or the error without what differs from file to file."""
        self.inputs += 1
        self._path.write_bytes(data)
        began = time.process_time()
        outcome = "read"
        try:
            self._target.run(self._path)
        except self._out_of_memory as error:
            self._fail(data, f"memory: {error}")
        except self._allowed as error:
            text = re.sub(r"\S*/\S*", "", str(error))[:160]
            outcome = f"{type(error).__name__}: {re.sub(r'[0-9a-f]*[0-9][0-9a-f]*', '#', text)}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001
            frames = traceback.extract_tb(error.__traceback__)
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
            self._fail(data, f"{type(error).__name__} at {where}: {str(error)[:200]}")
        seconds = time.process_time() - began
        if seconds > _INPUT_SECONDS:
            self._fail(data, f"slow: {seconds:.1f} s")
        return outcome

    def check_memory(self) -> None:
        """Blame the last input for a jump of the peak."""
        grown = _peak_bytes() - self._peak
        if grown > _GROWTH_BYTES:
            self._fail(self._path.read_bytes(), f"memory: {grown >> 20} MB more")
            self._peak += grown

    def _fail(self, data: bytes, what: str) -> None:
        kind = what.split(": ", maxsplit=1)[0]
        if kind not in self.failures and len(self.failures) < _MAX_FAILURES:
            culprit = self._folder / f"failure-{len(self.failures)}"
            culprit.write_bytes(data)
            self.failures[kind] = what
            self.report()

    def report(self) -> None:
        """Write down what is known so far: the process may die any time."""
        found = {
            "inputs": self.inputs,
            "corpus": len(self.corpus),
            "peak_mb": _peak_bytes() >> 20,
            "outcomes": dict(self.outcomes.most_common(40)),
            "failures": [
                {"what": what, "file": str(self._folder / f"failure-{i}")}
                for i, what in enumerate(self.failures.values())
            ],
        }
        (self._folder / "report.json").write_text(json.dumps(found), "utf-8")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(reader: str, folder: Path, seconds: float, seed: int) -> None:
    """The child's life."""
    faulthandler.dump_traceback_later(seconds + _PATIENCE_SECONDS - 10, exit=True)  # says where it hangs
    worker = Worker(reader, folder, seed)
    worker.check_seeds()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        worker.step()
        worker.check_memory()
    worker.report()


# ---------------------------------------------------------------------------------------- command line


def replay(reader: str, culprit: Path) -> None:
    """Run one file again, here, with its traceback."""
    sys.path.insert(0, str(CHECKOUT))
    from tests.fuzz import targets

    with tempfile.TemporaryDirectory(dir=_quick_folder()) as scratch:
        copied = Path(shutil.copy(culprit, Path(scratch) / "input"))
        targets.TARGETS[reader].run(copied)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files.")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader (60)")
    parser.add_argument("--reader", choices=READERS, action="append", help="default: all of them")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--artifacts", type=Path, default=CHECKOUT / "build" / "fuzz" / "readers")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept input again")
    parser.add_argument("--outcomes", action="store_true", help="list how inputs ended")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    readers = options.reader or list(READERS)
    if options.worker is not None:
        work(readers[0], options.worker, options.seconds, options.seed)
        return 0
    if options.replay is not None:
        replay(readers[0], options.replay)
        return 0
    failed = 0
    for reader in readers:
        report = fuzz(reader, options.seconds, seed=options.seed, artifacts=options.artifacts)
        print(
            f"{reader:14} {report['inputs']:8} inputs, {len(report.get('outcomes', ())):3} outcomes, "
            f"peak {report.get('peak_mb', 0)} MB, {len(report['failures'])} failures (seed {options.seed})",
            flush=True,
        )
        if options.outcomes:
            for outcome, count in report.get("outcomes", {}).items():
                print(f"    {count:7} {outcome}")
        for failure in report["failures"]:
            failed += 1
            print(f"    {failure['what']}\n      {failure['file']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
