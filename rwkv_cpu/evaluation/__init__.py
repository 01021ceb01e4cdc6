# SPDX-License-Identifier: Apache-2.0
"""What a model is worth, and what quantisation costs: perplexity, divergence, tasks, recall."""

from __future__ import annotations

from rwkv_cpu.evaluation.divergence import Divergence, divergence
from rwkv_cpu.evaluation.perplexity import Perplexity, perplexity
from rwkv_cpu.evaluation.statistics import Bootstrap, Estimate

__all__ = [
    "Bootstrap",
    "Divergence",
    "Estimate",
    "Perplexity",
    "divergence",
    "perplexity",
]
