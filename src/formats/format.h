/* SPDX-License-Identifier: Apache-2.0
 * What a weight format is: its size, and how values get in and out. One file per family. */
#ifndef RWKVC_FORMAT_H
#define RWKVC_FORMAT_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef struct {
    const char *name;
    /* Packed size, 0 if the format does not hold this kind; a multiple of RWKVC_ALIGN. */
    uint64_t (*bytes)(uint32_t kind, uint64_t rows, uint64_t cols);
    /* Rows of one unit of packing. */
    uint64_t (*panel_rows)(uint32_t kind);
    rwkvc_status (*pack)(const rwkvc_tensor_info *info, const rwkvc_source *source, uint64_t panel, uint8_t *dst);
    /* One row of stored values. */
    void (*unpack_row)(const rwkvc_tensor_info *info, const uint8_t *packed, uint64_t row, float *dst);
} rwkvc_format;

extern const rwkvc_format rwkvc_format_f32, rwkvc_format_f16, rwkvc_format_q8;

const rwkvc_format *rwkvc_format_get(uint32_t format); /* NULL for unknown ones */

/* source.c: `n` values of a row from column `col` on, as f32. E_NONFINITE names tensor, row and column. */
rwkvc_status rwkvc_source_read(const rwkvc_tensor_info *info, const rwkvc_source *source, uint64_t row, uint64_t col,
                               uint64_t n, float *dst);
/* A group of 32 as a block dtype stores it: integers and the bits of the f16 scale. False for float dtypes. */
bool rwkvc_source_group(const rwkvc_source *source, uint64_t row, uint64_t cols, uint64_t group, int8_t *q,
                        uint16_t *scale);

/* IEEE 754 binary16, exact; to half rounds to nearest even. */
float rwkvc_half_to_float(uint16_t half);
uint16_t rwkvc_float_to_half(float value);

/* q8.c: layout of the packed bytes, shared with the kernels.
 * MATRIX: panel of 16 rows = records of 64 inputs; record = 2 x 8 lines (16 rows x 4 consecutive inputs, weight + 128),
 *         then 2 x 16 scales f16.
 * VALUE:  panel of up to 256 rows (a multiple of 64) = groups of 32 inputs; group = 32 columns of `height` bytes
 *         (weight + 128), then `height` scales f16, each 64 of them in the order of rwkvc_value_row().
 * EMBEDDING: a row = its inputs (rounded up to 32) as int8, then one scale f16 per 32. */
enum {
    RWKVC_Q8_RECORD = 1088,
    RWKVC_Q8_LINES = 1024, /* weights of a record, before its scales */
    RWKVC_VALUE_PANEL = 256,
    RWKVC_VALUE_SLICE = 64
};

/* Row (of 64) that lane `lane` of accumulator `v` holds after 4 columns of 64 bytes were interleaved with byte and
 * word unpacks, which work within 128-bit lanes on every instruction set that has them. */
static inline uint32_t rwkvc_value_row(uint32_t v, uint32_t lane) { return 16 * (lane / 4) + 4 * v + lane % 4; }

static inline uint64_t rwkvc_value_height(uint64_t rows, uint64_t panel) {
    return rwkvc_min(RWKVC_VALUE_PANEL, rwkvc_round_up(rows, RWKVC_VALUE_SLICE) - panel * RWKVC_VALUE_PANEL);
}

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
