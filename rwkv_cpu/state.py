# SPDX-License-Identifier: Apache-2.0
"""The state of a sequence: all that a recurrent model keeps of the text so far, in a block of fixed size.

A state file is a safetensors file: each part as f32 or f16 [n_layer, ...], the last logits [n_vocab] where they are
known, and in ``__metadata__`` what it belongs to: the model's fingerprint, how many tokens it has read, a digest of
them, and a checksum of all that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError, FormatError, RwkvError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

    from .engine import StatePart

__all__ = ["State", "StateLayout", "prefix_digests", "write_whole"]

_FILE_VERSION = "2"
_READABLE_VERSIONS = ("1", "2")
_MAX_HEADER_BYTES = 1 << 20
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 16
_NO_TEXT = bytes(_DIGEST_BYTES)
_DTYPES: dict[Any, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_LOGITS = "logits"


def prefix_digests(tokens: Sequence[int] | NDArray[np.integer[Any]], start: bytes = _NO_TEXT) -> Iterator[bytes]:
    """The digest of a text after each of *tokens*, the text before having the digest *start*.

    Each digest is made from the one before and the next id, so it does not matter how a text was cut into calls.
    """
    raw = np.asarray(tokens, "<u4").tobytes()
    digest = start
    for at in range(0, len(raw), 4):
        digest = hashlib.blake2b(digest + raw[at : at + 4], digest_size=_DIGEST_BYTES).digest()
        yield digest


@dataclass(frozen=True)
class StateLayout:
    """What a model's states look like, and which model that is.

    fingerprint: digest of the model file's table, so of all its weights' checksums.
    """

    floats: int
    n_layer: int
    parts: tuple[StatePart, ...]
    fingerprint: str
    n_vocab: int


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
            self._spare = np.empty_like(self._data)
        return self._spare

    def replace(self, tokens: NDArray[np.uint32], logits: NDArray[np.float32] | None = None) -> None:
        """Make swap_target()'s block the current one, which has read *tokens* more and then gave *logits* [n_vocab]."""
        self._data, self._spare = self.swap_target(), self._data
        self.read(tokens, logits)

    def read(self, tokens: NDArray[np.uint32], logits: NDArray[np.float32] | None = None) -> None:
        """Note that the numbers are those after *tokens* more. The logits are copied: callers change theirs."""
        self.n_tokens += len(tokens)
        for digest in prefix_digests(tokens, self.digest):
            self.digest = digest
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
        twin = State(self.layout, self._data.copy(), self.n_tokens, self.digest)
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
        write_whole(Path(path), lambda file: file.writelines(self.pieces(f16=f16)))

    def pieces(self, *, f16: bool = False) -> list[bytes]:
        """What save() writes, in order."""
        arrays = {name: _stored(array, f16=f16) for name, array in self.parts().items()}
        if self.logits is not None:
            arrays[_LOGITS] = self.logits
        body = b"".join(array.tobytes() for array in arrays.values())
        about = {
            "rwkv_cpu.state": _FILE_VERSION,
            "rwkv_cpu.model": self.layout.fingerprint,
            "rwkv_cpu.n_tokens": str(self.n_tokens),
            "rwkv_cpu.text_digest": self.digest.hex(),
        }
        header: dict[str, Any] = {"__metadata__": {**about, "rwkv_cpu.crc32": _checksum(about, body)}}
        end = 0
        for name, array in arrays.items():
            begin, end = end, end + array.nbytes
            dtype = "F16" if array.dtype == np.float16 else "F32"
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-(_LENGTH.size + len(text)) % 64)
        return [_LENGTH.pack(len(text)), text, body]

    @classmethod
    def load(cls, path: str | os.PathLike[str], layout: StateLayout) -> State:
        """Read a state file of the model that *layout* belongs to; see Model.load_state."""
        path = Path(path)
        most = (layout.floats + layout.n_vocab) * 4 + _MAX_HEADER_BYTES + _LENGTH.size
        try:
            if not path.is_file() and path.exists():
                raise FormatError(f"{path}: this is not an ordinary file")
            with path.open("rb") as file:
                raw = file.read(most + 1)
        except OSError as error:
            raise RwkvError(f"{path}: cannot be read: {error.strerror}") from error
        return cls.from_bytes(raw, layout, str(path))

    @classmethod
    def from_bytes(cls, raw: bytes, layout: StateLayout, where: str = "the state") -> State:
        """The state that pieces() of it, joined, describe; *where* stands in errors.

        Raises: FormatError: no state file. StateError: of another model, or damaged.
        """
        header, body = _split(where, raw)
        about = header.pop("__metadata__", {})
        if not isinstance(about, dict) or "rwkv_cpu.state" not in about:
            raise FormatError(f"{where}: this is not a state file of rwkv_cpu")
        version = about["rwkv_cpu.state"]
        if version not in _READABLE_VERSIONS:
            raise StateError(f"{where}: written by a newer rwkv_cpu", hint="Update rwkv_cpu.")
        if about.get("rwkv_cpu.model") != layout.fingerprint:
            raise StateError(
                f"{where}: this state was made with another model file",
                hint="Load it with the very model it was saved from.",
            )
        checksum = about.pop("rwkv_cpu.crc32", None)
        if checksum != (f"{zlib.crc32(body):08x}" if version == "1" else _checksum(about, body)):
            raise StateError(f"{where}: the state is damaged (its checksum is wrong)")
        n_tokens = str(about.get("rwkv_cpu.n_tokens", ""))
        if not n_tokens.isdecimal() or len(n_tokens) > 18:
            raise FormatError(f"{where}: the state's header is damaged")
        state = cls(layout, np.empty(layout.floats, np.float32), int(n_tokens))
        try:
            arrays = {name: _array(entry, body) for name, entry in header.items()}
            logits = arrays.pop(_LOGITS, None)
            parts = state.parts()
            if parts.keys() != arrays.keys() or (logits is not None and logits.shape != (layout.n_vocab,)):
                raise ValueError("its parts are not those of this model")
            for name, view in parts.items():
                view[...] = arrays[name].reshape(view.shape)
            if version == "1":
                state.begin_here()
            else:
                state.digest = bytes.fromhex(str(about["rwkv_cpu.text_digest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{where}: the state's header is damaged ({error})") from error
        if logits is not None:
            state._logits, state._has_logits = logits.astype(np.float32), True
        return state


def _stored(array: NDArray[np.float32], *, f16: bool) -> NDArray[np.float32] | NDArray[np.float16]:
    if f16 and np.abs(array).max() <= np.finfo(np.float16).max:
        return array.astype(np.float16)
    return np.ascontiguousarray(array)


def _array(entry: Any, body: bytes) -> NDArray[Any]:
    """Raises: KeyError, TypeError, ValueError: not an entry of a safetensors header, or it holds NaN or Inf."""
    begin, end = entry["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end <= len(body)):
        raise ValueError("an offset lies outside")
    shape = tuple(int(n) for n in entry["shape"])
    values: NDArray[Any] = np.frombuffer(body[begin:end], _DTYPES[entry["dtype"]]).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or Inf")
    return values


def _checksum(about: dict[str, Any], body: bytes) -> str:
    told = "".join(f"{name}={about[name]}\n" for name in sorted(about))
    return f"{zlib.crc32(body, zlib.crc32(told.encode('utf-8', 'replace'))):08x}"


def _split(where: str, raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = _LENGTH.unpack(raw[: _LENGTH.size])[0] if len(raw) >= _LENGTH.size else 0
    if not 2 <= length <= min(len(raw) - _LENGTH.size, _MAX_HEADER_BYTES):
        raise FormatError(f"{where}: this is not a state file of rwkv_cpu")
    try:
        header = json.loads(raw[_LENGTH.size : _LENGTH.size + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: the state's header is damaged") from error
    if not isinstance(header, dict):
        raise FormatError(f"{where}: this is not a state file of rwkv_cpu")
    return header, raw[_LENGTH.size + length :]


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
