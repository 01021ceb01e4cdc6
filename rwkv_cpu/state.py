# SPDX-License-Identifier: Apache-2.0
"""The state of a sequence: all that a recurrent model keeps of the text so far, in a block of fixed size.

State files are written and read by the engine (src/app/state_file.c describes them), so that programs in any language
share them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine import check, ffi, lib
from .errors import ArgumentError, RwkvError, StateError
from .memory import aligned_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from .engine import OpenModel

__all__ = ["State", "StateLayout", "StatePart", "prefix_digests", "write_whole"]

_DIGEST_BYTES = 16
_NO_TEXT = bytes(_DIGEST_BYTES)


def prefix_digests(tokens: Sequence[int] | NDArray[np.integer[Any]], start: bytes = _NO_TEXT) -> Iterator[bytes]:
    """The digest of a text after each of *tokens*, the text before having the digest *start*.

    Each digest is made from the one before and the next id, so it does not matter how a text was cut into calls.
    """
    ids = np.ascontiguousarray(tokens, np.uint32)
    raw, text = ffi.from_buffer("uint32_t[]", ids), _text(0, start)
    for at in range(len(ids)):
        lib.rwkvc_text_read(text, raw + at, 1)
        yield _digest_of(text)


def _text(n_tokens: int, digest: bytes) -> Any:
    """An ``rwkvc_text *``."""
    return ffi.new("rwkvc_text *", {"n_tokens": n_tokens, "digest": digest})


def _digest_of(text: Any) -> bytes:
    return bytes(ffi.buffer(text.digest))


@dataclass(frozen=True)
class StatePart:
    """One part of every layer's state: ``shape`` floats at ``offset + layer * layer_stride``."""

    name: str
    offset: int
    layer_stride: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StateLayout:
    """What a model's states look like, and which model that is.

    fingerprint: digest of the model file's table, so of all its weights' checksums. raw: the same as the engine's
    ``rwkvc_state_layout *``, for state files.
    """

    floats: int
    n_layer: int
    parts: tuple[StatePart, ...]
    fingerprint: str
    n_vocab: int
    raw: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, model: OpenModel) -> StateLayout:
        """That of an open model's states; it stays valid when the model is closed."""
        raw = model.describe_state()
        parts = tuple(
            StatePart(
                ffi.string(part.name).decode(), part.offset, part.layer_stride, tuple(part.shape[0 : part.n_dims])
            )
            for part in raw.parts[0 : raw.n_parts]
        )
        return cls(raw.floats, raw.n_layer, parts, ffi.string(raw.fingerprint).decode(), raw.n_vocab, raw)

    def block(self) -> NDArray[np.float32]:
        """Memory for a state's numbers, f32 [floats] of any value, that begins at a line of the processor's cache: only
        then can the engine write a token's state past the cache, which large arrays of numpy never allow.
        """
        return aligned_empty(4 * self.floats).view(np.float32)


