# SPDX-License-Identifier: Apache-2.0
"""For PyInstaller: the commands, which are imported when they are used."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("rwkv_cpu.cli")
