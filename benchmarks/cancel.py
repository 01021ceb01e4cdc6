# SPDX-License-Identifier: Apache-2.0
"""How soon work stops after it was told to: reading a file, a prompt, an answer.

    python benchmarks/cancel.py MODEL.rwkv --rounds 200

Each round begins the work, waits a random time within what it takes, cancels from another thread and measures until the
call has returned. Prints the 50th, 90th and 99th percentile and the longest, in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import tables
from rwkv_cpu import CancelToken, Model
from rwkv_cpu.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT_TOKENS = 2000


def milliseconds(work: Callable[[CancelToken], object], after: float) -> float | None:
    """From cancel() to the end of *work*; None if it was finished before."""
    token = CancelToken()
    told: list[float] = []

    def stop() -> None:
        told.append(time.perf_counter())
        token.cancel()

    timer = threading.Timer(after, stop)
    timer.start()
    with contextlib.suppress(Cancelled):
        work(token)
    ended = time.perf_counter()
    timer.cancel()
    timer.join()
    return 1e3 * (ended - told[0]) if told and told[0] < ended else None


def load(model: Model, token: CancelToken) -> None:
    """Map and read the whole file."""
    with Model.load(model.path, cancel=token) as fresh:
        fresh.preload(cancel=token)


def prefill(model: Model, token: CancelToken) -> None:
    """Read a long prompt."""
    model.advance([(i * 31 + 7) % model.n_vocab for i in range(PROMPT_TOKENS)], model.new_state(), cancel=token)


def decode(model: Model, token: CancelToken) -> None:
    """Generate without end."""
    model.generate([1, 2, 3], max_tokens=1_000_000, cancel=token).read()


def measure(model: Model, what: Callable[[Model, CancelToken], None], longest: float, rounds: int) -> list[float]:
    """Sorted milliseconds of as many cancelled rounds."""
    chance = random.Random(1)
    found: list[float] = []
    while len(found) < rounds:
        took = milliseconds(lambda token: what(model, token), chance.uniform(0.0, longest))
        if took is not None:
            found.append(took)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--longest", type=float, default=0.25, help="seconds until it is told to stop, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Model.load(options.model, threads=options.threads) as model:
        # The file is in the page cache: reading it takes the time of mapping it.
        began = time.perf_counter()
        load(model, CancelToken())
        of_load = (time.perf_counter() - began) * 0.9
        for name, work, longest in (
            ("load", load, min(of_load, options.longest)),
            ("prefill", prefill, options.longest),
            ("decode", decode, options.longest),
        ):
            times = measure(model, work, longest, options.rounds)
            cuts = statistics.quantiles(times, n=100, method="inclusive")
            rows.append({"work": name, "50 %": cuts[49], "90 %": cuts[89], "99 %": cuts[98], "longest": times[-1]})
    if options.json:
        print(json.dumps(rows))
        return
    head = list(rows[0])
    print(tables.table(head, [[row["work"], *(f"{row[name]:.1f}" for name in head[1:])] for row in rows]))


if __name__ == "__main__":
    main()
