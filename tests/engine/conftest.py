# SPDX-License-Identifier: Apache-2.0
"""The engine's inner functions for tests: a private extension made of all of src/, with the kernels' table open.

The package's own extension exports the public interface only. Building takes some seconds, so the result is kept in
pytest's cache until a source changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from setuptools import Distribution, Extension

from rwkv_cpu import engine
from tests.one_process import one_process

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

INNER = """
typedef enum { RWKVC_STORE, RWKVC_ADD, RWKVC_TANH, RWKVC_SIGMOID, RWKVC_RELU2 } rwkvc_epilogue;
typedef struct { const uint8_t *data, *book; uint32_t kind, format, rows, cols; } rwkvc_tensor;
typedef struct { uint8_t place[32]; int8_t value[32]; } rwkvc_sparse_group;
typedef struct { int32_t begin; float unit, mantissa; uint32_t quarter; } rwkvc_q8_scale;
typedef struct {
    int8_t *values; rwkvc_q8_scale *scales; rwkvc_sparse_group *nonzero; uint8_t *counts;
    uint32_t groups, columns, tile;
} rwkvc_q8_input;
typedef struct {
    uint32_t tokens, head_size, ld;
    const float *r; float *w; float *k; float *v; float *a; float *kk; const float *v_mix; float *v_first;
    const float *g; float *y;
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_weight, *ln_bias;
    float gn_eps; const float *state_in; float *state_out; uint64_t state_step;
} rwkvc_wkv7;
typedef struct {
    uint32_t tokens, head_size, ld;
    const float *r, *k, *v; const float *g; float *w; float *y;
    const float *decay; const float *bonus, *ln_weight, *ln_bias;
    float gn_eps; const float *state_in; float *state_out; uint64_t state_step;
} rwkvc_wkv6;
typedef struct {
    uint32_t tokens, ld;
    const float *r, *k, *v; float *y; const float *decay, *bonus;
    const float *state_in; float *state_out; uint64_t part, state_step;
} rwkvc_wkv4;
typedef struct {
    const char *name;
    uint32_t q8_tile, plain_tile, sparse_inputs, direct_columns;
    void (*panel[6])(const uint8_t *panel, const uint8_t *book, const float *quarters, const rwkvc_q8_input *input,
                     uint32_t first_column, uint32_t n, float *out);
    void (*unpacked[6])(const uint8_t *panel, const uint8_t *book, const float *quarters, const rwkvc_q8_input *input,
                        uint32_t first_column, uint32_t n, float *out);
    void (*quarters)(const uint8_t *panel, uint32_t records, float *out);
    void (*unpack[6])(const uint8_t *panel, const uint8_t *book, uint32_t records, uint8_t *out);
    void (*value_sparse[6])(const uint8_t *panel, const uint8_t *book, uint32_t height, uint32_t first_row,
                            uint32_t rows, uint32_t groups, const rwkvc_q8_input *input, float *sums);
    void (*value_repack[6])(const uint8_t *panel, const uint8_t *book, uint32_t height, uint32_t part, uint32_t groups,
                            uint8_t *panels);
    void (*quantise[6])(const float *x, const int8_t *book, int8_t *q, uint16_t *scales);
    void (*pack_lines[6])(const int8_t *q, uint8_t *lines);
    _Bool (*widen)(uint32_t dtype, const void *source, uint64_t n, float *out);
    void (*plain_panels)(const uint8_t *panels, uint64_t panel_bytes, uint32_t n_panels, uint32_t format, uint32_t cols,
                         const float *x, uint32_t ldx, uint32_t n, _Bool sparse, float *out);
    void (*q8_quantise)(const float *x, uint64_t ldx, uint32_t first, uint32_t last, uint32_t first_group,
                        uint32_t n_groups, uint32_t n_inputs, uint32_t parts, const rwkvc_q8_input *input);
    void (*embedding)(const rwkvc_tensor *emb, uint32_t row, float *out);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, uint32_t n, float eps, float *y);
    void (*token_shift)(const float *x, const float *previous, const float *mix, const float *extra, uint32_t n,
                        float *y);
    void (*token_shift_q8)(const float *const *x, const float *const *previous, const float *mix, const float *extra,
                           uint64_t ld_extra, uint32_t n, uint32_t first, uint32_t last, const rwkvc_q8_input *input);
    void (*finish)(rwkvc_epilogue epilogue, const float *sums, uint32_t ld_sums, uint32_t n, uint32_t lanes, float *out,
                   uint64_t ld);
    void (*wkv7)(const rwkvc_wkv7 *head);
    void (*wkv6)(const rwkvc_wkv6 *head);
    void (*wkv4)(const rwkvc_wkv4 *channels);
    void (*elementary)(uint32_t which, const float *x, uint32_t n, float *y);
    ...;
} rwkvc_kernels;
const rwkvc_kernels *rwkvc_kernels_get(const char *isa);
uint16_t rwkvc_float_to_half(float value);
float rwkvc_half_to_float(uint16_t half);
uint32_t rwkvc_count_cores(const char *root, const uint8_t *allowed, uint32_t n_cpus);
uint32_t rwkvc_count_cpus(const char *root, const uint8_t *allowed, uint32_t n_cpus);
typedef struct {
    uint32_t threads, active;
    ...;
} rwkvc_crew;
void rwkvc_crew_start(rwkvc_crew *crew, uint32_t threads);
_Bool rwkvc_crew_waited(rwkvc_crew *crew, double began, double worked, double done);
_Bool rwkvc_crew_retry(rwkvc_crew *crew, double now);
uint32_t flush_to_zero(int on);
"""

PREAMBLE = """
#include "kernels/kernels.h"
#include "platform/linux_cores.h"
#include "threads/crew.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
/* What a host that wants speed at any price does to its thread; returns whether there is such a switch. */
static uint32_t flush_to_zero(int on) {
#if defined(__x86_64__)
    _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040u);
    return 1;
