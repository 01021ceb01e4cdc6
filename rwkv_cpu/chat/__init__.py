# SPDX-License-Identifier: Apache-2.0
"""Conversations: turns, templates, undo and retry without computing history again."""

from __future__ import annotations

from rwkv_cpu.chat.conversation import Answer, Chat, Turn
from rwkv_cpu.chat.template import ChatTemplate

__all__ = ["Answer", "Chat", "ChatTemplate", "Turn"]
