# SPDX-License-Identifier: Apache-2.0
"""The chat's slash commands. To add one: a function decorated with @command."""

from __future__ import annotations

import difflib
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_cpu.chat import Chat
from rwkv_cpu.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rwkv_cpu.terminal.session import Session

__all__ = ["COMMANDS", "Command", "Leave", "find"]


class Leave(Exception):  # noqa: N818 (no error: the user wants to go)
    """Raised by /exit."""


@dataclass(frozen=True)
class Command:
    """One slash command."""

    name: str
    arguments: str
    help: str
    aliases: tuple[str, ...]
    run: Callable[[Session, str], None]


COMMANDS: list[Command] = []


def command(
    name: str, arguments: str = "", *, aliases: tuple[str, ...] = ()
) -> Callable[[Callable[[Session, str], None]], Callable[[Session, str], None]]:
    """Register a function as /name; the first line of its docstring is its help."""

    def register(run: Callable[[Session, str], None]) -> Callable[[Session, str], None]:
        COMMANDS.append(Command(name, arguments, (run.__doc__ or "").strip(), aliases, run))
        return run

    return register


def find(line: str, *, strict: bool) -> tuple[Command, str] | None:
    """The command that a typed line asks for and its argument; None if the line is a message.

    Args:
        line: what was typed.
        strict: an unknown /word is a typing error (a person types); otherwise it is text for the model.

    Raises:
        ArgumentError: unknown, with the nearest one as the hint.
    """
    line = line.strip()
    setting = re.fullmatch(r"-(\w+)=(\S+)", line)  # -temp=0.8, as in ChatRWKV
    if setting:
        line = f"/set {setting[1]} {setting[2]}"
    word, _, argument = line.partition(" ")
    for entry in COMMANDS:
        if (word == entry.name or word in entry.aliases) and (strict or word.startswith(("/", "+reset"))):
            return entry, argument.strip()
    if not strict or not re.fullmatch(r"/[A-Za-z?]+", word):
        return None
    near = difflib.get_close_matches(word, [c.name for c in COMMANDS], n=1)
    raise ArgumentError(
        f"no command {word}",
        hint=f"Did you mean {near[0]}?" if near else "/help lists them; a space before it sends it as text",
    )


@command("/help", aliases=("/?", "/h"))
def _help(session: Session, _argument: str) -> None:
    """This list."""
    session.screen.table(
        (f"{c.name} {c.arguments}".rstrip(), c.help, " ".join(a for a in c.aliases if not a.isalpha()))
        for c in COMMANDS
    )
    session.screen.blank()
    session.screen.table(
        [
            (
                "Enter",
                "send; Alt-Enter, or \\ before Enter: new line. You may type while an answer comes",
            ),
            ("Tab, Ctrl-R", "complete a command; search earlier messages (arrow up: the one before)"),
            ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
            ("Ctrl-C", "stop the answer; what was said stays"),
            ("Ctrl-D", "leave"),
        ]
    )


@command("/reset", aliases=("+reset", "/clear", "/new"))
def _reset(session: Session, _argument: str) -> None:
    """Begin a new conversation."""
    session.chat.reset()
    session.screen.note("A new conversation.")


@command("/undo", "[N]", aliases=("/u",))
def _undo(session: Session, argument: str) -> None:
    """Take back the last question and its answer (or the last N)."""
    taken = session.chat.undo(_count(argument))
    session.screen.note(f"Taken back: {_shortened(taken[0].user)}")


@command("/retry", aliases=("+", "++", "/r"))
def _retry(session: Session, _argument: str) -> None:
    """Answer the last question again, differently."""
    if session.chat.turns and session.chat.params.temperature == 0:
        session.screen.note("temperature is 0, so this will be the same answer; /set temperature 0.7 allows others")
    session.answer(lambda cancel, progress: session.chat.retry(cancel=cancel, on_progress=progress))


