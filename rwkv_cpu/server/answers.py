# SPDX-License-Identifier: Apache-2.0
"""Answers as they come: events to the client while one is made, and the whole of it as the result."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.server.shapes import Shape, either, flag, listed, number, one_of, or_null, record, text, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rwkv_cpu.chat.answer import Answer
    from rwkv_cpu.generation.loop import Reply, Stats
    from rwkv_cpu.generation.structured import Grammar
    from rwkv_cpu.generation.tools import Tool, ToolCall
    from rwkv_cpu.model import Model
    from rwkv_cpu.server.registry import Call
    from rwkv_cpu.state import State

__all__ = [
    "ANSWER",
    "ANSWER_EVENTS",
    "EVENTS",
    "GENERATED",
    "GRAMMAR",
    "LENGTH",
    "STREAM",
    "TOOL",
    "answer_result",
    "generated_result",
    "grammar_of",
    "shape_with",
    "stateless",
    "stops_of",
]

LENGTH: dict[str, Shape] = {
    "max_tokens": whole("the longest answer", low=1),
    "stop": either(text(empty=False), listed(text(empty=False)), about="texts that end the answer, not part of it"),
}
STREAM: dict[str, Shape] = {"stream": flag("send the text in events as it comes (the default)")}

GRAMMAR: dict[str, Shape] = {
    "grammar": record(
        optional={
            "json": flag("a JSON object"),
            "json_schema": either(record(open=True), flag()),
            "regex": text(empty=False),
            "lark": text(empty=False),
            "gbnf": text(empty=False),
            "choice": listed(text(empty=False)),
        },
        about="the form of the text: one of these",
    ),
}

_FUNCTION = {
    "name": text(empty=False),
    "description": text(),
    "parameters": record(open=True, about="JSON Schema of the arguments"),
}
TOOL = record(
    optional={**_FUNCTION, "type": one_of("function"), "function": record(optional=_FUNCTION)},
    about='a function that the model may call; {"type": "function", "function": …} is the same',
)
_CALL = record({"name": text(), "arguments": record(open=True)})
_FINISH = one_of("stop", "end", "length", "cancelled", about="stop and end: complete")
_USAGE = record({name: whole(low=0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")})
_COUNTS = ("prompt_tokens", "generated_tokens", "decode_steps", "drafted_tokens", "accepted_tokens")
_SPEEDS = ("prefill_seconds", "decode_seconds", "first_token_seconds", "tokens_per_second", "prefill_tokens_per_second")
_STATS = or_null(
    record(
        {**{name: whole(low=0) for name in _COUNTS}, **{name: number() for name in _SPEEDS}},
        about="null: cancelled before the prompt was read",
    )
)
_PLACE = {"token": text(), "id": whole(low=0), "logprob": number()}

ANSWER = record(
    {
        "text": text(),
        "thought": text(),
        "tool_calls": listed(_CALL),
        "finish_reason": _FINISH,
        "usage": _USAGE,
        "stats": _STATS,
    }
)
GENERATED = record(
    {"text": text(), "finish_reason": _FINISH, "usage": _USAGE, "stats": _STATS, "seed": whole("gives the same again")},
    {
        "stop": text("the stop text that ended it"),
        "logprobs": listed(record({**_PLACE, "top": listed(record(_PLACE))}), "natural logarithms, a place a token"),
    },
)

# kind → what the event carries beside "id" and "kind".
EVENTS: dict[str, tuple[str, dict[str, Shape]]] = {
    "load": ("a checkpoint is being converted", {"done": whole("bytes", low=0), "total": whole("bytes", low=0)}),
    "prefill": ("the prompt is being read", {"done": whole("tokens", low=0), "total": whole("tokens", low=0)}),
    "thought": ("a piece of what the model thinks before it answers", {"text": text()}),
    "text": ("a piece of the answer", {"text": text()}),
    "tool": ("the model wants a function called", {"name": text(), "arguments": record(open=True)}),
    "done": ("the last one before the response", {"finish_reason": _FINISH, "stats": _STATS}),
}
ANSWER_EVENTS = ("prefill", "thought", "text", "tool", "done")


def shape_with(shape: Shape, **more: Shape) -> Shape:
    """A result of the same members and *more*."""
    return record({**shape["properties"], **more})


def answer_result(call: Call, answer: Answer, tools: Sequence[Tool] | None) -> dict[str, Any]:
    """Run *answer* to its end, telling the client; the result of shape ANSWER."""
    stream = call.params.get("stream", True)
    calls: list[dict[str, Any]] = []
    shown: list[str] = []
    for event in answer.events(tools):
        if event.kind == "prefill":
            call.emit("prefill", done=event.done, total=event.total)
        elif event.kind == "tool":
            calls.append(_call(event.call))
            call.emit("tool", **calls[-1])
        elif event.kind == "text":
            shown.append(event.text)
            if stream:
                call.emit("text", text=event.text)
        elif event.kind == "thought":
            if stream:
                call.emit("thought", text=event.text)
        else:
            call.emit("done", finish_reason=event.finish_reason, stats=_stats(event.stats))
    return {
        "text": "".join(shown),
        "thought": answer.thought,
        "tool_calls": calls,
        "finish_reason": answer.finish_reason or "cancelled",
        "usage": _usage(answer.stats),
        "stats": _stats(answer.stats),
    }


def generated_result(call: Call, model: Model, reply: Reply, n_top: int | None) -> dict[str, Any]:
    """Run *reply* to its end, telling the client; the result of shape GENERATED."""
    stream = call.params.get("stream", True)
    with reply:
        for piece in reply:
            if stream:
                call.emit("text", text=piece)
    reason = reply.finish_reason or "cancelled"
    call.emit("done", finish_reason=reason, stats=_stats(reply.stats))
    result: dict[str, Any] = {
        "text": reply.text,
        "finish_reason": reason,
        "usage": _usage(reply.stats),
        "stats": _stats(reply.stats),
        "seed": reply.seed,
    }
    if reply.stop is not None:
        result["stop"] = reply.stop
    if n_top is not None:
        result["logprobs"] = _logprobs(model, reply)
    return result


def stops_of(call: Call) -> tuple[str, ...]:
    """The request's own stop texts."""
    stop = call.params.get("stop", ())
    return (stop,) if isinstance(stop, str) else tuple(stop)


