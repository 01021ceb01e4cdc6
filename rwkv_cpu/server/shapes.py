# SPDX-License-Identifier: Apache-2.0
"""Shapes of JSON values, written as JSON Schema, and the check of a request's parameters against them.

One description serves both: what is checked here is what ``serve --stdio --schema`` prints.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.server.protocol import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Shape", "anything", "check", "either", "flag", "listed", "number", "one_of", "or_null", "record", "text"]
__all__ += ["unknown_name", "whole"]

Shape = dict[str, Any]

_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def text(about: str = "", *, empty: bool = True) -> Shape:
    """A text; *empty*: it may have no characters."""
    return _about({"type": "string"} if empty else {"type": "string", "minLength": 1}, about)


def whole(about: str = "", low: int | None = None, high: int | None = None) -> Shape:
    """A whole number within limits."""
    limits = {name: value for name, value in (("minimum", low), ("maximum", high)) if value is not None}
    return _about({"type": "integer", **limits}, about)


def number(about: str = "") -> Shape:
    """A number."""
    return _about({"type": "number"}, about)


def flag(about: str = "") -> Shape:
    """True or false."""
    return _about({"type": "boolean"}, about)


def one_of(*values: str, about: str = "") -> Shape:
    """One of some words."""
    return _about({"type": "string", "enum": list(values)}, about)


def listed(items: Shape, about: str = "") -> Shape:
    """A list."""
    return _about({"type": "array", "items": items}, about)


def either(*shapes: Shape, about: str = "") -> Shape:
    """One of several shapes."""
    return _about({"anyOf": list(shapes)}, about)


def or_null(shape: Shape) -> Shape:
    """The same, or null."""
    bare = {key: value for key, value in shape.items() if key != "description"}
    return _about({"anyOf": [bare, {"type": "null"}]}, shape.get("description", ""))


def anything(about: str = "") -> Shape:
    """Any JSON value."""
    return _about({}, about)


def record(
    required: Mapping[str, Shape] | None = None,
    optional: Mapping[str, Shape] | None = None,
    *,
    open: bool = False,  # noqa: A002 (the opposite of closed)
    about: str = "",
) -> Shape:
    """An object with these members; *open*: others too."""
    required = required or {}
    shape: Shape = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        shape["required"] = list(required)
    if not open:
        shape["additionalProperties"] = False
    return _about(shape, about)


def _about(shape: Shape, about: str) -> Shape:
    return {**shape, "description": about} if about else shape


def check(value: Any, shape: Shape, where: str) -> None:
    """Raises: ArgumentError: *value* has not this shape; says where and what was expected."""
    choices = shape.get("anyOf")
    if choices is not None:
        _check_choices(value, choices, where)
        return
    kind = shape.get("type")
    if kind is not None and not _is(value, kind):
        raise ArgumentError(f"{where} must be {_WORDS[kind]}, not {shown(value)}")
    if "enum" in shape and value not in shape["enum"]:
        words = ", ".join(map(shown, shape["enum"]))
        raise ArgumentError(f"{where} must be one of {words}, not {shown(value)}")
    if kind == "string" and len(value) < shape.get("minLength", 0):
        raise ArgumentError(f"{where} is empty")
    if kind == "integer":
        _check_limits(value, shape, where)
    elif kind == "array":
        for i, item in enumerate(value):
            check(item, shape.get("items", {}), f"{where}[{i}]")
    elif kind == "object":
        _check_members(value, shape, where)


def _check_choices(value: Any, choices: list[Shape], where: str) -> None:
    fitting = [one for one in choices if "type" not in one or _is(value, one["type"])]
    if not fitting:
        words = " or ".join(_WORDS[one["type"]] for one in choices)
        raise ArgumentError(f"{where} must be {words}, not {shown(value)}")
    check(value, fitting[0], where)


def _check_limits(value: int, shape: Shape, where: str) -> None:
    low, high = shape.get("minimum"), shape.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(f"{where} must be {limits}, not {shown(value)}")


def _check_members(value: dict[str, Any], shape: Shape, where: str) -> None:
    properties = shape.get("properties", {})
    for name in shape.get("required", ()):
        if name not in value:
            about = properties[name].get("description", "")
            raise ArgumentError(f"{_inside(where, name)} is missing", hint=about and f"{name}: {about}")
    for name, member in value.items():
        if name in properties:
            check(member, properties[name], _inside(where, name))
        elif shape.get("additionalProperties", True) is False:
            raise unknown_name(_inside(where, name), name, properties)


def unknown_name(where: str, name: str, known: Iterable[str]) -> ArgumentError:
    """The error for a parameter that there is not."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    there_are = f"there are {', '.join(names)}" if names else "there are none"
    return ArgumentError(f"no parameter {where!r}", hint=f"Did you mean {near[0]!r}?" if near else there_are)


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return (kind == "boolean" and value is not None) or (kind == "null" and value is None)
    if kind == "integer":
        return isinstance(value, int)
    if kind == "number":
        return isinstance(value, int | float)
    types: dict[str, type] = {"string": str, "object": dict, "array": list}
    return kind in types and isinstance(value, types[kind])
