# SPDX-License-Identifier: Apache-2.0
"""Whether a conversation slows down as it grows: the time of a turn after 10 and after 1,000 turns, and of an undo.

    python benchmarks/chat_turns.py                       # the demonstration model
    python benchmarks/chat_turns.py MODEL --undo-only     # another; what comes without a tokenizer gets the World's

A turn is the same message and an answer of the same length each time. Medians; the two are measured in turn in one run,
on two conversations, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import give_tokenizer
from rwkv_cpu import Model
from rwkv_cpu.chat import Chat

MESSAGE = "Tell me something about the river, please."
ANSWER_TOKENS = 8


def grown(model: Model, n_turns: int) -> Chat:
    """A conversation of *n_turns* turns, all of them answered by the model."""
    chat = Chat(model, temperature=0.0, max_tokens=ANSWER_TOKENS)
    while chat.n_turns < n_turns:
        chat.send(MESSAGE).read()
    return chat


def turn_seconds(chat: Chat) -> float:
    """The time of one turn, which is then taken back."""
    began = time.perf_counter()
    chat.send(MESSAGE).read()
    seconds = time.perf_counter() - began
    chat.undo()
    return seconds


def undo_seconds(chat: Chat) -> float:
    """The time of taking back a turn until a state is there to read the next message."""
    twin = chat.fork()
    began = time.perf_counter()
    twin.undo()
    state, _ = twin.history.nearest(twin.history.goal(MESSAGE))
    if state is None:
        raise RuntimeError("undo would read the conversation again")
    state.copy()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--undo-only", action="store_true", help="for models that are slow")
    args = parser.parse_args()
    with Model.load(args.model) as model:
        found: dict[str, object] = {"model": str(model.path), "state_bytes": model.state_bytes}
        give_tokenizer(model)
        if args.undo_only:
            short = grown(model, 3)
        else:
            short, long = grown(model, 10), grown(model, args.turns)
            few, many = [], []
            for _ in range(args.repeats):
                few.append(turn_seconds(short))
                many.append(turn_seconds(long))
            quartiles = statistics.quantiles(few, n=4)
            found |= {
                "tokens_of_context": [short.n_tokens, long.n_tokens],
                "turn_ms_after_10": statistics.median(few) * 1e3,
                f"turn_ms_after_{args.turns}": statistics.median(many) * 1e3,
                "ratio": statistics.median(many) / statistics.median(few),
                "spread_ms_after_10": (quartiles[2] - quartiles[0]) * 1e3,
            }
        undo = [undo_seconds(short) for _ in range(args.repeats)]
        found |= {"undo_ms": statistics.median(undo) * 1e3, "undo_ms_worst": max(undo) * 1e3}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
