# SPDX-License-Identifier: Apache-2.0
"""What a model computes with: the engine's context, made anew when threads or priority are changed."""

from __future__ import annotations

from typing import NamedTuple

from . import engine
from .errors import OutOfMemory

__all__ = ["Computing"]


class _Work(NamedTuple):
    """How to compute. threads: None: the default."""

    threads: int | None
    low_priority: bool


class Computing:
    """Threads, priority and instruction set of one model. The context is made when it is first asked for."""

    def __init__(self, threads: int | None, isa: str | None, *, low_priority: bool) -> None:
        self._isa = isa
        self._wanted = self._fitted = _Work(threads, low_priority)
        self._context: engine.Context | None = None

    @property
    def threads(self) -> int:
        """As wanted; may be set, None: the default."""
        return self._wanted.threads or engine.default_threads()

    @threads.setter
    def threads(self, threads: int | None) -> None:
        engine.check_threads(threads)
        self._wanted = self._wanted._replace(threads=threads)

    @property
    def low_priority(self) -> bool:
        """As wanted; may be set."""
        return self._wanted.low_priority

    @low_priority.setter
    def low_priority(self, low_priority: bool) -> None:
        self._wanted = self._wanted._replace(low_priority=low_priority)

    def context(self) -> engine.Context:
        """The context as it is."""
        if self._context is None:
            self._context = self._new_context(self._fitted)
        return self._context

    def fitting(self) -> engine.Context:
        """The context for the next pass, made anew if threads or priority were changed; for the one who leads it."""
        wanted = self._wanted
        # A priority that was raised just now: the next leader is no longer a thread of low priority.
        if wanted != self._fitted and (wanted.low_priority or not engine.is_lowered()):
            try:
                fresh = self._new_context(wanted)
            except OutOfMemory:
                self._wanted = self._fitted
                raise
            replaced, self._context, self._fitted = self._context, fresh, wanted
            if replaced is not None:
                replaced.close()
        return self.context()

    def close(self) -> None:
        """End the threads, free their memory."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def forget(self) -> None:
        """In a child of fork(): the threads stayed in the parent."""
        self._context = None

    def _new_context(self, work: _Work) -> engine.Context:
        """Workers begin with the priority of the thread that makes them."""
        if not work.low_priority or engine.is_lowered():
            return engine.Context(work.threads, self._isa)
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1, initializer=engine.lower_priority) as thread:
            return thread.submit(engine.Context, work.threads, self._isa).result()
