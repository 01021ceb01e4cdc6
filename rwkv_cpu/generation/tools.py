# SPDX-License-Identifier: Apache-2.0
"""Function calls as the RWKV-7 G1 models write them: how tools are described to them, and their calls as objects.

    System: Tools:
    - get_weather(city: string, days?: integer): What the weather will be.
    Return only a JSON function call.

    User: Will it rain in Paris?

    Assistant: ```json
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    ```

The result goes back as a message of the user's (result_message). A prompt that ends in CALL_START makes the model call
a tool; without it the model may answer in words, or call one in a ```json block among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.structured import Grammar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CALL_START", "Tool", "ToolCall", "ToolCallParser", "call_grammar", "result_message", "tools_prompt"]

# What a prompt ends in, after "Assistant:", where a call must follow.
CALL_START = " ```json"

_OPENINGS = {"```json": "```", "<tool_call>": "</tool_call>"}
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: JSON schema of the arguments, an object.

    Raises:
        ArgumentError: no name, or parameters that are no schema of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NOTHING))

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ArgumentError(f"a tool needs a name, not {self.name!r}")
        properties = self.parameters.get("properties", {}) if isinstance(self.parameters, Mapping) else None
        if not isinstance(properties, Mapping):
            raise ArgumentError(f"the parameters of {self.name} are no JSON schema of an object")

    @classmethod
    def of_openai(cls, definition: Mapping[str, Any]) -> Tool:
        """From ``{"type": "function", "function": {"name": ..., "parameters": ...}}``. Raises: ArgumentError."""
        function = definition.get("function", definition) if isinstance(definition, Mapping) else None
        if not isinstance(function, Mapping):
            raise ArgumentError(f"{definition!r} does not define a function")
        return cls(function.get("name", ""), function.get("description") or "", function.get("parameters") or _NOTHING)

    @property
    def signature(self) -> str:
        """``name(argument: type, optional?: type)``."""
        required = self.parameters.get("required", [])
        arguments = (
            f"{name}{'' if name in required else '?'}: {_type_of(schema)}"
            for name, schema in self.parameters.get("properties", {}).items()
        )
        return f"{self.name}({', '.join(arguments)})"


@dataclass(frozen=True)
class ToolCall:
    """What the model wants called."""

    name: str
    arguments: dict[str, Any]

    def missing(self, tool: Tool) -> list[str]:
        """Required arguments of *tool* that it left out."""
        return [name for name in tool.parameters.get("required", []) if name not in self.arguments]


def tools_prompt(tools: Iterable[Tool]) -> str:
    """The text of the System part that offers *tools*."""
    lines = []
    for tool in tools:
        description = " ".join(tool.description.split())
        lines.append(f"- {tool.signature}{': ' + description if description else ''}")
    return "\n".join(["Tools:", *lines, "Return only a JSON function call."])


def result_message(result: Any) -> str:
    """The message of the user's that gives the model what a call returned."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return f"Function output:\n{text}"


