# SPDX-License-Identifier: Apache-2.0
"""What is typed while an answer streams: shown below it, and at the next prompt as if it had been typed there."""

from __future__ import annotations

import codecs
import os
import select
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPress
    from typing_extensions import Self

__all__ = ["TypeAhead"]

_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_READ_BYTES = 4096


class TypeAhead:
    """Takes over the keyboard in a ``with`` block, without echo; Ctrl-C stays a signal. Does nothing on Windows.

    Args:
        source: the prompt's input, which gets the keys at the end.
    """

    def __init__(self, source: Input) -> None:
        from prompt_toolkit.input.vt100_parser import Vt100Parser

        self._source = source
        self._keys: list[KeyPress] = []
        self._parser = Vt100Parser(self._keys.append)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._before: list[Any] | None = None
        self._handle = -1

    @property
    def text(self) -> str:
        """What was typed so far, as one line."""
        shown = ""
        for press in self._keys:
            if press.key in ("c-h", "backspace"):
                shown = shown[:-1]
            elif press.key in ("c-m", "c-j"):
                shown += "⏎ "
            elif press.data.isprintable() or press.key == "<bracketed-paste>":
                shown += " ".join(press.data.split()) if len(press.data) > 1 else press.data
        return shown

    def __enter__(self) -> Self:
        try:
            import termios
        except ImportError:
            return self
        try:
            self._handle = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._handle)
            modes = termios.tcgetattr(self._handle)
            modes[3] = modes[3] & ~(termios.ICANON | termios.ECHO) | termios.NOFLSH
            modes[6][termios.VMIN], modes[6][termios.VTIME] = 0, 0
            termios.tcsetattr(self._handle, termios.TCSANOW, modes)
        except (OSError, ValueError, termios.error):
            self._before = None
            return self
        sys.stdout.write(_PASTE_ON)
        sys.stdout.flush()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._before is None:
            return
        import termios

        from prompt_toolkit.input.typeahead import store_typeahead

        self.poll()
        # Not TCSAFLUSH: what comes between here and the prompt is kept too.
        termios.tcsetattr(self._handle, termios.TCSANOW, self._before)
        self._before = None
        self._parser.flush()
        store_typeahead(self._source, self._keys)
        sys.stdout.write(_PASTE_OFF)
        sys.stdout.flush()

    def poll(self) -> None:
        """Take what was typed since the last call."""
        while self._before is not None and select.select([self._handle], [], [], 0)[0]:
            data = os.read(self._handle, _READ_BYTES)
            if not data:
                return
            self._parser.feed(self._decoder.decode(data))
