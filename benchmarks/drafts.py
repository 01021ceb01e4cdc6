# SPDX-License-Identifier: Apache-2.0
"""What drafts from the text itself gain, and what they cost where nothing repeats.

    python benchmarks/drafts.py MODEL.rwkv

A model is made to write given answers to given prompts: it computes everything that it would compute anyway, then the
logit of the text's next token is raised. So the time is that of a model of this size that writes this text, whatever
its weights know. Without drafts, with them, and again; the median of the ratios. Models without a tokenizer get the
World's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import give_tokenizer
from rwkv_cpu import Model, SamplingParams
from rwkv_cpu.generation.loop import generate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rwkv_cpu.state import State

CHECKOUT = Path(__file__).resolve().parent.parent
GREEDY = SamplingParams(temperature=0.0)
OF_THE_MODEL = SamplingParams(temperature=1.0, top_p=0.9, top_k=0, seed=1)


class Writer(Model):
    """A model that writes a given text.

    Attributes: text: ids of prompt and answer; None: it writes what it likes.
    """

    text: list[int] | None = None

    def advance(self, tokens: Any, state: State, **options: Any) -> Any:
        """As Model's, but that the text's next token is the likeliest."""
        logits = super().advance(tokens, state, **options)
        if logits is not None:
            self._raise(logits, state.n_tokens)
        return logits

    def look_ahead(self, tokens: Any, state: State, states: Any, **options: Any) -> Any:
        """As Model's, likewise."""
        logits = super().look_ahead(tokens, state, states, **options)
        for i, row in enumerate(logits):
            self._raise(row, state.n_tokens + i + 1)
        return logits

    def _raise(self, logits: NDArray[np.float32], n_tokens: int) -> None:
        if self.text is not None and n_tokens < len(self.text):
            logits[self.text[n_tokens]] = np.abs(logits).max() + 100.0


@dataclass(frozen=True)
class Task:
    """A prompt and its answer ("": what the model likes); repeats: whether much of it stands in the prompt."""

    name: str
    prompt: str
    answer: str
    repeats: bool


def read(path: str) -> str:
    """A file of the checkout."""
    return (CHECKOUT / path).read_text("utf-8")


def tasks() -> list[Task]:
    """Code edits, extraction, a summary with quotes; and texts that say everything once."""
    code = read("rwkv_cpu/chat/thoughts.py")
    renamed = re.sub(r"\bthink_mode\b", "mode_of_thinking", code).replace("ArgumentError", "ValueError")
    lines = code.splitlines(keepends=True)
    documented = "".join(
        f"{line.rstrip()}  # checked\n" if line.strip().startswith("return") else line for line in lines
    )
    page = read("docs/chat.md")
    rows = re.findall(r"^\| (.+) \| (.+) \|$", page, re.MULTILINE)
    extracted = json.dumps([{"key": a.replace("`", ""), "effect": b} for a, b in rows if "--" not in a], indent=1)
    prose = read("rwkv_cpu/data/calibration.txt")
    return [
        Task("code: a name changed", f"User: Rename it.\n\n{code}\n\nAssistant: ```python\n", renamed, True),
        Task("code: lines added to", f"User: Mark the returns.\n\n{code}\n\nAssistant: ```python\n", documented, True),
        Task("extraction into JSON", f"User: {page}\n\nKeys as JSON, please.\n\nAssistant:", extracted, True),
        Task("summary with quotes", f"User: Summarise.\n\n{LICENCE}\n\nAssistant:", SUMMARY, True),
        Task("an answer in own words", f"User: What does it ask of me?\n\n{LICENCE}\n\nAssistant:", OWN_WORDS, False),
        Task("prose", prose[:1500], prose[1500:4000], False),
        Task("the model's own text", prose[:1500], "", False),
    ]


