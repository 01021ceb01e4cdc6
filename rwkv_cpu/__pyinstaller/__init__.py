# SPDX-License-Identifier: Apache-2.0
"""Tells PyInstaller what a frozen program needs of this package; found by the entry point pyinstaller40."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_hook_dirs"]


def get_hook_dirs() -> list[str]:
    """Where hook-*.py lie."""
    return [str(Path(__file__).parent)]
