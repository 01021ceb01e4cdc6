# SPDX-License-Identifier: Apache-2.0
"""Named conversations that go on after exit, crash or power cut: ``rwkv-cpu chat --session NAME``.

A session is a folder: a journal of what happened, and the state after each turn, so that going on, undo and branches
need no reading of the past. The journal alone is enough: what states are lost is computed again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import re
import shutil
import weakref
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rwkv_cpu.chat.conversation import DEFAULT_DISK_BYTES, DEFAULT_SNAPSHOT_BYTES, Chat
from rwkv_cpu.chat.history import Turn, are_ids
from rwkv_cpu.chat.journal import FILE_NAME, Journal, replay
from rwkv_cpu.chat.recorder import Unanswered
from rwkv_cpu.chat.shelf import StateShelf
from rwkv_cpu.chat.store import start_mark, tokenizer_mark
from rwkv_cpu.chat.template import ChatTemplate
from rwkv_cpu.errors import ArgumentError, FormatError, RwkvError
from rwkv_cpu.places import sessions_directory

if TYPE_CHECKING:
    from pathlib import Path

    from rwkv_cpu.chat.history import History, Node
    from rwkv_cpu.chat.journal import Replay
    from rwkv_cpu.model import Model
    from rwkv_cpu.state import State

__all__ = ["SessionInfo", "delete_session", "export_session", "list_sessions", "open_session", "session_info"]

_log = logging.getLogger("rwkv_cpu")
_NAME = re.compile(r"\w[\w .@+-]{0,63}")
_STATES = "states"


@dataclass(frozen=True)
class SessionInfo:
    """A session as list_sessions() shows it.

    Attributes:
        turns: of the current branch. branches: all their names, the current one first.
        model: path of the model it was begun with. first: its first question, "" if there is none.
        changed: when it was last written. size_bytes: on disk, states included.
        damaged: what is wrong with it, "" if nothing.
    """

    name: str
    turns: int
    branches: tuple[str, ...]
    model: str
    first: str
    changed: dt.datetime
    size_bytes: int
    damaged: str = ""


class SessionRecorder:
    """Writes what happens in a conversation into its journal; see recorder.Recorder."""

    def __init__(self, chat: Chat, journal: Journal, folder: Path) -> None:
        # The chat owns this: no circle, so that a dropped chat closes its session at once.
        self._chat = weakref.ref(chat)
        self._journal = journal
        self._folder = folder
        self._settings: dict[str, Any] = journal.replay.settings

    def began(self, history: History) -> None:
        """A new conversation; the states of the old one go."""
        del history
        chat = self._chat()
        if chat is None:
            return
        record = {
            "op": "begin",
            "version": 1,
            "model": str(chat.model.path),
            "tokenizer": tokenizer_mark(chat.model),
            "template": json.loads(chat.template.to_bytes()),
            "system": chat.system,
            "start": None if chat.start is None else start_mark(chat.start),
        }
        self._journal.append(record)
        shutil.rmtree(self._folder / _STATES, ignore_errors=True)

    def asked(self, parent: Node, text: str) -> None:
        """A question is going to be answered; settings that were changed are written first."""
        chat = self._chat()
        settings = None if chat is None else json.loads(json.dumps(_settings(chat)))
        if settings is not None and settings != self._settings:
            self._settings = settings
            self._journal.append({"op": "settings", "settings": settings})
        self._journal.append({"op": "ask", "at": parent.number, "text": text})

    def took(self, node: Node, branch: str) -> None:
        """It was answered."""
        turn = node.turn
        if turn is None or node.parent is None or node.base is None:
            return
        kept = node.kept[-1] if node.kept else None
        state = None if kept is None else kept.slot.get()
        record = {
            "op": "turn",
            "n": node.number,
            "parent": node.parent.number,
            "base": node.base.number,
            "branch": branch,
            "user": turn.user,
            "text": turn.text,
            "thought": turn.thought,
            "finish_reason": turn.finish_reason,
            "ids": list(node.ids),
            "pending": node.pending,
            "time": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        if kept is not None and state is not None:
            record["state"] = {"extra": list(kept.extra), "digest": state.digest.hex()}
        self._journal.append(record)

    def dropped(self) -> None:
        """It was not answered, and counts as not asked."""
        self._journal.append({"op": "drop"})

    def moved(self, history: History) -> None:
        """The head or the branches changed."""
        others = {name: node.number for name, node in history.branches.items()}
        self._journal.append({"op": "move", "branch": history.branch, "head": history.head.number, "branches": others})

    def close(self) -> None:
        """Let other processes open the session."""
        self._journal.close()


def open_session(
    name: str,
    model: Model,
    system: str | None = None,
    *,
    state: State | None = None,
    template: ChatTemplate | None = None,
    snapshot_bytes: int = DEFAULT_SNAPSHOT_BYTES,
    disk_bytes: int = DEFAULT_DISK_BYTES,
    **options: Any,
) -> Chat:
    """The conversation of the session *name*, which goes on where it was left, or begins. Chat.close() ends its use.

    Args:
        system, template, state, options: as Chat takes them. A system text is for a new session; one that goes on
            has its own, and its settings but for *options*.

    Raises:
        ArgumentError: no name for a session, or another system text than it has.
        Busy: it is open elsewhere. FormatError: its journal is none. OSError: it cannot be read or written.
    """
    folder = _folder(name)
    journal = Journal(folder)
    try:
        found = journal.replay
        if found.begin:
            if system is not None and system != found.begin.get("system"):
                raise ArgumentError(
                    f"the session {name!r} has its own system text", hint="Choose another name for a new session."
                )
            system = str(found.begin.get("system", ""))
            kept = ChatTemplate.from_bytes(json.dumps(found.begin.get("template", {})))
            template = kept if template is None else template
        chat = Chat(model, system, template=template, state=state)
        shelf = StateShelf(
            snapshot_bytes,
            model.state_bytes,
            model.load_state,
            folder=folder / _STATES,
            max_disk_bytes=disk_bytes,
        )
        recorder = SessionRecorder(chat, journal, folder)
        chat.record(recorder, shelf, name)
        if found.begin:
            _go_on(chat, found, same_template=template == kept, start=state)
        else:
            recorder.began(chat.history)
        _apply(chat, options)
    except BaseException:
        journal.close()
        raise
    return chat


def _go_on(chat: Chat, found: Replay, *, same_template: bool, start: State | None) -> None:
    """Give *chat* what the journal says."""
    settings = dict(found.settings)
    params = settings.pop("params", {})
    _apply(chat, {name: value for name, value in settings.items() if name in ("max_tokens", "stop", "think")})
    for name, value in params.items():
        # A setting of another version, or one that JSON cannot hold: its default does as well.
        with contextlib.suppress(ArgumentError, TypeError, ValueError):
            chat.params = chat.params_with({name: value})
    same = same_template and found.begin.get("tokenizer") == tokenizer_mark(chat.model)
    same_start = found.begin.get("start") == (None if start is None else start_mark(start))
    history = chat.history
    nodes = {0: history.root}
    for number, record in found.turns.items():
        finish_reason, thought = str(record.get("finish_reason", "stop")), str(record.get("thought", ""))
        turn = Turn(record["user"], record["text"], finish_reason, thought=thought)
        parent, ids = nodes[record["parent"]], record.get("ids")
        if not same or not are_ids(ids, chat.model.n_vocab):
            nodes[number] = history.add_encoded(turn, parent, number)
            continue
        node = history.add(turn, parent, nodes[record["base"]], ids or (), record["pending"], number)
        kept = record.get("state")
        if same_start and isinstance(kept, dict) and are_ids(kept.get("extra"), chat.model.n_vocab):
            node.keep(kept["extra"], history.shelf.adopt(f"{number}.state", str(kept.get("digest"))))
        nodes[number] = node
    history.head, history.branch = nodes[found.head], found.branch
    history.branches = {name: nodes[number] for name, number in found.branches.items() if name != found.branch}
    chat.go_on(len(found.turns), None)
    if found.unanswered is not None:
        at, text = found.unanswered
        place = nodes[at].depth
        # A retry leaves the old answer: nothing is lost.
        if at == found.head or history.turns[place].user != text:
            chat.go_on(len(found.turns), Unanswered(text, place))


def _settings(chat: Chat) -> dict[str, Any]:
    return {
        "params": asdict(chat.params),
        "max_tokens": chat.max_tokens,
        "stop": list(chat.stop),
        "think": chat.think,
    }


def _apply(chat: Chat, options: dict[str, Any]) -> None:
    """Set what Chat's options of these names set."""
    options = dict(options)
    chat.max_tokens = options.pop("max_tokens", chat.max_tokens)
    chat.stop = tuple(options.pop("stop", chat.stop))
    chat.think = options.pop("think", chat.think)
    chat.params = chat.params_with(options)


