# SPDX-License-Identifier: Apache-2.0
"""The directory of a zip file in memory, with every number checked against the file before it is used.

zipfile of the standard library believes the sizes it finds and wants a file object; a checkpoint is read from a
mapping, where a stored entry is just a range of bytes. Nothing here ever writes a file or uses an entry's name as
a path.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.errors import FormatError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")  # central directory entry
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_ENTRIES = 100_000  # the largest released checkpoints have about 2,000 tensors
_MAX_NAME_BYTES = 1024
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1
_UTF8 = 0x800
_DEFLATE_MAX_RATIO = 1032


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """Sizes in bytes; *header_offset* is where the entry's local header begins."""

    name: str
    raw_name: bytes
    method: int
    flags: int
    packed_bytes: int
    size_bytes: int
    header_offset: int


class ZipDirectory:
    """The entries of a zip file by name.

    Raises: FormatError naming *where* for anything that does not add up.
    """

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self._data = data
        self._where = where
        count, self._start, self._end = self._find()
        if count > _MAX_ENTRIES:
            raise self._bad(f"{count} zip entries (at most {_MAX_ENTRIES} are read)")
        self.entries: dict[str, ZipEntry] = {}
        self._twice: set[str] = set()
        for entry in self._read(count):
            if entry.name in self.entries:
                self._twice.add(entry.name)
            self.entries[entry.name] = entry

    def entry(self, name: str) -> ZipEntry | None:
        """The entry of that name whose bytes lie inside the file, or None."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        if name in self._twice:
            raise self._bad(f"two zip entries are named {shown(name)}")
        if entry.flags & _ENCRYPTED or entry.method not in (_STORED, _DEFLATED):
            raise self._bad(f"zip entry {shown(name)} is encrypted or compressed in an unknown way")
        least = entry.header_offset + _LOCAL.size + len(entry.raw_name) + entry.packed_bytes
        if least > self._start:
            raise self._bad(f"zip entry {shown(name)} of {entry.packed_bytes} bytes reaches past the data", cut=True)
        if entry.method == _STORED and entry.packed_bytes != entry.size_bytes:
            raise self._bad(f"zip entry {shown(name)} declares two different sizes")
        if entry.method == _DEFLATED and entry.size_bytes > entry.packed_bytes * _DEFLATE_MAX_RATIO + 64:
            raise self._bad(f"zip entry {shown(name)} declares {entry.size_bytes} bytes, more than it can hold")
        return entry

    def offset(self, entry: ZipEntry) -> int:
        """Where the (possibly compressed) bytes of *entry* begin in the file."""
        header = _LOCAL.unpack_from(self._data, entry.header_offset)
        name_bytes, extra_bytes = header[9], header[10]
        name_at = entry.header_offset + _LOCAL.size
        start: int = name_at + name_bytes + extra_bytes
        if header[0] != b"PK\x03\x04" or self._data[name_at : name_at + name_bytes] != entry.raw_name:
            raise self._bad(f"zip entry {shown(entry.name)} is not where the directory says")
        if start + entry.packed_bytes > self._start:
            raise self._bad(f"zip entry {shown(entry.name)} reaches past the data", cut=True)
        return start

    def is_stored(self, entry: ZipEntry) -> bool:
        """Whether the entry's bytes in the file are the data itself."""
        return entry.method == _STORED

    def read(self, entry: ZipEntry, most_bytes: int) -> bytes:
        """The first *most_bytes* of the entry, decompressed."""
        start = self.offset(entry)
        if entry.method == _STORED:
            return self._data[start : start + min(entry.packed_bytes, most_bytes)]
        if not most_bytes:
            return b""
        try:
            with memoryview(self._data) as view, view[start : start + entry.packed_bytes] as packed:
                return zlib.decompressobj(-15).decompress(packed, most_bytes)
        except zlib.error as error:
            raise self._bad(f"zip entry {shown(entry.name)} is damaged ({error})", cut=True) from error

    def _bad(self, what: str, *, cut: bool = False) -> FormatError:
        return FormatError(f"{self._where}: {what}", hint=DOWNLOAD_AGAIN if cut else "")

    def _find(self) -> tuple[int, int, int]:
        """Number of entries, begin and end of the central directory."""
        data, size = self._data, len(self._data)
        at = data.rfind(b"PK\x05\x06", max(0, size - _END.size - 0xFFFF))
        if at < 0 or at + _END.size > size:
            raise self._bad("the zip directory at the end of the file is missing: the file is cut short", cut=True)
        _, _, _, _, count, length, start, _ = _END.unpack_from(data, at)
        end = at
        if count == 0xFFFF or length == 0xFFFFFFFF or start == 0xFFFFFFFF:
            locator_at = at - _END64_LOCATOR.size
            if locator_at < 0 or data[locator_at : locator_at + 4] != b"PK\x06\x07":
                raise self._bad("the zip64 directory is missing", cut=True)
            end64 = _END64_LOCATOR.unpack_from(data, locator_at)[2]
            if end64 + _END64.size > locator_at or data[end64 : end64 + 4] != b"PK\x06\x06":
                raise self._bad("the zip64 directory is not where the file says", cut=True)
            fields = _END64.unpack_from(data, end64)
            count, length, start, end = fields[7], fields[8], fields[9], end64
        if start + length > end:
            raise self._bad("the zip directory does not fit into the file", cut=True)
        return count, start, start + length

    def _read(self, count: int) -> Iterator[ZipEntry]:
        data, at = self._data, self._start
        for _ in range(count):
            if at + _ENTRY.size > self._end or data[at : at + 4] != b"PK\x01\x02":
                raise self._bad("the zip directory is damaged", cut=True)
            fields = _ENTRY.unpack_from(data, at)
            flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
            name_bytes, extra_bytes, comment_bytes, offset = fields[10], fields[11], fields[12], fields[16]
            name_at = at + _ENTRY.size
            extra_at = name_at + name_bytes
            at = extra_at + extra_bytes + comment_bytes
            if at > self._end or name_bytes > _MAX_NAME_BYTES:
                raise self._bad("the zip directory is damaged", cut=True)
            raw_name = data[name_at:extra_at]
            large = [value for value in (size, packed, offset) if value == 0xFFFFFFFF]
            if large:
                values = self._zip64(data[extra_at : extra_at + extra_bytes], len(large))
                size = next(values) if size == 0xFFFFFFFF else size
                packed = next(values) if packed == 0xFFFFFFFF else packed
                offset = next(values) if offset == 0xFFFFFFFF else offset
            name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437", "replace")
            yield ZipEntry(name, raw_name, method, flags, packed, size, offset)

    def _zip64(self, extra: bytes, wanted: int) -> Iterator[int]:
        at = 0
        while at + 4 <= len(extra):
            tag, length = struct.unpack_from("<2H", extra, at)
            if tag == 1 and 8 * wanted <= length <= len(extra) - at - 4:
                return iter(struct.unpack_from(f"<{wanted}Q", extra, at + 4))
            at += 4 + length
        raise self._bad("a zip entry lacks its 64-bit sizes")
