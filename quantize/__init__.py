# SPDX-License-Identifier: Apache-2.0
"""From a trained checkpoint to a compact .rwkv file. Installed as rwkv_cpu.quantize."""

from __future__ import annotations

from rwkv_cpu.quantize.pipeline import quantize
from rwkv_cpu.quantize.report import Report, Sensitivity

__all__ = ["Report", "Sensitivity", "quantize"]
