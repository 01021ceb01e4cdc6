# SPDX-License-Identifier: Apache-2.0
"""JSON-RPC 2.0, a message a line: from bytes to requests, from results and exceptions to bytes.

Source: https://www.jsonrpc.org/specification. The code of a cancelled request is that of the Language Server Protocol.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from rwkv_cpu import errors

__all__ = [
    "CODES",
    "INVALID_REQUEST",
    "MAX_BATCH",
    "MAX_LINE_BYTES",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "ProtocolError",
    "RepeatedError",
    "Request",
    "encode",
    "error_of",
    "parse_line",
    "parse_request",
    "shown",
    "slug_of",
]

MAX_LINE_BYTES = 16 << 20
MAX_BATCH = 1000

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REQUEST_CANCELLED = -32800

# The nearest class counts: ChecksumError is a FormatError.
CODES: dict[type[BaseException], int] = {
    errors.ArgumentError: INVALID_PARAMS,
    errors.TokenError: INVALID_PARAMS,
    errors.Cancelled: REQUEST_CANCELLED,
    errors.RwkvError: -32000,
    errors.FormatError: -32001,
    errors.ChecksumError: -32002,
    errors.UnsupportedModelError: -32003,
    errors.ShapeError: -32004,
    errors.NonFiniteError: -32005,
    errors.StateError: -32006,
    errors.ModelNotFoundError: -32007,
    errors.OutOfMemory: -32008,
    errors.ModelClosedError: -32009,
    errors.Busy: -32010,
    OSError: -32011,
    MemoryError: -32008,
}
_BUG = "This is a bug in rwkv-cpu: run it with `rwkv-cpu --debug serve --stdio` and report what it prints."
_SHOWN_CHARACTERS = 100


class ProtocolError(Exception):
    """A message that is no request, with its *code* and what to do about it. *id*: as far as it is known."""

    def __init__(self, code: int, message: str, *, hint: str = "", id: Any = None) -> None:  # noqa: A002 (its name)
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.id = id


class RepeatedError(Exception):
    """What failed before fails this request too; *error* is that one's error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


@dataclass(frozen=True)
class Request:
    """A request, or a notification (no answer is expected)."""

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    id: Any = None
    is_notification: bool = False


def parse_line(line: bytes) -> Any:
    """The JSON value of a line. Raises: ProtocolError."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(
            PARSE_ERROR, f"byte {error.start} of the line is not UTF-8", hint="Write messages in UTF-8."
        ) from None
    try:
        return json.loads(text.removeprefix("\ufeff"), parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ProtocolError(
            PARSE_ERROR,
            f"this is not JSON: {error.msg} at character {error.pos + 1}",
            hint="A message is one JSON object on one line.",
        ) from None
    except (ValueError, RecursionError) as error:
        raise ProtocolError(PARSE_ERROR, f"this is not JSON: {_plain(error)}") from None


def parse_request(value: Any) -> Request:
    """The request in a JSON value. Raises: ProtocolError."""
    if not isinstance(value, dict):
        raise ProtocolError(INVALID_REQUEST, f"a request is an object, not {shown(value)}", hint=_EXAMPLE)
    id, is_notification = value.get("id"), "id" not in value  # noqa: A001 (its name)
    if isinstance(id, bool) or not (id is None or isinstance(id, str | int | float)):
        raise ProtocolError(INVALID_REQUEST, f"an id is a text, a number or null, not {shown(id)}")

    def wrong(message: str, hint: str = "") -> ProtocolError:
        return ProtocolError(INVALID_REQUEST, message, hint=hint, id=id)

    if value.get("jsonrpc") != "2.0":
        raise wrong('the request lacks "jsonrpc": "2.0"', _EXAMPLE)
    method, params = value.get("method"), value.get("params")
    if not isinstance(method, str):
        raise wrong('the request has no "method"' if method is None else f"a method is a text, not {shown(method)}")
    if params is not None and not isinstance(params, dict | list):
        raise wrong(f"params is an object, not {shown(params)}")
    if isinstance(params, list):
        if is_notification:
            params = None
        else:
            raise ProtocolError(INVALID_PARAMS, "params are given by name here: an object, not a list", id=id)
    return Request(method, params or {}, id, is_notification)


_EXAMPLE = 'For example: {"jsonrpc": "2.0", "id": 1, "method": "initialize"}'


def error_of(error: BaseException) -> dict[str, Any]:
    """The error object of an exception: code, message, and in data "code", "class" and "hint"."""
    if isinstance(error, RepeatedError):
        return error.error
    if isinstance(error, ProtocolError):
        code, slug = error.code, _PROTOCOL_SLUGS.get(error.code, "protocol")
    else:
        known = next((kind for kind in type(error).__mro__ if kind in CODES), None)
        code = INTERNAL_ERROR if known is None else CODES[known]
        slug = "internal" if known is None else slug_of(known)
    message = _plain(error)
    hint = _BUG if code == INTERNAL_ERROR else getattr(error, "hint", "")
    if code == INTERNAL_ERROR:
        message = f"unexpected {type(error).__name__}: {message}"
    elif isinstance(error, OSError) and not isinstance(error, errors.RwkvError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return {"code": code, "message": message, "data": {"code": slug, "class": type(error).__name__, "hint": hint}}


_PROTOCOL_SLUGS = {
    PARSE_ERROR: "parse",
    INVALID_REQUEST: "request",
    METHOD_NOT_FOUND: "method_not_found",
    INVALID_PARAMS: "argument",
}


def slug_of(kind: type[BaseException]) -> str:
    """data.code of a class of errors: ModelNotFoundError → "model_not_found"."""
    name = kind.__name__.removesuffix("Error") or "error"
    return "os" if kind is OSError else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def encode(message: Any) -> bytes:
    """A message as its line. Numbers that JSON has no word for become null."""
    try:
        text = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_without_nan(message), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half of a surrogate pair has no bytes in UTF-8; Python's escape of it is JSON's.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def shown(value: Any) -> str:
    """A value in an error, cut off where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number
