/* SPDX-License-Identifier: Apache-2.0
 * Making integer weights: 16 rows x 32 inputs at a time, a row a lane, so that every sum over a group runs down the
 * inputs and is the same on every instruction set. */

#include "kernels/book.inc.h"

/* Scales as they are stored, and what to multiply by to get integers; 0 for groups without a scale. */
VEC vf KERNEL(put_scale)(vf scale, uint16_t *out) {
    vf_store_half(out, scale);
    vf rounded = vf_load_half(out), size = vf_abs(rounded), tiny = vf_set1(0x1p-24f);
    return vf_where_less(size, tiny, vf_zero(), vf_div(vf_set1(1), vf_where_less(size, tiny, vf_set1(1), rounded)));
}

/* Largest |x| of each row, and that x. */
VEC vf KERNEL(extreme)(const float *x, vf *largest) {
    vf most = vf_zero(), value = vf_zero();
    for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
        vf y = vf_load(x + 16 * i), size = vf_abs(y);
        value = vf_where_less(most, size, y, value);
        most = vf_max(size, most);
    }
    *largest = most;
    return value;
}

/* Nearest integers in least .. most. */
VEC void KERNEL(round_all)(const float *x, vf inverse, float least, float most, int8_t *q) {
    for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
        vf y = vf_mul(vf_load(x + 16 * i), inverse);
        vi_store_i8(q + 16 * i, vi_from_vf(vf_max(vf_min(y, vf_set1(most)), vf_set1(least))));
    }
}

/* q8: the largest value becomes 127.5, 127, .. 124 times the scale; of these scales, rounded to halves, the one wins that
 * leaves the least squared error. Integers are to nearest. Tries go side by side: alone, one waits for its own sums. Only
 * the first may need its values limited; with a half so small that another does, that scale is left out. */
static void KERNEL(quantise_8)(const float *x, const int8_t *book, int8_t *q, uint16_t *scale) {
    enum { TRIES = 8 };
    (void)book;
    const vf most = vf_set1(127);
    vf largest = vf_zero();
    for (uint32_t i = 0; i < RWKVC_GROUP; i++) largest = vf_max(vf_abs(vf_load(x + 16 * i)), largest);
    vf tried[TRIES], stored[TRIES], inverse[TRIES], error[TRIES];
    UNROLL for (int t = 0; t < TRIES; t++) {
        tried[t] = vf_div(largest, vf_set1(127.5f - 0.5f * (float)t));
        inverse[t] = KERNEL(put_scale)(tried[t], scale);
        stored[t] = vf_load_half(scale);
        error[t] = vf_zero();
    }
    for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
        vf y = vf_load(x + 16 * i);
        UNROLL for (int t = 0; t < TRIES; t++) {
            vf scaled = vf_mul(y, inverse[t]), k = vf_round(scaled);
            if (t == 0) k = vf_max(vf_min(k, most), vf_set1(-127));
            vf miss = vf_sub(scaled, k);
            error[t] = vf_fma(miss, miss, error[t]);
        }
    }
    /* a group that no half can scale keeps an infinite one, which is refused where scales are checked */
    vf best = vf_div(largest, most), least = vf_set1(HUGE_VALF);
    UNROLL for (int t = 0; t < TRIES; t++) {
        vf cost = vf_mul(vf_mul(stored[t], stored[t]), error[t]);
        if (t) cost = vf_where_less(most, vf_round(vf_mul(largest, inverse[t])), vf_set1(HUGE_VALF), cost);
        best = vf_where_less(cost, least, tried[t], best);
        least = vf_where_less(cost, least, cost, least);
    }
    KERNEL(round_all)(x, KERNEL(put_scale)(best, scale), -127, 127, q);
}

/* The scale of least squared error: the extreme value goes to one end of the range or somewhat inside or outside of it,
 * the others are rounded; for the integers so found the best scale follows, sum x q / sum q^2, and is worth
 * (sum x q)^2 / sum q^2. The best of all tries wins. */
typedef struct {
    vf scale, worth;
} KERNEL(choice);

VEC void KERNEL(consider)(KERNEL(choice) * best, vf xq, vf qq) {
    vf zero = vf_zero(), some = vf_where_less(zero, qq, qq, vf_set1(1));
    vf scale = vf_div(xq, some), worth = vf_mul(scale, xq);
    best->scale = vf_where_less(best->worth, worth, scale, best->scale);
    best->worth = vf_where_less(best->worth, worth, worth, best->worth);
}

