# SPDX-License-Identifier: Apache-2.0
"""Thinking models: how they are asked to think, and how their thoughts are told from their answers.

The G1 models think between ``<think>`` and ``</think>`` at the start of an answer. They are asked to by writing the
first characters for them ("Assistant: <think"), and not to by writing it all ("Assistant: <think></think"); how long
they think depends on a remark after the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rwkv_cpu.engine import ffi, lib
from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.reader import Reader

__all__ = ["THINK_MODES", "Piece", "ThinkMode", "ThoughtSplitter", "think_mode"]


@dataclass(frozen=True)
class ThinkMode:
    """remark: what is written after the question. lead: the answer's beginning, written for the model."""

    remark: str = ""
    lead: str = ""


def _modes() -> dict[str, ThinkMode]:
    """The engine's, by name."""
    found: dict[str, ThinkMode] = {}
    mode = ffi.new("rwkvc_think_mode *")
    while lib.rwkvc_think_mode_info(len(found), mode) == lib.RWKVC_OK:
        name, remark, lead = (ffi.string(text).decode() for text in (mode.name, mode.remark, mode.lead))
        found[name] = ThinkMode(remark, lead)
    return found


# "": as the model likes it, the mode of all models that do not think.
THINK_MODES = _modes()


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
        self._reader = Reader(thoughts=True, lead=lead.encode())

    @property
    def thinking(self) -> bool:
        """Whether a thought has begun and not ended."""
        return self._reader.thinking

    def feed(self, text: str) -> list[Piece]:
        """What is certain after this piece."""
        return _pieces(*self._reader.feed(text.encode("utf-8", "surrogatepass")))

    def flush(self) -> list[Piece]:
        """What is left when no more comes."""
        return _pieces(*self._reader.finish())


def _pieces(thought: bytes, text: bytes) -> list[Piece]:
    parts = ((thought, True), (text, False))
    return [Piece(part.decode("utf-8", "surrogatepass"), is_thought=is_thought) for part, is_thought in parts if part]
