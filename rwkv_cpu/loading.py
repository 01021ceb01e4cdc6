# SPDX-License-Identifier: Apache-2.0
"""From what a user types to a .rwkv file: a path or the name of a model that places.py finds, a .rwkv or a checkpoint.

A checkpoint is converted once, into the user's cache directory, and found there again as long as neither it nor
this package changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_cpu._version import __version__
from rwkv_cpu.checkpoint.recognise import kind_of
from rwkv_cpu.errors import ArgumentError, Cancelled, FormatError, ModelNotFoundError, RwkvError
from rwkv_cpu.modelfile import read_header
from rwkv_cpu.places import DEMO, MODEL_SUFFIXES, bundled_model, cache_directory, find_models, named_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rwkv_cpu.cancel import CancelToken

__all__ = ["CachedModel", "cached_models", "clear_cache", "path_of", "resolve"]

_log = logging.getLogger("rwkv_cpu")
_DEFAULT_FORMAT = "q8"
_LOCK_SECONDS = 0.1


@dataclass(frozen=True)
class Adapter:
    """What to merge into a checkpoint while it is converted; see quantize()."""

    lora: Path
    alpha: float | None = None
    pissa_init: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Those that change the result."""
        return [self.lora] if self.pissa_init is None else [self.lora, self.pissa_init]


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 (its name everywhere)
    adapter: Adapter | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """The .rwkv file for a name or a path; converts a checkpoint unless that was done before.

    Args:
        name_or_path: a .rwkv file or a checkpoint; if there is none of this name, "demo" or one that
            places.find_models() lists.
        format: for a checkpoint "q8" (default), "q6", "q5", "q4", "f16" or "f32"; for a .rwkv file None, or what it is.
        adapter: for a checkpoint: merged into it.
        on_progress: called with (bytes done, bytes in all) while converting.
        cancel: a CancelToken.

    Raises: ModelNotFoundError (naming the model files that are there), everything quantize() raises, and
        ArgumentError: a .rwkv file stored in another format than asked for, or with an adapter.
    """
    path = path_of(name_or_path)
    try:
        kind = kind_of(path)
    except ModelNotFoundError:
        raise _not_found(name_or_path, path) from None
    if kind == "rwkv":
        if adapter is not None:
            raise ArgumentError(
                f"{path}: an adapter cannot be merged into a .rwkv file", hint="Give the checkpoint it was made from."
            )
        stored = read_header(path).metadata.get("rwkv_cpu.format") if format is not None else None
        if stored != format:
            raise ArgumentError(
                f"{path}: its weights are stored as {stored or 'unknown'}, not {format}",
                hint="Convert the original checkpoint in that format, or leave the format away.",
            )
        return path
    return _converted(path, format or _DEFAULT_FORMAT, adapter, on_progress, cancel)


def path_of(name_or_path: str | os.PathLike[str]) -> Path:
    """Where a name or path leads: to the file, or to a place where nothing is."""
    if name_or_path == DEMO:
        return bundled_model()
    path = Path(name_or_path).expanduser()
    return path if path.exists() else named_model(os.fspath(name_or_path)) or path


def _not_found(asked: str | os.PathLike[str], path: Path) -> ModelNotFoundError:
    for suffix in MODEL_SUFFIXES:
        near = path.with_name(path.name + suffix)
        if near.is_file():
            return ModelNotFoundError(f"no model called {os.fspath(asked)!r}", hint=f"Did you mean {near}?")
    folder = path.parent
    found = []
    with contextlib.suppress(OSError):
        found = sorted(file.name for file in folder.iterdir() if file.suffix in MODEL_SUFFIXES and file.is_file())
    if found:
        names = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        where = "here" if folder == Path() else f"in {folder}"
        hint = f"Model files {where}: {names}. The bundled model is called {DEMO!r}."
    elif path.name == os.fspath(asked) and (known := [model.name for model in find_models()]):
        hint = f"Models that have a name here: {', '.join(known[:5])}."
    else:
        hint = f"Give the path of a .rwkv file or of a checkpoint, or {DEMO!r} for the bundled model."
    return ModelNotFoundError(f"no model called {os.fspath(asked)!r}", hint=hint)


