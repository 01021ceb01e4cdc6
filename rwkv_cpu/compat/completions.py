# SPDX-License-Identifier: Apache-2.0
"""Completions as OpenAI's and llama-cpp-python's users know them: their arguments, and dictionaries of their shape.

What is different: top_k, top_p and min_p look at the probabilities before temperature, as everywhere in rwkv_cpu; there
is no limit to the length of a prompt.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.generation.sampling import SamplingParams
from rwkv_cpu.softmax import log_softmax

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.generation.loop import Reply
    from rwkv_cpu.generation.structured import Grammar
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = [
    "Request",
    "create_completion",
    "finish_of",
    "grammar_of",
    "limit_of",
    "run_to_end",
    "sampling_of",
    "texts_of",
    "usage_of",
]

_CHUNK = 256
_MIROSTAT_MODES = (0, 2)


@dataclass(frozen=True)
class Request:
    """What completions and chat completions have in common.

    Attributes:
        ids: of the prompt, at least one. stop: texts that end it. top_logprobs: how many; None: no logprobs.
    """

    model: Model
    ids: list[int]
    params: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]
    grammar: Grammar | None
    top_logprobs: int | None
    cancel: CancelToken | None

    def start(self, state: State | None = None, ids: list[int] | None = None) -> Reply:
        """Begin to generate; *ids* are left to read after *state*."""
        options: dict[str, Any] = {}
        if self.top_logprobs is not None:
            options.update(logprobs=True, top_logprobs=self.top_logprobs)
        if self.grammar is not None:
            options["grammar"] = self.grammar
        return self.model.generate(
            self.ids if ids is None else ids,
            state=state,
            params=self.params,
            max_tokens=self.max_tokens,
            stop=self.stop,
            cancel=self.cancel,
            **options,
        )


@overload
def create_completion(
    model: Model, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Any
) -> dict[str, Any]: ...
@overload
def create_completion(
    model: Model, prompt: str | Sequence[int], *, stream: Literal[True], **options: Any
) -> Iterator[dict[str, Any]]: ...
def create_completion(
    model: Model,
    prompt: str | Sequence[int],
    *,
    stream: bool = False,
    suffix: str | None = None,
    max_tokens: int | None = 16,
    logprobs: int | None = None,
    echo: bool = False,
    stop: str | Sequence[str] | None = (),
    grammar: Grammar | str | None = None,
    response_format: Mapping[str, Any] | None = None,
    cancel: CancelToken | None = None,
    name: str | None = None,
    **sampling: Any,
) -> dict[str, Any] | Iterator[dict[str, Any]]:
    """Continue *prompt* (text, or ids).

    Args:
        stream: an iterator of chunks instead of one dictionary.
        suffix: written behind the text.
        max_tokens: None, 0 or less: no limit.
        logprobs: so many of the likeliest tokens at each place, with their log-probabilities.
        echo: the prompt stands before the text, and in the logprobs.
        grammar: the form of the text, as Grammar or in GBNF or Lark. response_format: or so, as in OpenAI's interface.
        name: of the model, in the answer.
        sampling: temperature, top_p, top_k, min_p, typical_p, frequency_penalty, presence_penalty, repeat_penalty,
            mirostat_mode (0 or 2), mirostat_tau, mirostat_eta, logit_bias, seed.

    Returns:
        {"id", "object": "text_completion", "created", "model", "choices": [{"text", "index", "logprobs",
        "finish_reason"}], "usage"}; chunks are the same without usage.

    Raises:
        ArgumentError: what does not go together; an argument that this engine knows nothing of.
    """
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(ids)
    request = Request(
        model,
        ids or [min(model.tokenizer.end_ids, default=0)],
        sampling_of(sampling),
        limit_of(max_tokens, None),
        texts_of(stop),
        grammar_of(grammar, response_format),
        logprobs,
        cancel,
    )
    chunks = _chunks(request, text, suffix or "", name or model.path.name, echo=echo)
    if stream:
        return chunks
    parts, reply = run_to_end(chunks)
    choice = {**parts[-1]["choices"][0], "text": "".join(part["choices"][0]["text"] for part in parts)}
    logs = [part["choices"][0]["logprobs"] for part in parts if part["choices"][0]["logprobs"] is not None]
    if logprobs is not None:
        choice["logprobs"] = {key: [value for log in logs for value in log[key]] for key in _empty()}
    return {**parts[-1], "choices": [choice], "usage": usage_of(request, reply)}


def _chunks(
    request: Request, prompt: str, suffix: str, name: str, *, echo: bool
) -> Generator[dict[str, Any], None, Reply]:
    frame = {"id": f"cmpl-{uuid.uuid4()}", "object": "text_completion", "created": int(time.time()), "model": name}

    def chunk(text: str, logprobs: object, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**frame, "choices": [choice]}

    places = _Places(request, len(prompt))
    if echo and request.top_logprobs is not None:
        state, scored = _score_prompt(request)
        yield chunk(prompt, scored)
        reply = request.start(state, request.ids[-1:])
    else:
        if echo:
            yield chunk(prompt, None)
        reply = request.start()
    with reply:
        for piece in reply:
            yield chunk(piece, places.new(reply))
    yield chunk(suffix, places.new(reply), finish_of(reply))
    return reply


def run_to_end(chunks: Generator[dict[str, Any], None, Reply]) -> tuple[list[dict[str, Any]], Reply]:
    """All of the chunks, and the reply they came from."""
    ended: list[Reply] = []

    def drive() -> Iterator[dict[str, Any]]:
        ended.append((yield from chunks))

    return list(drive()), ended[0]


def usage_of(request: Request, reply: Reply) -> dict[str, int]:
    """The "usage" of an answer."""
    n_prompt, n_generated = len(request.ids), len(reply.tokens)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": n_prompt + n_generated}


def finish_of(reply: Reply) -> str:
    """The reply's end in OpenAI's words."""
    return "length" if reply.finish_reason == "length" else "stop"


# -------------------------------------------------------------------------------------------- arguments

# llama-cpp-python's names and defaults → SamplingParams' fields.
_SAMPLING = {
    "temperature": ("temperature", 0.8),
    "top_p": ("top_p", 0.95),
    "top_k": ("top_k", 40),
    "min_p": ("min_p", 0.05),
    "typical_p": ("typical_p", 1.0),
    "frequency_penalty": ("frequency_penalty", 0.0),
    "presence_penalty": ("presence_penalty", 0.0),
    "repeat_penalty": ("repetition_penalty", 1.0),
    "seed": ("seed", None),
}

# Arguments that OpenAI has replaced by others.
_NEWER = {
    "functions": 'tools=[{"type": "function", "function": …}] is its newer name',
    "function_call": "tool_choice is its newer name",
}


def sampling_of(given: Mapping[str, Any]) -> SamplingParams:
    """SamplingParams of llama-cpp-python's arguments; None is the default.

    Raises:
        ArgumentError: one that this engine knows nothing of, or a value out of its range.
    """
    rest = {name: value for name, value in given.items() if value is not None}
    fields: dict[str, Any] = {"penalty_decay": 1.0}
    for theirs, (ours, default) in _SAMPLING.items():
        fields[ours] = rest.pop(theirs, default)
    if isinstance(fields["top_k"], int):
        fields["top_k"] = max(0, fields["top_k"])
    if isinstance(fields["seed"], int) and fields["seed"] < 0:  # theirs for "a new one"
        fields["seed"] = None
    fields["logit_bias"] = rest.pop("logit_bias", {})
    mode, tau, eta = rest.pop("mirostat_mode", 0), rest.pop("mirostat_tau", 5.0), rest.pop("mirostat_eta", 0.1)
    if mode not in _MIROSTAT_MODES:
        raise ArgumentError(f"there is no mirostat {mode!r} here", hint="0 switches it off, 2 is mirostat 2")
    if mode == 2:
        fields.update(mirostat_tau=tau, mirostat_eta=eta)
    if rest.pop("tfs_z", 1.0) != 1.0:
        raise ArgumentError("there is no tail-free sampling here", hint="min_p and typical_p serve the same end")
    if rest:
        unknown = next(iter(rest))
        raise ArgumentError(
            f"no argument {unknown!r} here", hint=_NEWER.get(unknown, f"there are {', '.join(_SAMPLING)}")
        )
    return SamplingParams(**fields)


def grammar_of(grammar: Grammar | str | None, response_format: Mapping[str, Any] | None) -> Grammar | None:
    """What the two arguments ask for together; None: any text.

    Raises:
        ArgumentError: both are given, or an unknown format.
    """
    wanted = {} if response_format is None else response_format
    if not isinstance(wanted, Mapping):
        raise ArgumentError(
            f"response_format must be an object, not {wanted!r}", hint='such as {"type": "json_object"}'
        )
    kind = wanted.get("type", "text")
    if kind == "text" and grammar is None:
        return None
    from rwkv_cpu.generation.structured import Grammar

    if kind == "text":
        return Grammar.read(grammar) if isinstance(grammar, str) else grammar
    if grammar is not None:
        raise ArgumentError("grammar and response_format are both given")
    if kind == "json_object":
        schema = wanted.get("schema")
        return Grammar.json() if schema is None else Grammar.json_schema(schema)
    if kind == "json_schema":
        return Grammar.json_schema(wanted.get("json_schema", {}).get("schema", True))
    raise ArgumentError(f"no response_format {kind!r}", hint='there are "text", "json_object" and "json_schema"')


def texts_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop texts, however they were given. Raises: ArgumentError: no texts."""
    if stop is not None and not isinstance(stop, (str, list, tuple)):
        raise ArgumentError(f"stop must be text or a list of texts, not {stop!r}")
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def limit_of(max_tokens: int | None, unlimited: int | None) -> int | None:
    """The longest answer; *unlimited* for None, 0 and less. Raises: ArgumentError: no whole number."""
    if max_tokens is not None and not isinstance(max_tokens, int):
        raise ArgumentError(f"max_tokens must be a whole number, not {max_tokens!r}")
    return unlimited if max_tokens is None or max_tokens <= 0 else max_tokens


