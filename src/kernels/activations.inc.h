/* SPDX-License-Identifier: Apache-2.0
 * Activations as int8 in groups of 32, for the products of matmul_integer.inc.h. */

/* The smallest scale that keeps `largest` within +-127 (a rounding more or less): the largest's 127th part with its
 * mantissa rounded up to a quarter. *inverse: what the activations are multiplied with. */
VEC rwkvc_q8_scale KERNEL(q8_scale)(float largest, float *inverse) {
    enum { QUARTER = 1 << 21, LEAST = 20, MOST = 254 - 23 }; /* exponents, with the bias */
    float part = largest / 127.0f;
    uint32_t bits;
    memcpy(&bits, &part, sizeof bits);
    bits = (bits + QUARTER - 1) & ~(uint32_t)(QUARTER - 1);
    uint32_t exponent = bits >> 23, quarter = bits / QUARTER % 4;
    if (exponent < LEAST) { /* as good as nothing: zeros */
        *inverse = 0;
        exponent = 127, quarter = 0;
    } else {
        memcpy(&part, &bits, sizeof part);
        *inverse = exponent > MOST ? NAN : 1.0f / part;
    }
    uint32_t unit = exponent > MOST ? 0x7fc00000 : (exponent + 23) << 23 | 1 << 22;
    rwkvc_q8_scale scale = {(int32_t)unit, 0, 1.0f + 0.25f * (float)quarter, quarter};
    memcpy(&scale.unit, &unit, sizeof unit);
    return scale;
}

VEC void KERNEL(q8_put)(vi q_lo, vi q_hi, rwkvc_q8_scale scale, uint64_t column, uint32_t group, uint32_t n,
                        const rwkvc_q8_input *input, uint32_t t) {
    int8_t q[RWKVC_GROUP];
    vi_store_i8(q, q_lo);
    vi_store_i8(q + 16, q_hi);
    int8_t *values = input->values + column * input->groups * RWKVC_GROUP + ((uint64_t)group * 8 * n + t) * 4;
    for (uint32_t quad = 0; quad < 8; quad++) memcpy(values + (uint64_t)quad * n * 4, q + 4 * quad, 4);
    uint64_t at = column * input->groups + (uint64_t)group * n + t;
    scale.begin -= 128 * vi_sum(vi_add(q_lo, q_hi));
    input->scales[at] = scale;
    if (input->nonzero)
        input->counts[at] = (uint8_t)vi_nonzero(q_lo, q_hi, input->nonzero[at].place, input->nonzero[at].value);
}

/* q = round(x / s) within +-127; the second part quantises what is left with s / 256. */
VEC void KERNEL(q8_quantise_group)(vf lo, vf hi, uint32_t parts, rwkvc_column c, uint32_t group,
                                   const rwkvc_q8_input *input) {
    const vf most = vf_set1(127.0f), least = vf_set1(-127.0f);
    float inverse;
    rwkvc_q8_scale scale = KERNEL(q8_scale)(vf_largest_size(lo, hi), &inverse);
    vf k = vf_set1(inverse);
    lo = vf_mul(lo, k);
    hi = vf_mul(hi, k);
    vf q_lo = vf_round(vf_max(vf_min(lo, most), least)), q_hi = vf_round(vf_max(vf_min(hi, most), least));
    KERNEL(q8_put)(vi_from_vf(q_lo), vi_from_vf(q_hi), scale, c.base, group, c.n, input, c.t);
    if (parts == 1) return;
    vf finer = vf_set1(256.0f);
    lo = vf_mul(vf_sub(lo, q_lo), finer);
    hi = vf_mul(vf_sub(hi, q_hi), finer);
    scale.begin -= 8 << 23;
    scale.unit *= 1.0f / 256;
    KERNEL(q8_put)
    (vi_from_vf(vf_max(vf_min(lo, most), least)), vi_from_vf(vf_max(vf_min(hi, most), least)), scale, c.base, group,
     c.n, input, c.t + 1);
}