# -------------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class CachedModel:
    """A converted checkpoint in the cache; *source* is the checkpoint's name, "" if the file is damaged."""

    path: Path
    source: str
    format: str
    size_bytes: int


def cached_models() -> list[CachedModel]:
    """What is in the cache, by name."""
    models = []
    for path in sorted(cache_directory().glob("*.rwkv")):
        try:
            about = read_header(path).metadata
        except RwkvError:
            about = {}
        with contextlib.suppress(OSError):  # another process may clear the cache meanwhile
            source, stored = about.get("rwkv_cpu.source", ""), about.get("rwkv_cpu.format", "")
            models.append(CachedModel(path, source, stored, path.stat().st_size))
    return models


def clear_cache() -> int:
    """Delete converted checkpoints and what interrupted conversions left. Returns the bytes set free.

    A model in use stays usable until it is closed. A conversion that runs just now goes on.
    """
    freed = 0
    folder = cache_directory()
    if not folder.is_dir():
        return 0
    with _locked(folder, None):
        try:
            for path in [*folder.glob("*.rwkv"), *folder.glob(".rwkv_cpu-*.part")]:
                size = path.stat().st_size
                path.unlink()
                freed += size
        except OSError as error:
            raise RwkvError(f"{folder}: cannot be cleared: {error.strerror}") from error
    return freed


def _converted(
    source: Path,
    format: str,  # noqa: A002
    adapter: Adapter | None,
    on_progress: Callable[[int, int], None] | None,
    cancel: CancelToken | None,
) -> Path:
    target = cache_directory() / _cache_name(source, format, adapter)
    if _is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RwkvError(
            f"{target.parent}: cannot be made: {error.strerror}",
            hint="Set RWKV_CPU_HOME to a directory that can be written, or convert with rwkv-cpu quantize.",
        ) from error
    with _locked(target.parent, cancel):
        if _is_whole(target):  # another process was quicker
            return target
        for left in target.parent.glob(".rwkv_cpu-*.part"):  # nobody else writes here while the lock is held
            with contextlib.suppress(OSError):
                left.unlink()
        from rwkv_cpu.quantize import quantize

        _log.info("converting %s to %s in the cache", source, format)
        quantize(
            source,
            target,
            format=format,
            tokenizer="optional",
            lora=None if adapter is None else adapter.lora,
            lora_alpha=None if adapter is None else adapter.alpha,
            pissa_init=None if adapter is None else adapter.pissa_init,
            force=True,
            on_progress=on_progress,
            cancel=cancel,
        )
    return target


def _cache_name(source: Path, format: str, adapter: Adapter | None) -> str:  # noqa: A002
    """Readable, and different whenever the result would be."""
    from rwkv_cpu.checkpoint.directory import model_files
    from rwkv_cpu.quantize.embed import files_beside

    parts = [format, __version__]
    files = [*model_files(source), *files_beside(source)]  # a tokenizer beside it is taken along
    if adapter is not None:
        parts.append(f"adapter {adapter.alpha}")
        files += adapter.files
    for file in files:
        with contextlib.suppress(OSError):
            real = file.resolve()
            status = real.stat()
            parts += [str(real), str(status.st_size), str(status.st_mtime_ns)]
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    stem = re.sub(r"[^\w.-]+", "_", source.stem, flags=re.ASCII)[:60]
    return f"{stem}-{format}-{digest}.rwkv"


def _is_whole(target: Path) -> bool:
    """Whether a finished file is there; a damaged one (a full disk, a crash) is converted again."""
    try:
        read_header(target)
    except ModelNotFoundError:
        return False
    except FormatError:
        _log.warning("%s is damaged and will be made again", target)
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path, cancel: CancelToken | None) -> Iterator[None]:
    """Hold the cache's lock: one conversion at a time, whatever the process or thread.

    The file stays; the system drops the lock with the process that holds it, however it ends.
    """
    try:
        file = (folder / ".lock").open("ab")
    except OSError as error:
        raise RwkvError(
            f"{folder}: cannot be written: {error.strerror}", hint="Set RWKV_CPU_HOME to a directory that can be."
        ) from error
    with file:
        while not _try_lock(file.fileno()):
            if cancel is not None and cancel.cancelled:
                raise Cancelled("cancelled while waiting for another conversion")
            time.sleep(_LOCK_SECONDS)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
