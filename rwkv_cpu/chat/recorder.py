# SPDX-License-Identifier: Apache-2.0
"""What a conversation tells to whoever writes it down."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from rwkv_cpu.chat.history import History, Node

__all__ = ["Recorder", "Unanswered"]


class Unanswered(NamedTuple):
    """A question whose answer was never finished, and which turn it would have been (from 0)."""

    text: str
    turn: int


class Recorder(Protocol):
    """Who writes down what happens, as it happens: chat.sessions."""

    def began(self, history: History) -> None:
        """A new conversation."""

    def asked(self, parent: Node, text: str) -> None:
        """A question is going to be answered."""

    def took(self, node: Node, branch: str) -> None:
        """It was, and *node* is the head of *branch*."""

    def dropped(self) -> None:
        """It was not, and counts as not asked."""

    def moved(self, history: History) -> None:
        """The head or the branches changed."""

    def close(self) -> None:
        """Nothing more will happen."""