@command("/edit", "[N] [TEXT]", aliases=("/e",))
def _edit(session: Session, argument: str) -> None:
    """Change your last message (or the N-th), and go on from there; what followed stays as a branch."""
    chat = session.chat
    number, _, text = argument.partition(" ")
    if not number.isdecimal():
        number, text = str(chat.n_turns), argument
    i = int(number) - 1
    if not 0 <= i < chat.n_turns:
        n = chat.n_turns
        raise ArgumentError(f"there is no turn {number}: the conversation has {n}", hint="/show numbers them")
    if not text.strip():
        if session.reader is not None and session.screen.interactive:
            session.reader.offer(f"/edit {i + 1} {chat.turns[i].user}")
            return
        raise ArgumentError("what shall it say instead?", hint="for example /edit 2 Who are you?")
    keep = next(f"{chat.branch}-{k}" for k in itertools.count(2) if f"{chat.branch}-{k}" not in chat.branches)
    lost = chat.n_turns - i
    session.answer(
        lambda cancel, progress: chat.edit(
            i, text, keep_as=keep if lost > 1 else None, cancel=cancel, on_progress=progress
        )
    )
    if keep in chat.branches:
        session.screen.note(f"(what followed before: /branch {keep})")


@command("/branch", "[NAME]", aliases=("/b", "/branches"))
def _branch(session: Session, argument: str) -> None:
    """Show the branches; go to one, or begin one here. /branch -d NAME deletes one."""
    chat = session.chat
    if not argument:
        rows = chat.branches.items()
        session.screen.table((name, _turns(n), "(here)" if name == chat.branch else "") for name, n in rows)
        return
    if argument.startswith("-d "):
        name = argument[3:].strip()
        chat.delete_branch(name)
        session.screen.note(f"Deleted the branch {name}.")
    elif argument in chat.branches:
        chat.switch(argument)
        session.screen.note(f"On branch {argument}: {_turns(chat.n_turns)}.")
        if chat.n_turns:
            last = chat.turns[-1]
            session.screen.note(f"Last: {_shortened(last.user)} – {_shortened(last.text)}")
    else:
        chat.start_branch(argument)
        session.screen.note(f"A new branch {argument} from here; /branch lists them.")


@command("/copy", "[N|all]", aliases=("/c",))
def _copy(session: Session, argument: str) -> None:
    """Copy the last answer's code (its N-th block), or all of the answer, to the clipboard."""
    if not session.chat.n_turns:
        raise ArgumentError("there is no answer to copy yet")
    text = session.chat.turns[-1].text
    from rwkv_cpu.terminal.markdown import code_blocks

    blocks = [] if argument == "all" else code_blocks(text)
    if argument not in ("", "all"):
        if not argument.isdecimal() or not 1 <= int(argument) <= len(blocks):
            raise ArgumentError(
                f"no code block {argument}: the answer has {len(blocks)}", hint="/copy all copies it all"
            )
        blocks = [blocks[int(argument) - 1]]
    copied = blocks[-1] if blocks else text
    from rwkv_cpu.terminal import clipboard

    how = clipboard.copy(copied)
    if not how:
        raise ArgumentError("there is no clipboard to copy to", hint="/show shows the text")
    lines = copied.count("\n") + 1
    what = "code" if blocks else "the answer"
    session.screen.note(f"Copied {what}, {lines} line{'' if lines == 1 else 's'}, through {how}.")


@command("/think", "[MODE]")
def _think(session: Session, argument: str) -> None:
    """Whether thinking models think: off, short, on, long, or default. /set thoughts show|fold|hide"""
    if argument:
        session.change("think", argument)
    session.screen.note(f"think = {session.chat.think or 'default'}")


@command("/thought")
def _thought(session: Session, _argument: str) -> None:
    """Show what the model thought before its last answer."""
    thought = session.chat.turns[-1].thought if session.chat.n_turns else ""
    session.screen.say(thought or "(no thought)", "dim")


