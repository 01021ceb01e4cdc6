# SPDX-License-Identifier: Apache-2.0
"""How fast a model runs here, beside what this machine could do at best in the same minute."""

from __future__ import annotations

from rwkv_cpu.benchmark.kernels import KernelResult, run_kernels
from rwkv_cpu.benchmark.report import as_json, as_text, kernels_as_json, kernels_as_text
from rwkv_cpu.benchmark.runner import BenchmarkResult, Spread, run

__all__ = [
    "BenchmarkResult",
    "KernelResult",
    "Spread",
    "as_json",
    "as_text",
    "kernels_as_json",
    "kernels_as_text",
    "run",
    "run_kernels",
]
