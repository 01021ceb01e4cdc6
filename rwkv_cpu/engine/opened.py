# SPDX-License-Identifier: Apache-2.0
"""A model file's bytes, opened by the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .boundary import check, ffi, lib
from .tensors import Config, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenModel:
    """An ``rwkvc_model`` bound to the bytes of a .rwkv file.

    Args: buffer: the whole file, 64-byte aligned; kept alive until close(). where: its name, for errors.
    Raises: FormatError, UnsupportedModelError, ShapeError, OutOfMemory.
    """

    def __init__(self, buffer: Any, where: str = "") -> None:
        self._owner = ffi.from_buffer("uint8_t[]", buffer)
        handle = ffi.new("rwkvc_model **")
        check(lib.rwkvc_model_open(self._owner, len(self._owner), handle), where)
        self.raw: Any = handle[0]
        self.config = Config()
        lib.rwkvc_model_config(self.raw, self.config.raw)
        self.state_floats = int(lib.rwkvc_state_floats(self.raw))
        self.token_bytes = int(lib.rwkvc_model_token_bytes(self.raw))

    def tensors(self) -> list[TensorInfo]:
        """Every tensor of the file."""
        found: list[TensorInfo] = []
        info = ffi.new("rwkvc_tensor_info *")
        for i in range(lib.rwkvc_model_tensors(self.raw)):
            check(lib.rwkvc_model_tensor(self.raw, i, info))
            found.append(TensorInfo.from_raw(info))
        return found

    def bytes_of(self, name: str) -> memoryview | None:
        """A tensor's bytes in the mapping, None if there is no such tensor. Not to be kept past close()."""
        size = ffi.new("uint64_t *")
        data = lib.rwkvc_model_bytes(self.raw, name.encode(), size)
        if data == ffi.NULL:
            return None
        return memoryview(ffi.buffer(data, size[0])).toreadonly()

    def describe_state(self) -> Any:
        """An ``rwkvc_state_layout *``: what states look like, and which model this is."""
        layout = ffi.new("rwkvc_state_layout *")
        lib.rwkvc_state_describe(self.raw, layout)
        return layout

    def init_state(self, state: NDArray[np.float32]) -> None:
        """Write the state before the first token."""
        lib.rwkvc_state_init(self.raw, ffi.from_buffer("float[]", state, require_writable=True))

    def close(self) -> None:
        """Free the handle and let go of the bytes."""
        if self.raw is not None:
            lib.rwkvc_model_close(self.raw)
            self.raw = None
            ffi.release(self._owner)
