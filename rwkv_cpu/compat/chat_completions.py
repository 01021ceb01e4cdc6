# SPDX-License-Identifier: Apache-2.0
"""Chat completions as OpenAI's and llama-cpp-python's users know them."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal, overload

from rwkv_cpu.chat import jinja
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.chat.thoughts import ThoughtSplitter, think_mode
from rwkv_cpu.compat.completions import (
    Request,
    finish_of,
    grammar_of,
    limit_of,
    run_to_end,
    sampling_of,
    texts_of,
    usage_of,
)
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.loop import Reply
    from rwkv_cpu.generation.structured import Grammar
    from rwkv_cpu.generation.tools import Tool, ToolCall
    from rwkv_cpu.model import Model

__all__ = ["create_chat_completion", "prompt_of"]

_DEFAULT_MAX_TOKENS = 2048
_TEMPERATURE = 0.2


@overload
def create_chat_completion(
    model: Model, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = False, **options: Any
) -> dict[str, Any]: ...
@overload
def create_chat_completion(
    model: Model, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Any
) -> Iterator[dict[str, Any]]: ...
def create_chat_completion(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    *,
    stream: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    stop: str | Sequence[str] | None = (),
    grammar: Grammar | str | None = None,
    response_format: Mapping[str, Any] | None = None,
    think: str = "",
    template: ChatTemplate | None = None,
    cancel: CancelToken | None = None,
    name: str | None = None,
    **sampling: Any,
) -> dict[str, Any] | Iterator[dict[str, Any]]:
    """Answer *messages*: {"role": "system" | "user" | "assistant" | "tool", "content": …}.

    What earlier calls had in common with this one is not read again (the model's prefix cache).

    Args:
        stream: an iterator of chunks instead of one dictionary.
        tools: functions the model may call, as OpenAI defines them. tool_choice: "auto", "none", "required", or
            {"type": "function", "function": {"name": …}}.
        max_tokens: None, 0 or less: 2048.
        logprobs, top_logprobs: of each token, and of so many likeliest ones at its place.
        think: a think mode of chat.thoughts. template: None: the model's.
        stop, grammar, response_format, name, sampling: as create_completion(); temperature is 0.2 by default.

    Returns:
        {"id", "object": "chat.completion", "created", "model", "choices": [{"index", "message": {"role", "content"},
        "logprobs", "finish_reason"}], "usage"}; a message has "tool_calls" if there are any, and "reasoning_content" if
        the model thought. Chunks are {…, "object": "chat.completion.chunk", "choices": [{"index", "delta",
        "logprobs", "finish_reason"}]}.

    Raises:
        ArgumentError: messages or arguments that do not go together.
    """
    template = template or ChatTemplate.from_bytes(model.chat_template)
    offered, must_call = _offered(tools, tool_choice)
    form = grammar_of(grammar, response_format)
    prompt, stops = prompt_of(template, messages, offered, think)
    if must_call:
        from rwkv_cpu.generation.tools import CALL_START, call_grammar

        if form is not None:
            raise ArgumentError("a tool must be called and a form is asked for: only one of them is possible")
        prompt, form = prompt + CALL_START, call_grammar(offered)
    request = Request(
        model,
        model.tokenizer.encode(prompt),
        sampling_of({"temperature": _TEMPERATURE, **sampling}),
        limit_of(max_tokens, _DEFAULT_MAX_TOKENS),
        (*stops, *texts_of(stop)),
        form,
        (top_logprobs or 0) if logprobs or top_logprobs else None,
        cancel,
    )
    parts = _Parts(offered, lead=think_mode(think).lead, must_call=must_call)
    chunks = _chunks(request, parts, name or model.path.name)
    if stream:
        return chunks
    all_chunks, reply = run_to_end(chunks)
    return _whole(all_chunks, parts, usage_of(request, reply))


def _chunks(request: Request, parts: _Parts, name: str) -> Generator[dict[str, Any], None, Reply]:
    frame = {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": name,
    }

    def chunk(delta: dict[str, Any], logprobs: object = None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**frame, "choices": [choice]}

    yield chunk({"role": "assistant"})
    n_told = 0
    with request.start() as reply:
        for piece in reply:
            for delta in parts.feed(piece):
                yield chunk(delta, _logprobs(request, reply, n_told))
                n_told = len(reply.tokens)
    for delta in parts.flush():
        yield chunk(delta, _logprobs(request, reply, n_told))
        n_told = len(reply.tokens)
    finish = "tool_calls" if parts.n_calls else finish_of(reply)
    yield chunk({}, _logprobs(request, reply, n_told), finish)
    return reply


def _whole(chunks: list[dict[str, Any]], parts: _Parts, usage: dict[str, int]) -> dict[str, Any]:
    """One dictionary of all chunks."""
    choices = [chunk["choices"][0] for chunk in chunks]
    deltas = [choice["delta"] for choice in choices]
    text = "".join(delta.get("content") or "" for delta in deltas)
    thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not parts.n_calls else None}
    if thought:
        message["reasoning_content"] = thought.strip()
    if parts.n_calls:
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    logs = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    logprobs = {"content": [place for log in logs for place in log["content"]], "refusal": None} if logs else None
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": choices[-1]["finish_reason"]}
    return {**chunks[-1], "object": "chat.completion", "choices": [choice], "usage": usage}


class _Parts:
    """Divides what the model writes into thought, content and calls, as deltas."""

    def __init__(self, tools: list[Tool], *, lead: str, must_call: bool) -> None:
        self.n_calls = 0
        self._thoughts = ThoughtSplitter(lead)
        self._calls = None
        if tools:
            from rwkv_cpu.generation.tools import ToolCallParser

            self._calls = ToolCallParser(tools, inside=must_call)
        self._held = ""
        self._begun = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for piece in self._thoughts.feed(text):
            found += self._piece(piece.text, is_thought=piece.is_thought)
        return found

    def flush(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for piece in self._thoughts.flush():
            found += self._piece(piece.text, is_thought=piece.is_thought)
        for part in self._calls.flush() if self._calls is not None else ():
            found += self._part(part)
        self._held = ""  # space at the end
        return found

    def _piece(self, text: str, *, is_thought: bool) -> list[dict[str, Any]]:
        if is_thought:
            return [{"reasoning_content": text}] if text else []
        parts = [text] if self._calls is None else self._calls.feed(text)
        return [delta for part in parts for delta in self._part(part)]

    def _part(self, part: str | ToolCall) -> list[dict[str, Any]]:
        if not isinstance(part, str):
            self.n_calls += 1
            function = {"name": part.name, "arguments": json.dumps(part.arguments, ensure_ascii=False)}
            call = {"index": self.n_calls - 1, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
            return [{"tool_calls": [{**call, "function": function}]}]
        text = self._held + part
        if not self._begun:
            text = text.lstrip()
        ready = text.rstrip()
        self._held = text[len(ready) :]
        self._begun = self._begun or bool(ready)
        return [{"content": ready}] if ready else []


def _logprobs(request: Request, reply: Reply, begin: int) -> dict[str, Any] | None:
    """Of the tokens from *begin* on."""
    if request.top_logprobs is None or begin == len(reply.tokens):
        return None
    places = []
    for i in range(begin, len(reply.tokens)):
        top = [_place(request, token, logprob) for token, logprob in reply.top_logprobs[i]]
        places.append({**_place(request, reply.tokens[i], reply.logprobs[i]), "top_logprobs": top})
    return {"content": places, "refusal": None}


def _place(request: Request, token: int, logprob: float) -> dict[str, Any]:
    raw = request.model.tokenizer.decode_bytes([token])
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


# ---------------------------------------------------------------------------------------------- prompt


def _offered(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None
) -> tuple[list[Tool], bool]:
    """The tools that may be called, and whether one must be."""
    if not tools or choice == "none":
        if tools or choice in (None, "none", "auto"):
            return [], False
        raise ArgumentError("tool_choice asks for a call, and there are no tools")
    from rwkv_cpu.generation.tools import Tool

    offered = [Tool.of_openai(tool) for tool in tools]
    if choice in (None, "auto"):
        return offered, False
    if choice == "required":
        return offered, True
    name = choice.get("function", {}).get("name") if not isinstance(choice, str) else choice
    chosen = [tool for tool in offered if tool.name == name]
    if not chosen:
        raise ArgumentError(f"tool_choice names {name!r}", hint=f"the tools are {', '.join(t.name for t in offered)}")
    return chosen, True


def prompt_of(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = (), think: str = ""
) -> tuple[str, tuple[str, ...]]:
    """The messages as the model reads them, up to where it writes, and what ends its answer.

    Raises:
        ArgumentError: they are none.
    """
    stops = jinja.stops_of(template.jinja) if template.jinja else template.stops(think)
    return _written(template, messages, tools, think), stops


def _written(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], think: str) -> str:
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, dict) for message in messages):
        raise ArgumentError("messages must be a list of objects")
    plain = [_plain(message) for message in messages]
    if not plain:
        raise ArgumentError("there are no messages")
    if tools:
        from rwkv_cpu.generation.tools import tools_prompt

        system = tools_prompt(tools)
        if plain[0]["role"] == "system":
            system = f"{plain.pop(0)['content']}\n{system}"
        plain.insert(0, {"role": "system", "content": system})
    if template.jinja:
        return jinja.render(template.jinja, plain)
    text = ""
    for i, message in enumerate(plain):
        content, last = message["content"], i == len(plain) - 1
        if message["role"] == "system":
            text += template.system_part(content)
        elif message["role"] == "assistant":
            text += f"{template.assistant}:{template.answer_part(content)}"
        elif last:
            text += template.user_part(content, think)
        else:
            text += f"{template.user}: {template.clean(content)}{template.separator}"
    if plain[-1]["role"] != "user":
        lead = think_mode(think).lead
        text += f"{template.assistant}:" + (f" {lead}" if lead else "")
    return text


def _plain(message: Mapping[str, Any]) -> dict[str, str]:
    """A message as role and text; what a tool returned is the user's."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ArgumentError("a message has a part that is no text", hint="These models read text only.")
        content = "\n".join(str(part["text"]) for part in content)
    text = "" if content is None else content
    if not isinstance(text, str):
        raise ArgumentError(f"the content of a message must be text, not {content!r}")
    if role in ("tool", "function"):
        from rwkv_cpu.generation.tools import result_message

        return {"role": "user", "content": result_message(text)}
    if role == "assistant":
        for call in message.get("tool_calls") or ():
            block = f"```json\n{json.dumps(_called(call), ensure_ascii=False)}\n```"
            text = f"{text}\n{block}" if text else block
    elif role not in ("system", "developer", "user"):
        raise ArgumentError(f"no role {role!r}", hint='there are "system", "user", "assistant" and "tool"')
    return {"role": "system" if role == "developer" else str(role), "content": text}


def _called(call: Any) -> dict[str, Any]:
    try:
        function = call["function"]
        return {"name": str(function["name"]), "arguments": json.loads(function["arguments"] or "{}")}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            "a message has a tool call that is none",
            hint='It is {"type": "function", "function": {"name": …, "arguments": "{…}"}}, the arguments as JSON text.',
        ) from error
