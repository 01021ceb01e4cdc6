# SPDX-License-Identifier: Apache-2.0
"""The journal of a session: what happened, a line each, written before the next thing happens.

Each line is a checksum and a JSON object, and is on the disk when append() returns. What a crash or a power cut leaves
half written at the end is cut off when the journal is opened again; so nothing is lost but what had not been answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rwkv_cpu.errors import Busy, FormatError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE_NAME", "Journal", "Replay", "replay"]

FILE_NAME = "journal.jsonl"
_LOCK_NAME = "lock"
_VERSION = 1
_MAX_BYTES = 1 << 30


@dataclass
class Replay:
    """What a journal says: the session as it is now.

    Attributes:
        begin: the record of the conversation's beginning: model, template, system text.
        settings: the last ones.
        turns: records by number. head: number of the current one (0: none). branches: those of other branches.
        unanswered: a question that was asked and neither answered nor taken back; with the number it was asked at.
        size: bytes of the journal that are whole.
    """

    begin: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    turns: dict[int, dict[str, Any]] = field(default_factory=dict)
    branch: str = "main"
    head: int = 0
    branches: dict[str, int] = field(default_factory=dict)
    unanswered: tuple[int, str] | None = None
    size: int = 0

    def path(self, number: int | None = None) -> list[dict[str, Any]]:
        """The records of the turns up to *number* (the head), oldest first."""
        found = []
        at = self.head if number is None else number
        while at:
            found.append(self.turns[at])
            at = self.turns[at]["parent"]
        return found[::-1]

    def apply(self, record: dict[str, Any]) -> None:
        """Take in the next record. Raises: KeyError, TypeError, ValueError: it does not go with those before."""
        what = record["op"]
        if what == "begin":
            if not isinstance(record["version"], int) or record["version"] > _VERSION:
                raise FormatError("a newer rwkv-cpu wrote this session", hint="Update rwkv-cpu.")
            self.begin, self.turns, self.branches = record, {}, {}
            self.branch, self.head, self.unanswered = "main", 0, None
        elif what == "settings":
            self.settings = dict(record["settings"])
        elif what == "ask":
            self.unanswered = (self._known(record["at"]), str(record["text"]))
        elif what == "drop":
            self.unanswered = None
        elif what == "turn":
            self._known(record["parent"])
            self._known(record["base"])
            if not all(isinstance(record[name], str) for name in ("user", "text", "pending", "branch")):
                raise TypeError("a turn is not text")
            self.turns[int(record["n"])] = record
            self.head, self.branch, self.unanswered = int(record["n"]), record["branch"], None
        elif what == "move":
            self.head, self.branch = self._known(record["head"]), str(record["branch"])
            self.branches = {str(name): self._known(n) for name, n in record["branches"].items()}

    def _known(self, number: Any) -> int:
        if number != 0 and number not in self.turns:
            raise ValueError(f"there is no turn {number!r}")
        return int(number)


def replay(file: Path) -> Replay:
    """What the journal *file* says, as far as it is whole.

    Raises: FormatError: no journal, or written by a newer version. OSError: it cannot be read.
    """
    if file.stat().st_size > _MAX_BYTES:
        raise FormatError(f"{file}: too large for a journal")
    found = Replay()
    data = file.read_bytes()
    for line in data.splitlines(keepends=True):
        record = _parsed(line)
        if record is None:
            break
        try:
            found.apply(record)
        except FormatError as error:
            raise FormatError(f"{file}: {error}", hint=error.hint) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{file}: this is no journal of a session: {error}") from error
        found.size += len(line)
    if data and not found.begin:
        raise FormatError(f"{file}: this is no journal of a session")
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class Journal:
    """A journal that is open for writing, by this process alone.

    Raises: Busy: another one has it open. FormatError, OSError: as replay().
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _take(self._lock, folder.name)
            file = folder / FILE_NAME
            is_new = not file.exists()
            # O_BINARY: Windows would write two bytes for each line end, and sizes would not be those of replay().
            binary = getattr(os, "O_BINARY", 0)
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | binary, 0o600)
            try:
                self.replay = replay(file)
                if self.replay.size < file.stat().st_size:
                    self._cut(file)
                if is_new:
                    _sync_folder(folder)
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, record: dict[str, Any]) -> None:
        """Write a record; it is on the disk on return. Raises: OSError."""
        text = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        written = 0
        while written < len(line):
            written += os.write(self._file, line[written:])
        os.fsync(self._file)

    def close(self) -> None:
        """Let others have it. Harmless if it is closed."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._file = -1

    def _cut(self, file: Path) -> None:
        """Take away what is not whole. It is kept beside, should it be more than a line half written."""
        data = file.read_bytes()
        rest = data[self.replay.size :]
        if rest.count(b"\n") > 1:
            file.with_name("damaged.jsonl").write_bytes(rest)
        os.ftruncate(self._file, self.replay.size)
        os.fsync(self._file)


def _take(lock: int, name: str) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Busy(f"the session {name!r} is open already", hint="Leave it there, or choose another name.") from None


def _sync_folder(folder: Path) -> None:
    """Make the new file's name as lasting as its content, where a system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