def grammar_of(call: Call) -> Grammar | None:
    """The form that "grammar" asks for; None: any text.

    Raises: ArgumentError: it names no form, several, or one that cannot be followed.
    """
    given = call.params.get("grammar")
    if given is None:
        return None
    from rwkv_cpu.generation.structured import Grammar

    if len(given) != 1:
        raise ArgumentError(f"grammar has {len(given)} members", hint="Give one: the form of the text.")
    ((kind, value),) = given.items()
    makers: dict[str, Callable[[Any], Grammar]] = {
        "json_schema": Grammar.json_schema,
        "regex": Grammar.regex,
        "lark": Grammar.lark,
        "gbnf": Grammar.gbnf,
        "choice": Grammar.choice,
    }
    if kind == "json":
        return Grammar.json()
    return makers[kind](value)


def stateless(call: Call, model: Model, tools: Sequence[Tool]) -> Answer:
    """An answer to "messages" that belongs to no conversation. What earlier ones had in common is not read again.

    Raises: ArgumentError: the messages are none; a grammar beside tools, whose calls it does not allow.
    """
    from rwkv_cpu.chat.answer import Answer, Run
    from rwkv_cpu.chat.conversation import DEFAULT_MAX_TOKENS
    from rwkv_cpu.chat.template import ChatTemplate
    from rwkv_cpu.chat.thoughts import think_mode
    from rwkv_cpu.compat.chat_completions import prompt_of
    from rwkv_cpu.generation.sampling import SamplingParams

    grammar = grammar_of(call)
    if grammar is not None and tools:
        raise ArgumentError("an answer has a grammar or may call tools, not both", hint="Leave one of them out.")
    template = ChatTemplate.from_bytes(model.chat_template)
    think = call.params.get("think", "")
    prompt, stops = prompt_of(template, call.params["messages"], tools, think)
    ids = model.tokenizer.encode(prompt)
    advice = dict(template.sampling)
    advised = int(advice.pop("max_tokens", DEFAULT_MAX_TOKENS))

    def read_prompt() -> tuple[State, list[int], int, Sequence[int]]:
        state = model.new_state()
        cache = model.prefix_cache
        if cache is None or len(ids) == 1:
            return state, ids, 0, ()
        cache.advance(
            model, ids[:-1], state, cancel=call.cancel, progress=lambda done, _: run.tell_progress(done, len(ids))
        )
        return state, ids[-1:], len(ids) - 1, ids[:-1]

    run = Run(
        model=model,
        read_prompt=read_prompt,
        finish=None,
        params=SamplingParams().replace(**advice).replace(**call.sampling),
        max_tokens=call.params.get("max_tokens", advised),
        stop=(*stops, *stops_of(call)),
        cancel=call.cancel,
        on_progress=None,
        lead=think_mode(think).lead,
        exact=template.raw,
        grammar=grammar,
    )
    return Answer(run)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _usage(stats: Stats | None) -> dict[str, int]:
    prompt, generated = (0, 0) if stats is None else (stats.prompt_tokens, stats.generated_tokens)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _stats(stats: Stats | None) -> dict[str, Any] | None:
    if stats is None:
        return None
    speeds = {
        "tokens_per_second": stats.tokens_per_second,
        "prefill_tokens_per_second": stats.prefill_tokens_per_second,
    }
    return {name: round(value, 6) for name, value in {**asdict(stats), **speeds}.items()}


def _logprobs(model: Model, reply: Reply) -> list[dict[str, Any]]:
    def place(token: int, logprob: float) -> dict[str, Any]:
        return {"token": model.tokenizer.decode([token]), "id": token, "logprob": logprob}

    return [
        {**place(token, logprob), "top": [place(*one) for one in top]}
        for token, logprob, top in zip(reply.tokens, reply.logprobs, reply.top_logprobs, strict=True)
    ]
