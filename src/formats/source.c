/* SPDX-License-Identifier: Apache-2.0
 * Values as checkpoints store them: any float type, transforms, GGML's blocks. */
#include <math.h>

#include "isa/target.h"
#include "kernels/kernels.h"

/* exp in f64, the same bits on every machine (a C library's are its own): x = n ln 2 + r, the series of exp(r). */
static double exp_f64(double x) {
    if (x > 709) return INFINITY;
    if (x < -745) return 0;
    double n = rint(x * 1.4426950408889634074), r = x - n * 0.693147180369123816490;
    r -= n * 1.90821492927058770002e-10; /* ln 2 in two parts, the first exact times n */
    double term = 1, sum = 1;
    for (int k = 1; k <= 20; k++) sum += term *= r / k;
    return ldexp(sum, (int)n);
}

static float transformed(uint32_t transform, float x) {
    switch (transform) {
    case RWKVC_TRANSFORM_EXP: return (float)exp_f64((double)x);
    case RWKVC_TRANSFORM_NEG_EXP: return (float)-exp_f64((double)x);
    case RWKVC_TRANSFORM_EXP_NEG_EXP: return (float)exp_f64(-exp_f64((double)x));
    default: return x;
    }
}

static float element(const rwkvc_source *source, int64_t at) {
    if (source->dtype == RWKVC_DTYPE_F32) return ((const float *)source->data)[at];
    uint16_t half = ((const uint16_t *)source->data)[at];
    if (source->dtype == RWKVC_DTYPE_F16) return rwkvc_half_to_float(half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

bool rwkvc_source_is_integer(const rwkvc_source *source, uint32_t *bits) {
    *bits = source->dtype == RWKVC_DTYPE_Q4_0 ? 4 : source->dtype == RWKVC_DTYPE_Q5_0 ? 5 : 8;
    return source->dtype > RWKVC_DTYPE_BF16;
}

void rwkvc_source_group(const rwkvc_source *source, uint64_t row, uint64_t cols, uint64_t group, int8_t *q,
                        uint16_t *scale) {
    const uint8_t *block = source->data;
    uint64_t number = row * rwkvc_ceil_div(cols, RWKVC_GROUP) + group;
    uint32_t high = 0;
    switch (source->dtype) {
    case RWKVC_DTYPE_INTEGERS:
        memset(q, 0, RWKVC_GROUP);
        memcpy(q, block + row * cols + group * RWKVC_GROUP, rwkvc_min(RWKVC_GROUP, cols - group * RWKVC_GROUP));
        *scale = source->scales[number];
        return;
    case RWKVC_DTYPE_Q8_0:
        block += number * 34;
        memcpy(q, block + 2, RWKVC_GROUP);
        break;
    case RWKVC_DTYPE_Q4_0:
        block += number * 18;
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)((block[2 + i] & 15) - 8);
            q[i + 16] = (int8_t)((block[2 + i] >> 4) - 8);
        }
        break;
    default: /* Q5_0 */
        block += number * 22;
        memcpy(&high, block + 2, sizeof high);
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)((int)((block[6 + i] & 15u) | (high >> i & 1) << 4) - 16);
            q[i + 16] = (int8_t)((int)((block[6 + i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
        }
    }
    memcpy(scale, block, sizeof *scale);
}

static void read_blocks(const rwkvc_source *source, uint64_t row, uint64_t cols, uint64_t col, uint64_t n, float *dst) {
    int8_t q[RWKVC_GROUP];
    uint16_t scale = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (i == 0 || (col + i) % RWKVC_GROUP == 0)
            rwkvc_source_group(source, row, cols, (col + i) / RWKVC_GROUP, q, &scale);
        dst[i] = rwkvc_half_to_float(scale) * (float)q[(col + i) % RWKVC_GROUP];
    }
}

/* Adding one to an exponent of all ones carries into the sign's place; without a branch, so that it is fast. */
static bool all_finite(const float *x, uint64_t n) {
    uint32_t carry = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        carry |= (bits & 0x7f800000u) + 0x00800000u;
    }
    return !(carry >> 31);
}

