# SPDX-License-Identifier: Apache-2.0
"""The extension module for another system, or an old one, compiled by zig (the package ziglang).

RWKV_CPU_TARGET names one of TARGETS: `RWKV_CPU_TARGET=aarch64-macos.11.0 python -m build --wheel --no-isolation`
makes macOS's wheel anywhere. On Windows the machine's own target is the default: nobody needs Visual Studio there.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setuptools.command.build_ext import build_ext

if TYPE_CHECKING:
    from collections.abc import Callable

    from setuptools import Extension

# What zig calls it, and the tag of the wheel; `auditwheel repair` finds out what plain linux_* ones can be called.
TARGETS = {
    "x86_64-linux-gnu.2.17": "linux_x86_64",
    "aarch64-linux-gnu.2.17": "linux_aarch64",
    "x86_64-linux-musl": "musllinux_1_2_x86_64",
    "aarch64-linux-musl": "musllinux_1_2_aarch64",
    "x86_64-macos.11.0": "macosx_11_0_x86_64",
    "aarch64-macos.11.0": "macosx_11_0_arm64",
    "x86_64-windows-gnu": "win_amd64",
    "aarch64-windows-gnu": "win_arm64",
}

# The limited API needs little of the configuration, and this is the same for all of TARGETS: 64 bits, little endian.
PYCONFIG = """
#ifndef Py_PYCONFIG_H
#define Py_PYCONFIG_H
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_FLOAT 4
#define SIZEOF_DOUBLE 8
#define SIZEOF_TIME_T 8
#define SIZEOF_OFF_T 8
#define SIZEOF_FPOS_T 8
#define SIZEOF_PID_T 4
#define HAVE_STDINT_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_STDDEF_H 1
#define HAVE_WCHAR_H 1
#define HAVE_LONG_LONG 1
#define HAVE_STDARG_PROTOTYPES 1
#define STDC_HEADERS 1
#define WITH_THREAD 1
#if defined(_WIN32)
#define MS_WINDOWS 1
#define MS_WIN32 1
#define MS_WIN64 1
#define MS_COREDLL 1
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL 1
#define PLATFORM "win32"
#define SIZEOF_LONG 4
#define SIZEOF_WCHAR_T 2
#define SIZEOF_HKEY 8
#define HAVE_PY_SSIZE_T 1
#include <malloc.h>
#define PY_SSIZE_T_MAX LLONG_MAX
typedef long long Py_ssize_t;
#else
#define SIZEOF_LONG 8
#define SIZEOF_WCHAR_T 4
#define HAVE_SSIZE_T 1
#define HAVE_UNISTD_H 1
#define _GNU_SOURCE 1
#include <alloca.h>
#define HAVE_SYS_TYPES_H 1
#define HAVE_SYS_STAT_H 1
#endif
#endif
"""


def target() -> str | None:
    """What to compile for; None: the machine's own compiler, as setuptools finds it.

    Raises: SystemExit: RWKV_CPU_TARGET names nothing that is known.
    """
    asked = os.environ.get("RWKV_CPU_TARGET", "")
    if not asked and sys.platform == "win32":
        asked = "aarch64-windows-gnu" if platform.machine().upper() == "ARM64" else "x86_64-windows-gnu"
    if asked and asked not in TARGETS:
        sys.exit(f"RWKV_CPU_TARGET={asked} is unknown: give one of {', '.join(TARGETS)}")
    return asked or None


def wheel_tag() -> dict[str, str]:
    """The wheel's platform, when it is not the machine's own."""
    chosen = target()
    return {"plat_name": TARGETS[chosen]} if chosen else {}


def build_folder() -> dict[str, str]:
    """A target's own: what was built for another would be packed into its wheel."""
    chosen = target()
    return {"build_base": f"build/{chosen}"} if chosen else {}


