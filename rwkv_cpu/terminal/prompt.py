# SPDX-License-Identifier: Apache-2.0
"""Reading a message: an edited line with history and completion on a terminal, plain lines from a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Protocol

from rwkv_cpu.places import user_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

__all__ = ["LineReader", "Reader", "history_path", "make_reader"]

_PROMPT = "> "
_CONTINUED = "  "
_HISTORY_BYTES = 1_000_000


class Reader(Protocol):
    """Where messages come from."""

    @property
    def typed(self) -> bool:
        """Whether something stood at the prompt when Ctrl-C was pressed."""
        ...

    @property
    def source(self) -> Input | None:
        """Where keys come from, if they can be read while an answer streams."""
        ...

    def offer(self, text: str) -> None:
        """The next message begins with *text*, to be edited or sent."""
        ...

    def read(self) -> str:
        """The next message, lines joined.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: Ctrl-C at the prompt.
        """
        ...


def make_reader(
    *,
    fancy: bool,
    colours: bool,
    commands: Sequence[tuple[str, str]],
    history: bool,
    status: Callable[[], str] | None = None,
) -> Reader:
    """A reader for this terminal.

    Args:
        fancy: stdin and stdout are a terminal that can move its cursor.
        colours: colours are wanted.
        commands: (name, help) to complete.
        history: keep messages for the next run.
        status: gives a line to show below the prompt.
    """
    if fancy:
        return _EditedReader(commands, colours=colours, history=history, status=status)
    return LineReader(prompt=_PROMPT if sys.stdin.isatty() else "")


class LineReader:
    r"""Lines of stdin; one that ends in a backslash goes on in the next. The prompt goes to stderr."""

    typed = False
    source = None

    def __init__(self, prompt: str = "") -> None:
        self._prompt = prompt

    def offer(self, text: str) -> None:
        """Nothing can be typed beforehand here."""

    def read(self) -> str:
        """As Reader.read."""
        lines: list[str] = []
        while True:
            self._show(_CONTINUED if lines and self._prompt else self._prompt)
            line = sys.stdin.readline()
            if not line and not lines:
                raise EOFError
            text = line.rstrip("\r\n")
            if line and text.endswith("\\"):
                lines.append(text[:-1])
                continue
            return "\n".join([*lines, text])

    def _show(self, prompt: str) -> None:
        if prompt and sys.stderr is not None:
            sys.stderr.write(prompt)
            sys.stderr.flush()


class _EditedReader:
    """prompt_toolkit's line editor: Enter sends, Alt-Enter or a backslash before Enter begins a new line."""

    def __init__(
        self,
        commands: Sequence[tuple[str, str]],
        *,
        colours: bool,
        history: bool,
        status: Callable[[], str] | None,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.shortcuts import CompleteStyle
        from prompt_toolkit.styles import Style

        session: PromptSession[str] = PromptSession(
            message=[("class:prompt", _PROMPT)],
            prompt_continuation=_CONTINUED,
            multiline=True,
            history=_open_history() if history else None,
            key_bindings=_bindings(),
            completer=_command_completer(commands),
            # The menu takes lines from the screen: only once a command is being typed.
            complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
            complete_style=CompleteStyle.COLUMN,
            reserve_space_for_menu=6,
            # Looked up at each drawing: a line of its own, not a bar of reversed colours.
            bottom_toolbar=None if status is None else lambda: [("class:status", status())],
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            style=Style.from_dict(
                {
                    "prompt": "ansicyan bold",
                    "hint": "ansibrightblack",
                    "status": "ansibrightblack",
                    "bottom-toolbar": "noreverse",
                    "bottom-toolbar.text": "noreverse",
                }
            ),
            color_depth=None if colours else ColorDepth.DEPTH_1_BIT,
        )
        self._session = session
        self._first = True
        self._offered = ""

    @property
    def source(self) -> Input:
        """As Reader.source."""
        return self._session.app.input

    def offer(self, text: str) -> None:
        """As Reader.offer."""
        self._offered = text

    @property
    def typed(self) -> bool:
        """As Reader.typed."""
        return bool(self._session.default_buffer.text)

    def read(self) -> str:
        """As Reader.read."""
        from prompt_toolkit.formatted_text import FormattedText

        hint = FormattedText([("class:hint", "Type a message, or /help")] if self._first else [])
        offered, self._offered = self._offered, ""
        text = self._session.prompt(placeholder=hint, default=offered)
        self._first = False
        return text


def _bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    keys.add("enter")(send)
    # Programs that drive a terminal send a line feed for Enter.
    keys.add("c-j")(send)
    keys.add("escape", "enter")(new_line)
    return keys


def _command_completer(commands: Sequence[tuple[str, str]]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    files = PathCompleter(expanduser=True)

    class CommandCompleter(Completer):
        """Names of commands ("/sa" becomes "/save"); after /save and /load, names of files."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            name, space, argument = text.partition(" ")
            if name in ("/save", "/load") and space:
                yield from files.get_completions(Document(argument, len(argument)), complete_event)
            elif text.startswith("/") and not space:
                for command, explanation in commands:
                    if command.startswith(text):
                        yield Completion(command, start_position=-len(text), display_meta=explanation)

    return CommandCompleter()


def history_path() -> Path:
    """Where messages are kept between runs."""
    return user_directory() / "chat_history"


def _open_history() -> History:
    """The history file, readable by its owner only; in memory where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path = history_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        with contextlib.suppress(OSError):  # a file of somebody else's making that we may still use
            path.chmod(0o600)
        _shorten(path)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return InMemoryHistory()
    return FileHistory(str(path))


def _shorten(path: Path) -> None:
    """Keep the newer half of a history that grew large. Entries begin at a line "# time"."""
    if path.stat().st_size <= _HISTORY_BYTES:
        return
    data = path.read_bytes()[-_HISTORY_BYTES // 2 :]
    start = data.find(b"\n# ")
    from rwkv_cpu.chat.store import write_private

    write_private(path, data[start + 1 :] if start >= 0 else b"")
