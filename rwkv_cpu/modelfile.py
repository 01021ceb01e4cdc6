# SPDX-License-Identifier: Apache-2.0
"""The .rwkv file: a safetensors file whose first tensor, at data offset 0, is the engine's binary table.

    u64 header length | JSON header, padded with spaces | data section: table, tensors, byte tensors

Every tensor stands in the JSON as raw bytes (U8): what is in them the table says, which the engine checks by itself.
This module knows the container only; it reads no weights but in verify().
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, KINDS, kind_of, shown
from rwkv_cpu.errors import ChecksumError, FormatError, RwkvError, UnsupportedModelError
from rwkv_cpu.memory import allow_huge_pages, human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Buffer, Self

__all__ = ["TABLE", "FileInfo", "ModelFile", "ModelWriter", "Place", "build_header", "read_header", "verify"]

TABLE = "rwkv_cpu.table"
ALIGN_BYTES = 64
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 16 << 20  # 100 bytes a tensor are usual
_CRC_STEP_BYTES = 4 << 20
_OWN_FILES = "/proc/self/fd"
_place_lock = threading.Lock()  # where a file has one place for all threads


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: bytes from the begin of the data section."""

    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The header of a .rwkv file. *tensors* includes the table; *data_offset* is where the data section begins."""

    path: Path
    size_bytes: int
    data_offset: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, Place]


class _Packed(Protocol):
    """What verify() needs of a tensor; the engine's TensorInfo has it."""

    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def crc32(self) -> int: ...


# ------------------------------------------------------------------------------------------ reading


def read_header(path: str | Path) -> FileInfo:
    """Read and check the header; no weights.

    Raises: ModelNotFoundError, FormatError, UnsupportedModelError (another kind of model file).
    """
    path = Path(path)
    kind = kind_of(path)
    if kind != "rwkv":
        raise UnsupportedModelError(
            f"{path}: this is {KINDS[kind][0]}, not a .rwkv file",
            hint=KINDS[kind][1] or "Convert it first: rwkv-cpu quantize",
        )
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            if length > min(size - _LENGTH.size, _MAX_HEADER_BYTES):
                raise FormatError(
                    f"{path}: its header of {length} bytes does not fit into the file ({size} bytes)",
                    hint=DOWNLOAD_AGAIN,
                )
            raw = file.read(length)
    except OSError as error:
        raise RwkvError(f"{path}: cannot be read: {error.strerror}") from error
    data_offset = _LENGTH.size + length
    if data_offset % ALIGN_BYTES or len(raw) < length:
        raise FormatError(f"{path}: its data section is not aligned to {ALIGN_BYTES} bytes")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its JSON header is damaged ({shown(str(error))})", hint=DOWNLOAD_AGAIN) from error
    metadata, tensors = _check_header(path, header, size - data_offset)
    return FileInfo(path, size, data_offset, MappingProxyType(metadata), MappingProxyType(tensors))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _check_header(path: Path, header: Any, data_bytes: int) -> tuple[dict[str, str], dict[str, Place]]:
    if not isinstance(header, dict):
        raise FormatError(f"{path}: its JSON header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: the metadata in its header is not text")
    tensors: dict[str, Place] = {}
    for name, entry in header.items():
        match entry:
            case {"dtype": "U8", "shape": [int() as size], "data_offsets": [int() as begin, int() as end]} if (
                0 <= begin <= end == begin + size
            ):
                tensors[name] = Place(begin, size)
            case _:
                raise FormatError(f"{path}: the header's entry for {shown(name)} is damaged")
    # As the safetensors format demands: no gap, no overlap, nothing behind the last tensor.
    expected = 0
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size_bytes)):
        if place.offset != expected or (expected == 0) != (name == TABLE):
            raise FormatError(f"{path}: tensor {shown(name)} lies at byte {place.offset}, expected {expected}")
        expected += place.size_bytes
    if TABLE not in tensors:
        raise FormatError(f"{path}: its table is missing")
    if expected != data_bytes:
        raise FormatError(
            f"{path}: its tensors take {expected} bytes, but {data_bytes} are in the file", hint=DOWNLOAD_AGAIN
        )
    return metadata, tensors


