# SPDX-License-Identifier: Apache-2.0
"""Conversations in threads for as long as you like, each doing at random what users do: ask, stop, undo, retry, edit,
branch, fork, save, load.

    python tests/soak/soak.py --seconds 1800 --threads 2

Ends with 1 if anything went wrong: an exception, a text that is not the right one, memory, files or threads that grow.

A text is right if the same conversation, saved, loaded and read anew from its first token, answers the same question
with the same text: then neither a stopped answer nor undo nor a branch has left anything in the state.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

# In front of nothing: `make soak-asan` puts the instrumented package before it.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from rwkv_cpu import CancelToken, Chat, Model, memory

if TYPE_CHECKING:
    from collections.abc import Callable

QUESTIONS = (
    "My name is Ada.",
    "What is my name?",
    "What is 7 plus 5?",
    "What is the capital of France?",
    "Tell me a joke.",
    "Tell me a story about a river.",
    "Who are you?",
)
MOST_TURNS = 12
MOST_FORKS = 3
# Small, so that states move to files and back all the time.
LIMITS = {"snapshot_bytes": 2_000_000, "disk_bytes": 6_000_000}
# What may grow from the second quarter to the last: the heap breathes with what the chats hold just then, and takes
# about two minutes to be as large as it gets (115 to 118 MB after 15,000 and 31,000 acts); a state that leaks with each
# of the thousands of acts of a minute is 0.3 MB.
GROWTH_BYTES, GROWTH_AT_FIRST_BYTES, FIRST_SECONDS = 16_000_000, 40_000_000, 180
SAMPLE_SECONDS = 0.5


class User:
    """One conversation and who talks to it."""

    def __init__(self, model: Model, folder: Path, seed: int) -> None:
        self.model = model
        self.random = random.Random(seed)
        self.file = folder / f"talk-{seed}.json"
        self.chat = self.new_chat()
        self.forks: list[Chat] = []
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []

    def new_chat(self) -> Chat:
        """Greedy, so that a text can be right or wrong; short answers, so that much happens."""
        return self.model.chat(temperature=0, max_tokens=48, **LIMITS)

    def act(self) -> None:
        """One thing that a user does."""
        acts: list[tuple[Callable[[], None], int]] = [
            (self.ask, 6),
            (self.ask_at_length, 2),
            (self.retry, 2),
            (self.edit, 2),
            (self.undo, 2),
            (self.branch, 2),
            (self.fork, 1),
            (self.save_and_load, 1),
            (self.check, 2),
        ]
        act = self.random.choices([act for act, _ in acts], [weight for _, weight in acts])[0]
        act()
        self.done[act.__name__] += 1
        if self.chat.n_turns > MOST_TURNS or len(self.chat.branches) > MOST_TURNS:
            self.chat = self.new_chat()

    def ask(self) -> None:
        """And perhaps stop the answer."""
        self.read(lambda cancel: self.chat.send(self.random.choice(QUESTIONS), cancel=cancel))

    def ask_at_length(self) -> None:
        """A prompt of several passes, stopped while it is read as often as not."""
        text = "The river is long and slow. " * self.random.randint(20, 200)
        self.read(lambda cancel: self.chat.send(text + self.random.choice(QUESTIONS), cancel=cancel))

    def retry(self) -> None:
        """Answer again, perhaps at random."""
        if self.chat.n_turns:
            temperature = self.random.choice((0.0, 1.0))
            self.read(lambda cancel: self.chat.retry(cancel=cancel, temperature=temperature))

    def edit(self) -> None:
        """Another question in an earlier place; what followed may stay as a branch."""
        if self.chat.n_turns:
            keep = f"kept {self.random.randrange(10**9)}" if self.random.random() < 0.5 else None
            at = self.random.randrange(self.chat.n_turns)
            self.read(lambda cancel: self.chat.edit(at, self.random.choice(QUESTIONS), keep_as=keep, cancel=cancel))

    def undo(self) -> None:
        """Take some back."""
        if self.chat.n_turns:
            self.chat.undo(self.random.randint(1, min(3, self.chat.n_turns)))

    def branch(self) -> None:
        """Begin one, go to one, or delete one."""
        others = [name for name in self.chat.branches if name != self.chat.branch]
        choice = self.random.choice(("begin", "switch", "delete"))
        if choice == "begin" or not others:
            self.chat.start_branch(f"branch {self.random.randrange(10**9)}")
        elif choice == "switch":
            self.chat.switch(self.random.choice(others))
        else:
            self.chat.delete_branch(self.random.choice(others))

    def fork(self) -> None:
        """Go on with a twin; some stay around for a while."""
        self.forks.append(self.chat)
        self.chat = self.chat.fork()
        if len(self.forks) > MOST_FORKS:
            del self.forks[self.random.randrange(len(self.forks))]

    def save_and_load(self) -> None:
        """Go on with what a file says."""
        self.chat.save(self.file)
        shown = [(turn.user, turn.text) for turn in self.chat.turns]
        self.chat = Chat.load(self.file, self.model, **LIMITS)
        if [(turn.user, turn.text) for turn in self.chat.turns] != shown:
            self.failures.append(f"saved {shown}, loaded {self.chat.turns}")

    def check(self) -> None:
        """Whether the conversation answers as one that is read from its beginning."""
        self.chat.save(self.file)
        self.file.with_name(f"{self.file.name}.state").unlink(missing_ok=True)
        question = self.random.choice(QUESTIONS)
        anew = Chat.load(self.file, self.model, **LIMITS).send(question, temperature=0).read()
        here = self.chat.fork().send(question, temperature=0).read()
        if here != anew:
            turns = [(turn.user, turn.text, turn.finish_reason) for turn in self.chat.turns]
            self.failures.append(f"{question!r} was answered {here!r}, read anew {anew!r}, after {turns}")

    def read(self, answer: Callable[[CancelToken], object]) -> None:
        """Read an answer in one of the ways in which they end."""
        token = CancelToken()
        running = answer(token)
        way = self.random.choice(("whole", "whole", "token", "timer", "leave", "unread"))
        if way == "timer":
            threading.Timer(self.random.random() * 0.2, token.cancel).start()
        if way == "unread":
            running.close()
            return
        at = self.random.randrange(12)
        for i, _ in enumerate(running):
            if i == at and way == "token":
                token.cancel()
            elif i == at and way == "leave":
                running.close()
                break
        self.done[f"{way} → {running.finish_reason}"] += 1

    def run(self, until: float) -> None:
        """Act until then."""
        try:
            while time.monotonic() < until and not self.failures:
                self.act()
        except BaseException:  # noqa: BLE001  whatever it is, the run has failed
            self.failures.append(traceback.format_exc())


def private_bytes() -> int:
    """Memory of this process that no file backs; all of it where the system does not tell them apart."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return memory.resident_bytes()


