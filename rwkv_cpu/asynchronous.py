# SPDX-License-Identifier: Apache-2.0
"""Iterators that compute, for asyncio: each step runs in a thread of its own, and cancelling the task stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from typing_extensions import Self

__all__ = ["END", "AsyncSteps", "Steps"]

Item_co = TypeVar("Item_co", covariant=True)


class Steps(Protocol[Item_co]):
    """What can be iterated step by step, and closed: a Reply, an Answer."""

    def __iter__(self) -> Iterator[Item_co]: ...

    def close(self) -> None:
        """End it."""
        ...


# After the last item, where None may be one.
END: Any = object()


class AsyncSteps(Generic[Item_co]):
    """The steps of *source* as an asynchronous iterator. Nothing is computed before the next one is asked for.

    A task that is cancelled while it waits stops the step within milliseconds; the source is closed before the
    cancellation goes on. ``async with``, or aclose(), ends it early.

    Args:
        cancel: stops the step under way within milliseconds; called in the event loop's thread.
    """

    def __init__(self, source: Steps[Item_co], cancel: Callable[[], None]) -> None:
        self._source = source
        self._cancel = cancel
        self._items = iter(source)
        self._executor: ThreadPoolExecutor | None = None

    def __aiter__(self) -> AsyncIterator[Item_co]:
        return self

    async def __anext__(self) -> Item_co:
        item = await self._step(self._items)
        if item is END:
            await self.aclose()
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it here. Harmless if it ended already."""
        self._cancel()
        await self._call(self._source.close)
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    async def _step(self, items: Iterator[Any]) -> Any:
        """The next of *items*, END after the last."""
        import asyncio

        try:
            return await self._call(lambda: next(items, END))
        except asyncio.CancelledError:
            await asyncio.shield(self.aclose())
            raise
        except BaseException:
            await self.aclose()
            raise

    async def _call(self, work: Callable[[], Any]) -> Any:
        """*work* in the thread; one after the other."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="rwkv-cpu answer")
        return await asyncio.wrap_future(self._executor.submit(work))
