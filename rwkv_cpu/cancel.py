# SPDX-License-Identifier: Apache-2.0
"""Stopping work from anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .engine import ffi

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CancelToken"]


class CancelToken:
    """Stops whatever was given it: loading, prefill, decoding, quantising.

    ``cancel()`` may be called from any thread and from a signal handler; the engine polls the flag inside its
    matrix products, so that work ends within milliseconds. A token stays cancelled: use a new one for new work.
    """

    def __init__(self) -> None:
        self._flag: Any = ffi.new("int32_t *", 0)
        self._linked: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ask the work to stop."""
        self._flag[0] = 1
        for stop in tuple(self._linked):
            stop()

    @property
    def cancelled(self) -> bool:
        """Whether cancel() was called."""
        return bool(self._flag[0])

    @property
    def pointer(self) -> Any:
        """The flag as the engine's ``const int32_t *``; keep the token while it is in use."""
        return self._flag

    def link(self, stop: Callable[[], None]) -> None:
        """cancel() calls *stop* too, until unlink(); it is called now if that happened already. It must not wait.

        Without a lock, which a signal handler could wait for in vain: either cancel() finds it in the list, or this
        sees that cancel() was called.
        """
        self._linked.append(stop)
        if self.cancelled:
            stop()

    def unlink(self, stop: Callable[[], None]) -> None:
        """Take back link()."""
        self._linked.remove(stop)

    def __repr__(self) -> str:
        return f"CancelToken(cancelled={self.cancelled})"
