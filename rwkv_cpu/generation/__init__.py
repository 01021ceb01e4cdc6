# SPDX-License-Identifier: Apache-2.0
"""From logits to text: sampling, stop strings, the generation loop."""

from __future__ import annotations

from rwkv_cpu.generation.loop import DEFAULT_MAX_TOKENS, Reply, Stats, generate
from rwkv_cpu.generation.sampling import Sampler, SamplingParams
from rwkv_cpu.generation.stop import StopMatcher

__all__ = ["DEFAULT_MAX_TOKENS", "Reply", "Sampler", "SamplingParams", "Stats", "StopMatcher", "generate"]