/* Integers in -end .. end - 1; one function for all numbers of bits. */
static NOINLINE void KERNEL(quantise_linear)(float end, const float *x, int8_t *q, uint16_t *scale) {
    enum { TRIES = 6 };
    vf largest, value = KERNEL(extreme)(x, &largest), one = vf_set1(1);
    /* a group of zeros, or one so small that the inverse would not be finite, is stored as zeros */
    vf tiny = vf_set1(1e-30f), divisor = vf_where_less(largest, tiny, one, value);
    KERNEL(choice) best = {vf_zero(), vf_zero()};
    for (int try = -TRIES; try <= TRIES; try++) {
        vf inverse = vf_div(vf_set1(-end + 0.15f * (float)try), divisor), xq = vf_zero(), qq = vf_zero();
        for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
            vf y = vf_load(x + 16 * i), k = vf_round(vf_mul(y, inverse));
            k = vf_max(vf_min(k, vf_set1(end - 1)), vf_set1(-end));
            xq = vf_fma(y, k, xq);
            qq = vf_fma(k, k, qq);
        }
        KERNEL(consider)(&best, xq, qq);
    }
    vf chosen = vf_where_less(largest, tiny, vf_zero(), best.scale);
    KERNEL(round_all)(x, KERNEL(put_scale)(chosen, scale), -end, end - 1, q);
}

static void KERNEL(quantise_6)(const float *x, const int8_t *book, int8_t *q, uint16_t *scale) {
    (void)book;
    KERNEL(quantise_linear)(32, x, q, scale);
}

static void KERNEL(quantise_5)(const float *x, const int8_t *book, int8_t *q, uint16_t *scale) {
    (void)book;
    KERNEL(quantise_linear)(16, x, q, scale);
}

static void KERNEL(quantise_4)(const float *x, const int8_t *values, int8_t *q, uint16_t *scale) {
    enum { TRIES = 3 };
    float entry[16];
    const vf_book book = KERNEL(book_of)(values, entry);
    vf largest, value = KERNEL(extreme)(x, &largest), one = vf_set1(1), number;
    vf tiny = vf_set1(1e-30f), divisor = vf_where_less(largest, tiny, one, value);
    KERNEL(choice) best = {vf_zero(), vf_zero()};
    for (int try = -TRIES; try <= TRIES; try++) {
        vf inverse[2], xq[2], qq[2];
        UNROLL for (int end = 0; end < 2; end++) {
            inverse[end] = vf_div(vf_set1(entry[15 * end] * (1 + 0.06f * (float)try)), divisor);
            xq[end] = qq[end] = vf_zero();
        }
        for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
            vf y = vf_load(x + 16 * i);
            UNROLL for (int end = 0; end < 2; end++) {
                vf k = vf_book_nearest(&book, vf_mul(y, inverse[end]), &number);
                xq[end] = vf_fma(y, k, xq[end]);
                qq[end] = vf_fma(k, k, qq[end]);
            }
        }
        UNROLL for (int end = 0; end < 2; end++) KERNEL(consider)(&best, xq[end], qq[end]);
    }
    vf inverse = KERNEL(put_scale)(vf_where_less(largest, tiny, vf_zero(), best.scale), scale);
    for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
        vf_book_nearest(&book, vf_mul(vf_load(x + 16 * i), inverse), &number);
        vi_store_i8(q + 16 * i, vi_from_vf(vf_sub(number, vf_set1(8))));
    }
}

/* Integers q[input, row] of a group as a MATRIX has them. */
VEC void KERNEL(pack_lines)(const uint32_t bits, const int8_t *q, uint8_t *lines) {
    vb quad[8];
    UNROLL for (uint32_t i = 0; i < 8; i++) {
        const uint8_t *p = (const uint8_t *)q + 64 * i;
        quad[i] = vb_add(vb_zip(p, p + 16, p + 32, p + 48), (uint8_t)(1 << (bits - 1)));
    }
    if (bits == 8) {
        UNROLL for (uint32_t i = 0; i < 8; i++) vb_store(lines + 64 * i, quad[i]);
        return;
    }
    UNROLL for (uint32_t i = 0; i < 4; i++) vb_store(lines + 64 * i, vb_merge(vb_low(quad[i]), quad[i + 4], 4, 0xf0));
    if (bits == 5) {
        vb plane = vb_high(quad[0]);
        UNROLL for (int i = 1; i < 8; i++) plane = vb_merge(plane, quad[i], i - 4, (uint8_t)(1 << i));
        vb_store(lines + 256, plane);
    }
    if (bits == 6)
        for (uint32_t m = 0; m < 2; m++) {
            vb plane = vb_high(quad[4 * m]);
            UNROLL for (int i = 1; i < 4; i++) plane =
                vb_merge(plane, quad[4 * m + (uint32_t)i], 2 * i - 4, (uint8_t)(3 << 2 * i));
            vb_store(lines + 256 + 64 * m, plane);
        }
}

