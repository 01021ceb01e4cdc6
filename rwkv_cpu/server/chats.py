# SPDX-License-Identifier: Apache-2.0
"""Methods about conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import ArgumentError
from rwkv_cpu.server.answers import (
    ANSWER,
    ANSWER_EVENTS,
    GRAMMAR,
    LENGTH,
    STREAM,
    TOOL,
    answer_result,
    shape_with,
    stateless,
    stops_of,
)
from rwkv_cpu.server.methods import MODEL
from rwkv_cpu.server.registry import Call, method
from rwkv_cpu.server.shapes import anything, listed, one_of, record, text, whole

if TYPE_CHECKING:
    from rwkv_cpu.chat.answer import Answer
    from rwkv_cpu.chat.conversation import Chat
    from rwkv_cpu.generation.tools import Tool
    from rwkv_cpu.server.workspace import Conversation

__all__: list[str] = []

_CHAT = {"chat": text("handle of a chat")}
_THINK = {"think": one_of("", "off", "short", "on", "long", about="whether and how long a thinking model thinks")}
_SETTINGS = {**LENGTH, **_THINK}
_NAME = {"name": text("of a branch", empty=False)}
_TURNS = {"turns": whole("of the current branch now", low=0)}
_ANSWERED = shape_with(ANSWER, **_TURNS)
_CREATED = record({"chat": text("its handle"), "model": text(), **_TURNS})
_MOVED = record({**_TURNS, "branch": text()})
_TURN = record({"user": text(), "text": text(), "thought": text(), "finish_reason": text()})


# ------------------------------------------------------------------------------------- without a handle


@method(
    "chat",
    "Answer a list of messages. What earlier calls had in common with it is not read again.",
    required={
        "messages": listed(
            record(
                {"role": one_of("system", "developer", "user", "assistant", "tool", "function")},
                {"content": anything("a text"), "tool_calls": listed(record(open=True))},
                open=True,
                about="as OpenAI's",
            )
        )
    },
    optional={**MODEL, **_SETTINGS, **STREAM, **GRAMMAR, "tools": listed(TOOL)},
    sampling=True,
    result=ANSWER,
    events=ANSWER_EVENTS,
)
def _chat(call: Call) -> dict[str, Any]:
    _, model = call.workspace.model(call.params.get("model"), call.cancel)
    tools = _tools(call)
    return answer_result(call, stateless(call, model, tools or ()), tools)


# --------------------------------------------------------------------------------------- open and close


@method(
    "chat/create",
    "Begin a conversation; sampling settings hold for all its answers.",
    optional={
        **MODEL,
        **_SETTINGS,
        "system": text("opening instruction"),
        "state": text("handle of a state to begin with; it is copied"),
        "session": text("go on with the session of this name, or begin it: it outlives the process", empty=False),
        "tools": listed(TOOL),
    },
    sampling=True,
    result=_CREATED,
)
def _create(call: Call) -> dict[str, Any]:
    params = call.params
    handle, model = call.workspace.model(params.get("model"), call.cancel)
    options = _settings(call)
    if "state" in params:
        with call.workspace.state(params["state"]).used() as state:
            options["state"] = state.copy()
    tools = _tools(call)
    system = params.get("system")
    if tools:
        from rwkv_cpu.generation.tools import tools_prompt

        system = "\n".join(filter(None, [system, tools_prompt(tools)]))
    if "session" in params:
        from rwkv_cpu.chat.sessions import open_session

        chat = open_session(params["session"], model, system, **options)
    else:
        chat = model.chat(system, **options)
    return _held(call, chat, handle, tools)


@method(
    "chat/load",
    "A conversation from a file that chat/save wrote.",
    required={"path": text(empty=False)},
    optional=MODEL,
    result=_CREATED,
)
def _load(call: Call) -> dict[str, Any]:
    from rwkv_cpu.chat.conversation import Chat

    handle, model = call.workspace.model(call.params.get("model"), call.cancel)
    return _held(call, Chat.load(call.params["path"], model), handle, None)


@method(
    "chat/save",
    "Write a conversation to a file, which is replaced at once and whole.",
    required={**_CHAT, "path": text(empty=False)},
    result=record(),
)
def _save(call: Call) -> dict[str, Any]:
    _of(call).chat.save(call.params["path"])
    return {}


@method("chat/close", "Forget a conversation; that of a session can be opened again.", required=_CHAT, result=record())
def _close(call: Call) -> dict[str, Any]:
    call.workspace.drop_chat(call.params["chat"]).chat.close()
    return {}


@method("chat/fork", "An independent conversation with the same past.", quick=True, required=_CHAT, result=_CREATED)
def _fork(call: Call) -> dict[str, Any]:
    one = _of(call)
    return _held(call, one.chat.fork(), one.model, one.tools)


# ----------------------------------------------------------------------------------------------- answers


@method(
    "chat/send",
    "Ask; settings hold for this answer only.",
    required=_CHAT,
    optional={
        "text": text("the user's message"),
        "tool_result": anything("what a function returned, instead of a text"),
        **_SETTINGS,
        **STREAM,
    },
    sampling=True,
    result=_ANSWERED,
    events=ANSWER_EVENTS,
)
def _send(call: Call) -> dict[str, Any]:
    if ("text" in call.params) == ("tool_result" in call.params):
        raise ArgumentError("either text or tool_result is to be sent")
    message = call.params.get("text")
    if message is None:
        from rwkv_cpu.generation.tools import result_message

        message = result_message(call.params["tool_result"])
    one = _of(call)
    return _answered(call, one, one.chat.send(message, cancel=call.cancel, **_settings(call)))


@method(
    "chat/retry",
    "Answer the last message again, in place of the old answer.",
    required=_CHAT,
    optional={**_SETTINGS, **STREAM},
    sampling=True,
    result=_ANSWERED,
    events=ANSWER_EVENTS,
)
def _retry(call: Call) -> dict[str, Any]:
    one = _of(call)
    return _answered(call, one, one.chat.retry(cancel=call.cancel, **_settings(call)))


@method(
    "chat/edit",
    "Go back to before a turn and send another text there.",
    required={**_CHAT, "turn": whole("from 0; negative: from the end"), "text": text()},
    optional={"keep_as": text("the conversation as it was stays as this branch", empty=False), **_SETTINGS, **STREAM},
    sampling=True,
    result=_ANSWERED,
    events=ANSWER_EVENTS,
)
def _edit(call: Call) -> dict[str, Any]:
    one, params = _of(call), call.params
    answer = one.chat.edit(
        params["turn"], params["text"], keep_as=params.get("keep_as"), cancel=call.cancel, **_settings(call)
    )
    return _answered(call, one, answer)


# ------------------------------------------------------------------------------- without any computation


@method(
    "chat/undo",
    "Take back the last turns.",
    quick=True,
    required=_CHAT,
    optional={"n": whole("how many; 1", low=1)},
    result=record({**_TURNS, "taken": listed(_TURN, "oldest first")}),
)
def _undo(call: Call) -> dict[str, Any]:
    chat = _of(call).chat
    taken = chat.undo(call.params.get("n", 1))
    return {"turns": chat.n_turns, "taken": [_turn(turn) for turn in taken]}


@method(
    "chat/branch",
    "Go on under a new name from here; the current branch stays as it is.",
    quick=True,
    required={**_CHAT, **_NAME},
    result=_MOVED,
)
def _branch(call: Call) -> dict[str, Any]:
    chat = _of(call).chat
    chat.start_branch(call.params["name"])
    return _moved(chat)


@method(
    "chat/switch",
    "Go on with another branch, where it was left.",
    quick=True,
    required={**_CHAT, **_NAME},
    result=_MOVED,
)
def _switch(call: Call) -> dict[str, Any]:
    chat = _of(call).chat
    chat.switch(call.params["name"])
    return _moved(chat)


@method(
    "chat/delete_branch",
    "Forget a branch, not the current one.",
    quick=True,
    required={**_CHAT, **_NAME},
    result=_MOVED,
)
def _delete_branch(call: Call) -> dict[str, Any]:
    chat = _of(call).chat
    chat.delete_branch(call.params["name"])
    return _moved(chat)


@method(
    "chat/reset",
    "Begin anew with the same settings, and the same system text unless a new one is given.",
    quick=True,
    required=_CHAT,
    optional={"system": text()},
    result=_MOVED,
)
def _reset(call: Call) -> dict[str, Any]:
    chat = _of(call).chat
    chat.reset(call.params.get("system"))
    return _moved(chat)


@method(
    "chat/history",
    "What was said, oldest first.",
    quick=True,
    required=_CHAT,
    result=record(
        {
            "system": text(),
            "turns": listed(_TURN),
            "branch": text(),
            "branches": record(open=True, about="how many turns each has"),
            "n_tokens": whole(low=0),
        }
    ),
)
def _history(call: Call) -> dict[str, Any]:
    chat = _of(call).chat
    return {
        "system": chat.system,
        "turns": [_turn(turn) for turn in chat.turns],
        "branch": chat.branch,
        "branches": chat.branches,
        "n_tokens": chat.n_tokens,
    }


# ------------------------------------------------------------------------------------------------ inside


def _of(call: Call) -> Conversation:
    return call.workspace.conversation(call.params["chat"])


def _settings(call: Call) -> dict[str, Any]:
    options: dict[str, Any] = {name: call.params[name] for name in ("max_tokens", "think") if name in call.params}
    if "stop" in call.params:
        options["stop"] = stops_of(call)
    return {**options, **call.sampling}


def _answered(call: Call, one: Conversation, answer: Answer) -> dict[str, Any]:
    result = answer_result(call, answer, one.tools)
    return {**result, "turns": one.chat.n_turns}


def _held(call: Call, chat: Chat, model: str, tools: tuple[Tool, ...] | None) -> dict[str, Any]:
    from rwkv_cpu.server.workspace import Conversation

    try:
        handle = call.workspace.add_chat(Conversation(chat, model, tools))
    except BaseException:
        chat.close()
        raise
    return {"chat": handle, "model": model, "turns": chat.n_turns}


def _moved(chat: Chat) -> dict[str, Any]:
    return {"turns": chat.n_turns, "branch": chat.branch}


def _turn(turn: Any) -> dict[str, Any]:
    return {"user": turn.user, "text": turn.text, "thought": turn.thought, "finish_reason": turn.finish_reason}


def _tools(call: Call) -> tuple[Tool, ...] | None:
    """The functions that may be called; None: there are none, and what looks like a call is text."""
    given = call.params.get("tools")
    if not given:
        return None
    from rwkv_cpu.generation.tools import Tool

    return tuple(Tool.of_openai(one) for one in given)
