# SPDX-License-Identifier: Apache-2.0
"""How a conversation is written for the model: the words between the turns, and what ends an answer.

RWKV World and G1 models were trained on

    System: <text>

    User: <text>

    Assistant: <text>

with exactly one blank line between parts and none inside a user's text. The prompt ends at "Assistant:" without a
space: the model's own first token brings it. A template is a few plain fields, stored as JSON in the model file
(tensor "chat_template"), so that a new one needs no new code. A model may bring a Jinja template instead; where that
writes something else than the above, it is used (chat.jinja).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rwkv_cpu.chat.thoughts import think_mode
from rwkv_cpu.errors import ArgumentError, FormatError

__all__ = ["ChatTemplate"]

# More than any template has; what is larger is not one.
_MAX_TEMPLATE_BYTES = 65536


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
        if data is None or len(data) == 0:
            return _NAMED["world"]
        if len(data) > _MAX_TEMPLATE_BYTES:
            raise FormatError(f"the chat template has {len(data)} bytes; no template is that long")
        try:
            text = data.decode("utf-8") if isinstance(data, bytes) else data
            # Byte tensors may be padded.
            text = text.rstrip("\0").strip()
            if text in _NAMED:
                return _NAMED[text]
            found = json.loads(text)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise FormatError(
                f"the chat template is neither JSON nor a known name ({error})",
                hint=f"the names are {', '.join(_NAMED)}",
            ) from None
        if not isinstance(found, dict):
            raise FormatError("the chat template is JSON, but no object")
        return ChatTemplate(**_checked(found)).simplest()

    def simplest(self) -> ChatTemplate:
        """The same template without its Jinja text, where that only writes what the other fields say."""
        from rwkv_cpu.chat.jinja import writes_world

        return replace(self, jinja="") if self.jinja and writes_world(self.jinja) else self

    def to_bytes(self) -> bytes:
        """What goes into a model file; from_bytes() reads it back."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode("utf-8")

    def clean(self, text: str) -> str:
        """A user's text as the model may see it: no blank lines (they end a turn), no space around it."""
        if self.raw:
            return text
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return re.sub(r"\n{2,}", "\n", text).strip()

    def system_part(self, text: str) -> str:
        """The opening of a conversation; "" for none."""
        text = self.clean(text)
        if self.raw:
            return text
        return f"{self.system}: {text}{self.separator}" if text else ""

    def user_part(self, text: str, think: str = "") -> str:
        """A user's turn up to where the model begins to write.

        Args:
            think: one of thoughts.THINK_MODES; only its prompt has the marks, the history has not.

        Raises:
            ArgumentError: nothing is left of the text; no such mode.
        """
        mode = think_mode(think)
        text = self.clean(text)
        if not text:
            raise ArgumentError("the message is empty")
        if self.raw:
            return text
        lead = f" {mode.lead}" if mode.lead else ""
        return f"{self.user}: {text}{mode.remark}{self.separator}{self.assistant}:{lead}"

    def answer_part(self, text: str) -> str:
        """An answer as it stands in the history, its end included."""
        if self.raw:
            return text
        text = text.strip()
        return (f" {text}" if text else "") + self.separator

    def stops(self, think: str = "") -> tuple[str, ...]:
        """What ends an answer. A thought has paragraphs, so where one is asked for no blank line does."""
        if not think_mode(think).lead or self.separator not in self.stop:
            return self.stop
        labels = (self.user, self.system, self.assistant)
        return tuple(f"{self.separator}{label}:" for label in labels)


_LABELS = ("name", "system", "user", "assistant", "separator")


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """The known fields of a parsed template, each of the right type."""
    known = {f.name for f in fields(ChatTemplate)}
    values = {name: value for name, value in found.items() if name in known}
    for name in _LABELS:
        if name in values and not (isinstance(values[name], str) and values[name]):
            raise FormatError(f"the chat template's {name!r} must be text, and is {values[name]!r}")
    if not isinstance(values.get("raw", False), bool) or not isinstance(values.get("jinja", ""), str):
        raise FormatError("the chat template's 'raw' must be true or false, its 'jinja' text")
    if "stop" in values:
        stop = values["stop"]
        if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
            raise FormatError(f"the chat template's 'stop' must be a list of texts, and is {stop!r}")
        values["stop"] = tuple(stop)
    if "sampling" in values:
        sampling = values["sampling"]
        if not isinstance(sampling, dict) or not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in sampling.values()
        ):
            raise FormatError(f"the chat template's 'sampling' must hold numbers by name, and is {sampling!r}")
    return values


_NAMED = {
    "world": ChatTemplate(),
    "world-paragraph": ChatTemplate(name="world-paragraph", stop=("\n\n",)),
    "raw": ChatTemplate(name="raw", separator="", stop=(), raw=True),
}
