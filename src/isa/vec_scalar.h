/* SPDX-License-Identifier: Apache-2.0
 * The vector vocabulary in plain C: its definition, and what runs where nothing better does.
 *
 *   vf  16 floats            vi  16 int32
 *   vb  64 bytes             vw  weights ready for vi_dot: 16 rows x 4 consecutive inputs, stored + 128
 *
 * Weights of at most 7 bits may stay a vb and go to vi_dot_small, which knows no offset of its own: there begin with
 * vi_set1(-bias * sum of the activations). An instruction set that has something faster for two quads of weights of at
 * most 6 bits defines VI_DOT_SMALL_PAIR and vi_dot_small_pair.
 *
 * Every operation is exact or correctly rounded and works lane by lane (fma with one rounding, vf_max(a, b) is
 * a > b ? a : b), except vf_sum, which adds pairwise: lanes 8 apart, then 4, 2, 1. That is why every instruction
 * set gives the same bits. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "formats/format.h"
#include "isa/nonzero.h"

typedef struct {
    float lane[16];
} vf;
typedef struct {
    int32_t lane[16];
} vi;
typedef struct {
    uint8_t byte[64];
} vb;
typedef vb vw;

#define EACH_LANE for (int lane_ = 0; lane_ < 16; lane_++)
#define L lane[lane_]

VEC vf vf_set1(float x) {
    vf r;
    EACH_LANE r.L = x;
    return r;
}
VEC vf vf_zero(void) { return vf_set1(0); }
VEC vf vf_load(const float *p) {
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}
VEC void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
/* The first n of 16 lanes, the rest 0. */
VEC vf vf_load_n(const float *p, uint32_t n) {
    vf r = vf_zero();
    memcpy(&r, p, n * sizeof *p);
    return r;
}
/* To 64-byte aligned memory that nobody reads soon, past the caches where that can be told; vf_stream_end() before another
 * thread may read it. */
