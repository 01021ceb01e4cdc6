# SPDX-License-Identifier: Apache-2.0
"""PyTorch checkpoints (.pth, .pt, .bin) without torch: the zip layout and the one before version 1.6.

The file is mapped; opening runs the pickle inside through pickle_reader and checks every tensor against the file,
reading one gives a view of the mapping. Nothing is extracted, nothing in the file is executed.
"""

from __future__ import annotations

import struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkv_cpu.checkpoint.base import ITEM_BYTES, NUMPY_DTYPES, TensorMeta
from rwkv_cpu.checkpoint.mapped import MappedFile
from rwkv_cpu.checkpoint.pickle_reader import MAX_PICKLE_BYTES, ONLY_WEIGHTS, Storage, TensorView, read_pickle
from rwkv_cpu.checkpoint.recognise import DOWNLOAD_AGAIN, shown
from rwkv_cpu.checkpoint.zip_directory import ZipDirectory, ZipEntry
from rwkv_cpu.errors import FormatError, UnsupportedModelError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


class PthCheckpoint:
    """See checkpoint.base.Checkpoint."""

    kind = "pth"
    tokenizer: tuple[str, bytes] | None = None
    chat_template: bytes | None = None

    def __init__(self, path: Path) -> None:
        """Raises: FormatError, UnsupportedModelError, RwkvError (cannot be read)."""
        self.path = path
        self._where = str(path)
        self._file = MappedFile(path)
        self._map = self._file.map
        self._zip: ZipDirectory | None = None
        self._prefix = ""
        self._swap = False
        self._legacy_at: dict[str, int] = {}
        try:
            found = self._read_legacy() if self._map[:1] == b"\x80" else self._read_zip()
            self._views = self._tensors_of(found)
            self.tensors: Mapping[str, TensorMeta] = MappingProxyType(
                {name: TensorMeta(name, view.storage.dtype, view.shape) for name, view in self._views.items()}
            )
            for name, view in self._views.items():
                self._check(name, view)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, a read-only view of the file where it lies there in the machine's own byte order."""
        view = self._views[name]
        dtype, item = NUMPY_DTYPES[view.storage.dtype], ITEM_BYTES[view.storage.dtype]
        if 0 in view.shape:
            return np.empty(view.shape, dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(view.shape, view.stride, strict=True))
        skip = (view.storage.first + view.offset) * item
        source, start = self._bytes_of(name, view.storage, skip + span * item)
        start += skip
        flat = np.frombuffer(source, dtype, span, start)
        if source is self._map:
            self._file.release(start, start + span * item)
        if not flat.flags.aligned or self._swap:
            flat = flat.byteswap() if self._swap else flat.copy()
        strides = tuple(stride * item for stride in view.stride)
        return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False)

    def close(self) -> None:
        """Arrays that were read stay valid; the mapping goes with the last of them."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------- layouts

    def _read_zip(self) -> Any:
        self._zip = directory = ZipDirectory(self._map, self._where)
        pickles = [n for n in directory.entries if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)]
        if len(pickles) != 1:
            raise self._bad(
                f"a zip file with {'no' if not pickles else 'more than one'} data.pkl in it, so no PyTorch checkpoint",
                "If it is an archive that contains a checkpoint, unpack it first.",
            )
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = directory.entry(self._prefix + "byteorder")
        if order is not None:
            text = directory.read(order, 16)
            if text not in (b"little", b"big"):
                raise self._bad("its byteorder is neither little nor big")
            self._swap = text == b"big"
        entry = directory.entry(pickles[0])
        if entry is None or entry.size_bytes > MAX_PICKLE_BYTES:
            raise self._bad("its data.pkl is too large")
        raw = directory.read(entry, entry.size_bytes)
        found, _ = read_pickle(raw, 0, len(raw), self._where)
        return found

    def _read_legacy(self) -> Any:
        """Magic, protocol, system, the object, the keys of the storages; then the storages in that order."""
        size = len(self._map)
        magic, at = read_pickle(self._map, 0, size, self._where)
        if magic != _LEGACY_MAGIC:
            raise self._bad("a pickle, but not one of torch.save", ONLY_WEIGHTS)
        protocol, at = read_pickle(self._map, at, size, self._where)
        if protocol != _LEGACY_PROTOCOL:
            raise self._bad("an unknown version of torch.save's old layout")
        _, at = read_pickle(self._map, at, size, self._where)
        found, at = read_pickle(self._map, at, size, self._where)
        keys, at = read_pickle(self._map, at, size, self._where)
        # The type of a storage stands only with the tensors that use it.
        storages: dict[str, Storage] = {}
        for view in _all_views(found):
            known = storages.setdefault(view.storage.key, view.storage)
            if (known.dtype, known.numel) != (view.storage.dtype, view.storage.numel):
                raise self._bad(f"storage {shown(known.key)} is described in two ways")
        for key in map(str, keys if isinstance(keys, list) else [None]):
            if key not in storages or key in self._legacy_at:
                raise self._bad(f"its list of storages is damaged (storage {shown(key)})")
            storage = storages[key]
            numel = _COUNT.unpack_from(self._map, at)[0] if at + _COUNT.size <= size else -1
            self._legacy_at[key] = at + _COUNT.size
            at += _COUNT.size + storage.numel * ITEM_BYTES[storage.dtype]
            if at > size:
                raise self._bad(f"cut short: storage {shown(key)} ends at byte {at} of {size}", DOWNLOAD_AGAIN)
            if numel != storage.numel:
                raise self._bad(f"storage {shown(key)} has {numel} elements, its tensors say {storage.numel}")
        return found

    # -------------------------------------------------------------------------------------- checks

    def _bad(self, what: str, hint: str = "") -> FormatError:
        return FormatError(f"{self._where}: {what}", hint=hint)

    def _tensors_of(self, found: Any) -> dict[str, TensorView]:
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        if not isinstance(found, dict):
            raise self._bad("holds no dict of tensors", ONLY_WEIGHTS)
        if "_strategy" in found and "_version" in found:
            raise UnsupportedModelError(
                f"{self._where}: converted by the rwkv package for its own use",
                hint="Use the original checkpoint that it was converted from.",
            )
        views = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, TensorView)}
        if not views:
            raise self._bad("holds no tensors", ONLY_WEIGHTS)
        return views

    def _check(self, name: str, view: TensorView) -> None:
        """That the tensor lies in its storage and the storage in the file."""
        storage, item = view.storage, ITEM_BYTES[view.storage.dtype]
        needed = storage.numel * item
        if self._zip is None:
            room = needed if storage.key in self._legacy_at else 0
        else:
            room = self._entry(self._zip, name, storage).size_bytes
        if needed > room:
            raise self._bad(
                f"tensor {shown(name)}: its storage {shown(storage.key)} is declared with {storage.numel} elements "
                f"({needed} bytes), but only {room} bytes of it are in the file",
                DOWNLOAD_AGAIN,
            )
        if 0 in view.shape:
            return
        last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.stride, strict=True))
        if last >= storage.usable:
            raise self._bad(
                f"tensor {shown(name)} of shape {list(view.shape)} reaches to element {last} of a storage with "
                f"{storage.usable}"
            )
        # Only a broadcast tensor can be larger than the bytes behind it: harmless as a view, not as a copy.
        if self.tensors[name].size_bytes > len(self._map) + (1 << 20):
            raise self._bad(f"tensor {shown(name)} of shape {list(view.shape)} is larger than the file")

    def _entry(self, directory: ZipDirectory, name: str, storage: Storage) -> ZipEntry:
        entry = directory.entry(f"{self._prefix}data/{storage.key}")
        if entry is None:
            raise self._bad(f"tensor {shown(name)}: storage {shown(storage.key)} is not in the file", DOWNLOAD_AGAIN)
        return entry

    # --------------------------------------------------------------------------------------- bytes

    def _bytes_of(self, name: str, storage: Storage, needed: int) -> tuple[mmap.mmap | bytes, int]:
        """A buffer and the offset in it where the storage begins, with at least *needed* bytes behind."""
        if self._zip is None:
            return self._map, self._legacy_at[storage.key]
        entry = self._entry(self._zip, name, storage)
        if self._zip.is_stored(entry):
            return self._map, self._zip.offset(entry)
        raw = self._zip.read(entry, needed)
        if len(raw) < needed:
            raise self._bad(f"tensor {shown(name)}: its storage is shorter than declared", DOWNLOAD_AGAIN)
        return raw, 0


def _all_views(found: Any) -> list[TensorView]:
    """Every tensor of an object of dicts, lists and tuples, however they nest."""
    views: list[TensorView] = []
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorView):
            views.append(value)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return views
