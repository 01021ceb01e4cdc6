# SPDX-License-Identifier: Apache-2.0
"""Conversations: turns, templates, undo and retry without computing history again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_cpu.chat.answer import Answer
    from rwkv_cpu.chat.conversation import Chat
    from rwkv_cpu.chat.history import Turn
    from rwkv_cpu.chat.sessions import open_session
    from rwkv_cpu.chat.template import ChatTemplate

__all__ = ["Answer", "Chat", "ChatTemplate", "Turn", "open_session"]

_HOME = {
    "Answer": "answer",
    "Chat": "conversation",
    "ChatTemplate": "template",
    "Turn": "history",
    "open_session": "sessions",
}


def __getattr__(name: str) -> object:
    # On first use: who only wants the template needs no engine.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"rwkv_cpu.chat.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