VEC void vf_stream(float *p, vf a) { vf_store(p, a); }
VEC void vf_stream_end(void) {}
VEC void vf_store_n(float *p, vf a, uint32_t n) { memcpy(p, &a, n * sizeof *p); }
VEC vf vf_keep_n(vf a, uint32_t n) { return vf_load_n(a.lane, n); }
VEC vf vf_load_half(const uint16_t *p) {
    vf r;
    EACH_LANE r.L = rwkvc_half_to_float(p[lane_]);
    return r;
}
/* To half, nearest even; infinite from 65520 on. */
VEC void vf_store_half(uint16_t *p, vf a) { EACH_LANE p[lane_] = rwkvc_float_to_half(a.L); }
VEC vf vf_load_bf16(const uint16_t *p) {
    vf r;
    EACH_LANE {
        uint32_t bits = (uint32_t)p[lane_] << 16;
        memcpy(&r.L, &bits, sizeof bits);
    }
    return r;
}
VEC vf vf_load_i8(const int8_t *p) {
    vf r;
    EACH_LANE r.L = (float)p[lane_];
    return r;
}
VEC vf vf_add(vf a, vf b) {
    EACH_LANE a.L += b.L;
    return a;
}
VEC vf vf_sub(vf a, vf b) {
    EACH_LANE a.L -= b.L;
    return a;
}
VEC vf vf_mul(vf a, vf b) {
    EACH_LANE a.L *= b.L;
    return a;
}
VEC vf vf_div(vf a, vf b) {
    EACH_LANE a.L /= b.L;
    return a;
}
/* a * b + c, one rounding */
LONG_VEC vf vf_fma(vf a, vf b, vf c) {
    EACH_LANE c.L = fmaf(a.L, b.L, c.L);
    return c;
}
/* c - a * b, one rounding */
VEC vf vf_fnma(vf a, vf b, vf c) {
    EACH_LANE c.L = fmaf(-a.L, b.L, c.L);
    return c;
}
VEC vf vf_max(vf a, vf b) {
    EACH_LANE a.L = a.L > b.L ? a.L : b.L;
    return a;
}
VEC vf vf_min(vf a, vf b) {
    EACH_LANE a.L = a.L < b.L ? a.L : b.L;
    return a;
}
VEC vf vf_abs(vf a) {
    EACH_LANE a.L = fabsf(a.L);
    return a;
}
/* To the nearest integer, ties to even. */
VEC vf vf_round(vf a) {
    EACH_LANE a.L = rintf(a.L);
    return a;
}
/* x < limit ? a : b */
VEC vf vf_where_less(vf x, vf limit, vf a, vf b) {
    EACH_LANE a.L = x.L < limit.L ? a.L : b.L;
    return a;
}
/* 2^n for integral n in -126..127 */
VEC vf vf_exp2_int(vf n) {
    vf r;
    EACH_LANE {
        uint32_t bits = (uint32_t)((n.L == n.L ? (int32_t)n.L : 0) + 127) << 23;
        memcpy(&r.L, &bits, sizeof bits);
    }
    return r;
}
/* a * 2^n for integral n in -252..254, rounded once: in two steps, so that subnormal results and 2^128 come out right. */
VEC vf vf_scale(vf a, vf n) {
    vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(a, vf_exp2_int(half)), vf_exp2_int(vf_sub(n, half)));
}
VEC float vf_sum(vf a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.lane[i] += a.lane[i + half];
    return a.lane[0];
}
/* Largest absolute value, as integers: in any order the same, and NaN is larger than everything. */
VEC float vf_largest_size(vf a, vf b) {
    uint32_t m = 0;
    for (int i = 0; i < 16; i++) {
        uint32_t x, y;
        memcpy(&x, a.lane + i, 4);
        memcpy(&y, b.lane + i, 4);
        x &= 0x7fffffff;
        y &= 0x7fffffff;
        m = x > m ? x : m;
        m = y > m ? y : m;
    }
    float r;
    memcpy(&r, &m, 4);
    return r;
}
VEC float vf_largest(vf a) {
    float m = a.lane[0];
    EACH_LANE m = a.L > m ? a.L : m;
    return m;
}
/* The floats that have these bits. */
VEC vf vf_from_bits(vi a) {
    vf r;
    memcpy(&r, &a, sizeof r);
    return r;
}
VEC vf vf_from_vi(vi a) {
    vf r;
    EACH_LANE r.L = (float)a.L;
    return r;
}
/* Nearest, ties to even; for values within int8. */
VEC vi vi_from_vf(vf a) {
    vi r;
    EACH_LANE r.L = (int32_t)rintf(a.L);
    return r;
}
VEC vi vi_set1(int32_t x) {
    vi r;
    EACH_LANE r.L = x;
    return r;
}
VEC vi vi_add(vi a, vi b) {
    EACH_LANE a.L += b.L;
    return a;
}
VEC int32_t vi_sum(vi a) {
    int32_t sum = 0;
    EACH_LANE sum += a.L;
    return sum;
}
VEC void vi_store_i8(int8_t *p, vi a) { EACH_LANE p[lane_] = (int8_t)a.L; }
/* Of 32 int8 those that are not 0, in order, and their places: how many. Zeros follow up to a multiple of four; place and
 * value have room for 32. */
VEC uint32_t vi_nonzero(vi lo, vi hi, uint8_t *place, int8_t *value) {
    int8_t q[33] = {0};
    vi_store_i8(q, lo);
    vi_store_i8(q + 16, hi);
    return rwkvc_nonzero(q, place, value);
}