# Of the Apache License 2.0, section 4.
LICENCE = """You may reproduce and distribute copies of the Work or Derivative Works thereof in any medium, with \
or without modifications, and in Source or Object form, provided that You meet the following \
conditions: You must give any other recipients of the Work or Derivative Works a copy of this \
License; and You must cause any modified files to carry prominent notices stating that You changed \
the files; and You must retain, in the Source form of any Derivative Works that You distribute, all \
copyright, patent, trademark, and attribution notices from the Source form of the Work, excluding \
those notices that do not pertain to any part of the Derivative Works. You may add Your own \
copyright statement to Your modifications and may provide additional or different license terms and \
conditions for use, reproduction, or distribution of Your modifications, or for any such Derivative \
Works as a whole, provided Your use, reproduction, and distribution of the Work otherwise complies \
with the conditions stated in this License."""
SUMMARY = """ The section allows copies "in any medium, with or without modifications, and in Source or Object \
form" under three conditions. First, "You must give any other recipients of the Work or Derivative \
Works a copy of this License". Second, "You must cause any modified files to carry prominent notices \
stating that You changed the files". Third, the notices stay: "You must retain, in the Source form \
of any Derivative Works that You distribute, all copyright, patent, trademark, and attribution \
notices from the Source form of the Work". What you add is yours: "You may add Your own copyright \
statement to Your modifications", with other terms if you like, as long as your "use, reproduction, \
and distribution of the Work otherwise complies with the conditions stated in this License"."""
OWN_WORDS = """ Not much. Whoever gets the program from you must also get the text of its terms, so put that file \
into your package. If you touched a source, say so near its top, with a line that names what is new. \
Leave the names of the authors where they are, and do not pretend that their trademarks are yours. \
Beyond this you are free: sell it, hide your changes, or publish them under rules of your own \
choosing. Nobody promises that it works, of course, and nobody will pay when it breaks. Ask a lawyer \
before a court does."""


def seconds(model: Writer, task: Task, start: State, ids: list[int], n: int, speculative: bool) -> tuple[float, Any]:
    """Of decoding *n* tokens, and the reply."""
    params = GREEDY if task.answer else OF_THE_MODEL
    state = start.copy()
    options: dict[str, Any] = {"max_tokens": n, "history": ids[:-1], "end_ids": (), "speculative": speculative}
    reply = generate(model, state, ids[-1:], params, **options)
    reply.read()
    return reply.stats.decode_seconds, reply


def measure(model: Writer, task: Task, rounds: int, most: int) -> dict[str, Any]:
    """Time per token with and without drafts, in turn; whether the texts are the same."""
    ids = model.tokenizer.encode(task.prompt)
    answer = model.tokenizer.encode(task.answer)
    n = min(most, len(answer)) if task.answer else most
    model.text = [*ids, *answer] if task.answer else None
    start = model.new_state()
    model.advance(ids[:-1], start, logits="none")
    ratios, rates = [], []
    for _ in range(rounds):
        plain, one = seconds(model, task, start, ids, n, False)
        drafted, other = seconds(model, task, start, ids, n, True)
        if one.tokens != other.tokens or (task.answer and one.tokens != answer[:n]):
            raise RuntimeError(f"{task.name}: the text is another with drafts")
        ratios.append(plain / drafted)
        rates.append(n / plain)
    stats = other.stats
    return {
        "task": task.name,
        "repeats": task.repeats,
        "tokens": n,
        "tokens_per_second": statistics.median(rates),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "drafted": stats.drafted_tokens,
        "accepted": stats.accepted_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=256, help="longest answer (256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="WORD", help="tasks with this in their name")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = []
    with Writer.load(args.model) as model:
        assert isinstance(model, Writer)  # noqa: S101 (load() makes one of its class)
        give_tokenizer(model)
        for task in tasks():
            if args.only is None or args.only in task.name:
                found.append(measure(model, task, args.rounds, args.tokens))
                if not args.json:
                    row = found[-1]
                    low, high = min(row["ratios"]), max(row["ratios"])
                    print(
                        f"{row['task']:24} {row['tokens']:4} tokens, {row['tokens_per_second']:6.1f}/s without drafts, "
                        f"x {row['ratio']:.2f} with them ({low:.2f} … {high:.2f}), "
                        f"{row['accepted']}/{row['drafted']} drafted tokens right",
                        flush=True,
                    )
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
