# SPDX-License-Identifier: Apache-2.0
"""Thinking models: how they are asked to think, and how their thoughts are told from their answers.

The G1 models think between ``<think>`` and ``</think>`` at the start of an answer. They are asked to by writing the
first characters for them ("Assistant: <think"), and not to by writing it all ("Assistant: <think></think"); how long
they think depends on a remark after the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rwkv_cpu.errors import ArgumentError

__all__ = ["THINK_MODES", "Piece", "ThinkMode", "ThoughtSplitter", "think_mode"]

_OPEN, _CLOSE = "<think", "</think"


@dataclass(frozen=True)
class ThinkMode:
    """remark: what is written after the question. lead: the answer's beginning, written for the model."""

    remark: str = ""
    lead: str = ""


# "": as the model likes it, the mode of all models that do not think.
THINK_MODES = {
    "": ThinkMode(),
    "off": ThinkMode(lead=_OPEN + ">" + _CLOSE),
    "short": ThinkMode(" (think a bit)", _OPEN),
    "on": ThinkMode(lead=_OPEN),
    "long": ThinkMode(" (think a lot)", _OPEN),
}


def think_mode(name: str) -> ThinkMode:
    """One of THINK_MODES. Raises: ArgumentError: there is no such mode."""
    try:
        return THINK_MODES[name]
    except (KeyError, TypeError):
        known = ", ".join(mode or '""' for mode in THINK_MODES)
        raise ArgumentError(f"no think mode {name!r}", hint=f"the modes are {known}") from None


class Piece(NamedTuple):
    """A piece of what a model writes."""

    text: str
    is_thought: bool


class ThoughtSplitter:
    """Divides what a model writes into thought and answer, in pieces as they come.

    A thought can only stand at the start. Its marks belong to neither part.

    Args:
        lead: what was written for the model already.
    """

    def __init__(self, lead: str = "") -> None:
        self._held = ""
        self._part = "start"
        self._lead = lead

    @property
    def thinking(self) -> bool:
        """Whether a thought has begun and not ended."""
        return self._part == "thought"

    def feed(self, text: str) -> list[Piece]:
        """What is certain after this piece."""
        self._held += self._lead + text
        self._lead = ""
        found: list[Piece] = []
        if self._part == "start" and not self._opened():
            return found
        if self._part == "thought":
            found += self._thought()
        if self._part == "closing" and self._held:
            self._held = self._held.removeprefix(">")
            self._part = "answer"
        if self._part == "answer" and self._held:
            found.append(Piece(self._held, is_thought=False))
            self._held = ""
        return found

    def flush(self) -> list[Piece]:
        """What is left when no more comes."""
        held, self._held = self._held, ""
        return [Piece(held, is_thought=self.thinking)] if held else []

    def _opened(self) -> bool:
        """Whether it is clear by now if there is a thought."""
        begun = self._held.lstrip()
        if begun.startswith(_OPEN):
            if len(begun) == len(_OPEN):
                return False
            self._part, self._held = "thought", begun[len(_OPEN) :].removeprefix(">")
            return True
        if _OPEN.startswith(begun):
            return False
        self._part = "answer"
        return True

    def _thought(self) -> list[Piece]:
        text, mark, rest = self._held.partition(_CLOSE)
        if mark:
            self._part, self._held = "closing", rest
        else:
            kept = next((n for n in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:n])), 0)
            self._held = text[len(text) - kept :]
            text = text[: len(text) - kept]
        return [Piece(text, is_thought=True)] if text else []
