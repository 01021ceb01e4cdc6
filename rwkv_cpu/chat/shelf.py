# SPDX-License-Identifier: Apache-2.0
"""States kept along a conversation: as many as a limit allows in memory, the others in files.

So undo, retry and edit cost a copy, or the reading of one file, instead of reading the conversation again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import shutil
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from rwkv_cpu.errors import RwkvError, StateError
from rwkv_cpu.places import spill_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rwkv_cpu.state import State

__all__ = ["Slot", "StateShelf"]

_log = logging.getLogger("rwkv_cpu")
_ALWAYS_IN_MEMORY = 2
# Of the free space of a disk, states take no more than this part.
_SHARE_OF_DISK = 0.25


class Slot:
    """A place on a shelf. Its state is forgotten when nobody holds the slot any more."""

    def __init__(self, shelf: StateShelf, key: int) -> None:
        self._shelf = shelf
        self._key = key

    def get(self) -> State | None:
        """The state, never to be advanced (copy it); None if it had to go."""
        return self._shelf.take_down(self._key)


class StateShelf:
    """States by slot, the ones used last in memory. Threads and forks of a conversation may share it.

    Args:
        max_bytes: of memory; two states are always kept there.
        state_bytes: size of one.
        load: reads a state file.
        folder: where files go; None: into a folder of this shelf's own, which goes with it.
        max_disk_bytes: of files; where they do not suffice, every second one of the older half goes. 0: no files.
    """

    def __init__(
        self,
        max_bytes: int,
        state_bytes: int,
        load: Callable[[Path], State],
        *,
        folder: Path | None = None,
        max_disk_bytes: int = 0,
    ) -> None:
        self._room = max(_ALWAYS_IN_MEMORY, max_bytes // max(1, state_bytes))
        self._state_bytes = state_bytes
        self._max_disk_bytes = max_disk_bytes
        self._load = load
        self._folder = folder
        self._persistent = folder is not None
        self._lock = threading.RLock()
        self._keys = itertools.count()
        self._memory: OrderedDict[int, State] = OrderedDict()
        self._files: OrderedDict[int, Path] = OrderedDict()
        self._digests: dict[int, str] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._memory.keys() | self._files.keys())

    @property
    def in_memory(self) -> int:
        """How many states memory holds."""
        return len(self._memory)

    def put(self, state: State, file_name: str | None = None) -> Slot:
        """Keep *state*, which nobody changes any more.

        Args:
            file_name: of a file in the shelf's folder, written at once, for a conversation that goes on later.
        """
        with self._lock:
            slot = self._slot()
            self._memory[slot._key] = state  # noqa: SLF001 (the shelf's own)
            if file_name is not None:
                self._write(slot._key, state, file_name)  # noqa: SLF001
            self._make_room()
            return slot

    def adopt(self, file_name: str, digest: str) -> Slot:
        """A slot for a file that put() wrote in an earlier run; it is read when it is needed.

        Args:
            digest: of the state that is meant, in hex; another one in the file is none.
        """
        with self._lock:
            slot = self._slot()
            self._digests[slot._key] = digest  # noqa: SLF001 (the shelf's own)
            if self._folder is not None and (self._folder / file_name).is_file():
                self._files[slot._key] = self._folder / file_name  # noqa: SLF001
            return slot

    def take_down(self, key: int) -> State | None:
        """As Slot.get."""
        with self._lock:
            state = self._memory.get(key)
            if state is None and key in self._files:
                try:
                    state = self._load(self._files[key])
                    if key in self._digests and state.digest.hex() != self._digests[key]:
                        raise StateError(f"{self._files[key]}: this is another turn's state")
                except (RwkvError, OSError) as error:
                    _log.info("a kept state is lost and will be computed again: %s", error)
                    del self._files[key]
                    return None
                self._memory[key] = state
                self._make_room(keep=key)
            if state is not None:
                self._memory.move_to_end(key)
            return state

    def _slot(self) -> Slot:
        slot = Slot(self, next(self._keys))
        weakref.finalize(slot, _forget, weakref.ref(self), slot._key).atexit = False  # noqa: SLF001
        return slot

    def forget(self, key: int) -> None:
        """Nobody holds the slot any more."""
        with self._lock:
            self._memory.pop(key, None)
            self._digests.pop(key, None)
            file = self._files.pop(key, None)
        # What belongs to a named session is there for the next run; its folder is cleared with the session.
        if file is not None and not self._persistent:
            with contextlib.suppress(OSError):
                file.unlink()

    def _make_room(self, keep: int | None = None) -> None:
        while len(self._memory) > self._room:
            key = next((k for k in list(self._memory) if k != keep), None)
            # Python may collect garbage anywhere, and so forget slots here, in this very thread.
            state = None if key is None else self._memory.pop(key, None)
            if key is not None and state is not None and key not in self._files and self._max_disk_bytes > 0:
                self._write(key, state, f"{key}.{secrets.token_hex(4)}.spilled")

    def _write(self, key: int, state: State, name: str) -> None:
        """A state that cannot be written is computed again one day: no reason to lose an answer."""
        try:
            folder = self._open_folder()
            if not self._fits(folder):
                return
            # Without fsync: a state that a power cut damages fails its checksum.
            temporary = folder / f".{name}.part"
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(state.to_bytes())
            temporary.replace(folder / name)
            self._files[key] = folder / name
        except OSError as error:
            _log.info("a state cannot be kept on disk: %s", error)

    def _fits(self, folder: Path) -> bool:
        free = int(shutil.disk_usage(folder).free * _SHARE_OF_DISK)
        room = min(self._max_disk_bytes // self._state_bytes, len(self._files) + free // self._state_bytes)
        if len(self._files) >= room:
            for key in list(self._files)[1 : max(2, len(self._files) // 2) : 2]:
                file = self._files.pop(key, None)  # forgotten meanwhile: as above
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.unlink()
        return len(self._files) < room

    def _open_folder(self) -> Path:
        if self._folder is None:
            parent = spill_directory()
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _clear_left_over(parent)
            self._folder = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder


def _forget(this: weakref.ref[StateShelf], key: int) -> None:
    shelf = this()
    if shelf is not None:
        shelf.forget(key)


def _clear_left_over(parent: Path) -> None:
    """Remove the folders of processes that ended without doing so (kill -9)."""
    for folder in parent.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end it there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
