# SPDX-License-Identifier: Apache-2.0
"""cffi builder of the extension module rwkv_cpu._engine (API mode, limited API).

The declarations come from src/rwkv_cpu.h itself, so Python and C cannot disagree about them.

Environment, for developers only: RWKV_CPU_SANITIZE=address,undefined builds an instrumented engine
(`make asan` does that, into its own directory).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

SRC = Path(__file__).resolve().parent
ROOT = SRC.parent

# -ffp-contract=off: the same bits with every compiler and instruction set (no silent fused multiply-add).
# Unwind tables serve exceptions, which C has not: 40 kB less.
COMPILE_FLAGS = [
    *("-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"),
    *("-fno-asynchronous-unwind-tables", "-Wall", "-Wextra"),
]
LINK_FLAGS = ["-pthread"]
STRIP_FLAGS = ["-Wl,-s"]  # the interpreter's own CFLAGS usually ask for debug information: 10 times the size

# Glue that only Python needs, not part of the C interface: rwkvc_forward_options' callbacks point here.
PYTHON_CALLBACKS = """
extern "Python" void rwkvc_py_progress(void *, uint64_t, uint64_t);
extern "Python" void rwkvc_py_inputs(void *, const char *, const float *, uint64_t, uint64_t, uint64_t);
"""

# The generated wrapper is not ours to mend: it has unused parameters by design.
PREAMBLE = """
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
#include "rwkv_cpu.h"
"""


def declarations(header: str) -> str:
    """The part of the public header between the cdef markers."""
    begin, end = "/* cdef: begin */", "/* cdef: end */"
    _, found_begin, rest = header.partition(begin)
    text, found_end, _ = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"src/rwkv_cpu.h lacks its markers {begin} and {end}")
    return text


def package_version() -> str:
    """The version in rwkv_cpu/_version.py, without importing the package."""
    text = (ROOT / "rwkv_cpu" / "_version.py").read_text("utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('rwkv_cpu/_version.py has no line __version__ = "..."')
    return match.group(1)


def relative(pattern: str) -> list[str]:
    """Files below src/ relative to the project, sorted: builds are reproducible and sdists hold no absolute path."""
    return sorted(path.relative_to(ROOT).as_posix() for path in SRC.rglob(pattern))


def flags() -> tuple[list[str], list[str]]:
    """(compile, link) flags; instrumented ones when RWKV_CPU_SANITIZE names sanitisers."""
    sanitizers = os.environ.get("RWKV_CPU_SANITIZE", "")
    if not sanitizers:
        return COMPILE_FLAGS, LINK_FLAGS + STRIP_FLAGS
    # -g1: line numbers are enough, and tracking every variable of the inlined kernels takes minutes.
    instrument = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    return [*COMPILE_FLAGS, "-O1", "-g1", *instrument], [*LINK_FLAGS, *instrument]


compile_flags, link_flags = flags()
ffi = FFI()
ffi.cdef(declarations((SRC / "rwkv_cpu.h").read_text("utf-8")) + PYTHON_CALLBACKS)
ffi.set_source(
    "rwkv_cpu._engine",
    PREAMBLE,
    sources=relative("*.c"),
    depends=relative("*.h"),  # includes *.inc.h: a changed kernel rebuilds
    include_dirs=["src"],
    define_macros=[("RWKVC_VERSION", f'"{package_version()}"')],
    extra_compile_args=compile_flags,
    extra_link_args=link_flags,
    libraries=["m"],
)
