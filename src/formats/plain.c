/* SPDX-License-Identifier: Apache-2.0
 * f32 and f16: values as they are, in panels of 16 rows (one input of 16 rows after the other), in rows for the
 * embedding, in one run for vectors. */
#include <math.h>

#include "formats/format.h"

static uint64_t plain_bytes(uint32_t kind, uint64_t rows, uint64_t cols, uint64_t element) {
    if (kind == RWKVC_KIND_VECTOR) return rwkvc_round_up(rows * cols * element, RWKVC_ALIGN);
    if (kind == RWKVC_KIND_EMBEDDING) return rwkvc_round_up(rows * cols * element, RWKVC_ALIGN);
    return rwkvc_ceil_div(rows, RWKVC_PANEL) * rwkvc_round_up(RWKVC_PANEL * cols * element, RWKVC_ALIGN);
}

static uint64_t f32_bytes(uint32_t format, uint32_t kind, uint64_t rows, uint64_t cols) {
    (void)format;
    return plain_bytes(kind, rows, cols, 4);
}

static uint64_t f16_bytes(uint32_t format, uint32_t kind, uint64_t rows, uint64_t cols) {
    (void)format;
    return kind == RWKVC_KIND_VECTOR ? 0 : plain_bytes(kind, rows, cols, 2);
}

static uint64_t plain_panel_rows(uint32_t format, uint32_t kind) {
    (void)format;
    return kind == RWKVC_KIND_VECTOR || kind == RWKVC_KIND_EMBEDDING ? 1 : RWKVC_PANEL;
}

/* Index of an element of the packed tensor. */
static uint64_t plain_index(const rwkvc_tensor_info *info, uint64_t row, uint64_t col, uint64_t element) {
    if (info->kind == RWKVC_KIND_VECTOR || info->kind == RWKVC_KIND_EMBEDDING) return row * info->cols + col;
    uint64_t panel = rwkvc_round_up(RWKVC_PANEL * info->cols * element, RWKVC_ALIGN) / element;
    return row / RWKVC_PANEL * panel + col * RWKVC_PANEL + row % RWKVC_PANEL;
}

static rwkvc_status put(const rwkvc_tensor_info *info, uint8_t *dst, uint64_t row, uint64_t col, float value) {
    if (info->format == RWKVC_FORMAT_F32) {
        ((float *)dst)[plain_index(info, row, col, 4)] = value;
        return RWKVC_OK;
    }
    uint16_t half = rwkvc_float_to_half(value);
    if ((half & 0x7fff) == 0x7c00)
        return rwkvc_fail(RWKVC_E_NONFINITE, "%s holds %g at row %llu, column %llu, which f16 cannot hold", info->name,
                          (double)value, (unsigned long long)row, (unsigned long long)col);
    ((uint16_t *)dst)[plain_index(info, row, col, 2)] = half;
    return RWKVC_OK;
}

static rwkvc_status plain_pack(const rwkvc_tensor_info *info, const rwkvc_source *source,
                               const struct rwkvc_kernels *kernels, uint64_t first, uint64_t last, uint8_t *dst) {
    uint64_t rows = plain_panel_rows(info->format, info->kind);
    float values[256];
    for (uint64_t row = first * rows; row < last * rows; row++) {
        for (uint64_t col = 0; col < info->cols; col += 256) {
            uint64_t n = rwkvc_min(256, info->cols - col);
            if (row >= info->rows) {
                memset(values, 0, sizeof values); /* rows that fill the last panel up */
            } else {
                rwkvc_status status = rwkvc_source_read(info, source, kernels, row, col, n, values);
                if (status) return status;
            }
            for (uint64_t i = 0; i < n; i++) {
                rwkvc_status status = put(info, dst, row, col + i, values[i]);
                if (status) return status;
            }
        }
    }
    return RWKVC_OK;
}

static void f32_unpack_row(const rwkvc_tensor_info *info, const uint8_t *packed, uint64_t row, float *dst) {
    for (uint64_t col = 0; col < info->cols; col++) dst[col] = ((const float *)packed)[plain_index(info, row, col, 4)];
}

static void f16_unpack_row(const rwkvc_tensor_info *info, const uint8_t *packed, uint64_t row, float *dst) {
    for (uint64_t col = 0; col < info->cols; col++)
        dst[col] = rwkvc_half_to_float(((const uint16_t *)packed)[plain_index(info, row, col, 2)]);
}

const rwkvc_format rwkvc_format_f32 = {"f32", 0, f32_bytes, plain_panel_rows, plain_pack, f32_unpack_row};
const rwkvc_format rwkvc_format_f16 = {"f16", 0, f16_bytes, plain_panel_rows, plain_pack, f16_unpack_row};