static void KERNEL(pack_lines_8)(const int8_t *q, uint8_t *lines) { KERNEL(pack_lines)(8, q, lines); }
static void KERNEL(pack_lines_6)(const int8_t *q, uint8_t *lines) { KERNEL(pack_lines)(6, q, lines); }
static void KERNEL(pack_lines_5)(const int8_t *q, uint8_t *lines) { KERNEL(pack_lines)(5, q, lines); }
static void KERNEL(pack_lines_4)(const int8_t *q, uint8_t *lines) { KERNEL(pack_lines)(4, q, lines); }

static NOINLINE void KERNEL(columns)(const uint8_t *const rows[16], uint64_t skip, uint8_t *out) {
    vb_columns(rows, skip, out);
}

/* n inputs of 16 rows of a float dtype as x[input, 16], n % 32 == 0. Returns whether all are finite. */
static bool KERNEL(widen_rows)(uint32_t dtype, const uint8_t *const rows[16], uint64_t n, float *x) {
    uint8_t columns[1024];
    vf zeros = vf_zero();
    uint64_t size = dtype == RWKVC_DTYPE_F32 ? 4 : 2, each = 64 / size;
    for (uint64_t skip = 0; skip < n * size; skip += 64, x += 16 * each) {
        KERNEL(columns)(rows, skip, columns);
        for (uint32_t j = 0; j < 16; j++) {
            if (dtype == RWKVC_DTYPE_F32) {
                vf y = vf_load((const float *)(const void *)(columns + 64 * j));
                vf_store(x + 16 * j, y);
                zeros = vf_fma(y, vf_zero(), zeros);
                continue;
            }
            vb pairs = vb_load(columns + 64 * j);
            vf even = dtype == RWKVC_DTYPE_BF16 ? vf_even_bf16(pairs) : vf_even_half(pairs);
            vf odd = dtype == RWKVC_DTYPE_BF16 ? vf_odd_bf16(pairs) : vf_odd_half(pairs);
            vf_store(x + 32 * j, even);
            vf_store(x + 32 * j + 16, odd);
            zeros = vf_fma(odd, vf_zero(), vf_fma(even, vf_zero(), zeros));
        }
    }
    return vf_sum(zeros) == 0;
}

/* Integers q[64, 16] of two groups as rows [16, 64]. */
static void KERNEL(by_row)(const int8_t *q, uint8_t *rows) {
    uint8_t quads[1024];
    const uint8_t *quad[16];
    for (uint32_t i = 0; i < 16; i++) {
        const uint8_t *p = (const uint8_t *)q + 64 * i;
        vb_store(quads + 64 * i, vb_zip(p, p + 16, p + 32, p + 48));
        quad[i] = quads + 64 * i;
    }
    KERNEL(columns)(quad, 0, rows);
}

/* n floats of a dtype. Returns whether all are finite: then 0 times each is 0. */
static bool KERNEL(widen)(uint32_t dtype, const void *source, uint64_t n, float *out) {
    const uint16_t *half = source;
    uint64_t i = 0;
    vf zeros = vf_zero();
    if (dtype == RWKVC_DTYPE_F32)
        memcpy(out, source, n * sizeof *out);
    else if (dtype == RWKVC_DTYPE_BF16)
        for (; i + 16 <= n; i += 16) vf_store(out + i, vf_load_bf16(half + i));
    else
        for (; i + 16 <= n; i += 16) vf_store(out + i, vf_load_half(half + i));
    if (dtype != RWKVC_DTYPE_F32) {
        uint16_t rest[16] = {0};
        memcpy(rest, half + i, (n - i) * sizeof *rest);
        vf_store_n(out + i, dtype == RWKVC_DTYPE_BF16 ? vf_load_bf16(rest) : vf_load_half(rest), (uint32_t)(n - i));
    }
    for (i = 0; i + 16 <= n; i += 16) zeros = vf_fma(vf_load(out + i), vf_zero(), zeros);
    zeros = vf_fma(vf_load_n(out + i, (uint32_t)(n - i)), vf_zero(), zeros);
    return vf_sum(zeros) == 0;
}
