# SPDX-License-Identifier: Apache-2.0
"""What choosing a token costs, for each setting of the chain, beside a token of the model.

    python benchmarks/sampling.py MODEL.rwkv

Twice: on the model's own logits and on logits as a trained model has them (their sorted probabilities fall like
1 / rank^1.5). Each round reads one token, then chooses with every setting in turn; medians. Models without a tokenizer
get the World's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import give_tokenizer
from rwkv_cpu import Model, SamplingParams
from rwkv_cpu.generation.sampling import make_sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rwkv_cpu.generation.sampling import Sampler

PLAIN: dict[str, object] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {**PLAIN, "temperature": 0.0},
    "temperature alone": PLAIN,
    "the defaults (top-p 0.5, top-k 100)": {},
    "top-k 40": {**PLAIN, "top_k": 40},
    "top-p 0.9": {**PLAIN, "top_p": 0.9},
    "top-p 0.99": {**PLAIN, "top_p": 0.99},
    "min-p 0.05": {**PLAIN, "min_p": 0.05},
    "top-a 0.2": {**PLAIN, "top_a": 0.2},
    "typical-p 0.9": {**PLAIN, "typical_p": 0.9},
    "XTC": {**PLAIN, "xtc_probability": 0.5},
    "mirostat 2": {**PLAIN, "mirostat_tau": 5.0},
    "penalties with decay": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "repetition penalty": {"repetition_penalty": 1.1},
    "DRY": {"dry_multiplier": 0.8},
    "300 biases": {"logit_bias": dict.fromkeys(range(100, 400), 1.0)},
    "everything": {
        "top_k": 200,
        "top_p": 0.95,
        "min_p": 0.01,
        "top_a": 0.1,
        "typical_p": 0.95,
        "xtc_probability": 0.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "dry_multiplier": 0.8,
    },
}
N_HISTORY = 1000


def trained_like(random: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Logits whose probabilities fall like 1 / rank^1.5, in a random order."""
    ranks = random.permutation(n) + 1.0
    logits: NDArray[np.float32] = (-1.5 * np.log(ranks)).astype(np.float32)
    return logits


def choose(sampler: Sampler, logits: NDArray[np.float32]) -> float:
    """Seconds to choose a token and to count it."""
    began = time.perf_counter()
    sampler.accept(sampler.sample(logits))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    with Model.load(args.model) as model:
        give_tokenizer(model)
        state = model.new_state()
        history = random.integers(100, model.n_vocab // 2, N_HISTORY).tolist()
        samplers = {}
        for name, changes in SETTINGS.items():
            samplers[name] = sampler = make_sampler(model, SamplingParams(seed=0).replace(**changes))
            sampler.observe(history)
            for token in history:
                sampler.accept(token)
        token_seconds: list[float] = []
        own: dict[str, list[float]] = {name: [] for name in samplers}
        trained: dict[str, list[float]] = {name: [] for name in samplers}
        for i in range(args.rounds):
            began = time.perf_counter()
            logits = model.advance([history[i % N_HISTORY]], state)
            token_seconds.append(time.perf_counter() - began)
            peaked = trained_like(random, model.n_vocab)
            for name, sampler in samplers.items():
                own[name].append(choose(sampler, logits))
                trained[name].append(choose(sampler, peaked))
        token = statistics.median(token_seconds)
        rows = [(name, statistics.median(own[name]), statistics.median(trained[name])) for name in samplers]
    if args.json:
        json.dump({"token_seconds": token, "seconds": {name: [a, b] for name, a, b in rows}}, sys.stdout, indent=1)
        print()
        return
    print(f"{model.path.name}: {token * 1e3:.2f} ms a token, {model.n_vocab} entries")
    print(f"{'':36} own logits        as trained")
    for name, a, b in rows:
        print(f"{name:36} {a * 1e6:4.0f} µs {a / token:6.2%}   {b * 1e6:4.0f} µs {b / token:6.2%}")


if __name__ == "__main__":
    main()