VEC vb vb_load(const uint8_t *p) {
    vb r;
    memcpy(&r, p, sizeof r);
    return r;
}
VEC void vb_store(uint8_t *p, vb a) { memcpy(p, &a, sizeof a); }
/* 16 bytes, looked up below. */
VEC vb vb_table(const uint8_t *p) {
    vb r;
    for (int i = 0; i < 64; i++) r.byte[i] = p[i % 16];
    return r;
}
/* table[index] of each byte, index < 16 */
VEC vb vb_lookup(vb table, vb index) {
    for (int i = 0; i < 64; i++) index.byte[i] = table.byte[index.byte[i] & 15];
    return index;
}
/* Each byte's low and high half. */
VEC vb vb_low(vb a) {
    for (int i = 0; i < 64; i++) a.byte[i] &= 15;
    return a;
}
VEC vb vb_high(vb a) {
    for (int i = 0; i < 64; i++) a.byte[i] >>= 4;
    return a;
}
/* a | (b << left & mask), left in -7..7; the mask takes bits of the same byte only. */
LONG_VEC vb vb_merge(vb a, vb b, int left, uint8_t mask) {
    for (int i = 0; i < 64; i++) a.byte[i] |= (uint8_t)((left < 0 ? b.byte[i] >> -left : b.byte[i] << left) & mask);
    return a;
}
VEC vb vb_add(vb a, uint8_t x) {
    for (int i = 0; i < 64; i++) a.byte[i] = (uint8_t)(a.byte[i] + x);
    return a;
}
/* Four times 16 bytes, one of each in turn. */
VEC vb vb_zip(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    vb r;
    EACH_LANE {
        r.byte[4 * lane_] = a[lane_];
        r.byte[4 * lane_ + 1] = b[lane_];
        r.byte[4 * lane_ + 2] = c[lane_];
        r.byte[4 * lane_ + 3] = d[lane_];
    }
    return r;
}
/* Numbers of 4 bytes, 16 of each of 16 rows: out[16, 16] has the rows side by side, number j of row r at [j, r]. */
LONG_VEC void vb_columns(const uint8_t *const rows[16], uint64_t skip, uint8_t *out) {
    for (int j = 0; j < 16; j++) EACH_LANE memcpy(out + 64 * j + 4 * lane_, rows[lane_] + skip + 4 * j, 4);
}
/* Of 32 bf16 or halves the even and the odd ones. */
typedef struct {
    uint16_t lane[16];
} half_words;
LONG_VEC half_words every_other(vb a, int odd) {
    half_words r;
    EACH_LANE memcpy(r.lane + lane_, a.byte + 4 * lane_ + 2 * odd, 2);
    return r;
}
VEC vf vf_even_bf16(vb a) { return vf_load_bf16(every_other(a, 0).lane); }
VEC vf vf_odd_bf16(vb a) { return vf_load_bf16(every_other(a, 1).lane); }
VEC vf vf_even_half(vb a) { return vf_load_half(every_other(a, 0).lane); }
VEC vf vf_odd_half(vb a) { return vf_load_half(every_other(a, 1).lane); }
/* Four columns of 64 rows → four operands of 16 rows x 4 inputs; row of a lane: rwkvc_value_row. */
LONG_VEC void vb_interleave(vb a, vb b, vb c, vb d, vb out[4]) {
    for (uint32_t v = 0; v < 4; v++) EACH_LANE {
            uint32_t row = rwkvc_value_row(v, (uint32_t)lane_);
            out[v].byte[4 * lane_] = a.byte[row];
            out[v].byte[4 * lane_ + 1] = b.byte[row];
            out[v].byte[4 * lane_ + 2] = c.byte[row];
            out[v].byte[4 * lane_ + 3] = d.byte[row];
        }
}
VEC vw vw_from(vb stored) { return stored; }
/* Where a dot product begins: -128 * sum of the activations that will follow stands in `with_offset`, for weights that are
 * multiplied as they are stored. */
VEC vi vi_dot_begin(int32_t with_offset, int32_t without) {
    (void)without;
    return vi_set1(with_offset);
}
/* acc + sum over 4 inputs of stored weight * activation; a = 4 int8 */
VEC vi vi_dot(vi acc, vw w, const int8_t *a) {
    EACH_LANE for (int i = 0; i < 4; i++) acc.L += (int32_t)w.byte[4 * lane_ + i] * a[i];
    return acc;
}

/* The same for weights below 128, as they are. */
VEC vi vi_dot_small(vi acc, vb w, const int8_t *a) { return vi_dot(acc, w, a); }

#undef L
#undef EACH_LANE

enum {
    Q8_TILE = 4,        /* columns that a panel of integers is multiplied with at once */
    PLAIN_TILE = 4,     /* of floats */
    PLAIN_PANELS = 1,   /* and so many panels */
    WKV_BLOCKS = 1,     /* 16 value channels of a state, so many times, at once */
    SPARSE_INPUTS = 16, /* rwkvc_kernels.sparse_inputs */
    DIRECT_COLUMNS = 4, /* rwkvc_kernels.direct_columns */
    STREAM_STEP = 128,  /* bytes between prefetches when one token streams: some processors bring lines in pairs */
    VALUE_SUMS = 16     /* 16 rows of a q8 value matrix, so many times, at once */
};