class ModelFile:
    """A mapped .rwkv file: *buffer* is the whole of it, read-only, 64-byte aligned and shared between processes.

    Raises: as read_header.
    """

    def __init__(self, path: str | Path) -> None:
        self.info = read_header(path)
        try:
            with self.info.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.info.size_bytes:
                    raise FormatError(f"{self.info.path}: the file is being changed", hint="Try again.")
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RwkvError(f"{self.info.path}: cannot be mapped: {error.strerror}") from error
        allow_huge_pages(self.buffer)

    @property
    def path(self) -> Path:
        """The file."""
        return self.info.path

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the header says about the file's origin."""
        return self.info.metadata

    @property
    def tensors(self) -> Mapping[str, Place]:
        """By name, the table included."""
        return self.info.tensors

    def close(self) -> None:
        """Unmap, unless something still holds a view of the buffer: then the mapping goes with it."""
        with contextlib.suppress(BufferError):
            self.buffer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def verify(file: ModelFile, packed: Iterable[_Packed], on_progress: Callable[[int, int], None] | None = None) -> None:
    """Read every tensor and compare its checksum, and its place with the JSON header.

    Args:
        file: an open model file.
        packed: the tensors as the table has them (the engine's OpenModel.tensors()).
        on_progress: called with (bytes done, bytes in all).

    Raises: ChecksumError naming the first tensor that differs; FormatError.
    """
    infos = list(packed)
    total, done = sum(info.size_bytes for info in infos), 0
    for info in infos:
        if file.tensors.get(info.name) != Place(info.offset, info.size_bytes):
            raise FormatError(f"{file.path}: header and table disagree about {shown(info.name)}")
        start, crc = file.info.data_offset + info.offset, 0
        for at in range(start, start + info.size_bytes, _CRC_STEP_BYTES):
            part = file.buffer[at : min(at + _CRC_STEP_BYTES, start + info.size_bytes)]
            crc = zlib.crc32(part, crc)
            done += len(part)
            if on_progress is not None:
                on_progress(done, total)
        if crc != info.crc32:
            raise ChecksumError(
                f"{file.path}: the bytes of {shown(info.name)} have changed since the file was written",
                hint="Convert the checkpoint again, or copy the file again from where it came.",
            )


# ------------------------------------------------------------------------------------------ writing


def build_header(metadata: Mapping[str, str], tensors: Iterable[tuple[str, Place]]) -> bytes:
    """The bytes before the data section: length and JSON, padded so that the section is aligned.

    *tensors*: all but the table, in the order of the file and without gaps; the table lies before the first.
    """
    places = list(tensors)
    table_bytes = places[0][1].offset
    entries: dict[str, Any] = {}
    for name, place in [(TABLE, Place(0, table_bytes)), *places]:
        offsets = [place.offset, place.offset + place.size_bytes]
        entries[name] = {"dtype": "U8", "shape": [place.size_bytes], "data_offsets": offsets}
    # Metadata last, so that the first bytes name the table: that is how the file is recognised.
    entries["__metadata__"] = dict(metadata)
    raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-(_LENGTH.size + len(raw)) % ALIGN_BYTES)
    return _LENGTH.pack(len(raw)) + raw