def open_files() -> int:
    """Descriptors that are open; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  iterdir() would hold one more
    return 0


def watch(threads: list[threading.Thread], seconds: float) -> list[tuple[float, int, int]]:
    """(seconds since the beginning, private bytes, open files) until the threads have ended."""
    began, samples = time.monotonic(), []
    while any(thread.is_alive() for thread in threads):
        threads[0].join(SAMPLE_SECONDS)
        samples.append((time.monotonic() - began, private_bytes(), open_files()))
        if time.monotonic() - began > seconds + 120:
            raise SystemExit("soak: a conversation hangs")
    return samples


def quarter(samples: list[tuple[float, int, int]], which: int, column: int) -> float:
    """Median of a column in that quarter of the time (0 to 3)."""
    whole = samples[-1][0]
    values = [sample[column] for sample in samples if which * whole <= 4 * sample[0] <= (which + 1) * whole]
    return statistics.median(values) if values else float(samples[-1][column])


def main() -> int:
    """Run, then say what was done and whether it stayed as it was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, help="of the engine")
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--loose-memory", action="store_true", help="do not judge memory: sanitisers keep what was freed"
    )
    options = parser.parse_args()
    os.environ.pop("PYTHONMALLOC", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RWKV_CPU_HOME"] = folder
        model = Model.load(options.model, threads=options.threads)
        users = [User(model, Path(folder), options.seed * 1000 + n) for n in range(options.chats)]
        until = time.monotonic() + options.seconds
        threads = [threading.Thread(target=user.run, args=(until,)) for user in users]
        for thread in threads:
            thread.start()
        samples = watch(threads, options.seconds)
        failures = [failure for user in users for failure in user.failures]
        done = sum((user.done for user in users), Counter())
        del users
        gc.collect()
        left = [path.name for path in Path(folder).rglob("*.state") if "talk-" not in path.name]
        if left:
            failures.append(f"states left behind: {left[:5]}")
        model.close()
    before, after = quarter(samples, 1, 1), quarter(samples, 3, 1)
    files_before, files_after = quarter(samples, 1, 2), quarter(samples, 3, 2)
    allowed = GROWTH_BYTES if options.seconds > FIRST_SECONDS else GROWTH_AT_FIRST_BYTES
    if after - before > allowed and not options.loose_memory:
        failures.append(f"memory grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
    if files_after > files_before + 4:
        failures.append(f"open files grew from {files_before} to {files_after}")
    figures = {
        "seconds": round(samples[-1][0], 1),
        "acts": sum(count for name, count in done.items() if "→" not in name),
        "private_mb": [round(quarter(samples, n, 1) / 1e6, 1) for n in range(4)],
        "most_mb": round(max(sample[1] for sample in samples) / 1e6, 1),
        "open_files": [quarter(samples, n, 2) for n in range(4)],
        "done": dict(sorted(done.items())),
        "failures": failures,
    }
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
