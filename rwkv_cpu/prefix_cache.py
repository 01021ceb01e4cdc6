# SPDX-License-Identifier: Apache-2.0
"""What several prompts have in common at their beginning is read once: a system text, a long document.

A state cannot be taken back to an earlier token, so states are kept at points where another prompt may turn off: at the
end of each prompt, some way before it (a question after a document is short), and where prompts were seen to part.
"""

from __future__ import annotations

import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError, FormatError, RwkvError
from .state import State, prefix_digests, write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from .cancel import CancelToken
    from .model import Model

__all__ = ["PrefixCache"]

# What is shorter is read again in no time.
_SHORT_TOKENS = 32
_TURN_OFF_FACTOR = 4
_MAX_TEXTS = 64
_MAX_TEXT_TOKENS = 4_000_000
_FILE_STATES = 12
_DIGEST_BYTES = 16
_MAX_STATE_BYTES = 1 << 31


class PrefixCache:
    """States after beginnings of prompts, by what was read; the ones used last, up to *max_bytes*.

    Give it to a model, ``model.prefix_cache = PrefixCache()``, and generate() and chats use it; several models may
    share one. Threads may use it. The answers are the same as without, to the bit.

    Args:
        max_bytes: of memory for states. One state is always kept.
    """

    def __init__(self, max_bytes: int = 256_000_000) -> None:
        if max_bytes < 0:
            raise ArgumentError(f"max_bytes must be at least 0, and is {max_bytes}")
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._states: OrderedDict[tuple[str, bytes], State] = OrderedDict()
        # By the digest at their ends: where prompts began (a digest) and what they were.
        self._texts: OrderedDict[bytes, tuple[bytes, NDArray[np.uint32]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    @property
    def size_bytes(self) -> int:
        """Memory of the states."""
        with self._lock:
            return sum(map(_size, self._states.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._states.clear()
            self._texts.clear()

    def find(self, state: State, tokens: Sequence[int]) -> int:
        """Move *state* on as far along *tokens* as a kept state reaches, at least one token before their end.

        Returns: how many tokens that is; 0: *state* is as it was.
        """
        return self._find(state, tokens, len(tokens) - 1)

    def add(self, state: State) -> None:
        """Keep a copy of *state*."""
        with self._lock:
            self._states.pop((state.layout.fingerprint, state.digest), None)
            self._states[state.layout.fingerprint, state.digest] = state.copy()
            size = self.size_bytes
            while size > self.max_bytes and len(self._states) > 1:
                size -= _size(self._states.popitem(last=False)[1])

    def advance(
        self,
        model: Model,
        tokens: Sequence[int],
        state: State,
        *,
        cancel: CancelToken | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Model.advance with logits="last" that computes only what no prompt before had in common.

        Raises: as Model.advance; after Cancelled the state stands behind error.n_done of the tokens.
        """
        from .errors import Cancelled

        ids = np.asarray(tokens, np.uint32)
        start = state.digest
        done = self._find(state, ids, len(ids))
        if done == len(ids) and state.logits is not None:
            known: NDArray[np.float32] = state.logits.copy()
            return known
        if done == len(ids):
            raise RwkvError("a kept state has no logits")
        marks = self._marks(start, ids, done)
        logits: NDArray[np.float32] | None = None
        for mark in marks:
            begin = done

            def told(piece_done: int, _total: int, begin: int = begin) -> None:
                if progress is not None:
                    progress(begin + piece_done, len(ids))

            try:
                logits = model.advance(ids[begin:mark], state, logits="last", cancel=cancel, progress=told)
            except Cancelled as error:
                error.n_done += begin
                raise
            done = mark
            if len(ids) >= _SHORT_TOKENS:
                self.add(state)
        self._remember(start, ids, state.digest)
        if logits is None:
            raise ArgumentError("no tokens")
        return logits

    # -------------------------------------------------------------------------------------- on disk

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model, max_bytes: int = 256_000_000) -> Self:
        """The cache that save() wrote; an empty one if there is no such file.

        Raises: StateError: of another model, or damaged. FormatError: another kind of file. RwkvError: cannot be read.
        """
        cache, path = cls(max_bytes), Path(path)
        if not path.exists():
            return cache
        if not path.is_file():
            raise RwkvError(f"{path}: this is not an ordinary file", hint="Name a file.")
        try:
            with zipfile.ZipFile(path) as file:
                for info in file.infolist()[: _FILE_STATES + _MAX_TEXTS]:
                    kind, _, name = info.filename.partition("/")
                    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MAX_STATE_BYTES:
                        raise FormatError(f"{path}: this is no prompt cache")
                    if kind == "states":
                        found = model.state_from_bytes(file.read(info), str(path))
                        cache._states[found.layout.fingerprint, found.digest] = found
                    elif kind == "texts":
                        raw = file.read(info)
                        ids = np.frombuffer(raw[_DIGEST_BYTES:], "<u4").astype(np.uint32)
                        cache._texts[bytes.fromhex(name)] = (raw[:_DIGEST_BYTES], ids)
                    else:
                        raise FormatError(f"{path}: this is no prompt cache")
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
            if isinstance(error, RwkvError):
                raise
            raise FormatError(f"{path}: this is no prompt cache, or a damaged one") from error
        except OSError as error:
            raise RwkvError(f"{path}: cannot be read: {error.strerror}") from error
        return cache

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the states that were used last to *path*, which is replaced at once and whole, for its owner only.

        Raises: RwkvError: it cannot be written, or is there and no prompt cache.
        """
        path = Path(path)
        if path.is_file() and not zipfile.is_zipfile(path):
            raise RwkvError(f"{path}: is there already and no prompt cache: not replaced", hint="Name another file.")

        def write(raw: Any) -> None:
            with self._lock, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as file:
                for (_, digest), state in list(self._states.items())[-_FILE_STATES:]:
                    file.writestr(f"states/{digest.hex()}", state.to_bytes())
                for digest, (start, ids) in self._texts.items():
                    file.writestr(f"texts/{digest.hex()}", start + ids.astype("<u4").tobytes())

        write_whole(path, write, private=True)

    # --------------------------------------------------------------------------------------- inside

    def _find(self, state: State, tokens: Sequence[int] | NDArray[np.uint32], most: int) -> int:
        with self._lock:
            fingerprint = state.layout.fingerprint
            lengths = {s.n_tokens - state.n_tokens for (f, _), s in self._states.items() if f == fingerprint}
            if not any(0 < n <= most for n in lengths):
                return 0
            best = None
            for n, digest in enumerate(prefix_digests(tokens[:most], state.digest), 1):
                if n in lengths and (fingerprint, digest) in self._states:
                    found = self._states[fingerprint, digest]
                    if n < len(tokens) or found.logits is not None:
                        best = found
            if best is None:
                return 0
            self._states.move_to_end((fingerprint, best.digest))
            done = best.n_tokens - state.n_tokens
            state.become(best)
            return done

    def _marks(self, start: bytes, ids: NDArray[np.uint32], done: int) -> list[int]:
        """Where to keep a state while reading *ids*, of which *done* were read before."""
        n = len(ids)
        marks = {n}
        distance = _SHORT_TOKENS
        while n - distance >= _SHORT_TOKENS:
            marks.add(n - distance)
            distance *= _TURN_OFF_FACTOR
        with self._lock:
            parted = max((_equal(ids, text) for begin, text in self._texts.values() if begin == start), default=0)
        if _SHORT_TOKENS <= parted < n:
            marks.add(parted)
        return sorted(mark for mark in marks if mark > done)

    def _remember(self, start: bytes, ids: NDArray[np.uint32], end: bytes) -> None:
        if len(ids) < _SHORT_TOKENS:
            return
        with self._lock:
            self._texts.pop(end, None)
            self._texts[end] = (start, ids.copy())
            total = sum(len(text) for _, text in self._texts.values())
            while len(self._texts) > 1 and (len(self._texts) > _MAX_TEXTS or total > _MAX_TEXT_TOKENS):
                total -= len(self._texts.popitem(last=False)[1][1])


def _size(state: State) -> int:
    return state.data.nbytes + (0 if state.logits is None else state.logits.nbytes)


def _equal(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> int:
    """How many ids at their beginning are the same."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n
