/* SPDX-License-Identifier: Apache-2.0
 * What the recurrences share. A head's state lies as [key channel j][value channel i]: 16 value channels are one vector,
 * every j is a broadcast, and no sum crosses lanes. Head sizes that are no multiple of 16 have a last vector of fewer
 * lanes. */

#define LANES(i, n) ((n) - (i) < 16 ? (n) - (i) : 16)
#define LOAD(p, lanes) ((lanes) == 16 ? vf_load(p) : vf_load_n(p, lanes))

VEC void KERNEL(store)(float *p, vf a, uint32_t lanes) {
    if (lanes == 16)
        vf_store(p, a);
    else
        vf_store_n(p, a, lanes);
}

/* y[n] = (y - mean) / sqrt(var + eps) * weight + bias over one head. */
static void KERNEL(group_norm)(float *y, uint32_t n, const float *weight, const float *bias, float eps) {
    vf sum = vf_zero(), squares = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) sum = vf_add(sum, LOAD(y + i, LANES(i, n)));
    vf mean = vf_set1(vf_sum(sum) / (float)n);
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf d = vf_sub(LOAD(y + i, lanes), mean);
        if (lanes < 16) d = vf_keep_n(d, lanes);
        squares = vf_fma(d, d, squares);
    }
    vf scale = vf_set1(1.0f / sqrtf(vf_sum(squares) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf d = vf_mul(vf_sub(LOAD(y + i, lanes), mean), scale);
        KERNEL(store)(y + i, vf_fma(d, LOAD(weight + i, lanes), LOAD(bias + i, lanes)), lanes);
    }
}
