# SPDX-License-Identifier: Apache-2.0
"""What happens while an answer is made, beside its text: Answer.events()."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from rwkv_cpu.generation.loop import Stats
    from rwkv_cpu.generation.tools import ToolCall

__all__ = ["DoneEvent", "Event", "PrefillEvent", "TextEvent", "ThoughtEvent", "ToolEvent"]


@dataclass(frozen=True)
class PrefillEvent:
    """The prompt is being read: *done* of *total* tokens."""

    done: int
    total: int
    kind: ClassVar[Literal["prefill"]] = "prefill"


@dataclass(frozen=True)
class ThoughtEvent:
    """A piece of what the model thinks before it answers."""

    text: str
    kind: ClassVar[Literal["thought"]] = "thought"


@dataclass(frozen=True)
class TextEvent:
    """A piece of the answer."""

    text: str
    kind: ClassVar[Literal["text"]] = "text"


@dataclass(frozen=True)
class ToolEvent:
    """The model wants a function called: only where events() was given tools."""

    call: ToolCall
    kind: ClassVar[Literal["tool"]] = "tool"


@dataclass(frozen=True)
class DoneEvent:
    """The last one.

    Attributes:
        text, thought: all of the answer, and of the thought before it.
        finish_reason: "stop" or "end" (complete), "length" or "cancelled".
        stats: None if it was cancelled before the model had read the prompt.
    """

    text: str
    thought: str
    finish_reason: str
    stats: Stats | None
    kind: ClassVar[Literal["done"]] = "done"


Event: TypeAlias = "PrefillEvent | ThoughtEvent | TextEvent | ToolEvent | DoneEvent"
