# SPDX-License-Identifier: Apache-2.0
"""What a model writes as text for people, by the engine's reader (src/app/reader.c): characters, stops, thoughts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .engine import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reader"]


class Reader:
    """An ``rwkvc_reader``. Text is bytes of UTF-8 here, in which half surrogates may stand ("surrogatepass").

    Args: decode, stops, lead, thoughts: as ``rwkvc_reader_options`` has them.
    """

    def __init__(
        self, *, decode: bool = False, stops: Sequence[bytes] = (), lead: bytes = b"", thoughts: bool = False
    ) -> None:
        options = ffi.new("rwkvc_reader_options *")
        lib.rwkvc_reader_defaults(options)
        texts = [ffi.new("char[]", stop) for stop in stops]
        listed, begun = ffi.new("char *[]", texts), ffi.new("char[]", lead)
        options.decode, options.thoughts = decode, thoughts
        options.stops, options.n_stops, options.lead = listed, len(texts), begun
        made = ffi.new("rwkvc_reader **")
        check(lib.rwkvc_reader_create(options, made))
        self._handle: Any = ffi.gc(made[0], lib.rwkvc_reader_destroy)
        self._piece = ffi.new("rwkvc_piece *")

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Thought and text that are certain after *data*."""
        check(lib.rwkvc_reader_feed(self._handle, data, len(data), self._piece))
        return self._found()

    def finish(self) -> tuple[bytes, bytes]:
        """What is left when no more comes."""
        check(lib.rwkvc_reader_finish(self._handle, self._piece))
        return self._found()

    @property
    def stopped(self) -> bytes | None:
        """The stop that appeared."""
        stop = lib.rwkvc_reader_stopped(self._handle)
        return None if stop == ffi.NULL else bytes(ffi.string(stop))

    @property
    def withheld(self) -> bytes:
        """What may be the beginning of a stop."""
        text = ffi.new("const char **")
        size = lib.rwkvc_reader_withheld(self._handle, text)
        return bytes(ffi.buffer(text[0], size)) if size else b""

    @property
    def thinking(self) -> bool:
        """Whether a thought has begun and not ended."""
        return bool(lib.rwkvc_reader_thinking(self._handle))

    def _found(self) -> tuple[bytes, bytes]:
        piece = self._piece
        thought = bytes(ffi.buffer(piece.thought, piece.thought_bytes)) if piece.thought_bytes else b""
        return thought, bytes(ffi.buffer(piece.text, piece.text_bytes)) if piece.text_bytes else b""