def imported_from_python(objects: list[Path]) -> list[str]:
    """Names of the C API that object files for Windows (COFF) leave to be found."""
    found = set()
    for path in objects:
        data = path.read_bytes()
        table, count = struct.unpack_from("<II", data, 8)
        strings = table + 18 * count
        at = 0
        while at < count:
            raw, _, section, _, storage, auxiliary = struct.unpack_from("<8sIhHBB", data, table + 18 * at)
            if raw[:4] == bytes(4):
                begin = strings + struct.unpack_from("<I", raw, 4)[0]
                raw = data[begin : data.index(b"\0", begin)]
            name = raw.rstrip(b"\0").decode().removeprefix("__imp_")
            if section == 0 and storage == 2 and name.startswith(("Py", "_Py")):
                found.add(name)
            at += 1 + auxiliary
    return sorted(found)


def on_all_cores(compile_in_turn: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """setuptools' compile(sources, ...) → object files, for many sources at the same time."""

    def compile_at_once(sources: list[str], *options: Any, **named: Any) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(lambda source: compile_in_turn([source], *options, **named), sources)
            return [one for objects in made for one in objects]

    return compile_at_once


class BuildExt(build_ext):
    """setuptools' own command, unless there is a target for zig."""

    def get_ext_filename(self, fullname: str) -> str:
        """The stable ABI's name on the target."""
        chosen = target()
        if chosen is None:
            return str(super().get_ext_filename(fullname))
        return os.path.join(*fullname.split(".")) + (".pyd" if "windows" in chosen else ".abi3.so")  # noqa: PTH118

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        chosen = target()
        if chosen is None:
            self.compiler.compile = on_all_cores(self.compiler.compile)
            super().build_extension(ext)
        else:
            self._build_with_zig(ext, chosen)

    def _build_with_zig(self, ext: Any, chosen: str) -> None:
        folder, windows = Path(self.build_temp) / chosen, "windows" in chosen
        headers = folder / "python"
        folder.mkdir(parents=True, exist_ok=True)
        include = sysconfig.get_path("include")
        shutil.copytree(include, headers, dirs_exist_ok=True, ignore=shutil.ignore_patterns("pyconfig.h", "numpy*"))
        (headers / "pyconfig.h").write_text(PYCONFIG, "utf-8")
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", chosen]
        flags = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in ext.define_macros]
        flags += [f"-I{path}" for path in (*ext.include_dirs, headers)]
        flags += [*ext.extra_compile_args, "-w", *([] if windows else ["-fPIC"])]

        def compile_one(source: str) -> Path:
            made = folder / (source.replace("\\", "/").replace("/", "_") + ".o")
            self._run([*compiler, *flags, "-c", source, "-o", str(made)])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [*compiler, "-shared", "-s", *map(str, objects), "-o", str(out)]
        if windows:
            command.append(str(self._import_library(folder, chosen, objects)))
        elif "macos" in chosen:
            command += ["-undefined", "dynamic_lookup"]  # the interpreter has them
        else:
            command += ["-lm", "-lpthread"]
        self._run(command)
        for debris in out.parent.glob(f"{out.stem}*.lib"):  # the import library of a module that nobody links with
            debris.unlink()
        (out.parent / f"{out.stem}.pdb").unlink(missing_ok=True)

    def _import_library(self, folder: Path, chosen: str, objects: list[Path]) -> Path:
        definition, library = folder / "python3.def", folder / "libpython3.a"
        names = "\n".join(imported_from_python(objects))
        definition.write_text(f"LIBRARY python3.dll\nEXPORTS\n{names}\n", "utf-8")
        machine = "arm64" if chosen.startswith("aarch64") else "i386:x86-64"
        self._run(
            [sys.executable, "-m", "ziglang", "dlltool", "-m", machine, "-d", str(definition), "-l", str(library)]
        )
        return library

    def _run(self, command: list[str]) -> None:
        run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
        if run.returncode:
            sys.exit(f"{' '.join(command)}\n{run.stdout}{run.stderr}\nbuilding rwkv_cpu's engine with zig failed")
