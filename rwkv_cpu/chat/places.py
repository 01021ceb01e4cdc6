# SPDX-License-Identifier: Apache-2.0
"""Where conversations are kept on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["sessions_directory", "spill_directory", "user_directory"]


def user_directory() -> Path:
    """The user's folder for what a program remembers between runs, on this system; RWKV_CPU_HOME moves it.

    Raises: RuntimeError: the user has no home.
    """
    home = os.environ.get("RWKV_CPU_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "rwkv_cpu"


def sessions_directory() -> Path:
    """Where named sessions lie, a folder for each."""
    return user_directory() / "sessions"


def spill_directory() -> Path:
    """Where conversations without a name put states that memory has no room for. Never a file system in memory."""
    return user_directory() / "states"
