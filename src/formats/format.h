/* SPDX-License-Identifier: Apache-2.0
 * What a weight format is: its size, and how values get in and out. One file per family. */
#ifndef RWKVC_FORMAT_H
#define RWKVC_FORMAT_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

struct rwkvc_kernels;

typedef struct {
    const char *name;
    /* Bits of a stored integer; 0: the format keeps floats. */
    uint32_t bits;
    /* Packed size, 0 if the format does not hold this kind; a multiple of RWKVC_ALIGN. */
    uint64_t (*bytes)(uint32_t format, uint32_t kind, uint64_t rows, uint64_t cols);
    /* Rows of one unit of packing. */
    uint64_t (*panel_rows)(uint32_t format, uint32_t kind);
    rwkvc_status (*pack)(const rwkvc_tensor_info *info, const rwkvc_source *source, const struct rwkvc_kernels *kernels,
                         uint64_t first, uint64_t last, uint8_t *dst);
    /* One row of stored values. */
    void (*unpack_row)(const rwkvc_tensor_info *info, const uint8_t *packed, uint64_t row, float *dst);
} rwkvc_format;

extern const rwkvc_format rwkvc_format_f32, rwkvc_format_f16;
extern const rwkvc_format rwkvc_format_q8, rwkvc_format_q6, rwkvc_format_q5, rwkvc_format_q4;

enum { RWKVC_N_FORMATS = 6 }; /* but for BYTES */

const rwkvc_format *rwkvc_format_get(uint32_t format); /* NULL for unknown ones */

/* source.c: `n` values of a row from column `col` on, as f32. E_NONFINITE names tensor, row and column. */
rwkvc_status rwkvc_source_read(const rwkvc_tensor_info *info, const rwkvc_source *source,
                               const struct rwkvc_kernels *kernels, uint64_t row, uint64_t col, uint64_t n, float *dst);
/* `n` <= RWKVC_SOURCE_INPUTS inputs of 1 to 16 rows as x[input, 16], 0 for rows that are missing. False where that is not
 * to be had at once, or not all are finite: rwkvc_source_read says more. */
enum { RWKVC_SOURCE_INPUTS = 256 };
bool rwkvc_source_read_rows(const rwkvc_tensor_info *info, const rwkvc_source *source,
                            const struct rwkvc_kernels *kernels, uint64_t row, uint32_t n_rows, uint64_t col,
                            uint32_t n, float *x);
/* Say that these values, which lie within the tensor, are read next: a reader of 16 rows at a time jumps too often for the
 * processor to see it coming. */
void rwkvc_source_prefetch(const rwkvc_source *source, uint64_t row, uint64_t col, uint64_t n);
/* Source dtypes that are groups of 32 integers with an f16 scale, with the range of their integers. */
bool rwkvc_source_is_integer(const rwkvc_source *source, uint32_t *bits);
/* A group of such a source: integers and the bits of the scale. */
void rwkvc_source_group(const rwkvc_source *source, uint64_t row, uint64_t cols, uint64_t group, int8_t *q,
                        uint16_t *scale);

/* IEEE 754 binary16, exact; to half rounds to nearest even. */
float rwkvc_half_to_float(uint16_t half);
uint16_t rwkvc_float_to_half(float value);

/* ------------------------------------------------------------------------- formats of integers
 *
 * integer.c: layout of the packed bytes, shared with the kernels. A group of 32 inputs of a row has a scale (f16) and
 * 32 integers q of `bits` bits (8, 6, 5 or 4); value = scale * q, in q4 scale * book[q + 8]. Stored is q + 2^(bits-1).
 * A q4 tensor begins with its book: 16 int8 + 128, then zeros up to 64 bytes.
 *
 * MATRIX: panel of 16 rows = records of 64 inputs; record = 2 groups of `bits` lines, then 2 x 16 scales. A line is 64
 *         bytes, 16 rows x 4 inputs. q8: line k holds the inputs of quad k (4 consecutive ones). Less than 8 bits:
 *         line k of the first four holds the low four bits of quad k in its bytes' low half, of quad k + 4 in the high;
 *         behind them q5: a line with bit 4 of quad k in bit k; q6: two lines with bits 4 and 5 of quad 4m + k in bits
 *         2k and 2k + 1 of line m.
 * VALUE:  panel of up to rwkvc_value_panel rows (a multiple of rwkvc_value_slice) = groups of 32 inputs; group = 32
 *         columns of `height` rows, then `height` scales, each 64 of them in the order of rwkvc_value_row(). A column of
 *         q8 is its bytes in order. Less than 8 bits: 64 bytes for each slice of 128 rows, row r in a byte's low half
 *         and r + 64 in the high; then the higher bits of each slice in 16 bytes (q5) or 2 x 16 (q6): those of row
 *         64h + rwkvc_value_row(v, lane) as those of quad v + 4h in a MATRIX, in byte `lane`.
 * EMBEDDING: a row = its groups' integers, then the scales. q8: int8. Less than 8 bits: 16 bytes a group with inputs i and
 *         i + 16 in a byte's low and high half, then a little-endian number a group with the higher bits of input i from
 *         bit i (q5, 4 bytes) or 2i (q6, 8 bytes) on. */
enum {
    RWKVC_VALUE_ROWS = 64,  /* rows that one interleaving of columns covers */
    RWKVC_VALUE_UNIT = 128, /* fewest rows that a product computes together, */
    RWKVC_VALUE_MOST = 512, /* and most: those of a panel */
    RWKVC_BOOK_HEADER = 64, /* bytes before the weights of a q4 tensor */
    RWKVC_Q8_RECORD = 1088
};

/* Bits of a format of integers; 0 for the others. */
static inline uint32_t rwkvc_bits(uint32_t format) {
    switch (format) {
    case RWKVC_FORMAT_Q8: return 8;
    case RWKVC_FORMAT_Q6: return 6;
    case RWKVC_FORMAT_Q5: return 5;
    case RWKVC_FORMAT_Q4: return 4;
    default: return 0;
    }
}

static inline uint64_t rwkvc_header_bytes(uint32_t bits) { return bits == 4 ? RWKVC_BOOK_HEADER : 0; }
static inline uint32_t rwkvc_record_bytes(uint32_t bits) { return 128 * bits + 64; }
static inline uint32_t rwkvc_value_slice(uint32_t bits) { return bits == 8 ? 64 : 128; }
static inline uint32_t rwkvc_value_panel(uint32_t bits) { return bits == 8 ? 256 : 512; }
/* Bytes of a group of one row, scale included. */
static inline uint32_t rwkvc_group_bytes(uint32_t bits) { return 4 * bits + 2; }

/* Row (of 64) that lane `lane` of accumulator `v` holds after 4 columns of 64 bytes were interleaved with byte and
 * word unpacks, which work within 128-bit lanes on every instruction set that has them. */
static inline uint32_t rwkvc_value_row(uint32_t v, uint32_t lane) { return 16 * (lane / 4) + 4 * v + lane % 4; }

static inline uint64_t rwkvc_value_height(uint32_t bits, uint64_t rows, uint64_t panel) {
    return rwkvc_min(rwkvc_value_panel(bits),
                     rwkvc_round_up(rows, rwkvc_value_slice(bits)) - panel * rwkvc_value_panel(bits));
}

/* Group `group` of a row of an EMBEDDING: its integers; returns the scale. `row` points at the row's bytes. */
float rwkvc_embedding_group(uint32_t bits, const uint8_t *book, const uint8_t *row, uint64_t groups, uint64_t group,
                            int8_t *q);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
