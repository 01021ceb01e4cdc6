/* SPDX-License-Identifier: Apache-2.0
 * What rwkvc_measure_* times: reading and multiplying with as little else as can be. Both return something that
 * depends on all of the work, so that no compiler drops it. */

/* Read n floats in order, n % 64 == 0. */
static float KERNEL(read_all)(const float *p, uint64_t n) {
    enum { AHEAD = 1024 }; /* floats; reading ahead past the end is harmless */
    vf a = vf_zero(), b = a, c = a, d = a;
    for (uint64_t i = 0; i < n; i += 64) {
        for (uint64_t line = 0; line < 64; line += 16) PREFETCH(p + i + AHEAD + line);
        a = vf_max(a, vf_load(p + i));
        b = vf_max(b, vf_load(p + i + 16));
        c = vf_max(c, vf_load(p + i + 32));
        d = vf_max(d, vf_load(p + i + 48));
    }
    return vf_largest(vf_max(vf_max(a, b), vf_max(c, d)));
}

/* `rounds` times n operands of 64 weights, which fit the first-level cache, against one tile of activations, which
 * stay in registers: rounds * n * Q8_TILE * 64 multiply-adds. */
static int32_t KERNEL(dot_all)(const uint8_t *weights, uint32_t n, const int8_t *activations, uint32_t rounds) {
    vi acc[Q8_TILE];
    UNROLL for (uint32_t t = 0; t < Q8_TILE; t++) acc[t] = vi_dot_begin(0, 0);
    for (uint32_t round = 0; round < rounds; round++)
        for (uint32_t i = 0; i < n; i++) {
            vw w = vw_from(vb_load(weights + 64 * (uint64_t)i));
            UNROLL for (uint32_t t = 0; t < Q8_TILE; t++) acc[t] = vi_dot(acc[t], w, activations + 4 * t);
        }
    vi sum = acc[0];
    for (uint32_t t = 1; t < Q8_TILE; t++) sum = vi_add(sum, acc[t]);
    return vi_sum(sum);
}