def call_grammar(tools: Iterable[Tool]) -> Grammar:
    """The form of an answer after CALL_START: one call of one of *tools*, and the end of its block.

    Raises:
        ArgumentError: no tools.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": {"type": "object", "additionalProperties": False, **tool.parameters},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    if not calls:
        raise ArgumentError("there is no tool to call")
    schema = {"anyOf": calls, "x-guidance": {"whitespace_pattern": r"[ ]?|\n[ ]{0,32}", "whitespace_flexible": True}}
    return Grammar.lark(f'start: "\\n" call "\\n```"\ncall: %json {json.dumps(schema)}\n')


class ToolCallParser:
    """Finds calls in an answer while it is written: text passes through, calls become ToolCall.

    A call is a JSON object with "name" and "arguments" (or a list of such) in a ```json block or <tool_call> tags, or
    an answer that is nothing else. Text that may be the beginning of one is withheld until that is clear; blocks that
    turn out to be something else are let through unchanged. How the text is divided into pieces makes no difference.

    Args:
        tools: only these can be called; other names are text. None: any.
        inside: the prompt ended in CALL_START.
    """

    def __init__(self, tools: Iterable[Tool] | None = None, *, inside: bool = False) -> None:
        self._names = None if tools is None else {tool.name for tool in tools}
        self._opening = "```json" if inside else ""  # of the block in which it is
        self._shown_opening = "" if inside else None
        self._at_start = not inside
        self._closing = ""  # what may still come after a call
        self._text = ""
        self._inside = inside
        self._scan = _JsonEnd()

    def feed(self, text: str) -> list[str | ToolCall]:
        """The next piece of the answer → text to show and calls, in order."""
        self._text += text
        return _joined(self._events(final=False))

    def flush(self) -> list[str | ToolCall]:
        """What is left, when no more will come."""
        return _joined(self._events(final=True))

    def _events(self, *, final: bool) -> list[str | ToolCall]:
        events: list[str | ToolCall] = []
        while True:
            before = (self._text, self._inside, self._closing)
            if self._inside:
                events += self._read_block(final=final)
            elif self._closing:
                self._skip_closing(final=final)
            else:
                events += self._read_text(final=final)
            if (self._text, self._inside, self._closing) == before or not self._text:
                return events

    def _read_text(self, *, final: bool) -> list[str | ToolCall]:
        """Up to the opening of a block."""
        if self._at_start:
            bare = self._text.lstrip()
            if not bare and not final:
                return []
            self._at_start = False
            if bare[:1] in ("{", "["):
                self._enter("", len(self._text) - len(bare))
                return []
        at, opening = min(
            ((at, opening) for opening in _OPENINGS if (at := self._text.find(opening)) >= 0), default=(-1, "")
        )
        if at >= 0:
            shown = self._text[:at]
            self._enter(opening, at + len(opening))
        else:
            kept = 0 if final else _length_of_beginning(self._text)
            shown = self._text[: len(self._text) - kept]
            self._text = self._text[len(shown) :]
        return [shown] if shown else []

    def _enter(self, opening: str, at: int) -> None:
        self._shown_opening = self._text[at - len(opening) : at] if opening else self._text[:at]
        self._text = self._text[at:]
        self._opening, self._inside, self._scan = opening, True, _JsonEnd()

    def _read_block(self, *, final: bool) -> list[str | ToolCall]:
        end = self._scan.find(self._text)
        if end is None and not final:
            return []
        calls = None if not end else self._calls(self._text[:end])
        self._inside = False
        if calls is None or end is None:
            shown = (self._shown_opening or "") + (self._text if end is None else self._text[: max(end, 0)])
            self._text = self._text[len(self._text) if end is None else max(end, 0) :]
            return [shown] if shown else []
        self._text = self._text[end:]
        self._closing = _OPENINGS.get(self._opening, "")
        return list(calls)

    def _skip_closing(self, *, final: bool) -> None:
        rest = self._text.lstrip()
        if rest.startswith(self._closing):
            self._text, self._closing = rest[len(self._closing) :], ""
        elif final or not self._closing.startswith(rest):
            self._closing = ""
        if final and not rest:
            self._text = ""

    def _calls(self, text: str) -> list[ToolCall] | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        found = [self._call(entry) for entry in (value if isinstance(value, list) else [value])]
        return [call for call in found if call is not None] if found and None not in found else None

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):  # as in OpenAI's messages
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict) or (self._names is not None and value["name"] not in self._names):
            return None
        return ToolCall(value["name"], arguments)


class _JsonEnd:
    """Where a JSON object or list ends in a text that grows; every character is looked at once."""

    def __init__(self) -> None:
        self._at = self._depth = 0
        self._in_string = self._escaped = False

    def find(self, text: str) -> int | None:
        """Its length; None: not yet; 0: it is none."""
        while self._at < len(text):
            character = text[self._at]
            self._at += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character in "{[":
                self._depth += 1
            elif character in "}]" and self._depth > 0:
                self._depth -= 1
                if self._depth == 0:
                    return self._at
            elif self._depth == 0 and not character.isspace():
                return 0
            elif character == '"':
                self._in_string = True
        return None


def _type_of(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("enum"), list):
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return f"array of {_type_of(schema['items'])}"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _length_of_beginning(text: str) -> int:
    """How many characters at the end of *text* may be the beginning of a block."""
    for length in range(min(max(map(len, _OPENINGS)) - 1, len(text)), 0, -1):
        if any(opening.startswith(text[-length:]) for opening in _OPENINGS):
            return length
    return 0


def _joined(events: list[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts in one."""
    joined: list[str | ToolCall] = []
    for event in events:
        if isinstance(event, str) and joined and isinstance(joined[-1], str):
            joined[-1] += event
        else:
            joined.append(event)
    return joined
