/* SPDX-License-Identifier: Apache-2.0
 * The vocabulary's dot product on AVX2: vpmaddubsw wants one unsigned operand and saturates 16-bit sums, so it gets the
 * weights' absolute values and activations (at most 127 in size) with the weights' signs. */
typedef struct {
    vi value, magnitude;
} vw;

VEC vw vw_from(vb stored) {
    __m256i bias = _mm256_set1_epi8(-128);
    vi value = {_mm256_xor_si256(stored.lo, bias), _mm256_xor_si256(stored.hi, bias)};
    return (vw){value, {_mm256_abs_epi8(value.lo), _mm256_abs_epi8(value.hi)}};
}
/* Weights are signed here: nothing to make up for. */
VEC vi vi_dot_begin(int32_t with_offset, int32_t without) {
    (void)with_offset;
    return vi_set1(without);
}
VEC __m256i dot_8(__m256i acc, __m256i value, __m256i magnitude, __m256i a) {
    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, value));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
VEC vi vi_dot(vi acc, vw w, const int8_t *a) {
    int32_t quad;
    memcpy(&quad, a, sizeof quad);
    __m256i x = _mm256_set1_epi32(quad);
    return (vi){dot_8(acc.lo, w.value.lo, w.magnitude.lo, x), dot_8(acc.hi, w.value.hi, w.magnitude.hi, x)};
}
VEC __m256i dot_small_8(__m256i acc, __m256i w, __m256i a) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
VEC vi vi_dot_small(vi acc, vb w, const int8_t *a) {
    int32_t quad;
    memcpy(&quad, a, sizeof quad);
    __m256i x = _mm256_set1_epi32(quad);
    return (vi){dot_small_8(acc.lo, w.lo, x), dot_small_8(acc.hi, w.hi, x)};
}

enum { Q8_TILE = 4, PLAIN_TILE = 4, PLAIN_PANELS = 4, WKV_BLOCKS = 1, SPARSE_INPUTS = 12 };
