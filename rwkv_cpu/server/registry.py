# SPDX-License-Identifier: Apache-2.0
"""What a method is: its name, the shapes of parameters and result, and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rwkv_cpu.server.shapes import Shape, check, record, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rwkv_cpu.server.workspace import Workspace

__all__ = ["METHODS", "Call", "Method", "method"]


@dataclass(frozen=True)
class Call:
    """One request under way.

    Attributes:
        params: checked, without the settings of SamplingParams, which are in *sampling*.
        cancel: the request's CancelToken; None for quick methods.
        emit: tells the client what happens, as an "event" notification: emit("text", text="Hello").
        cancel_request: cancels the request of an id; whether there was one.
    """

    workspace: Workspace
    params: dict[str, Any]
    sampling: dict[str, Any]
    cancel: Any
    emit: Callable[..., None]
    cancel_request: Callable[[Any], bool] = lambda _id: False


@dataclass(frozen=True)
class Method:
    """Something a client can ask for.

    Attributes:
        required, optional: shapes of the parameters, by name.
        sampling: whether all fields of SamplingParams are parameters too.
        quick: run at once, in the order of the requests, before the next line is read.
        events: kinds of events that it sends.
    """

    name: str
    about: str
    run: Callable[[Call], Any]
    result: Shape
    required: Mapping[str, Shape] = field(default_factory=dict)
    optional: Mapping[str, Shape] = field(default_factory=dict)
    sampling: bool = False
    quick: bool = False
    events: tuple[str, ...] = ()

    def divide(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """*given* as (params, sampling) of a Call.

        Raises: ArgumentError: one is missing, unknown or wrong.
        """
        sampling: dict[str, Any] = {}
        if self.sampling:
            from rwkv_cpu.generation.sampling import SamplingParams

            fields = SamplingParams.__dataclass_fields__
            sampling = {name: value for name, value in given.items() if name in fields}
            given = {name: value for name, value in given.items() if name not in fields}
            known = [*self.required, *self.optional, *fields]
            for name in given:
                if name not in known:
                    raise unknown_name(name, name, known)
            SamplingParams(**sampling)
        check(given, record(self.required, self.optional), "")
        return given, sampling


METHODS: dict[str, Method] = {}


def method(
    name: str, about: str, *, result: Shape, **more: Any
) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
    """Make a function a method; *more*: as Method's attributes."""

    def add(run: Callable[[Call], Any]) -> Callable[[Call], Any]:
        METHODS[name] = Method(name, about, run, result, **more)
        return run

    return add
