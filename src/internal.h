/* SPDX-License-Identifier: Apache-2.0
 * The structs behind the public handles, and what the engine's files share. */
#ifndef RWKVC_INTERNAL_H
#define RWKVC_INTERNAL_H

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "rwkv_cpu.h"

#if defined(__FAST_MATH__)
#error "-ffast-math ends the promise of equal bits"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "floats must be computed as floats: equal bits everywhere rest on it"
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

enum {
    RWKVC_ALIGN = 64,   /* one cache line, one AVX-512 register */
    RWKVC_PANEL = 16,   /* output rows of a packed panel, lanes of a vector */
    RWKVC_GROUP = 32,   /* inputs that share a scale */
    RWKVC_NO_LAYER = -1 /* as u32 in rwkvc_tensor_info.layer */
};

static inline uint64_t rwkvc_round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }
static inline uint64_t rwkvc_ceil_div(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit; }
static inline uint64_t rwkvc_min(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* error.c: record the text of this thread's last error and return the status. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
rwkvc_status
rwkvc_fail(rwkvc_status status, const char *format, ...);
/* With a hint of its own, a constant; rwkvc_fail takes the status's. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
rwkvc_status
rwkvc_fail_hint(rwkvc_status status, const char *hint, const char *format, ...);

/* Say where (a file) the last error was met. */
rwkvc_status rwkvc_fail_at(const char *where, rwkvc_status status);

/* memory.c: 64-byte aligned, zeroed; NULL if there is none. */
void *rwkvc_alloc(uint64_t size_bytes);
void rwkvc_free(void *memory);

/* A file as memory, read-only and shared with every process that maps it. */
typedef struct {
    const uint8_t *bytes;
    uint64_t size_bytes;
} rwkvc_mapping;

/* A tensor of an open model. */
typedef struct {
    const uint8_t *data; /* the weights */
    const uint8_t *book; /* q4: 16 values + 128; NULL otherwise */
    uint32_t kind, format, rows, cols;
} rwkvc_tensor;

typedef struct rwkvc_arch rwkvc_arch;

struct rwkvc_model {
    rwkvc_mapping file;  /* the whole of it, */
    bool owns_file;      /* to be unmapped with the model */
    const uint8_t *data; /* its data section */
    uint64_t data_bytes;
    rwkvc_config config;
    const rwkvc_arch *arch;
    rwkvc_tensor_info *infos; /* [n_infos] as the file's table lists them */
    uint32_t n_infos;
    rwkvc_tensor *tensors; /* [n_layer, arch->n_specs]; tensors outside layers in row 0 */
    uint64_t token_bytes;
    uint32_t widest_value, widest_matrix; /* inputs of the widest tensors that are stored as integers */
};

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