# ------------------------------------------------------------------------------------ all of them


def list_sessions() -> list[SessionInfo]:
    """All sessions, the one used last first."""
    folder = sessions_directory()
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if (path / FILE_NAME).is_file():
            with contextlib.suppress(OSError):  # deleted meanwhile
                found.append(session_info(path.name))
    return sorted(found, key=lambda info: info.changed, reverse=True)


def session_info(name: str) -> SessionInfo:
    """What is known of a session. Raises: ArgumentError: there is none. OSError: it cannot be read."""
    folder = _existing(name)
    changed = dt.datetime.fromtimestamp((folder / FILE_NAME).stat().st_mtime).astimezone()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        found = replay(folder / FILE_NAME)
    except RwkvError as error:
        return SessionInfo(name, 0, (), "", "", changed, size, str(error))
    turns = found.path()
    branches = (found.branch, *(b for b in found.branches if b != found.branch))
    first = turns[0]["user"] if turns else ""
    return SessionInfo(name, len(turns), branches, str(found.begin.get("model", "")), first, changed, size)


def export_session(name: str, kind: str = "markdown", *, thoughts: bool = False) -> str:
    """A session's current branch as text for people ("markdown") or programs ("json").

    Raises: ArgumentError: there is none, or no such kind. FormatError: it is damaged. OSError: it cannot be read.
    """
    folder = _existing(name)
    found = replay(folder / FILE_NAME)
    system, turns = str(found.begin.get("system", "")), found.path()
    if kind == "json":
        keys = ("user", "text", "thought", "finish_reason", "time")
        document = {
            "session": name,
            "model": found.begin.get("model"),
            "system": system,
            "branch": found.branch,
            "branches": {b: len(found.path(n)) for b, n in found.branches.items() if b != found.branch},
            "turns": [{key: turn.get(key, "") for key in keys} for turn in turns],
            "unanswered": found.unanswered[1] if found.unanswered else None,
        }
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    if kind != "markdown":
        raise ArgumentError(f"no kind of export {kind!r}", hint="the kinds are markdown and json")
    parts = [f"# {name}"]
    if system:
        parts.append(f"*{' '.join(system.split())}*")
    for turn in turns:
        quoted = "\n".join(f"> {line}".rstrip() for line in turn["user"].strip().splitlines())
        parts.append(quoted)
        if thoughts and turn.get("thought"):
            parts.append(f"<details><summary>Thought</summary>\n\n{turn['thought'].strip()}\n\n</details>")
        parts.append(turn["text"].strip() or "*(no answer)*")
    return "\n\n".join(parts) + "\n"


def delete_session(name: str) -> None:
    """Delete a session with everything in it.

    Raises: ArgumentError: there is none. Busy: it is open. OSError: it cannot be deleted.
    """
    folder = _existing(name)
    with contextlib.suppress(FormatError):  # a damaged one can be deleted all the same
        Journal(folder).close()
    shutil.rmtree(folder)


def _folder(name: str) -> Path:
    if not _NAME.fullmatch(name) or name != name.strip():
        raise ArgumentError(
            f"{name!r} is no name for a session", hint="Letters, digits, spaces and . - _ @ + are, up to 64 of them."
        )
    return sessions_directory() / name


def _existing(name: str) -> Path:
    folder = _folder(name)
    if not (folder / FILE_NAME).is_file():
        raise ArgumentError(f"there is no session {name!r}", hint="rwkv-cpu sessions lists them.")
    return folder
