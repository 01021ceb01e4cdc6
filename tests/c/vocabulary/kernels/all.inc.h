/* SPDX-License-Identifier: Apache-2.0
 * Stands in for src/kernels/all.inc.h when the units of src/isa are built for tests/c/vocabulary.c: every operation of
 * the vector vocabulary instead of the kernels, with the units' own target regions and choices. */

/* 16 floats or 64 bytes in, as many out. OPERATIONS_OF_FLOATS: a NaN is a NaN, whatever its bits. */
#define OPERATIONS_OF_FLOATS(OP)                                                                                       \
    OP(set1, vf_store(y, vf_set1(pa[0])))                                                                              \
    OP(zero, vf_store(y, vf_zero()))                                                                                   \
    OP(load_n, vf_store(y, vf_load_n(pa, n)))                                                                          \
    OP(store_n, vf_store_n(y, a, n))                                                                                   \
    OP(keep_n, vf_store(y, vf_keep_n(a, n)))                                                                           \
    OP(load_half, vf_store(y, vf_load_half((const uint16_t *)pa)))                                                     \
    OP(load_half_2, vf_store(y, vf_load_half((const uint16_t *)pa + 16)))                                              \
    OP(load_bf16, vf_store(y, vf_load_bf16((const uint16_t *)pa)))                                                     \
    OP(even_bf16, vf_store(y, vf_even_bf16(u)))                                                                        \
    OP(odd_bf16, vf_store(y, vf_odd_bf16(u)))                                                                          \
    OP(even_half, vf_store(y, vf_even_half(u)))                                                                        \
    OP(odd_half, vf_store(y, vf_odd_half(u)))                                                                          \
    OP(load_i8, vf_store(y, vf_load_i8((const int8_t *)pa)))                                                           \
    OP(add, vf_store(y, vf_add(a, b)))                                                                                 \
    OP(sub, vf_store(y, vf_sub(a, b)))                                                                                 \
    OP(mul, vf_store(y, vf_mul(a, b)))                                                                                 \
    OP(div, vf_store(y, vf_div(a, b)))                                                                                 \
    OP(fma, vf_store(y, vf_fma(a, b, c)))                                                                              \
    OP(fnma, vf_store(y, vf_fnma(a, b, c)))                                                                            \
    OP(max, vf_store(y, vf_max(a, b)))                                                                                 \
    OP(min, vf_store(y, vf_min(a, b)))                                                                                 \
    OP(abs, vf_store(y, vf_abs(a)))                                                                                    \
    OP(round, vf_store(y, vf_round(vf_mul(vf_load_i8((const int8_t *)pa), vf_set1(0.5f)))))                            \
    OP(round_any, vf_store(y, vf_round(a)))                                                                            \
    OP(where_less, vf_store(y, vf_where_less(a, b, c, vf_zero())))                                                     \
    OP(scale, vf_store(y, vf_scale(a, vf_max(vf_mul(vf_load_i8((const int8_t *)pb), vf_set1(2)), vf_set1(-252)))))     \
    OP(from_bits, vf_store(y, vf_from_bits(KERNEL(dots)(pa, pb, 1))))                                                  \
    OP(sum, vf_store(y, vf_set1(vf_sum(a))))                                                                           \
    OP(largest_size, vf_store(y, vf_set1(vf_largest_size(a, b))))                                                      \
    OP(largest, vf_store(y, vf_set1(vf_largest(vf_load_i8((const int8_t *)pa)))))                                      \
    OP(dot, vf_store(y, vf_from_vi(KERNEL(dots)(pa, pb, 1))))                                                          \
    OP(dot_many, vf_store(y, vf_from_vi(KERNEL(dots)(pa, pb, 700)))) /* beyond 2^24: rounded */                        \
    OP(vi_add, vf_store(y, vf_from_vi(vi_add(KERNEL(dots)(pa, pb, 3), KERNEL(dots)(pb, pa, 1)))))                      \
    OP(vi_set1, vf_store(y, vf_from_vi(vi_set1(((const int8_t *)pa)[0] * 65537))))                                     \
    OP(dot_small, vf_store(y, vf_from_vi(KERNEL(small_dots)(pa, pb))))                                                 \
    OP(vi_sum, vf_store(y, vf_set1((float)vi_sum(KERNEL(dots)(pa, pb, 1)))))

#define OPERATIONS_OF_BYTES(OP)                                                                                        \
    OP(load_store, vb_store(out, u))                                                                                   \
    OP(store_half, vf_store_half((uint16_t *)out, KERNEL(numbers)(vf_add(a, vf_zero()))))                              \
    OP(store_half_near, vf_store_half((uint16_t *)out, KERNEL(near_halves)(pa, pb)))                                   \
    OP(lookup, vb_store(out, vb_lookup(vb_table((const uint8_t *)pb), vb_low(u))))                                     \
    OP(low, vb_store(out, vb_low(u)))                                                                                  \
    OP(high, vb_store(out, vb_high(u)))                                                                                \
    OP(merge_left, vb_store(out, vb_merge(u, v, 4, 0xf0)))                                                             \
    OP(merge_left_some, vb_store(out, vb_merge(vb_low(u), v, 2, 0x30)))                                                \
    OP(merge_none, vb_store(out, vb_merge(u, v, 0, 0x11)))                                                             \
    OP(merge_right, vb_store(out, vb_merge(vb_low(u), v, -3, 0x10)))                                                   \
    OP(vb_add, vb_store(out, vb_add(u, 0x81)))                                                                         \
    OP(zip,                                                                                                            \
       vb_store(out, vb_zip((const uint8_t *)pa, (const uint8_t *)pb, (const uint8_t *)pc, (const uint8_t *)pb + 16))) \
    OP(store_i8, vi_store_i8((int8_t *)out, vi_from_vf(vf_load_i8((const int8_t *)pa))))                               \
    OP(round_i8, vi_store_i8((int8_t *)out, vi_from_vf(vf_mul(vf_load_i8((const int8_t *)pa), vf_set1(0.5f)))))        \
    OP(nonzero, KERNEL(nonzero)((const int8_t *)pa, (const int8_t *)pb, out))                                          \
    OP(columns_0, KERNEL(column)(pa, pb, pc, 0, out))                                                                  \
    OP(columns_6, KERNEL(column)(pa, pb, pc, 6, out))                                                                  \
    OP(columns_9, KERNEL(column)(pa, pb, pc, 9, out))                                                                  \
    OP(columns_15, KERNEL(column)(pa, pb, pc, 15, out))                                                                \
    OP(interleave_0, KERNEL(interleave)(pa, pb, pc, 0, out))                                                           \
    OP(interleave_1, KERNEL(interleave)(pa, pb, pc, 1, out))                                                           \
    OP(interleave_2, KERNEL(interleave)(pa, pb, pc, 2, out))                                                           \
    OP(interleave_3, KERNEL(interleave)(pa, pb, pc, 3, out))

