# SPDX-License-Identifier: Apache-2.0
"""How benchmarks talk to a program under test: one JSON object a line, in a process that sleeps between tasks.

The worker first says who it is, then answers each task {"do": name, …} with one object. Standard library only: workers
run in the peers' environments too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

__all__ = ["HERE", "Worker", "WorkerError", "serve"]

HERE = Path(__file__).resolve().parent


class WorkerError(RuntimeError):
    """A program under test ended or refused a task."""


class Worker:
    """A program under test: benchmarks/*script* run by the interpreter *python*.

    Attributes: about: what it said of itself. seconds_to_answer: from its start to that.
    """

    def __init__(self, python: str | Path, script: str, *arguments: object) -> None:
        self.script = script
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [str(python), str(HERE / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            self.about = self._read()
        except WorkerError:
            self.close()
            raise
        self.seconds_to_answer = time.perf_counter() - begin

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # noqa: S101 (asked for above)
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.script} ended with {self.process.wait()}; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.script}: {answer['error']}")
        return answer

    def run(self, do: str, **task: object) -> dict[str, Any]:
        """Give it a task and wait. Raises WorkerError."""
        assert self.process.stdin is not None  # noqa: S101 (asked for above)
        self.process.stdin.write(json.dumps({"do": do, **task}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def can(self, do: str) -> bool:
        """Whether it knows such a task."""
        return do in self.about.get("tasks", ())

    def close(self) -> None:
        """End it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


def serve(
    about: Mapping[str, Any],
    tasks: Mapping[str, Callable[..., Mapping[str, Any]]],
    source: TextIO = sys.stdin,
    sink: TextIO = sys.stdout,
) -> None:
    """A worker's loop: say who this is, then do *tasks* by name until the input ends."""

    def answer(found: Mapping[str, Any]) -> None:
        sink.write(json.dumps(found) + "\n")
        sink.flush()

    answer({**about, "tasks": sorted(tasks)})
    for line in source:
        task = json.loads(line)
        name = task.pop("do")
        if name in tasks:
            answer(tasks[name](**task))
        else:
            answer({"error": f"no task {name!r}"})
