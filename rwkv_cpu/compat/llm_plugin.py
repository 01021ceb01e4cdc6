# SPDX-License-Identifier: Apache-2.0
"""A plugin of the ``llm`` command line: ``pip install 'rwkv_cpu[llm]'``, then ``llm -m rwkv "Hello!"``.

``-o model FILE`` chooses the model (the demonstration model otherwise). It stays loaded as long as the process lives:
``llm chat`` waits for it once.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Optional

import llm
from pydantic import Field

from rwkv_cpu.errors import RwkvError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from rwkv_cpu.model import Model

__all__ = ["AsyncRwkv", "Rwkv", "register_models"]


@llm.hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def register_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    register(Rwkv(), AsyncRwkv(), aliases=("rwkv-cpu",))


class _Options(llm.Options):  # type: ignore[misc, unused-ignore]
    """-o NAME VALUE. Values out of range are refused when the model answers."""

    # pydantic evaluates these on Python 3.10 too.
    model: Optional[str] = Field(default=None, description="A .rwkv file or a checkpoint; the demo without it")  # noqa: UP045
    max_tokens: Optional[int] = Field(default=None, description="The longest answer")  # noqa: UP045
    temperature: Optional[float] = Field(default=None, description="0: always the most likely token")  # noqa: UP045
    top_p: Optional[float] = Field(default=None, description="Choose among the likeliest with this share")  # noqa: UP045
    top_k: Optional[int] = Field(default=None, description="Choose among so many")  # noqa: UP045
    seed: Optional[int] = Field(default=None, description="The same seed gives the same answer")  # noqa: UP045
    stop: Optional[str] = Field(default=None, description="End before this text")  # noqa: UP045
    think: Optional[str] = Field(default=None, description="off, short, on or long, for models that think")  # noqa: UP045


_loaded: dict[str, Model] = {}
_loading = threading.Lock()


class _Shared:
    """What the two models have in common."""

    model_id = "rwkv"
    can_stream = True
    supports_tools = True
    supports_schema = True
    Options = _Options

    @staticmethod
    def chunks(prompt: Any, **more: Any) -> Iterator[dict[str, Any]]:
        """Begin to answer what llm calls a prompt. Raises: llm.ModelError."""
        from rwkv_cpu.model import Model

        given = {name: value for name, value in dict(prompt.options).items() if value is not None}
        name = str(given.pop("model", "demo"))
        if prompt.schema:
            more["response_format"] = {"type": "json_schema", "json_schema": {"schema": prompt.schema}}
        if prompt.tools:
            more["tools"] = [_definition(tool) for tool in prompt.tools]
        try:
            with _loading:
                if name not in _loaded:
                    _loaded[name] = Model.load(name)
            return iter(
                _loaded[name].create_chat_completion(
                    [message for part in prompt.messages for message in _messages(part)], stream=True, **given, **more
                )
            )
        except (RwkvError, OSError) as error:
            raise llm.ModelError(_told(error)) from error

    @staticmethod
    def taken(chunk: dict[str, Any], response: Any) -> str:
        """The text of a chunk; its calls go to *response*."""
        delta = chunk["choices"][0]["delta"]
        for call in delta.get("tool_calls", ()):
            import json

            function = call["function"]
            arguments = json.loads(function["arguments"])
            response.add_tool_call(llm.ToolCall(name=function["name"], arguments=arguments, tool_call_id=call["id"]))
        return str(delta.get("content") or "")


class Rwkv(_Shared, llm.Model):  # type: ignore[misc, unused-ignore]
    """``llm -m rwkv``."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:  # noqa: ARG002
        """The pieces of an answer."""
        try:
            for chunk in self.chunks(prompt):
                yield self.taken(chunk, response)
        except RwkvError as error:
            raise llm.ModelError(_told(error)) from error


class AsyncRwkv(_Shared, llm.AsyncModel):  # type: ignore[misc, unused-ignore]
    """The same for asyncio."""

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncGenerator[str, None]:  # noqa: ARG002
        """The pieces of an answer."""
        from rwkv_cpu.asynchronous import AsyncSteps
        from rwkv_cpu.cancel import CancelToken

        token = CancelToken()
        chunks: Any = self.chunks(prompt, cancel=token)
        try:
            async with AsyncSteps(chunks, token.cancel) as steps:
                async for chunk in steps:
                    yield self.taken(chunk, response)
        except RwkvError as error:
            raise llm.ModelError(_told(error)) from error


def _told(error: Exception) -> str:
    hint = getattr(error, "hint", "")
    return f"{error} ({hint})" if hint else str(error)


def _definition(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema or {}}
    return {"type": "function", "function": function}


def _messages(message: Any) -> list[dict[str, Any]]:
    """One of llm's messages in OpenAI's form; what a model thought is not told again."""
    import json

    texts, calls, results = [], [], []
    for part in message.parts:
        kind = type(part).__name__
        if kind == "TextPart":
            texts.append(part.text)
        elif kind == "ToolCallPart":
            function = {"name": part.name, "arguments": json.dumps(part.arguments)}
            calls.append({"id": part.tool_call_id, "type": "function", "function": function})
        elif kind == "ToolResultPart":
            results.append({"role": "tool", "tool_call_id": part.tool_call_id, "content": part.output})
    if results:
        return results
    found: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
    if calls:
        found["tool_calls"] = calls
    return [found]
