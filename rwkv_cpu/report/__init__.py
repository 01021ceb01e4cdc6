# SPDX-License-Identifier: Apache-2.0
"""What quantisation did to a model, as one page for people and one JSON file for programs."""

from __future__ import annotations

from rwkv_cpu.report.figures import Figures, measure
from rwkv_cpu.report.page import PAGE_NAME, RECORD_NAME, check_ready, write

__all__ = ["PAGE_NAME", "RECORD_NAME", "Figures", "check_ready", "measure", "write"]
