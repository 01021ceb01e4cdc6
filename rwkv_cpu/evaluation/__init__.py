# SPDX-License-Identifier: Apache-2.0
"""What a model is worth, and what quantisation costs: perplexity, divergence, tasks, recall."""

from __future__ import annotations

from rwkv_cpu.evaluation.divergence import Divergence, divergence
from rwkv_cpu.evaluation.perplexity import Perplexity, perplexity
from rwkv_cpu.evaluation.positions import Positions, by_position
from rwkv_cpu.evaluation.recall import Recall, recall
from rwkv_cpu.evaluation.statistics import Bootstrap, Estimate
from rwkv_cpu.evaluation.tasks import TaskResult, run_task

__all__ = [
    "Bootstrap",
    "Divergence",
    "Estimate",
    "Perplexity",
    "Positions",
    "Recall",
    "TaskResult",
    "by_position",
    "divergence",
    "perplexity",
    "recall",
    "run_task",
]