@command("/sessions")
def _sessions(session: Session, _argument: str) -> None:
    """Show the named sessions (rwkv-cpu chat --session NAME)."""
    from rwkv_cpu.chat.sessions import list_sessions

    found = list_sessions()
    if not found:
        session.screen.note("None yet; rwkv-cpu chat --session NAME begins one.")
        return
    session.screen.table((info.name, _turns(info.turns), _shortened(info.first, 40)) for info in found)


@command("/system", "[TEXT]")
def _system(session: Session, argument: str) -> None:
    """Show the system text, or begin anew with another ("-" for none)."""
    if argument:
        session.chat.reset("" if argument == "-" else argument)
        session.screen.note("A new conversation.")
    session.screen.say(session.chat.system or "(no system text)")


@command("/save", "[FILE]")
def _save(session: Session, argument: str) -> None:
    """Write the conversation to a file."""
    path = session.file(argument)
    session.chat.save(path)
    session.belongs_to(path)
    session.screen.note(f"Saved to {path}; /load {path} goes on from here.")


@command("/load", "FILE")
def _load(session: Session, argument: str) -> None:
    """Go on with a saved conversation."""
    path = session.file(argument)
    session.chat = Chat.load(path, session.model, state=session.chat.start)
    session.belongs_to(path)
    n = len(session.chat.turns)
    session.screen.note(f"Loaded {path}: {_turns(n)}.")
    if n:
        last = session.chat.turns[-1]
        session.screen.note(f"Last: {_shortened(last.user)} – {_shortened(last.text)}")


@command("/show", aliases=("/history",))
def _show(session: Session, _argument: str) -> None:
    """Show the conversation so far."""
    if not session.chat.turns:
        session.screen.note("Nothing yet.")
    for i, turn in enumerate(session.chat.turns):
        if i:
            session.screen.blank()
        session.screen.say(f"{i + 1}> {turn.user}", "cyan")
        session.screen.markdown(turn.text or "(no answer)")


@command("/set", "[NAME VALUE]")
def _set(session: Session, argument: str) -> None:
    """Show the settings, or change one."""
    settings = session.settings()
    if not argument:
        session.screen.table((name, "random" if value is None else f"{value}") for name, value in settings.items())
        return
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    name = _SHORT_NAMES.get(name.strip("-").replace("-", "_"), name.strip("-").replace("-", "_"))
    if name not in settings:
        near = difflib.get_close_matches(name, settings, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}?" if near else f"the settings are {', '.join(settings)}"
        raise ArgumentError(f"no setting {name!r}", hint=hint)
    if value.strip():
        session.change(name, value.strip())
        settings = session.settings()
    shown = settings[name]
    session.screen.note(f"{name} = {'random' if shown is None else shown}")


@command("/stats", "[on|off]")
def _stats(session: Session, argument: str) -> None:
    """Show speed and memory; on: after every answer."""
    if argument in ("on", "off"):
        session.show_stats = argument == "on"
        session.screen.note(f"Speed and memory after every answer: {argument}.")
    elif argument:
        raise ArgumentError(f"/stats takes on, off or nothing, not {argument!r}")
    else:
        session.screen.table(session.statistics())


@command("/exit", aliases=("/quit", "/bye", "/q", "exit", "quit"))
def _exit(_session: Session, _argument: str) -> None:
    """Leave (Ctrl-D)."""
    raise Leave


_SHORT_NAMES = {"temp": "temperature", "n": "max_tokens", "t": "threads", "s": "seed"}


def _count(argument: str) -> int:
    if not argument:
        return 1
    if not argument.isdigit() or int(argument) < 1:
        raise ArgumentError(f"a number of turns is expected, not {argument!r}")
    return int(argument)


def _turns(n: int) -> str:
    return f"{n} turn{'' if n == 1 else 's'}"


def _shortened(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
