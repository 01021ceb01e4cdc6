# SPDX-License-Identifier: Apache-2.0
"""The state of a sequence: all that a recurrent model keeps of the text so far, in a block of fixed size.

A state file is a safetensors file: each part as f32 [n_layer, ...], and in ``__metadata__`` what it belongs to.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import FormatError, RwkvError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .engine import StatePart

__all__ = ["State", "StateLayout"]

_FILE_VERSION = "1"
_MAX_HEADER_BYTES = 1 << 20
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class StateLayout:
    """What a model's states look like, and which model that is.

    fingerprint: digest of the model file's table, so of all its weights' checksums.
    """

    floats: int
    n_layer: int
    parts: tuple[StatePart, ...]
    fingerprint: str


class State:
    """A point in a text: fork it with copy(), keep it with save(); Model.advance moves it on in place.

    Attributes:
        n_tokens: how many tokens it has read.
    """

    def __init__(self, layout: StateLayout, data: NDArray[np.float32], n_tokens: int = 0) -> None:
        self.layout = layout
        self.n_tokens = n_tokens
        self._data = data
        self._spare: NDArray[np.float32] | None = None

    @property
    def data(self) -> NDArray[np.float32]:
        """The numbers themselves, f32 [floats]; the layout is documented in rwkv_cpu.h."""
        return self._data

    def swap_target(self) -> NDArray[np.float32]:
        """A block for the next state; replace() makes it the current one. Two blocks take turns, so that a step
        that fails leaves the state alone and a step that succeeds copies nothing.
        """
        if self._spare is None:
            self._spare = np.empty_like(self._data)
        return self._spare

    def replace(self, n_tokens: int) -> None:
        """Make swap_target()'s block the current one, *n_tokens* further on."""
        self._data, self._spare = self.swap_target(), self._data
        self.n_tokens += n_tokens

    def copy(self) -> State:
        """An independent state at the same point."""
        return State(self.layout, self._data.copy(), self.n_tokens)

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a state file; Model.load_state reads it. An existing file is replaced, at once and whole.

        Raises: RwkvError: the file cannot be written.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in self.parts().items()}
        body = b"".join(array.tobytes() for array in arrays.values())
        header: dict[str, Any] = {
            "__metadata__": {
                "rwkv_cpu.state": _FILE_VERSION,
                "rwkv_cpu.model": self.layout.fingerprint,
                "rwkv_cpu.n_tokens": str(self.n_tokens),
                "rwkv_cpu.crc32": f"{zlib.crc32(body):08x}",
            }
        }
        end = 0
        for name, array in arrays.items():
            begin, end = end, end + array.nbytes
            header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-(_LENGTH.size + len(text)) % 64)
        _write_whole(Path(path), [_LENGTH.pack(len(text)), text, body])

    @classmethod
    def load(cls, path: str | os.PathLike[str], layout: StateLayout) -> State:
        """Read a state file of the model that *layout* belongs to; see Model.load_state."""
        path = Path(path)
        most = layout.floats * 4 + _MAX_HEADER_BYTES + _LENGTH.size
        try:
            if not path.is_file() and path.exists():
                raise FormatError(f"{path}: this is not an ordinary file")
            with path.open("rb") as file:
                raw = file.read(most + 1)
        except OSError as error:
            raise RwkvError(f"{path}: cannot be read: {error.strerror}") from error
        header, body = _split(path, raw)
        about = header.pop("__metadata__", {})
        if not isinstance(about, dict) or "rwkv_cpu.state" not in about:
            raise FormatError(f"{path}: this is not a state file of rwkv_cpu")
        if about["rwkv_cpu.state"] != _FILE_VERSION:
            raise StateError(f"{path}: written by a newer rwkv_cpu", hint="Update rwkv_cpu.")
        if about.get("rwkv_cpu.model") != layout.fingerprint:
            raise StateError(
                f"{path}: this state was made with another model file",
                hint="Load it with the very model it was saved from.",
            )
        if len(body) != layout.floats * 4 or about.get("rwkv_cpu.crc32") != f"{zlib.crc32(body):08x}":
            raise StateError(f"{path}: the state is damaged (its checksum is wrong)")
        n_tokens = str(about.get("rwkv_cpu.n_tokens", ""))
        if not n_tokens.isdecimal() or len(n_tokens) > 18:
            raise FormatError(f"{path}: the state's header is damaged")
        return cls(layout, _from_parts(body, layout), int(n_tokens))


def _split(path: Path, raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = _LENGTH.unpack(raw[: _LENGTH.size])[0] if len(raw) >= _LENGTH.size else 0
    if not 2 <= length <= min(len(raw) - _LENGTH.size, _MAX_HEADER_BYTES):
        raise FormatError(f"{path}: this is not a state file of rwkv_cpu")
    try:
        header = json.loads(raw[_LENGTH.size : _LENGTH.size + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the state's header is damaged") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path}: this is not a state file of rwkv_cpu")
    return header, raw[_LENGTH.size + length :]


def _from_parts(body: bytes, layout: StateLayout) -> NDArray[np.float32]:
    """Parts one after the other (as in the file) → layers one after the other (as in memory)."""
    state = State(layout, np.empty(layout.floats, np.float32))
    values = np.frombuffer(body, np.float32)
    if not np.isfinite(values).all():
        raise StateError("the state holds NaN or Inf", hint="It was saved after something went wrong.")
    at = 0
    for view in state.parts().values():
        view[...] = values[at : at + view.size].reshape(view.shape)
        at += view.size
    return state.data


def _write_whole(path: Path, pieces: Sequence[bytes]) -> None:
    if path.exists() and not path.is_file():
        raise RwkvError(f"{path}: this is not an ordinary file", hint="Name a file.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RwkvError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
