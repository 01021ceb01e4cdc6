# SPDX-License-Identifier: Apache-2.0
"""How a conversation is written for the model: the words between the turns, and what ends an answer.

RWKV World and G1 models were trained on

    System: <text>

    User: <text>

    Assistant: <text>

with exactly one blank line between parts and none inside a user's text. The prompt ends at "Assistant:" without a
space: the model's own first token brings it. A template is a few plain fields, stored as JSON in the model file
(tensor "chat_template"), so that a new one needs no new code. The engine reads and renders them
(src/app/chat_template.c): programs in any language do as this one does. A model may bring a Jinja template instead;
where that writes something else than the above, it is used (chat.jinja).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from rwkv_cpu.chat.thoughts import think_mode
from rwkv_cpu.engine import check, ffi, lib
from rwkv_cpu.errors import ArgumentError

__all__ = ["ChatTemplate"]


@dataclass(frozen=True)
class ChatTemplate:
    """The text around turns.

    Attributes:
        name: "world", or what its maker called it.
        system, user, assistant: labels written before ": ".
        separator: between parts, and after an answer.
        stop: an answer ends before the first of these (and at the tokenizer's end ids).
        sampling: settings its model answers best with, by SamplingParams field; "max_tokens" too.
        raw: there are no turns: what is sent is continued as it stands, and so on.
        jinja: a Jinja chat template that writes the whole conversation; "" if the fields above do.
    """

    name: str = "world"
    system: str = "System"
    user: str = "User"
    assistant: str = "Assistant"
    separator: str = "\n\n"
    stop: tuple[str, ...] = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")
    sampling: dict[str, float] = field(default_factory=dict)
    raw: bool = False
    jinja: str = ""

    @staticmethod
    def named(name: str) -> ChatTemplate:
        """A built-in template.

        "world": released World and G1 models; answers may have several paragraphs.
        "world-paragraph": the same words, but an answer ends at its first blank line.
        "raw": no words at all; for models that continue texts, notes (ABC, MIDI) or code.

        Raises:
            ArgumentError: no such template.
        """
        try:
            return _NAMED[name]
        except KeyError:
            raise ArgumentError(f"no chat template {name!r}", hint=f"the names are {', '.join(_NAMED)}") from None

    @staticmethod
    def from_bytes(data: bytes | str | None) -> ChatTemplate:
        """The template of a model file: a name or JSON of the fields above; None and empty are "world".

        Unknown fields are ignored (a newer file), missing ones are those of "world".

        Raises:
            FormatError: neither a known name nor such JSON.
        """
        handle = _handle(data.encode("utf-8", "replace") if isinstance(data, str) else data or b"")
        texts = {name: _string(lib.rwkvc_chat_template_field(handle, name.encode())) for name in (*_LABELS, "jinja")}
        template = ChatTemplate(
            **texts,
            stop=_stops(handle, ""),
            sampling=_settings(handle),
            raw=bool(lib.rwkvc_chat_template_raw(handle)),
        )
        return template.simplest()

    def simplest(self) -> ChatTemplate:
        """The same template without its Jinja text, where that only writes what the other fields say."""
        from rwkv_cpu.chat.jinja import writes_world

        return replace(self, jinja="") if self.jinja and writes_world(self.jinja) else self

    def to_bytes(self) -> bytes:
        """What goes into a model file; from_bytes() reads it back."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode("utf-8")

    def clean(self, text: str) -> str:
        """A user's text as the model may see it: no blank lines (they end a turn), no space around it."""
        return self._turn(lib.RWKVC_TURN_CLEAN, text)

    def system_part(self, text: str) -> str:
        """The opening of a conversation; "" for none."""
        return self._turn(lib.RWKVC_TURN_SYSTEM, text)

    def user_part(self, text: str, think: str = "") -> str:
        """A user's turn up to where the model begins to write.

        Args:
            think: one of thoughts.THINK_MODES; only its prompt has the marks, the history has not.

        Raises:
            ArgumentError: nothing is left of the text; no such mode.
        """
        think_mode(think)
        return self._turn(lib.RWKVC_TURN_USER, text, think)

    def answer_part(self, text: str) -> str:
        """An answer as it stands in the history, its end included."""
        return self._turn(lib.RWKVC_TURN_ASSISTANT, text)

    def stops(self, think: str = "") -> tuple[str, ...]:
        """What ends an answer. A thought has paragraphs, so where one is asked for no blank line does."""
        think_mode(think)
        return _stops(self._words, think)

    @cached_property
    def _words(self) -> Any:
        """The engine's template of the fields, without a Jinja text, which does not concern single turns."""
        return _handle(replace(self, jinja="").to_bytes())

    def _turn(self, turn: int, text: str, think: str = "") -> str:
        data, mode, size = text.encode("utf-8", "surrogatepass"), think.encode(), ffi.new("uint64_t *")
        room = len(data) + 256
        while True:
            out = ffi.new("char[]", room)
            source = ffi.from_buffer("char[]", data)
            check(lib.rwkvc_chat_template_turn(self._words, turn, source, len(data), mode, out, room, size))
            if size[0] < room:
                return bytes(ffi.buffer(out, size[0])).decode("utf-8", "surrogatepass")
            room = size[0] + 1


def _handle(data: bytes) -> Any:
    made = ffi.new("rwkvc_chat_template **")
    check(lib.rwkvc_chat_template_create(ffi.from_buffer("uint8_t[]", data), len(data), made))
    return ffi.gc(made[0], lib.rwkvc_chat_template_destroy)


def _string(text: Any) -> str:
    return str(ffi.string(text).decode())


def _stops(handle: Any, think: str) -> tuple[str, ...]:
    found: list[str] = []
    while (stop := lib.rwkvc_chat_template_stop(handle, think.encode(), len(found))) != ffi.NULL:
        found.append(_string(stop))
    return tuple(found)


def _settings(handle: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    name, value = ffi.new("const char **"), ffi.new("double *")
    for i in range(_MAX_SETTINGS):
        if lib.rwkvc_chat_template_setting(handle, i, name, value) != lib.RWKVC_OK:
            break
        found[_string(name[0])] = int(value[0]) if value[0].is_integer() else value[0]
    return found


_LABELS = ("name", "system", "user", "assistant", "separator")
_MAX_SETTINGS = 1000
_NAMED = {name: ChatTemplate.from_bytes(name) for name in ("world", "world-paragraph", "raw")}