#else
    return on * 0;
#endif
}
"""


# `make asan` sets it: the kernels are then instrumented as the package's own extension is.
SANITIZERS = os.environ.get("RWKV_CPU_SANITIZE", "")
INSTRUMENT = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=undefined"] if SANITIZERS else []


USABLE = [isa.name for isa in engine.isas() if isa.usable]

# Where AVX-512 has AVX-VNNI's one instruction in its own encoding, its kernels are tested on a CPU without it.
DEFINES = ["-DRWKVC_AVXVNNI_AS_EVEX"] if "avx512vnni" in USABLE and "avxvnni" not in USABLE else []


def _sources() -> list[Path]:
    return sorted(SRC.rglob("*.c"))


def _digest() -> str:
    digest = hashlib.sha256(f"{sys.version}{SANITIZERS}{DEFINES}{INNER}{PREAMBLE}".encode())
    for path in sorted(SRC.rglob("*.[ch]")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path, name: str) -> Path:
    header = (SRC / "rwkv_cpu.h").read_text("utf-8")
    ffi = FFI()
    ffi.cdef(header.split("/* cdef: begin */")[1].split("/* cdef: end */")[0] + INNER)
    ffi.set_source(
        name,
        PREAMBLE,
        sources=[str(path) for path in _sources()],
        include_dirs=[str(SRC)],
        extra_compile_args=[
            *("-std=c11", "-ffp-contract=off", "-w", '-DRWKVC_VERSION="test"', *DEFINES),
            *(["-O1", "-g1", *INSTRUMENT] if INSTRUMENT else ["-O3"]),
        ],
        extra_link_args=INSTRUMENT,
        libraries=["m", "pthread"],
        py_limited_api=False,
    )
    return _compile(ffi.distutils_extension(str(folder)), folder)


def _compile(extension: Extension, folder: Path) -> Path:
    """As the package's own is compiled, on all cores; cffi's compile() takes one."""
    spec = importlib.util.spec_from_file_location("build_zig", SRC / "build_zig.py")
    assert spec is not None
    assert spec.loader is not None
    build_zig = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_zig)
    command = build_zig.BuildExt(Distribution({"ext_modules": [extension]}))
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    shutil.rmtree(folder / "objects")
    return Path(command.get_ext_fullpath(extension.name))


@pytest.fixture(scope="session")
def inner(request: pytest.FixtureRequest) -> Any:
    """The private extension: .ffi and .lib."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("needs a C compiler")
    folder = Path(request.config.cache.mkdir("rwkv_cpu-engine"))  # type: ignore[union-attr]
    name = f"_inner_{_digest()}"
    with one_process(folder):
        built = sorted(folder.glob(f"{name}*.so")) or [_build(folder, name)]
    spec = importlib.util.spec_from_file_location(name, built[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[isa.name for isa in engine.isas()])
def kernels(request: pytest.FixtureRequest, inner: Any) -> Any:
    """The kernels of each instruction set that this machine runs; asserts that they are what was asked for."""
    if not inner.lib.rwkvc_isa_usable(request.param.encode()):
        pytest.skip(f"this CPU has no {request.param}")
    table = inner.lib.rwkvc_kernels_get(request.param.encode())
    assert table != inner.ffi.NULL
    assert inner.ffi.string(table.name).decode() == request.param
    return table


@pytest.fixture
def scalar(inner: Any) -> Any:
    """The reference kernels."""
    return inner.lib.rwkvc_kernels_get(b"scalar")
