/* SPDX-License-Identifier: Apache-2.0
 * The vocabulary's dot product on AVX-VNNI: vpdpbusd takes weights as they are stored. */
typedef vb vw;

VEC vw vw_from(vb stored) { return stored; }
VEC vi vi_dot_begin(int32_t with_offset, int32_t without) {
    (void)without;
    return vi_set1(with_offset);
}
VEC vi vi_dot(vi acc, vw w, const int8_t *a) {
    int32_t quad;
    memcpy(&quad, a, sizeof quad);
    __m256i x = _mm256_set1_epi32(quad);
    return (vi){RWKVC_DPBUSD(acc.lo, w.lo, x), RWKVC_DPBUSD(acc.hi, w.hi, x)};
}
VEC vi vi_dot_small(vi acc, vb w, const int8_t *a) { return vi_dot(acc, w, a); }

enum {
    Q8_TILE = 4,
    PLAIN_TILE = 4,
    PLAIN_PANELS = 4,
    WKV_BLOCKS = 1,
    SPARSE_INPUTS = 12,
    DIRECT_COLUMNS = 4,
    STREAM_STEP = 128,
    VALUE_SUMS = 4
};
