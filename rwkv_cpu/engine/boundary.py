# SPDX-License-Identifier: Apache-2.0
"""The extension itself: its statuses become exceptions, arrays are checked before they become pointers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import _cffi_backend  # noqa: F401  the extension loads it at run time; named here, freezers find it
import numpy as np

from rwkv_cpu import errors

try:
    from rwkv_cpu._engine import ffi, lib
except ModuleNotFoundError as missing:
    raise ImportError(
        "the engine of rwkv_cpu is not built in this folder: run `make engine` or `pip install -e .` there,"
        " or start Python elsewhere to use the installed package"
    ) from missing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["abi_version", "check", "checked", "ffi", "lib", "version"]

_ERRORS: dict[int, type[errors.RwkvError]] = {
    lib.RWKVC_E_ARGUMENT: errors.ArgumentError,
    lib.RWKVC_E_FORMAT: errors.FormatError,
    lib.RWKVC_E_UNSUPPORTED: errors.UnsupportedModelError,
    lib.RWKVC_E_SHAPE: errors.ShapeError,
    lib.RWKVC_E_TOKEN: errors.TokenError,
    lib.RWKVC_E_STATE: errors.StateError,
    lib.RWKVC_E_NONFINITE: errors.NonFiniteError,
    lib.RWKVC_E_NOMEM: errors.OutOfMemory,
    lib.RWKVC_E_CANCELLED: errors.Cancelled,
    lib.RWKVC_E_FORKED: errors.ForkedError,
    lib.RWKVC_E_NOT_FOUND: errors.ModelNotFoundError,
    lib.RWKVC_E_IO: errors.RwkvError,
}


def check(status: int, where: str = "") -> None:
    """Raise the error that *status* stands for, with the engine's text and hint; *where* names a file."""
    if status == lib.RWKVC_OK:
        return
    text = ffi.string(lib.rwkvc_last_error()).decode("utf-8", "replace")
    hint = ffi.string(lib.rwkvc_last_hint()).decode()
    raise _ERRORS[status](f"{where}: {text}" if where else text, hint=hint)


def version() -> str:
    """The package version that the extension was built from."""
    return str(ffi.string(lib.rwkvc_version()).decode())


def abi_version() -> int:
    """The C interface's version."""
    return int(lib.rwkvc_abi_version())


def checked(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """*array* itself. Raises ArgumentError unless it is contiguous and of *dtype*."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise errors.ArgumentError(f"expected contiguous {np.dtype(dtype)}, got {array.dtype}")
    return array