/* places [32] and values [32] of 32 int8, some of which b makes zero; behind a list's last quad anything may stand. */
VEC void KERNEL(nonzero)(const int8_t *a, const int8_t *b, uint8_t *out) {
    uint8_t place[32];
    int8_t value[32];
    vf limit = vf_set1((float)b[0]);
    vi lo = vi_from_vf(vf_where_less(vf_load_i8(b), limit, vf_zero(), vf_load_i8(a)));
    vi hi = vi_from_vf(vf_where_less(vf_load_i8(b + 16), limit, vf_zero(), vf_load_i8(a + 16)));
    uint32_t n = (vi_nonzero(lo, hi, place, value) + 3) / 4 * 4;
    memset(out, 0, 64);
    memcpy(out, place, n);
    memcpy(out + 32, value, n);
}

/* times * (16 rows x 4 weights) . 4 activations, which are never -128 */
VEC vi KERNEL(dots)(const float *weights, const float *activations, int times) {
    int8_t x[4];
    int32_t sum = 0;
    memcpy(x, activations, sizeof x);
    for (int i = 0; i < 4; i++) {
        x[i] = x[i] == -128 ? -127 : x[i];
        sum += x[i];
    }
    vw w = vw_from(vb_load((const uint8_t *)weights));
    vi acc = vi_dot_begin(-128 * sum * times, 0);
    for (int i = 0; i < times; i++) acc = vi_dot(acc, w, x);
    return acc;
}

/* Weights below 128. */
VEC vi KERNEL(small_dots)(const float *weights, const float *activations) {
    int8_t x[4];
    memcpy(x, activations, sizeof x);
    for (int i = 0; i < 4; i++) x[i] = x[i] == -128 ? -127 : x[i];
    uint8_t small[64];
    memcpy(small, weights, sizeof small);
    for (int i = 0; i < 64; i++) small[i] &= 127;
    return vi_dot_small(vi_set1(-5), vb_load(small), x);
}

/* Without NaN, whose bits as a half are the processor's own. Not for signalling ones, which arithmetic never gives:
 * clang takes an instruction for this maximum that lets them through. */
VEC vf KERNEL(numbers)(vf a) { return vf_max(a, vf_set1(-1e6f)); }

/* Halves and a little, also exactly between two of them. */
VEC vf KERNEL(near_halves)(const float *a, const float *b) {
    vf half = vf_load_half((const uint16_t *)a), step = vf_load_i8((const int8_t *)b);
    return KERNEL(numbers)(vf_fma(half, vf_mul(step, vf_set1(0x1p-14f)), half));
}

/* One column of rows that differ. */
VEC void KERNEL(column)(const float *a, const float *b, const float *c, int which, uint8_t *out) {
    const uint8_t *own[3] = {(const uint8_t *)a, (const uint8_t *)b, (const uint8_t *)c}, *rows[16];
    uint8_t different[16][64], columns[1024];
    for (int r = 0; r < 16; r++) {
        for (int i = 0; i < 64; i++) different[r][i] = (uint8_t)(own[r % 3][i] + r);
        rows[r] = different[r];
    }
    vb_columns(rows, 0, columns);
    memcpy(out, columns + 64 * which, 64);
}

VEC void KERNEL(interleave)(const float *a, const float *b, const float *c, int which, uint8_t *out) {
    vb four[4], first = vb_load((const uint8_t *)a);
    vb_interleave(first, vb_load((const uint8_t *)b), vb_load((const uint8_t *)c), first, four);
    vb_store(out, four[which]);
}

static void KERNEL(vocabulary)(uint32_t which, const float *x, uint32_t count, float *results) {
    for (uint32_t i = 0; i < count; i += 16) {
        const float *pa = x + i, *pb = x + (i + 16 * 3) % count, *pc = x + (i + 16 * 37) % count;
        float *y = results + i;
        uint8_t *out = (uint8_t *)y;
        uint32_t n = i / 16 % 17;
        vf a = vf_load(pa), b = vf_load(pb), c = vf_load(pc);
        vb u = vb_load((const uint8_t *)pa), v = vb_load((const uint8_t *)pb);
        (void)n, (void)c, (void)b, (void)a, (void)u, (void)v, (void)out;
        uint32_t number = 0;
#define DO(name, statement)                                                                                            \
    if (which == number++) statement;
        OPERATIONS_OF_FLOATS(DO)
        OPERATIONS_OF_BYTES(DO)
#undef DO
    }
}

const rwkvc_kernels KERNEL(rwkvc_kernels) = {.name = RWKVC_TEXT(ISA), .elementary = KERNEL(vocabulary)};
