# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema (draft 2020-12) of every message, from the shapes that requests are checked against.

``python -m rwkv_cpu.server.schema`` writes rwkv_cpu/data/stdio.schema.json, which a test compares.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rwkv_cpu.generation.sampling import COUNTS, RANGES, SamplingParams
from rwkv_cpu.server import server  # noqa: F401 (brings all methods)
from rwkv_cpu.server.answers import EVENTS
from rwkv_cpu.server.methods import ERROR, PROTOCOL
from rwkv_cpu.server.registry import METHODS
from rwkv_cpu.server.shapes import Shape, either, listed, number, or_null, record, text, whole

if TYPE_CHECKING:
    from rwkv_cpu.server.registry import Method

__all__ = ["SCHEMA_FILE", "schema", "schema_text"]

SCHEMA_FILE = Path(__file__).parents[1] / "data" / "stdio.schema.json"
_SPECIAL = {
    "seed": or_null(whole(low=0, high=2**64 - 1)),
    "banned": listed(whole(low=0, high=2**32 - 1)),
    "dry_breakers": either(text(empty=False), listed(text(empty=False))),
    "logit_bias": {"type": "object", "additionalProperties": number(), "description": "by token id"},
}
_ID = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}
_VERSION = {"const": "2.0"}


def schema() -> dict[str, Any]:
    """It, as Python values. $defs has "METHOD params" and "METHOD result" for every method."""
    defs: dict[str, Any] = {}
    for one in METHODS.values():
        defs[f"{one.name} params"] = _params(one)
        defs[f"{one.name} result"] = one.result
    request = {"anyOf": [_request(one) for one in METHODS.values()]}
    response = {
        "anyOf": [
            record({"jsonrpc": _VERSION, "id": _ID, "result": {"type": "object"}}),
            record({"jsonrpc": _VERSION, "id": _ID, "error": ERROR}),
        ]
    }
    event = record({"jsonrpc": _VERSION, "method": {"const": "event"}, "params": {"anyOf": _events()}})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"rwkv-cpu serve --stdio, protocol {PROTOCOL}",
        "description": "Every line that a client or the server writes is one of these.",
        "anyOf": [{"$ref": "#/$defs/client"}, {"$ref": "#/$defs/server"}],
        "$defs": {
            "client": {"anyOf": [{"$ref": "#/$defs/request"}, _batch("request")]},
            "server": {
                "anyOf": [{"$ref": "#/$defs/response"}, {"$ref": "#/$defs/event"}, _batch("response")],
            },
            "request": request,
            "response": response,
            "event": event,
            "sampling": record(optional=_sampling(), about="fields of SamplingParams; docs/generation.md"),
            **defs,
        },
    }


def schema_text() -> str:
    """It, as the file has it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _batch(what: str) -> Shape:
    return {"type": "array", "items": {"$ref": f"#/$defs/{what}"}, "minItems": 1}


def _request(one: Method) -> Shape:
    name = f"{one.name} params".replace("~", "~0").replace("/", "~1")  # as JSON pointers have it
    params = {"$ref": f"#/$defs/{quote(name)}"}
    return record(
        {"jsonrpc": _VERSION, "method": {"const": one.name}, **({"params": params} if one.required else {})},
        {"id": _ID, **({} if one.required else {"params": params})},
        open=True,
        about=one.about,
    )


def _params(one: Method) -> Shape:
    sampling = {name: {"$ref": f"#/$defs/sampling/properties/{name}"} for name in _sampling()} if one.sampling else {}
    return record(one.required, {**one.optional, **sampling})


def _events() -> list[Shape]:
    return [
        record({"id": _ID, "kind": {"const": kind}, **members}, about=about)
        for kind, (about, members) in EVENTS.items()
    ]


def _sampling() -> dict[str, Shape]:
    """The fields of SamplingParams."""
    found: dict[str, Shape] = {}
    for one in fields(SamplingParams):
        if one.name in RANGES:
            low, high = RANGES[one.name]
            found[one.name] = {"type": "number", "minimum": low, "maximum": high}
        elif one.name in COUNTS:
            found[one.name] = whole(low=0, high=COUNTS[one.name])
        else:
            found[one.name] = _SPECIAL[one.name]
    return found


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), "utf-8")
