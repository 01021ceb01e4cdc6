/* SPDX-License-Identifier: Apache-2.0
 * The table of formats, and reading source values of any type. */
#include "formats/format.h"

#include <math.h>

#include "kernels/kernels.h"
#include "threads/pool.h"

static const rwkvc_format *const formats[] = {
    [RWKVC_FORMAT_F32] = &rwkvc_format_f32, [RWKVC_FORMAT_F16] = &rwkvc_format_f16,
    [RWKVC_FORMAT_Q8] = &rwkvc_format_q8,   [RWKVC_FORMAT_Q6] = &rwkvc_format_q6,
    [RWKVC_FORMAT_Q5] = &rwkvc_format_q5,   [RWKVC_FORMAT_Q4] = &rwkvc_format_q4,
};
enum { N_FORMATS = RWKVC_N_FORMATS };
_Static_assert(sizeof formats / sizeof *formats == N_FORMATS, "kernels.h has a table as long");

const rwkvc_format *rwkvc_format_get(uint32_t format) { return format < N_FORMATS ? formats[format] : NULL; }

const char *rwkvc_format_name(uint32_t format) {
    if (format == RWKVC_FORMAT_BYTES) return "bytes";
    return format < N_FORMATS ? formats[format]->name : NULL;
}

int32_t rwkvc_format_by_name(const char *name) {
    for (int32_t i = 0; i < N_FORMATS; i++)
        if (name && strcmp(name, formats[i]->name) == 0) return i;
    return -1;
}

uint32_t rwkvc_format_for(uint32_t preset, uint32_t kind) {
    switch (kind) {
    case RWKVC_KIND_BYTES: return RWKVC_FORMAT_BYTES;
    case RWKVC_KIND_VECTOR: return RWKVC_FORMAT_F32;
    case RWKVC_KIND_LOW_RANK: return rwkvc_bits(preset) ? RWKVC_FORMAT_Q8 : preset;
    case RWKVC_KIND_EMBEDDING: /* costs size only: a token reads one row; and every error of it goes through all layers */
        if (preset == RWKVC_FORMAT_Q5) return RWKVC_FORMAT_Q6;
        return preset == RWKVC_FORMAT_Q4 ? RWKVC_FORMAT_Q5 : preset;
    case RWKVC_KIND_HEAD: return preset == RWKVC_FORMAT_Q4 ? RWKVC_FORMAT_Q5 : preset;
    default: return preset;
    }
}

uint64_t rwkvc_packed_bytes(uint32_t kind, uint32_t format, uint64_t rows, uint64_t cols) {
    if (rows == 0 || cols == 0 || rows > INT32_MAX || cols > (1ull << 58) / rows) return 0;
    if (kind == RWKVC_KIND_BYTES) return format == RWKVC_FORMAT_BYTES ? rwkvc_round_up(cols, RWKVC_ALIGN) : 0;
    const rwkvc_format *f = rwkvc_format_get(format);
    return f && kind < RWKVC_KIND_BYTES ? f->bytes(format, kind, rows, cols) : 0;
}

uint64_t rwkvc_packed_panels(uint32_t kind, uint32_t format, uint64_t rows, uint64_t cols) {
    if (kind == RWKVC_KIND_BYTES || !rwkvc_packed_bytes(kind, format, rows, cols)) return 0;
    return rwkvc_ceil_div(rows, rwkvc_format_get(format)->panel_rows(format, kind));
}

rwkvc_status rwkvc_pack(const rwkvc_tensor_info *info, const rwkvc_source *source, uint64_t first, uint64_t last,
                        void *dst) {
    uint64_t panels = rwkvc_packed_panels(info->kind, info->format, info->rows, info->cols);
    bool blocks = source->dtype > RWKVC_DTYPE_BF16;
    if (panels == 0 || first > last || last > panels || source->dtype > RWKVC_DTYPE_INTEGERS ||
        (blocks && (info->transposed || info->transform)) ||
        (blocks && source->dtype != RWKVC_DTYPE_INTEGERS && info->cols % RWKVC_GROUP))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%s: cannot pack panels %llu to %llu of %llu", info->name,
                          (unsigned long long)first, (unsigned long long)last, (unsigned long long)panels);
    const rwkvc_format *format = rwkvc_format_get(info->format);
    const char *isa;
    rwkvc_status status = rwkvc_isa_default(&isa);
    if (status) return status;
    uint64_t environment = rwkvc_float_environment();
    status = format->pack(info, source, rwkvc_kernels_get(isa), first, last, dst);

    rwkvc_float_restore(environment);
    return status;
}

rwkvc_status rwkvc_unpack(const rwkvc_tensor_info *info, const void *packed, uint64_t first, uint64_t last,
                          float *dst) {
    if (!rwkvc_packed_panels(info->kind, info->format, info->rows, info->cols) || first > last || last > info->rows)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%s: cannot unpack rows %llu to %llu", info->name,
                          (unsigned long long)first, (unsigned long long)last);
    const rwkvc_format *format = rwkvc_format_get(info->format);
    for (uint64_t row = first; row < last; row++, dst += info->cols) format->unpack_row(info, packed, row, dst);
    return RWKVC_OK;
}

float rwkvc_half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023, bits;
    float value;
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, exact in f32 */
        value = (float)fraction * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t rwkvc_float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 2^16 or more */
    if (magnitude < 0x38800000) {                                  /* below 2^-14: a multiple of 2^-24 */
        float scaled;
        memcpy(&scaled, &magnitude, sizeof scaled);
        return (uint16_t)(sign | (uint32_t)lrintf(scaled * 0x1p24f));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}