/* How many columns from c on, of `left`, are quantised together: a whole tile where there is a way for that, else one. */
VEC uint32_t KERNEL(q8_together)(rwkvc_column c, uint32_t left, uint32_t parts) {
#if defined(Q8_WHOLE_TILE)
    return parts == 1 && c.t == 0 && left >= Q8_TILE ? Q8_TILE : 1;
#else
    (void)c, (void)left, (void)parts;
    return 1;
#endif
}

/* A group of all columns of a tile. */
VEC void KERNEL(q8_quantise_tile)(const float *x, uint64_t ldx, rwkvc_column c, uint32_t group,
                                  const rwkvc_q8_input *input) {
#if defined(Q8_WHOLE_TILE)
    uint64_t at = (uint64_t)c.base * input->groups + (uint64_t)group * c.n;
    int8_t *values = input->values + at * RWKVC_GROUP;
    if (input->nonzero)
        q8_tile(x, ldx, values, input->scales + at, input->nonzero + at, input->counts + at);
    else
        q8_tile(x, ldx, values, input->scales + at, NULL, NULL);
#else
    (void)x, (void)ldx, (void)c, (void)group, (void)input;
#endif
}

static void KERNEL(q8_quantise)(const float *x, uint64_t ldx, uint32_t first, uint32_t last, uint32_t first_group,
                                uint32_t n_groups, uint32_t n_inputs, uint32_t parts, const rwkvc_q8_input *input) {
    for (uint32_t token = first, n; token < last; token += n, x += n * ldx) {
        rwkvc_column c = rwkvc_column_of(input, token * parts);
        n = KERNEL(q8_together)(c, last - token, parts);
        for (uint32_t i = 0; i < n_groups; i++) {
            uint32_t at = (first_group + i) * RWKVC_GROUP, left = at < n_inputs ? n_inputs - at : 0;
            const float *from = x + i * RWKVC_GROUP;
            if (n > 1 && left >= RWKVC_GROUP) {
                KERNEL(q8_quantise_tile)(from, ldx, c, first_group + i, input);
                continue;
            }
            for (uint32_t t = 0; t < n; t++, from += ldx) {
                vf lo = left >= 16 ? vf_load(from) : left ? vf_load_n(from, left) : vf_zero();
                vf hi = left >= 32 ? vf_load(from + 16) : left > 16 ? vf_load_n(from + 16, left - 16) : vf_zero();
                rwkvc_column column = {c.base, c.n, c.t + t};
                KERNEL(q8_quantise_group)(lo, hi, parts, column, first_group + i, input);
            }
        }
    }
}

/* Tokens first..last-1, all of one tile. */
static void KERNEL(token_shift_q8)(const float *const *x, const float *const *previous, const float *mix,
                                   const float *extra, uint64_t ld_extra, uint32_t n, uint32_t first, uint32_t last,
                                   const rwkvc_q8_input *input) {
    rwkvc_column c = rwkvc_column_of(input, first);
    const bool together = KERNEL(q8_together)(c, last - first, 1) > 1;
    for (uint32_t group = 0; group < input->groups; group++) {
        float rows[Q8_TILE * RWKVC_GROUP];
        UNROLL for (uint32_t half = 0; half < 2; half++) {
            uint32_t i = group * RWKVC_GROUP + 16 * half;
            float *to = rows + 16 * half;
            for (uint32_t t = 0; i >= n && t < last - first; t++) vf_store(to + RWKVC_GROUP * t, vf_zero());
            for (uint32_t t = 0; i < n && t < last - first; t++)
                vf_store(to + RWKVC_GROUP * t,
                         KERNEL(shifted)(x[t], previous[t], mix, extra ? extra + t * ld_extra : NULL, i));
        }
        if (together) {
            KERNEL(q8_quantise_tile)(rows, RWKVC_GROUP, c, group, input);
            continue;
        }
        for (uint32_t t = 0; t < last - first; t++) {
            const float *row = rows + RWKVC_GROUP * t;
            KERNEL(q8_quantise_group)
            (vf_load(row), vf_load(row + 16), 1, (rwkvc_column){c.base, c.n, c.t + t}, group, input);
        }
    }
}