# --------------------------------------------------------------------------------------------- logprobs


class _Places:
    """The "logprobs" of the tokens that came since the last time."""

    def __init__(self, request: Request, offset: int) -> None:
        self._request = request
        self._offset = offset
        self._n_told = 0

    def new(self, reply: Reply) -> dict[str, list[Any]] | None:
        if self._request.top_logprobs is None or self._n_told == len(reply.tokens):
            return None
        found = _empty()
        for i in range(self._n_told, len(reply.tokens)):
            self._offset = _add(
                found,
                self._request.model,
                self._offset,
                reply.tokens[i],
                reply.logprobs[i],
                dict(reply.top_logprobs[i]),
            )
        self._n_told = len(reply.tokens)
        return found


def _empty() -> dict[str, list[Any]]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def _add(
    found: dict[str, list[Any]],
    model: Model,
    offset: int,
    token: int,
    logprob: float | None,
    top: Mapping[int, float],
) -> int:
    """Add a place; the offset of the next."""
    text = model.tokenizer.decode([token])
    found["text_offset"].append(offset)
    found["tokens"].append(text)
    found["token_logprobs"].append(logprob)
    likely = {model.tokenizer.decode([other]): value for other, value in top.items()}
    found["top_logprobs"].append(None if logprob is None else {**likely, text: logprob})
    return offset + len(text)


def _score_prompt(request: Request) -> tuple[State, dict[str, list[Any]]]:
    """The "logprobs" of the prompt, whose first token has none, and a state that has read all of it but the last id."""
    model, ids, n_top = request.model, request.ids, request.top_logprobs or 0
    state = model.new_state()
    found = _empty()
    offset = _add(found, model, 0, ids[0], None, {})
    for begin in range(0, len(ids) - 1, _CHUNK):
        piece = ids[begin : min(begin + _CHUNK, len(ids) - 1)]
        rows = model.advance(piece, state, logits="all", cancel=request.cancel)
        for i, row in enumerate(rows):
            logprobs = log_softmax(row.astype(np.float64))
            token = ids[begin + i + 1]
            likeliest = np.argsort(-logprobs, kind="stable")[:n_top]
            top = {int(other): float(logprobs[other]) for other in likeliest}
            offset = _add(found, model, offset, token, float(logprobs[token]), top)
    return state, found
