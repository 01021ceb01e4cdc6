# SPDX-License-Identifier: Apache-2.0
"""Conversations on disk: one JSON file that people can read, written atomically.

It holds the turns, and the token ids the model read, so that a loaded conversation goes on exactly as if it had never
been closed. With a model of another vocabulary the ids are made again from the text.

A long conversation's state is kept in a second file beside it ("talk.json.state"): then loading needs no reading.
Without it, or with another model, the conversation is read again before the next answer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import tempfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_cpu.chat.history import Turn
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError, FormatError, RwkvError

if TYPE_CHECKING:
    from rwkv_cpu.chat.conversation import Chat
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["load", "save", "start_mark", "tokenizer_mark", "write_private"]

_KIND = "rwkv-cpu conversation"
_VERSION = 1
_MAX_BYTES = 512_000_000
# Shorter conversations are read again in no time.
_LONG_TOKENS = 256
_log = logging.getLogger("rwkv_cpu")


def save(chat: Chat, path: str | os.PathLike[str]) -> None:
    """Write *chat*; the caller holds its lock."""
    file = Path(path)
    before = _replaced(file)
    history = chat.history
    document = {
        "kind": _KIND,
        "version": _VERSION,
        "model": str(chat.model.path),
        "tokenizer": tokenizer_mark(chat.model),
        "template": json.loads(chat.template.to_bytes()),
        "system": chat.system,
        "params": asdict(chat.params),
        "max_tokens": chat.max_tokens,
        "stop": list(chat.stop),
        "think": chat.think,
        "turns": [_entry(turn) for turn in chat.turns],
    }
    if not chat.template.jinja:
        document["ids"], document["borders"] = history.chain()
    if chat.start is not None:
        document["start"] = start_mark(chat.start)
    state_file = _state_file(file)
    if state_file.exists() and "state" not in before:
        raise ArgumentError(f"{state_file}: is in the way of the conversation's state", hint="Save under another name.")
    kept = history.head.kept[-1] if history.head.kept and history.head.n_ids >= _LONG_TOKENS else None
    snapshot = None if kept is None else kept.slot.get()
    if kept is not None and snapshot is not None and "ids" in document:
        snapshot.save(state_file)
        state_file.chmod(0o600)
        document["state"] = {"tail": list(kept.extra), "crc32": zlib.crc32(snapshot.data.tobytes())}
    else:
        with contextlib.suppress(FileNotFoundError):
            state_file.unlink()
    write_private(file, json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "replace"))


def _replaced(file: Path) -> dict[str, Any]:
    """The conversation that saving under this name replaces; {} if there is none. Nothing else is replaced."""
    if file.is_dir():
        raise ArgumentError(f"{file}: this is a directory", hint="Name a file in it.")
    if not file.exists():
        return {}
    try:
        return _read(file)
    except FormatError as error:
        raise ArgumentError(
            f"{file}: is there already and no conversation: not replaced", hint="Save under another name."
        ) from error


def load(path: str | os.PathLike[str], model: Model, start: State | None = None, **limits: Any) -> Chat:
    """Read what save() wrote.

    Args:
        limits: snapshot_bytes and disk_bytes of the new Chat.
        start: what the conversation began with; with another one than it had, it is read again from that.

    Raises:
        FormatError: not such a file; names the path and the reason.
        OSError: it cannot be read.
    """
    from rwkv_cpu.chat.conversation import Chat

    file = Path(path)
    document = _read(file)
    try:
        chat = Chat(
            model,
            _typed(document, "system", str, ""),
            max_tokens=_typed(document, "max_tokens", int, None),
            stop=[str(s) for s in _typed(document, "stop", list, [])],
            template=ChatTemplate.from_bytes(json.dumps(document["template"])) if "template" in document else None,
            state=start,
            think=_typed(document, "think", str, ""),
            **limits,
        )
        chat.params = chat.params_with(_typed(document, "params", dict, {}))
        turns = [_turn(t) for t in _typed(document, "turns", list, [])]
        if document.get("tokenizer") == tokenizer_mark(model) and "ids" in document:
            ids, borders = _typed(document, "ids", list, []), _typed(document, "borders", list, [])
            chat.history.adopt(turns, ids, borders, model.n_vocab)
            same_start = document.get("start") == (None if start is None else start_mark(start))
            if not same_start:
                _log.warning("%s: this conversation began with another starting state", file)
            if "state" in document and same_start:
                _load_state(chat, _state_file(file), _typed(document, "state", dict, {}))
        else:
            chat.history.encode(turns)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{file}: not a whole conversation file: {error}") from error
    return chat


def start_mark(state: State) -> str:
    """Tells starting states apart."""
    return f"{zlib.crc32(state.data.tobytes()):08x}"


def _state_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.state")


def _load_state(chat: Chat, file: Path, about: dict[str, Any]) -> None:
    """Give *chat* the state that was saved with it; nothing is lost without it but time."""
    try:
        state = chat.model.load_state(file)
    except (RwkvError, OSError) as error:
        _log.info("%s: the conversation will be read again: %s", file, error)
        return
    tail, head = [int(i) for i in about.get("tail", ())], chat.history.head
    # The file may be another conversation's that was renamed.
    if zlib.crc32(state.data.tobytes()) == about.get("crc32") and state.n_tokens == head.n_ids + len(tail):
        head.keep(tail, chat.history.shelf.put(state))


def write_private(path: Path, data: bytes) -> None:
    """Replace *path* by *data* at once, readable by its owner only.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    # mkstemp makes files with mode 0600; beside the target, since a rename cannot cross file systems.
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such folder", str(path.parent)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _read(file: Path) -> dict[str, Any]:
    if not stat.S_ISREG(file.stat().st_mode):
        raise FormatError(f"{file}: this is not an ordinary file", hint="Name a file that /save or Chat.save() wrote.")
    if file.stat().st_size > _MAX_BYTES:
        raise FormatError(f"{file}: too large for a conversation file")
    try:
        document = json.loads(file.read_bytes().decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise FormatError(f"{file}: not a conversation file", hint="they are written by /save, or Chat.save()")
    version = document.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise FormatError(f"{file}: a conversation file of version {version}", hint="a newer rwkv-cpu wrote it: update")
    return document


def _typed(document: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = document.get(name, default)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise TypeError(f"{name!r} is {value!r}")
    return value


def _turn(entry: Any) -> Turn:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("user", "assistant")):
        raise TypeError(f"a turn is {entry!r}")
    finish_reason, thought = str(entry.get("finish_reason", "stop")), str(entry.get("thought", ""))
    return Turn(entry["user"], entry["assistant"], finish_reason, thought=thought)


def _entry(turn: Turn) -> dict[str, str]:
    entry = {"user": turn.user, "assistant": turn.text, "finish_reason": turn.finish_reason}
    return {**entry, "thought": turn.thought} if turn.thought else entry


def tokenizer_mark(model: Model) -> str:
    """Tells vocabularies apart: the ids of one mean nothing to another."""
    tokenizer = model.tokenizer
    return f"{tokenizer.kind} {tokenizer.n_vocab} {zlib.crc32(tokenizer.to_bytes()):08x}"
