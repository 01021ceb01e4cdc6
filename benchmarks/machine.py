# SPDX-License-Identifier: Apache-2.0
"""What machine and which commit a figure belongs to."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from benchmarks.protocol import HERE

__all__ = ["about", "available_gb", "cores"]


def about() -> dict[str, Any]:
    from rwkv_cpu.benchmark.runner import cpu_name

    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": cpu_name(), "cores": len(cores()), "load_average": os.getloadavg()[0], "commit": commit}


def cores() -> list[int]:
    """CPUs this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def available_gb() -> float:
    """Memory that new processes can have; infinite where the system does not say."""
    from rwkv_cpu.memory import available_bytes

    found = available_bytes()
    return float("inf") if found is None else found / 1e9
