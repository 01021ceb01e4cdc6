/* SPDX-License-Identifier: Apache-2.0
 * The vector vocabulary (vec_scalar.h defines it) on 64-bit ARM: 16 lanes are four registers. Named members, because
 * gcc keeps an array of vectors in memory. The dot product, vw and the tiles are in dot_neon.h. */
#include <stdint.h>
#include <string.h>

#include "isa/nonzero.h"

typedef struct {
    float32x4_t a, b, c, d;
} vf;
typedef struct {
    int32x4_t a, b, c, d;
} vi;
typedef struct {
    uint8x16_t a, b, c, d;
} vb;

/* One operation on the four registers of its operands. */
#define EACH(op, x) {op((x).a), op((x).b), op((x).c), op((x).d)}
#define EACH_2(op, x, y) {op((x).a, (y).a), op((x).b, (y).b), op((x).c, (y).c), op((x).d, (y).d)}
#define EACH_3(op, x, y, z)                                                                                            \
    {op((x).a, (y).a, (z).a), op((x).b, (y).b, (z).b), op((x).c, (y).c, (z).c), op((x).d, (y).d, (z).d)}

VEC vf vf_set1(float x) {
    float32x4_t four = vdupq_n_f32(x);
    return (vf){four, four, four, four};
}
VEC vf vf_zero(void) { return vf_set1(0); }
VEC vf vf_load(const float *p) { return (vf){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
VEC void vf_store(float *p, vf x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}
VEC vf vf_load_n(const float *p, uint32_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vf_load(lanes);
}
VEC void vf_stream(float *p, vf x) { vf_store(p, x); }
VEC void vf_stream_end(void) {}
VEC void vf_store_n(float *p, vf x, uint32_t n) {
    float lanes[16];
    vf_store(lanes, x);
    memcpy(p, lanes, n * sizeof *p);
}
VEC vf vf_keep_n(vf x, uint32_t n) {
    float lanes[16];
    vf_store(lanes, x);
    return vf_load_n(lanes, n);
}
VEC vf vf_load_half(const uint16_t *p) {
    float16x8_t lo = vreinterpretq_f16_u16(vld1q_u16(p)), hi = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return (vf){vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo), vcvt_f32_f16(vget_low_f16(hi)),
                vcvt_high_f32_f16(hi)};
}
VEC void vf_store_half(uint16_t *p, vf x) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}
VEC vf vf_load_bf16(const uint16_t *p) {
    uint16x8_t lo = vld1q_u16(p), hi = vld1q_u16(p + 8);
    return (vf){
        vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(lo), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(lo, 16)),
        vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(hi), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(hi, 16))};
}
VEC vf vf_from_bits(vi x) { return (vf)EACH(vreinterpretq_f32_s32, x); }
VEC vf vf_from_vi(vi x) { return (vf)EACH(vcvtq_f32_s32, x); }
VEC vf vf_load_i8(const int8_t *p) {
    int8x16_t bytes = vld1q_s8(p);
    int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_high_s8(bytes);
    return vf_from_vi(
        (vi){vmovl_s16(vget_low_s16(lo)), vmovl_high_s16(lo), vmovl_s16(vget_low_s16(hi)), vmovl_high_s16(hi)});
}
VEC vf vf_add(vf x, vf y) { return (vf)EACH_2(vaddq_f32, x, y); }
VEC vf vf_sub(vf x, vf y) { return (vf)EACH_2(vsubq_f32, x, y); }
VEC vf vf_mul(vf x, vf y) { return (vf)EACH_2(vmulq_f32, x, y); }
VEC vf vf_div(vf x, vf y) { return (vf)EACH_2(vdivq_f32, x, y); }
VEC vf vf_fma(vf x, vf y, vf z) { return (vf)EACH_3(vfmaq_f32, z, x, y); }
VEC vf vf_fnma(vf x, vf y, vf z) { return (vf)EACH_3(vfmsq_f32, z, x, y); }
VEC float32x4_t larger_4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
VEC float32x4_t smaller_4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
/* Not fmax and fmin: they treat NaN and zeros of both signs differently. */
VEC vf vf_max(vf x, vf y) { return (vf)EACH_2(larger_4, x, y); }
VEC vf vf_min(vf x, vf y) { return (vf)EACH_2(smaller_4, x, y); }
VEC vf vf_abs(vf x) { return (vf)EACH(vabsq_f32, x); }
VEC vf vf_round(vf x) { return (vf)EACH(vrndnq_f32, x); }
VEC vf vf_where_less(vf x, vf limit, vf y, vf z) {
    struct {
        uint32x4_t a, b, c, d;
    } less = EACH_2(vcltq_f32, x, limit);
    return (vf)EACH_3(vbslq_f32, less, y, z);
}
VEC float32x4_t exp2_int_4(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
VEC vf vf_exp2_int(vf n) { return (vf)EACH(exp2_int_4, n); }
VEC vf vf_scale(vf a, vf n) {
    vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(a, vf_exp2_int(half)), vf_exp2_int(vf_sub(n, half)));
}
VEC float vf_sum(vf x) {
    float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
VEC uint32x4_t size_bits_4(float32x4_t x) { return vreinterpretq_u32_f32(vabsq_f32(x)); }
VEC float vf_largest_size(vf x, vf y) {
    uint32x4_t ab =
        vmaxq_u32(vmaxq_u32(size_bits_4(x.a), size_bits_4(x.b)), vmaxq_u32(size_bits_4(y.a), size_bits_4(y.b)));
    uint32x4_t cd =
        vmaxq_u32(vmaxq_u32(size_bits_4(x.c), size_bits_4(x.d)), vmaxq_u32(size_bits_4(y.c), size_bits_4(y.d)));
    uint32_t bits = vmaxvq_u32(vmaxq_u32(ab, cd));
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    return largest;
}
VEC float vf_largest(vf x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d))); }
VEC vi vi_from_vf(vf x) { return (vi)EACH(vcvtnq_s32_f32, x); }
VEC vi vi_set1(int32_t x) {
    int32x4_t four = vdupq_n_s32(x);
    return (vi){four, four, four, four};
}
VEC vi vi_add(vi x, vi y) { return (vi)EACH_2(vaddq_s32, x, y); }
VEC int32_t vi_sum(vi x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
VEC void vi_store_i8(int8_t *p, vi x) {
    int16x8_t lo = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b)), hi = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
    vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}