static int64_t place_of(const rwkvc_source *source, uint64_t row) {
    uint64_t block = source->block_rows ? row / source->block_rows : 0;
    return (int64_t)block * source->block_stride + (int64_t)(row - block * source->block_rows) * source->row_stride;
}

static const uint8_t *address_of(const rwkvc_source *source, int64_t at) {
    return (const uint8_t *)source->data + at * (source->dtype == RWKVC_DTYPE_F32 ? 4 : 2);
}

/* Returns whether all are finite. */
static bool read_floats(const rwkvc_source *source, const rwkvc_kernels *kernels, uint64_t row, uint64_t col,
                        uint64_t n, float *dst) {
    int64_t at = place_of(source, row), step = source->col_stride;
    if (source->repeat <= 1 && step == 1)
        return kernels->widen(source->dtype, address_of(source, at + (int64_t)col), n, dst);
    uint64_t repeat = source->repeat > 1 ? source->repeat : 1;
    for (uint64_t i = 0; i < n; i++) dst[i] = element(source, at + (int64_t)((col + i) / repeat) * step);
    return all_finite(dst, n);
}

void rwkvc_source_prefetch(const rwkvc_source *source, uint64_t row, uint64_t col, uint64_t n) {
    if (source->dtype > RWKVC_DTYPE_BF16 || source->col_stride != 1 || source->repeat > 1) return;
    int64_t at = place_of(source, row) + (int64_t)col;
    const uint8_t *line = address_of(source, at), *end = address_of(source, at + (int64_t)n);
    for (; line < end; line += 64) PREFETCH(line);
}

bool rwkvc_source_read_rows(const rwkvc_tensor_info *info, const rwkvc_source *source, const rwkvc_kernels *kernels,
                            uint64_t row, uint32_t n_rows, uint64_t col, uint32_t n, float *x) {
    static uint8_t
        zeros[RWKVC_SOURCE_INPUTS * sizeof(float)]; /* never written; not const, so it takes no room in a file */
    if (source->dtype > RWKVC_DTYPE_BF16 || info->transform || source->repeat > 1) return false;
    if (source->col_stride == 1 && n % RWKVC_GROUP == 0) {
        const uint8_t *rows[RWKVC_PANEL];
        for (uint32_t r = 0; r < RWKVC_PANEL; r++)
            rows[r] = r < n_rows ? address_of(source, place_of(source, row + r) + (int64_t)col) : zeros;
        return kernels->widen_rows(source->dtype, rows, n, x);
    }
    bool one_block = source->block_rows == 0 || row / source->block_rows == (row + n_rows - 1) / source->block_rows;
    if (source->row_stride != 1 || !one_block) return false;
    bool finite = true;
    if (n_rows < RWKVC_PANEL) memset(x, 0, (uint64_t)n * RWKVC_PANEL * sizeof *x);
    for (uint32_t i = 0; i < n && finite; i++) {
        int64_t at = place_of(source, row) + (int64_t)(col + i) * source->col_stride;
        finite = kernels->widen(source->dtype, address_of(source, at), n_rows, x + (uint64_t)i * RWKVC_PANEL);
    }
    return finite;
}

rwkvc_status rwkvc_source_read(const rwkvc_tensor_info *info, const rwkvc_source *source, const rwkvc_kernels *kernels,
                               uint64_t row, uint64_t col, uint64_t n, float *dst) {
    bool finite;
    if (source->dtype > RWKVC_DTYPE_BF16) {
        read_blocks(source, row, info->cols, col, n, dst);
        finite = all_finite(dst, n);
    } else {
        finite = read_floats(source, kernels, row, col, n, dst);
    }
    if (finite && info->transform) {
        for (uint64_t i = 0; i < n; i++) dst[i] = transformed(info->transform, dst[i]);
        finite = all_finite(dst, n);
    }
    if (finite) return RWKVC_OK;
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(dst[i]))
            return rwkvc_fail(RWKVC_E_NONFINITE, "%s holds %s at row %llu, column %llu", info->name,
                              isnan(dst[i]) ? "NaN" : "Inf", (unsigned long long)row, (unsigned long long)(col + i));
    return RWKVC_OK;
}
