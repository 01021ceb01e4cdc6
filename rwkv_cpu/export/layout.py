# SPDX-License-Identifier: Apache-2.0
"""What is written where: an output file planned completely before its first byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

__all__ = ["Layout", "Output", "parts_of"]


@dataclass(frozen=True)
class Output:
    """A tensor of the file to be written: its place from the file's begin, and where its bytes come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    pieces: Callable[[], Iterator[Buffer]]


class Layout(Protocol):
    """A planned file.

    tokenizer: the kind that is embedded, "none" without. exact: no value gets rounded.
    """

    size_bytes: int
    tokenizer: str
    exact: bool
    dtypes: list[str]

    def parts(self) -> Iterator[tuple[int, Buffer]]:
        """(offset, bytes) that together are the whole file, a few megabytes at a time."""
        ...


def parts_of(header: bytes, outputs: list[Output], size_bytes: int) -> Iterator[tuple[int, Buffer]]:
    """The parts of a file that is a header, tensors at their offsets, and zeros between and behind them.

    Raises: AssertionError: a tensor whose pieces are not as long as planned.
    """
    yield 0, header
    at = len(header)
    for output in outputs:
        if output.offset > at:
            yield at, bytes(output.offset - at)
        at = output.offset
        for piece in output.pieces():
            yield at, piece
            at += memoryview(piece).nbytes
        if at != output.offset + output.size_bytes:
            raise AssertionError(f"{output.name}: {at - output.offset} bytes instead of {output.size_bytes}")
    if size_bytes > at:
        yield at, bytes(size_bytes - at)