VEC uint32_t vi_nonzero(vi lo, vi hi, uint8_t *place, int8_t *value) {
    int8_t q[33];
    vi_store_i8(q, lo);
    vi_store_i8(q + 16, hi);
    q[32] = 0;
    return rwkvc_nonzero(q, place, value);
}

VEC vb vb_load(const uint8_t *p) { return (vb){vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
VEC void vb_store(uint8_t *p, vb x) {
    vst1q_u8(p, x.a);
    vst1q_u8(p + 16, x.b);
    vst1q_u8(p + 32, x.c);
    vst1q_u8(p + 48, x.d);
}
VEC vb vb_table(const uint8_t *p) {
    uint8x16_t table = vld1q_u8(p);
    return (vb){table, table, table, table};
}
VEC vb vb_lookup(vb table, vb index) { return (vb)EACH_2(vqtbl1q_u8, table, index); }
VEC uint8x16_t low_16(uint8x16_t x) { return vandq_u8(x, vdupq_n_u8(15)); }
VEC uint8x16_t high_16(uint8x16_t x) { return vshrq_n_u8(x, 4); }
VEC vb vb_low(vb x) { return (vb)EACH(low_16, x); }
VEC vb vb_high(vb x) { return (vb)EACH(high_16, x); }
VEC vb vb_merge(vb x, vb y, int left, uint8_t mask) {
    int8x16_t by = vdupq_n_s8((int8_t)left);
    uint8x16_t kept = vdupq_n_u8(mask);
    return (vb){vorrq_u8(x.a, vandq_u8(vshlq_u8(y.a, by), kept)), vorrq_u8(x.b, vandq_u8(vshlq_u8(y.b, by), kept)),
                vorrq_u8(x.c, vandq_u8(vshlq_u8(y.c, by), kept)), vorrq_u8(x.d, vandq_u8(vshlq_u8(y.d, by), kept))};
}
VEC vb vb_add(vb x, uint8_t k) {
    uint8x16_t all = vdupq_n_u8(k);
    return (vb){vaddq_u8(x.a, all), vaddq_u8(x.b, all), vaddq_u8(x.c, all), vaddq_u8(x.d, all)};
}
VEC void interleave_16(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d, uint8x16_t out[4]) {
    uint16x8_t ab_lo = vreinterpretq_u16_u8(vzip1q_u8(a, b)), ab_hi = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    uint16x8_t cd_lo = vreinterpretq_u16_u8(vzip1q_u8(c, d)), cd_hi = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    out[0] = vreinterpretq_u8_u16(vzip1q_u16(ab_lo, cd_lo));
    out[1] = vreinterpretq_u8_u16(vzip2q_u16(ab_lo, cd_lo));
    out[2] = vreinterpretq_u8_u16(vzip1q_u16(ab_hi, cd_hi));
    out[3] = vreinterpretq_u8_u16(vzip2q_u16(ab_hi, cd_hi));
}
VEC void vb_interleave(vb a, vb b, vb c, vb d, vb out[4]) {
    uint8x16_t w[4], x[4], y[4], z[4];
    interleave_16(a.a, b.a, c.a, d.a, w);
    interleave_16(a.b, b.b, c.b, d.b, x);
    interleave_16(a.c, b.c, c.c, d.c, y);
    interleave_16(a.d, b.d, c.d, d.d, z);
    UNROLL for (int v = 0; v < 4; v++) out[v] = (vb){w[v], x[v], y[v], z[v]};
}
VEC vb vb_zip(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    uint8x16_t out[4];
    interleave_16(vld1q_u8(a), vld1q_u8(b), vld1q_u8(c), vld1q_u8(d), out);
    return (vb){out[0], out[1], out[2], out[3]};
}
/* 4 numbers of each of 4 rows. */
VEC void columns_4(const uint8_t *const *rows, uint64_t skip, uint8_t *out) {
    uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(rows[0] + skip)), b = vreinterpretq_u32_u8(vld1q_u8(rows[1] + skip));
    uint32x4_t c = vreinterpretq_u32_u8(vld1q_u8(rows[2] + skip)), d = vreinterpretq_u32_u8(vld1q_u8(rows[3] + skip));
    uint32x4_t ac_lo = vzip1q_u32(a, c), ac_hi = vzip2q_u32(a, c), bd_lo = vzip1q_u32(b, d), bd_hi = vzip2q_u32(b, d);
    vst1q_u8(out, vreinterpretq_u8_u32(vzip1q_u32(ac_lo, bd_lo)));
    vst1q_u8(out + 64, vreinterpretq_u8_u32(vzip2q_u32(ac_lo, bd_lo)));
    vst1q_u8(out + 128, vreinterpretq_u8_u32(vzip1q_u32(ac_hi, bd_hi)));
    vst1q_u8(out + 192, vreinterpretq_u8_u32(vzip2q_u32(ac_hi, bd_hi)));
}
VEC void vb_columns(const uint8_t *const rows[16], uint64_t skip, uint8_t *out) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) columns_4(rows + 4 * i, skip + 16 * (uint64_t)j, out + 256 * j + 16 * i);
}
VEC float32x4_t even_bf16_4(uint8x16_t x) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(x), 16)); }
VEC float32x4_t odd_bf16_4(uint8x16_t x) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(x), vdupq_n_u32(0xffff0000)));
}
VEC float32x4_t even_half_4(uint8x16_t x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_u8(x))));
}
VEC float32x4_t odd_half_4(uint8x16_t x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(vreinterpretq_u32_u8(x), 16)));
}
VEC vf vf_even_bf16(vb x) { return (vf)EACH(even_bf16_4, x); }
VEC vf vf_odd_bf16(vb x) { return (vf)EACH(odd_bf16_4, x); }
VEC vf vf_even_half(vb x) { return (vf)EACH(even_half_4, x); }
VEC vf vf_odd_half(vb x) { return (vf)EACH(odd_half_4, x); }
