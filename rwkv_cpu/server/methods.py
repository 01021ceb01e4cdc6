# SPDX-License-Identifier: Apache-2.0
"""Methods about models, texts and states. What runs a model is imported when it is first needed."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rwkv_cpu._version import __version__
from rwkv_cpu.errors import ArgumentError, Cancelled, RwkvError
from rwkv_cpu.server.answers import EVENTS, GENERATED, GRAMMAR, LENGTH, STREAM, generated_result, grammar_of, stops_of
from rwkv_cpu.server.protocol import MAX_BATCH, MAX_LINE_BYTES, error_of
from rwkv_cpu.server.registry import METHODS, method
from rwkv_cpu.server.shapes import (
    anything,
    either,
    flag,
    listed,
    number,
    one_of,
    or_null,
    record,
    text,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rwkv_cpu.cancel import CancelToken
    from rwkv_cpu.model import Model
    from rwkv_cpu.server.registry import Call
    from rwkv_cpu.server.workspace import LoadOptions

__all__ = ["ERROR", "MAX_REQUESTS", "MODEL", "PROTOCOL", "load_model"]

PROTOCOL = 1
MAX_REQUESTS = 64
_PROGRESS_SECONDS = 0.05

MODEL = {"model": text("handle of a loaded model; the one loaded last if left out")}
_TOKENS = listed(whole(low=0), "token ids")
_PROMPT = either(text(), _TOKENS, about="a text, or token ids")
_FORMAT = one_of("q8", "q6", "q5", "q4", "f16", "f32", about="how to store the weights of a checkpoint")
_STATE = text("handle of a state")
ERROR = record({"code": whole(), "message": text(), "data": record({"code": text(), "class": text(), "hint": text()})})
_MEMORY = record(
    {
        "needed_bytes": whole(low=0),
        "available_bytes": or_null(whole(low=0)),
        "would_swap": flag("it would be read from disk again for every word"),
        "warning": text("for people; empty if all is well"),
        "hint": text(),
    }
)
_LOADED = record(
    {
        "model": text("its handle"),
        "name": text(),
        "path": text(),
        "architecture": text(),
        "n_layer": whole(),
        "n_embd": whole(),
        "n_vocab": whole(),
        "weight_bytes": whole(),
        "state_bytes": whole(),
        "threads": whole(),
        "isa": text("instruction set in use"),
    }
)
_NOTHING = record()


# ------------------------------------------------------------------------------------------- the server


@method(
    "initialize",
    "Who is there. Not required.",
    quick=True,
    optional={"protocol": whole("the version that the client speaks"), "client": anything("for the log")},
    result=record(
        {
            "protocol": whole(),
            "server": record({"name": text(), "version": text()}),
            "capabilities": record(
                {
                    "methods": listed(text()),
                    "events": listed(text()),
                    "max_line_bytes": whole(),
                    "max_batch": whole(),
                    "max_requests": whole("that run at the same time"),
                }
            ),
            "models": listed(text(), "handles of loaded models"),
        }
    ),
)
def _initialize(call: Call) -> dict[str, Any]:
    wanted = call.params.get("protocol", PROTOCOL)
    if wanted != PROTOCOL:
        raise ArgumentError(f"protocol {wanted} is not spoken here", hint=f"This version speaks protocol {PROTOCOL}.")
    return {
        "protocol": PROTOCOL,
        "server": {"name": "rwkv-cpu", "version": __version__},
        "capabilities": {
            "methods": list(METHODS),
            "events": list(EVENTS),
            "max_line_bytes": MAX_LINE_BYTES,
            "max_batch": MAX_BATCH,
            "max_requests": MAX_REQUESTS,
        },
        "models": list(call.workspace.models()),
    }


@method("info", "This machine: processor, instruction sets, threads, memory.", result=record(open=True))
def _info(call: Call) -> dict[str, Any]:
    del call
    from rwkv_cpu.describe import describe_machine

    return describe_machine()


# ----------------------------------------------------------------------------------------------- models


@method(
    "models",
    "Models that can be loaded: the bundled one, those that have a name, converted checkpoints, what lies in folders.",
    optional={"paths": listed(text(empty=False), "folders or files to look at too"), "format": _FORMAT},
    result=record(
        {
            "models": listed(
                record(
                    {
                        "name": text("what load takes"),
                        "path": text(),
                        "source": one_of("bundled", "named", "cache", "paths"),
                    },
                    {
                        "memory": _MEMORY,
                        "about": record(open=True, about="as `rwkv-cpu info --json` says"),
                        "error": ERROR,
                    },
                )
            )
        }
    ),
)
def _models(call: Call) -> dict[str, Any]:
    found = []
    for name, path, source in _found_models(call.params.get("paths", [])):
        if call.cancel.cancelled:
            raise Cancelled
        found.append({"name": name, "path": str(path), "source": source, **_about(path, call.params.get("format"))})
    return {"models": found}


def _found_models(paths: list[str]) -> Iterator[tuple[str, Path, str]]:
    from rwkv_cpu.loading import cached_models
    from rwkv_cpu.places import MODEL_SUFFIXES, find_models

    for model in find_models():
        yield model.name, model.path, "bundled" if model.bundled else "named"
    for cached in cached_models():
        yield str(cached.path), cached.path, "cache"
    for one in map(Path, paths):
        files = sorted(one.iterdir()) if one.is_dir() else [one]
        for file in files:
            if file.suffix in MODEL_SUFFIXES or not one.is_dir():
                yield str(file), file, "paths"


def _about(path: Path, weight_format: str | None) -> dict[str, Any]:
    from rwkv_cpu.describe import describe_file
    from rwkv_cpu.memory import forecast_file

    try:
        about = describe_file(path)
        forecast = forecast_file(path, format=weight_format or "q8")
    except (RwkvError, OSError) as error:
        return {"error": error_of(error)}
    memory = {
        "needed_bytes": forecast.needed_bytes,
        "available_bytes": forecast.available_bytes,
        "would_swap": forecast.would_swap,
        "warning": forecast.warning,
        "hint": forecast.hint,
    }
    return {"memory": memory, "about": about}


@method(
    "load",
    "Open a .rwkv file, or a checkpoint, which is converted first.",
    optional={
        "model": text('"demo", a file, or what "models" calls it; the default is "demo"', empty=False),
        "format": _FORMAT,
        "threads": whole("the default: one per physical core", low=1),
        "preload": flag("bring the weights into memory in the background (the default)"),
        "lora": text("an adapter to merge into a checkpoint", empty=False),
        "lora_alpha": number(),
        "pissa_init": text(empty=False),
        "prompt_cache_bytes": whole("memory for what prompts have in common; the default is 256 MB", low=0),
    },
    result=_LOADED,
    events=("load",),
)
def _load(call: Call) -> dict[str, Any]:
    options = dict(call.params)
    name = options.pop("model", "demo")
    last = -_PROGRESS_SECONDS

    def progress(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last >= _PROGRESS_SECONDS or done == total:
            last = monotonic()
            call.emit("load", done=done, total=total)

    model = load_model(name, options, call.workspace.options, progress, call.cancel)
    if call.cancel.cancelled:
        model.close()
        raise Cancelled
    return _loaded(call.workspace.add_model(model), name, model)


def load_model(name: str, options: dict[str, Any], defaults: LoadOptions, progress: Any, cancel: CancelToken) -> Model:
    """Model.load with a prompt cache. Raises: as Model.load."""
    from rwkv_cpu.model import Model
    from rwkv_cpu.prefix_cache import PrefixCache

    cache_bytes = options.pop("prompt_cache_bytes", 256_000_000)
    options.setdefault("threads", defaults.threads)
    if not name.endswith(".rwkv") and name != "demo":
        options.setdefault("format", defaults.format)
    options.setdefault("preload", True)
    model = Model.load(name, on_progress=progress, cancel=cancel, **options)
    model.prefix_cache = PrefixCache(cache_bytes) if cache_bytes else None
    return model


def _loaded(handle: str, name: str, model: Model) -> dict[str, Any]:
    return {
        "model": handle,
        "name": name,
        "path": str(model.path),
        "architecture": model.config.name,
        "n_layer": model.config.n_layer,
        "n_embd": model.config.n_embd,
        "n_vocab": model.n_vocab,
        "weight_bytes": model.weight_bytes,
        "state_bytes": model.state_bytes,
        "threads": model.threads,
        "isa": model.isa,
    }


@method(
    "unload",
    "Close a model, its chats and states. Requests that use it end with ModelClosedError.",
    optional=MODEL,
    result=_NOTHING,
)
def _unload(call: Call) -> dict[str, Any]:
    handle, _ = call.workspace.model(call.params.get("model"), call.cancel)
    call.workspace.unload(handle)
    return {}


@method(
    "threads",
    "Compute with so many threads from now on (null: the default).",
    required={"threads": or_null(whole(low=1))},
    optional=MODEL,
    result=record({"threads": whole()}),
)
def _threads(call: Call) -> dict[str, Any]:
    _, model = call.workspace.model(call.params.get("model"), call.cancel)
    model.threads = call.params["threads"]
    return {"threads": model.threads}


# ------------------------------------------------------------------------------------------------ texts


@method(
    "generate",
    "Continue a text, without a chat template.",
    optional={
        **MODEL,
        "prompt": either(text(), _TOKENS, about="a text, or token ids; left out: go on where the state stands"),
        "state": text("handle of a state to continue from, which is moved on"),
        **LENGTH,
        **STREAM,
        "logprobs": whole("log-probability of each token, and of so many likeliest at its place", low=0, high=1024),
        **GRAMMAR,
        "speculative": flag("check drafts of several tokens at once (the default); changes speed only"),
        "draft_model": text("handle of a smaller model that writes drafts"),
    },
    sampling=True,
    result=GENERATED,
    events=("prefill", "text", "done"),
)
def _generate(call: Call) -> dict[str, Any]:
    params, workspace = call.params, call.workspace
    if "state" not in params:
        if "prompt" not in params:
            raise ArgumentError("prompt is missing", hint="Give a prompt, a state, or both.")
        _, model = workspace.model(params.get("model"), call.cancel)
        return _continued(call, model, {})
    held = workspace.state(params["state"])
    _, model = workspace.model(params.get("model", held.model), call.cancel)
    with held.used() as state:
        return _continued(call, model, {"state": state})


def _continued(call: Call, model: Model, options: dict[str, Any]) -> dict[str, Any]:
    params = call.params
    for name in ("max_tokens", "speculative"):
        if name in params:
            options[name] = params[name]
    n_top = params.get("logprobs")
    if n_top is not None:
        options.update(logprobs=True, top_logprobs=n_top)
    if "draft_model" in params:
        options["draft_model"] = call.workspace.model(params["draft_model"], call.cancel)[1]
    reply = model.generate(
        params.get("prompt", ""),
        stop=stops_of(call),
        grammar=grammar_of(call),
        cancel=call.cancel,
        on_progress=lambda done, total: call.emit("prefill", done=done, total=total),
        **options,
        **call.sampling,
    )
    result = generated_result(call, model, reply, n_top)
    unread = reply.tokens[reply.consumed_tokens :]
    if "state" in options and unread and reply.finish_reason in ("length", "cancelled"):
        model.advance(unread, reply.state)  # so that it stands behind the text, and can go on from there
    return result


@method(
    "tokenize",
    "The token ids of a text.",
    required={"text": text()},
    optional=MODEL,
    result=record({"tokens": _TOKENS}),
)
def _tokenize(call: Call) -> dict[str, Any]:
    _, model = call.workspace.model(call.params.get("model"), call.cancel)
    return {"tokens": model.tokenizer.encode(call.params["text"])}


@method(
    "detokenize",
    "The text of token ids.",
    required={"tokens": _TOKENS},
    optional=MODEL,
    result=record({"text": text()}),
)
def _detokenize(call: Call) -> dict[str, Any]:
    _, model = call.workspace.model(call.params.get("model"), call.cancel)
    return {"text": model.tokenizer.decode(call.params["tokens"])}


@method(
    "score",
    "How likely each token of a text is.",
    required={"text": _PROMPT},
    optional={**MODEL, "context": _PROMPT, "state": _STATE},
    result=record(
        {
            "tokens": _TOKENS,
            "logprobs": listed(number(), "natural logarithms"),
            "ranks": listed(whole(low=0), "how many tokens were likelier"),
            "total": number("natural logarithm of the probability of the whole text"),
            "perplexity": or_null(number()),
            "greedy": flag("whether temperature 0 would write exactly this"),
        }
    ),
    events=("prefill",),
)
def _score(call: Call) -> dict[str, Any]:
    params = call.params
    options: dict[str, Any] = {"context": params.get("context")}
    handle = params.get("model")
    if "state" in params:
        held = call.workspace.state(params["state"])
        handle = handle or held.model
        with held.used() as state:
            options["state"] = state.copy()
    _, model = call.workspace.model(handle, call.cancel)
    scored = model.score(
        params["text"],
        cancel=call.cancel,
        progress=lambda done, total: call.emit("prefill", done=done, total=total),
        **options,
    )
    return {
        "tokens": list(scored.tokens),
        "logprobs": scored.logprobs.tolist(),
        "ranks": scored.ranks.tolist(),
        "total": scored.total,
        "perplexity": scored.perplexity,
        "greedy": scored.greedy,
    }


@method(
    "embed",
    "A vector for a text (experimental).",
    required={"text": _PROMPT},
    optional={**MODEL, "pooling": one_of("mean", "last"), "normalize": flag()},
    result=record({"vector": listed(number())}),
)
def _embed(call: Call) -> dict[str, Any]:
    params = dict(call.params)
    _, model = call.workspace.model(params.pop("model", None), call.cancel)
    return {"vector": model.embed(params.pop("text"), cancel=call.cancel, **params).tolist()}


# ----------------------------------------------------------------------------------------------- states

_HELD = record({"state": _STATE, "model": text(), "n_tokens": whole("that it has read", low=0)})


def _held(call: Call, handle: str) -> dict[str, Any]:
    held = call.workspace.state(handle)
    return {"state": handle, "model": held.model, "n_tokens": held.state.n_tokens}


@method("state/new", "A state that has read nothing.", optional=MODEL, result=_HELD)
def _state_new(call: Call) -> dict[str, Any]:
    handle, model = call.workspace.model(call.params.get("model"), call.cancel)
    return _held(call, call.workspace.add_state(model.new_state(), handle))


@method(
    "state/load",
    "A state from a file: one that was saved, or a starting state of state tuning.",
    required={"path": text(empty=False)},
    optional=MODEL,
    result=_HELD,
)
def _state_load(call: Call) -> dict[str, Any]:
    handle, model = call.workspace.model(call.params.get("model"), call.cancel)
    return _held(call, call.workspace.add_state(model.load_state(call.params["path"]), handle))


@method(
    "state/save",
    "Write a state to a file, which is replaced at once and whole.",
    required={"state": _STATE, "path": text(empty=False)},
    optional={"f16": flag("half the size, rounded")},
    result=_NOTHING,
)
def _state_save(call: Call) -> dict[str, Any]:
    with call.workspace.state(call.params["state"]).used() as state:
        state.save(call.params["path"], f16=call.params.get("f16", False))
    return {}


@method("state/copy", "An independent state at the same point.", required={"state": _STATE}, result=_HELD)
def _state_copy(call: Call) -> dict[str, Any]:
    held = call.workspace.state(call.params["state"])
    with held.used() as state:
        twin = state.copy()
    return _held(call, call.workspace.add_state(twin, held.model))


@method("state/drop", "Forget a state.", quick=True, required={"state": _STATE}, result=_NOTHING)
def _state_drop(call: Call) -> dict[str, Any]:
    call.workspace.drop_state(call.params["state"])
    return {}
