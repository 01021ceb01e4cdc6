# SPDX-License-Identifier: Apache-2.0
"""Text from tokens that come one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkv_cpu.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DecodeStream"]


class DecodeStream:
    """Turns ids into text as they come, never half a character: a token may end inside one.

    What the steps and flush() return, joined, is the text of all the ids. Bytes that can no longer become a
    character are U+FFFD; the start of one that never came is so only in flush().

    Args:
        piece_of: the bytes of one id; raises TokenError for an unknown one.
        first_piece_of: the bytes of the first id that has any, where they differ there (a tokenizer that puts a
            space before every text takes it away again).
    """

    def __init__(self, piece_of: Callable[[int], bytes], first_piece_of: Callable[[int], bytes] | None = None) -> None:
        self._piece_of = piece_of
        self._first_piece_of = first_piece_of
        self._reader = Reader(decode=True)

    def step(self, token: int) -> str:
        """The text that *token* completes; "" while a character is incomplete.

        Raises:
            TokenError: an id outside the vocabulary.
        """
        piece = self._piece_of(token)
        if self._first_piece_of is not None and piece:
            piece = self._first_piece_of(token)
            self._first_piece_of = None
        return self._reader.feed(piece)[1].decode()

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character, else ""."""
        return self._reader.finish()[1].decode()