class State:
    """A point in a text: copy() or fork() it, keep it with save(); Model.advance moves it on in place.

    Attributes:
        n_tokens: how many tokens it has read.
        digest: tells the texts of states apart: 16 bytes made from those tokens (and from what it began with, if that
            was not the model's own starting state).
    """

    def __init__(
        self, layout: StateLayout, data: NDArray[np.float32], n_tokens: int = 0, digest: bytes = _NO_TEXT
    ) -> None:
        self.layout = layout
        self.n_tokens = n_tokens
        self.digest = digest
        self._data = data
        self._spare: NDArray[np.float32] | None = None
        self._logits: NDArray[np.float32] | None = None
        self._has_logits = False

    @property
    def data(self) -> NDArray[np.float32]:
        """The numbers themselves, f32 [floats]; the layout is documented in rwkv_cpu.h."""
        return self._data

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """What the model said after the last token, f32 [n_vocab]; None if it was not asked (logits="none")."""
        return self._logits if self._has_logits else None

    def swap_target(self) -> NDArray[np.float32]:
        """A block for the next state; replace() makes it the current one. Two blocks take turns, so that a step
        that fails leaves the state alone and a step that succeeds copies nothing.
        """
        if self._spare is None:
            self._spare = self.layout.block()
        return self._spare

    def replace(self, tokens: NDArray[np.uint32], logits: NDArray[np.float32] | None = None) -> None:
        """Make swap_target()'s block the current one, which has read *tokens* more and then gave *logits* [n_vocab]."""
        self._data, self._spare = self.swap_target(), self._data
        self.read(tokens, logits)

    def read(self, tokens: NDArray[np.uint32], logits: NDArray[np.float32] | None = None) -> None:
        """Note that the numbers are those after *tokens* more. The logits are copied: callers change theirs."""
        text = _text(self.n_tokens, self.digest)
        lib.rwkvc_text_read(text, ffi.from_buffer("uint32_t[]", tokens), len(tokens))
        self.n_tokens, self.digest = text.n_tokens, _digest_of(text)
        self._has_logits = logits is not None
        if logits is not None:
            if self._logits is None:
                self._logits = np.empty(len(logits), np.float32)
            np.copyto(self._logits, logits)

    def become(self, other: State) -> None:
        """Take over everything from *other*, a state of the same model, which stays as it is."""
        if other.layout.fingerprint != self.layout.fingerprint:
            raise StateError("this state belongs to another model")
        np.copyto(self._data, other.data)
        self.n_tokens, self.digest = other.n_tokens, other.digest
        self._logits = None if other.logits is None else other.logits.copy()
        self._has_logits = self._logits is not None

    def begin_here(self) -> None:
        """The numbers came from elsewhere (state tuning): give them a digest of their own."""
        self.digest = hashlib.blake2b(self._data.tobytes(), digest_size=_DIGEST_BYTES).digest()
        self._has_logits = False

    def copy(self) -> State:
        """An independent state at the same point."""
        twin = State(self.layout, self.layout.block(), self.n_tokens, self.digest)
        np.copyto(twin._data, self._data)
        if self._has_logits and self._logits is not None:
            twin._logits, twin._has_logits = self._logits.copy(), True
        return twin

    def fork(self, n: int = 2) -> list[State]:
        """*n* independent states at the same point, for as many ways to go on (Model.forward_batch).

        Raises: ArgumentError: *n* is less than 1.
        """
        if n < 1:
            raise ArgumentError(f"a state cannot be forked into {n}")
        return [self.copy() for _ in range(n)]

    def __copy__(self) -> State:
        return self.copy()

    def __deepcopy__(self, _memo: Any) -> State:
        return self.copy()

    def parts(self) -> dict[str, NDArray[np.float32]]:
        """Views by name, f32 [n_layer, ...]. RWKV-7: att_shift, ffn_shift [n_layer, n_embd] and wkv
        [n_layer, n_head, key channel, value channel].
        """
        layers = self._data.reshape(self.layout.n_layer, -1)
        found = {}
        for part in self.layout.parts:
            size = int(np.prod(part.shape))
            found[part.name] = layers[:, part.offset : part.offset + size].reshape(self.layout.n_layer, *part.shape)
        return found

    def save(self, path: str | os.PathLike[str], *, f16: bool = False) -> None:
        """Write a state file; Model.load_state reads it. An existing file is replaced, at once and whole.

        Args:
            f16: half the size, rounded; parts with numbers that f16 cannot hold, and the logits, stay f32.

        Raises: RwkvError: the file cannot be written.
        """
        check(lib.rwkvc_state_save(self.layout.raw, os.fsencode(path), self._saved(), f16))

    def to_bytes(self, *, f16: bool = False) -> bytes:
        """What save() writes."""
        saved, size = self._saved(), ffi.new("uint64_t *")
        check(lib.rwkvc_state_to_bytes(self.layout.raw, saved, f16, ffi.NULL, 0, size))
        out = bytearray(size[0])
        room = ffi.from_buffer("uint8_t[]", out, require_writable=True)
        check(lib.rwkvc_state_to_bytes(self.layout.raw, saved, f16, room, len(out), size))
        return bytes(out)

    def _saved(self) -> Any:
        """An ``rwkvc_saved_state *``, good as long as this state."""
        saved = ffi.new("rwkvc_saved_state *", {"text": _text(self.n_tokens, self.digest)[0]})
        saved.state = ffi.from_buffer("float[]", self._data)
        if self.logits is not None:
            saved.logits = ffi.from_buffer("float[]", self.logits)
        return saved

    @classmethod
    def load(cls, path: str | os.PathLike[str], layout: StateLayout) -> State:
        """Read a state file of the model that *layout* belongs to; see Model.load_state."""
        return cls._read_by(lambda *to: lib.rwkvc_state_load(layout.raw, os.fsencode(path), *to), layout, "")

    @classmethod
    def from_bytes(cls, raw: bytes, layout: StateLayout, where: str = "the state") -> State:
        """The state that to_bytes() of it describes; *where* stands in errors.

        Raises: FormatError: no state file. StateError: of another model, or damaged.
        """
        data = ffi.from_buffer("uint8_t[]", raw)
        return cls._read_by(lambda *to: lib.rwkvc_state_from_bytes(layout.raw, data, len(data), *to), layout, where)

    @classmethod
    def _read_by(cls, read: Callable[..., int], layout: StateLayout, where: str) -> State:
        """The state that the engine's *read* writes: numbers, logits, whether there are any, text."""
        state = cls(layout, layout.block())
        logits: NDArray[np.float32] = np.empty(layout.n_vocab, np.float32)
        has_logits, text = ffi.new("uint32_t *"), ffi.new("rwkvc_text *")
        numbers = ffi.from_buffer("float[]", state.data, require_writable=True)
        check(read(numbers, ffi.from_buffer("float[]", logits, require_writable=True), has_logits, text), where)
        state.n_tokens, state.digest = text.n_tokens, _digest_of(text)
        if has_logits[0]:
            state._logits, state._has_logits = logits, True
        return state


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, private: bool = False) -> None:
    """Replace *path* by what *write* writes, at once and whole; *private*: for its owner only.

    Raises: RwkvError: it cannot be written; what was there stays.
    """
    if path.exists() and not path.is_file():
        raise RwkvError(f"{path}: this is not an ordinary file", hint="Name a file.")
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RwkvError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
