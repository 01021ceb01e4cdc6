# SPDX-License-Identifier: Apache-2.0
"""Where things are kept on this machine, and where models are looked for. RWKV_CPU_HOME moves all of it."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from platformdirs.api import PlatformDirsABC

__all__ = [
    "DEMO",
    "MODEL_SUFFIXES",
    "FoundModel",
    "bundled_model",
    "cache_directory",
    "find_models",
    "model_folders",
    "models_directory",
    "named_model",
    "sessions_directory",
    "spill_directory",
    "user_directory",
]

DEMO = "demo"
MODEL_SUFFIXES = (".rwkv", ".pth", ".safetensors", ".st", ".gguf")


def _home() -> Path | None:
    home = os.environ.get("RWKV_CPU_HOME")
    return Path(home).expanduser() if home else None


def _system() -> PlatformDirsABC:
    import platformdirs

    return platformdirs.PlatformDirs("rwkv_cpu", appauthor=False)


def _whole(folder: Path) -> Path:
    """Raises: RuntimeError: the user has no home."""
    if not folder.is_absolute():
        raise RuntimeError(f"{folder}: this user has no home directory")
    return folder


def user_directory() -> Path:
    """The user's folder for what a program remembers between runs, on this system.

    Raises: RuntimeError: the user has no home.
    """
    return _home() or _whole(_system().user_state_path)


def cache_directory() -> Path:
    """Where converted checkpoints go. It may not exist yet."""
    home = _home()
    return home / "cache" if home else _system().user_cache_path


def sessions_directory() -> Path:
    """Where named sessions lie, a folder for each."""
    return user_directory() / "sessions"


def spill_directory() -> Path:
    """Where conversations without a name put states that memory has no room for. Never a file system in memory."""
    return user_directory() / "states"


# ------------------------------------------------------------------------------------------------ models


@dataclass(frozen=True)
class FoundModel:
    """A model that Model.load(name) opens.

    Attributes:
        name: without folder and suffix. path: its file. size_bytes: of that.
        bundled: whether it came with this package.
    """

    name: str
    path: Path
    size_bytes: int
    bundled: bool = False


def bundled_model() -> Path:
    """The demonstration model that comes with the package."""
    return Path(__file__).parent / "data" / "demo.rwkv"


def models_directory() -> Path:
    """The user's own models: ``models`` in RWKV_CPU_HOME or in the user's data folder. It may not exist yet."""
    return (_home() or _system().user_data_path) / "models"


def model_folders() -> list[Path]:
    """Where a model's name is looked for, first to last: beside the program, if it is a frozen one (its folder and
    ``models`` in it), and what a freezer unpacks; then models_directory().
    """
    folders = [place for folder in _program_folders() for place in (folder / "models", folder)]
    return list(dict.fromkeys([*folders, models_directory()]))


def find_models() -> list[FoundModel]:
    """The models in model_folders(), by name, after the bundled one. Reads nothing but directories."""
    found: dict[str, FoundModel] = {}
    for folder in model_folders():
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):
                if path.suffix in MODEL_SUFFIXES and path.is_file():
                    found.setdefault(path.stem, FoundModel(path.stem, path, path.stat().st_size))
    found.pop(DEMO, None)
    models = sorted(found.values(), key=lambda model: model.name.casefold())
    demo = bundled_model()
    return [FoundModel(DEMO, demo, demo.stat().st_size, bundled=True), *models] if demo.is_file() else models


def named_model(name: str) -> Path | None:
    """The file in model_folders() that is called *name*, with its suffix or without; None if there is none."""
    if not name or name in (".", "..") or Path(name).name != name:
        return None
    for folder in model_folders():
        for path in (folder / name, *(folder / f"{name}{suffix}" for suffix in MODEL_SUFFIXES)):
            with contextlib.suppress(OSError):
                if path.is_file():
                    return path
    return None


def _program_folders() -> list[Path]:
    """Of a frozen program: where its executable is, and where its files are. [] for a Python script."""
    folders: list[Path] = []
    if getattr(sys, "frozen", False):  # PyInstaller, cx_Freeze, py2app
        folders.append(Path(sys.executable).resolve().parent)
    # Nuitka gives the name to the modules it compiles: the folder of the program as the user sees it, which is that
    # around the program's own for one that is a folder.
    compiled = globals().get("__compiled__")
    if compiled is not None:
        folders += [Path(sys.argv[0]).resolve().parent, Path(compiled.containing_dir)]
    # A macOS bundle: Name.app/Contents/MacOS/name, with data in Resources.
    folders += [folder.parent / "Resources" for folder in folders if folder.name == "MacOS"]
    unpacked = getattr(sys, "_MEIPASS", None)
    if unpacked:
        folders.append(Path(unpacked))
    return folders
