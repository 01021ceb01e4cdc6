# SPDX-License-Identifier: Apache-2.0
"""For PyInstaller: modules that are loaded on first use, vocabulary and demonstration model.

A program that needs no demonstration model takes those 5 MB out of `datas` in its .spec file.
"""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

# The command line and what draws in terminals come along only where a program imports them.
_APART = ("rwkv_cpu.cli", "rwkv_cpu.terminal", "rwkv_cpu.compat", "rwkv_cpu.__main__", "rwkv_cpu.__pyinstaller")

datas = collect_data_files("rwkv_cpu")
hiddenimports = collect_submodules("rwkv_cpu", filter=lambda name: not name.startswith(_APART))