class ModelWriter:
    """Writes a file beside *target* under another name and gives it its name at the end, or leaves nothing.

    Use as a context manager: without commit() the partial file is removed, whatever happened. The target is never
    seen half written and, without *force*, never replaced, not even one that appeared meanwhile. *size_bytes* is what
    the complete file has.

    Raises: RwkvError: it exists, no such directory, no permission, disk full.
    """

    def __init__(self, target: str | Path, size_bytes: int, *, force: bool = False) -> None:
        self.check_target(target, force=force)
        self._target = Path(os.path.realpath(target))
        self._force = force
        self._fd = -1
        folder = self._target.parent
        self._part = folder / f".rwkv_cpu-{os.urandom(6).hex()}.part"
        import shutil  # brings every compressor along: reading a model needs none of it

        try:
            free = shutil.disk_usage(folder).free
            if free < size_bytes:
                raise RwkvError(
                    f"{target}: needs {human_bytes(size_bytes)}, but only {human_bytes(free)} are free there",
                    hint="Free some space, or name a target on another disk.",
                )
            self._open(folder)
            self._reserve(size_bytes)
        except OSError as error:
            self._close()
            raise self._failed(error) from error

    @staticmethod
    def check_target(target: str | Path, *, force: bool) -> None:
        """Fail early where the end would: the target exists (unless *force*), or its directory does not."""
        target = Path(target)
        if not target.parent.is_dir():
            raise RwkvError(f"{target}: there is no directory {target.parent}", hint="Make it first.")
        if target.is_dir():
            raise RwkvError(f"{target}: this is a directory", hint="Name a file in it.")
        if target.exists() and not target.is_file():
            raise RwkvError(f"{target}: this is not an ordinary file", hint="Name a file.")
        if not force and target.exists():
            raise RwkvError(f"{target}: exists already", hint="Use --force (force=True) to replace it.")

    def _open(self, folder: Path) -> None:
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._unnamed = hasattr(os, "O_TMPFILE") and Path(_OWN_FILES).is_dir()
        if self._unnamed:  # has no name until it is complete: of a killed process nothing stays
            try:
                self._fd = os.open(folder, flags | os.O_TMPFILE, 0o666)
                return
            except OSError as error:  # a file system without such files
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                    raise
                self._unnamed = False
        self._fd = os.open(self._part, flags | os.O_CREAT | os.O_EXCL, 0o666)

    def _reserve(self, size_bytes: int) -> None:
        """Take the space at once: no other program can fill the disk meanwhile, and writing takes less time."""
        # Where a file system cannot, the C library writes into every block instead; one with unnamed files can.
        if not (self._unnamed and hasattr(os, "posix_fallocate")):
            return
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise

    def _give_name(self) -> None:
        own_files = os.open(_OWN_FILES, os.O_RDONLY)
        try:  # with a directory's descriptor, or Python links the symbolic link itself
            os.link(str(self._fd), self._part, src_dir_fd=own_files, follow_symlinks=True)
        finally:
            os.close(own_files)

    def write(self, offset: int, data: Buffer) -> None:
        """Write *data* at a byte offset of the file; several threads may, each its own bytes."""
        with memoryview(data) as whole, whole.cast("B") as view:
            done = 0
            try:
                while done < len(view):
                    done += _write_at(self._fd, view[done : done + (1 << 30)], offset + done)
            except OSError as error:
                raise self._failed(error) from error

    def commit(self) -> None:
        """Make the file complete and durable under its name."""
        try:
            os.fsync(self._fd)
            if self._unnamed:
                self._give_name()
            self._close()
            self._publish()
            if os.name == "posix":
                folder = os.open(self._target.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise self._failed(error) from error

    def _publish(self) -> None:
        if self._force:
            self._part.replace(self._target)
            return
        if os.name == "nt":
            self._part.rename(self._target)  # refuses to replace, unlike elsewhere
            return
        try:
            os.link(self._part, self._target)  # fails when the name is taken, in one step
            self._part.unlink()
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: take the name first, then replace that empty file
            os.close(os.open(self._target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            self._part.replace(self._target)

    def _failed(self, error: OSError) -> RwkvError:
        target = self._target
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return RwkvError(f"{target}: the disk is full", hint="Free some space, or name a target on another disk.")
        if error.errno == errno.EFBIG:
            hint = "Raise the limit (ulimit -f), or name a target on another file system."
            return RwkvError(f"{target}: larger than a file may be here", hint=hint)
        if isinstance(error, FileExistsError):
            return RwkvError(f"{target}: exists already", hint="Use --force (force=True) to replace it.")
        if os.name == "nt" and isinstance(error, PermissionError) and target.exists():
            hint = "Windows replaces no file that is in use: close the programs that have this model open."
            return RwkvError(f"{target}: cannot be replaced: {error.strerror}", hint=hint)
        return RwkvError(f"{target}: cannot be written: {error.strerror}", hint="Check the path and its permissions.")

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


def _write_at(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _place_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
