/* SPDX-License-Identifier: Apache-2.0
 * q8: 8.5 bits per weight. Groups of 32 inputs share an f16 scale: value = scale * (stored - 128). Our own integers are
 * within 127; those of GGML blocks, moved as they are, may be -128.
 * Layouts: format.h. */
#include <math.h>

#include "formats/format.h"

static uint64_t q8_bytes(uint32_t kind, uint64_t rows, uint64_t cols) {
    switch (kind) {
    case RWKVC_KIND_MATRIX:
    case RWKVC_KIND_HEAD: return rwkvc_ceil_div(rows, RWKVC_PANEL) * rwkvc_ceil_div(cols, 64) * RWKVC_Q8_RECORD;
    case RWKVC_KIND_VALUE: return rwkvc_round_up(rows, RWKVC_VALUE_SLICE) * rwkvc_ceil_div(cols, RWKVC_GROUP) * 34;
    case RWKVC_KIND_EMBEDDING: return rwkvc_round_up(rows * rwkvc_ceil_div(cols, RWKVC_GROUP) * 34, RWKVC_ALIGN);
    default: return 0;
    }
}

static uint64_t q8_panel_rows(uint32_t kind) {
    if (kind == RWKVC_KIND_EMBEDDING) return 1;
    return kind == RWKVC_KIND_VALUE ? RWKVC_VALUE_PANEL : RWKVC_PANEL;
}

/* Where input `col` of `row` and the scale of its group lie. */
typedef struct {
    uint64_t weight, scale;
} q8_place;

static q8_place place(const rwkvc_tensor_info *info, uint64_t row, uint64_t col) {
    if (info->kind == RWKVC_KIND_EMBEDDING) {
        uint64_t groups = rwkvc_ceil_div(info->cols, RWKVC_GROUP), at = row * groups * 34;
        return (q8_place){at + col, at + groups * RWKVC_GROUP + 2 * (col / RWKVC_GROUP)};
    }
    if (info->kind == RWKVC_KIND_VALUE) {
        uint64_t groups = rwkvc_ceil_div(info->cols, RWKVC_GROUP), panel = row / RWKVC_VALUE_PANEL;
        uint64_t height = rwkvc_value_height(info->rows, panel), r = row % RWKVC_VALUE_PANEL;
        uint64_t at = (panel * RWKVC_VALUE_PANEL * groups + col / RWKVC_GROUP * height) * 34;
        uint64_t slice = r / RWKVC_VALUE_SLICE * RWKVC_VALUE_SLICE, in = r % RWKVC_VALUE_SLICE;
        /* inverse of rwkvc_value_row: row 16a + 4v + b stands at 16v + 4a + b */
        uint64_t lane = slice + 16 * (in / 4 % 4) + 4 * (in / 16) + in % 4;
        return (q8_place){at + col % RWKVC_GROUP * height + r, at + RWKVC_GROUP * height + 2 * lane};
    }
    uint64_t record = (row / RWKVC_PANEL * rwkvc_ceil_div(info->cols, 64) + col / 64) * RWKVC_Q8_RECORD;
    uint64_t r = row % RWKVC_PANEL, in = col % 64;
    return (q8_place){record + in / 4 * 64 + 4 * r + in % 4, record + RWKVC_Q8_LINES + 32 * (in / RWKVC_GROUP) + 2 * r};
}

/* Scale and integers of one group: scale = max / 127 rounded to f16, integers to nearest of the rounded scale. */
static rwkvc_status quantise(const rwkvc_tensor_info *info, uint64_t row, const float *x, int8_t *q, uint16_t *scale) {
    float largest = 0;
    for (int i = 0; i < RWKVC_GROUP; i++) largest = fmaxf(largest, fabsf(x[i]));
    *scale = rwkvc_float_to_half(largest / 127);
    if (*scale == 0x7c00)
        return rwkvc_fail(RWKVC_E_NONFINITE, "%s holds %g in row %llu, too large for q8", info->name, (double)largest,
                          (unsigned long long)row);
    float step = rwkvc_half_to_float(*scale), inverse = step > 0 ? 1 / step : 0;
    for (int i = 0; i < RWKVC_GROUP; i++) {
        float v = rintf(x[i] * inverse);
        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    return RWKVC_OK;
}

static rwkvc_status q8_pack(const rwkvc_tensor_info *info, const rwkvc_source *source, uint64_t panel, uint8_t *dst) {
    uint64_t rows = q8_panel_rows(info->kind), first = panel * rows;
    uint64_t last = info->kind == RWKVC_KIND_VALUE ? first + rwkvc_value_height(info->rows, panel) : first + rows;
    uint64_t cols = rwkvc_round_up(
        info->cols, info->kind == RWKVC_KIND_EMBEDDING || info->kind == RWKVC_KIND_VALUE ? RWKVC_GROUP : 64);
    uint8_t bias = info->kind == RWKVC_KIND_EMBEDDING ? 0 : 128;
    for (uint64_t row = first; row < last; row++) {
        for (uint64_t col = 0; col < cols; col += RWKVC_GROUP) {
            float x[RWKVC_GROUP] = {0};
            int8_t q[RWKVC_GROUP];
            uint16_t scale;
            bool inside = row < info->rows && col < info->cols;
            if (inside) {
                uint64_t n = rwkvc_min(RWKVC_GROUP, info->cols - col);
                rwkvc_status status = rwkvc_source_read(info, source, row, col, n, x);
                if (status) return status;
            }
            if (!inside || !rwkvc_source_group(source, row, info->cols, col / RWKVC_GROUP, q, &scale)) {
                rwkvc_status status = quantise(info, row, x, q, &scale);
                if (status) return status;
            }
            for (uint64_t i = 0; i < RWKVC_GROUP; i++) dst[place(info, row, col + i).weight] = (uint8_t)(q[i] + bias);
            memcpy(dst + place(info, row, col).scale, &scale, sizeof scale);
        }
    }
    return RWKVC_OK;
}

static void q8_unpack_row(const rwkvc_tensor_info *info, const uint8_t *packed, uint64_t row, float *dst) {
    for (uint64_t col = 0; col < info->cols; col++) {
        q8_place at = place(info, row, col);
        uint16_t scale;
        memcpy(&scale, packed + at.scale, sizeof scale);
        int q = info->kind == RWKVC_KIND_EMBEDDING ? (int8_t)packed[at.weight] : packed[at.weight] - 128;
        dst[col] = (float)q * rwkvc_half_to_float(scale);
    }
}

const rwkvc_format rwkvc_format_q8 = {"q8", q8_bytes, q8_panel_rows, q8_pack, q8_unpack_row};
