# SPDX-License-Identifier: Apache-2.0
"""From logits to text: sampling, grammars, drafts, stop strings, tool calls, the generation loop; scores of texts."""

from __future__ import annotations

from rwkv_cpu.generation.loop import DEFAULT_MAX_TOKENS, Reply, Stats, generate
from rwkv_cpu.generation.sampling import Sampler, SamplingParams
from rwkv_cpu.generation.score import Score, embed, score
from rwkv_cpu.generation.stop import StopMatcher
from rwkv_cpu.generation.structured import Grammar
from rwkv_cpu.generation.tools import Tool, ToolCall, ToolCallParser

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "Grammar",
    "Reply",
    "Sampler",
    "SamplingParams",
    "Score",
    "Stats",
    "StopMatcher",
    "Tool",
    "ToolCall",
    "ToolCallParser",
    "embed",
    "generate",
    "score",
]
