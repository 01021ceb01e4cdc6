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
/* Left to itself gcc adds the products of many quads in an order of its own, and keeps them in memory until then. */
#if defined(__GNUC__)
#define IN_ORDER(x) __asm__("" : "+x"(x))
#else
#define IN_ORDER(x) ((void)0)
#endif
VEC __m256i add_pairs(__m256i acc, __m256i pairs) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    IN_ORDER(acc);
    return acc;
}
VEC __m256i eight_times(const int8_t *quad) {
    int32_t four;
    memcpy(&four, quad, sizeof four);
    return _mm256_set1_epi32(four);
}
VEC __m256i dot_8(__m256i acc, __m256i value, __m256i magnitude, __m256i a) {
    return add_pairs(acc, _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, value)));
}
VEC vi vi_dot(vi acc, vw w, const int8_t *a) {
    __m256i x = eight_times(a);
    return (vi){dot_8(acc.lo, w.value.lo, w.magnitude.lo, x), dot_8(acc.hi, w.value.hi, w.magnitude.hi, x)};
}
VEC vi vi_dot_small(vi acc, vb w, const int8_t *a) {
    __m256i x = eight_times(a);
    return (vi){add_pairs(acc.lo, _mm256_maddubs_epi16(w.lo, x)), add_pairs(acc.hi, _mm256_maddubs_epi16(w.hi, x))};
}

/* Of at most 6 bits: the sums of two quads' pairs stay below 2^15. */
#define VI_DOT_SMALL_PAIR
VEC vi vi_dot_small_pair(vi acc, vb v, vb w, const int8_t *a, const int8_t *b) {
    __m256i x = eight_times(a), y = eight_times(b);
    return (vi){
        add_pairs(acc.lo, _mm256_add_epi16(_mm256_maddubs_epi16(v.lo, x), _mm256_maddubs_epi16(w.lo, y))),
        add_pairs(acc.hi, _mm256_add_epi16(_mm256_maddubs_epi16(v.hi, x), _mm256_maddubs_epi16(w.hi, y))),
    };
}

enum {
    Q8_TILE = 4,
    PLAIN_TILE = 4,
    PLAIN_PANELS = 4,
    WKV_BLOCKS = 1,
    SPARSE_INPUTS = 12,
    DIRECT_COLUMNS = 16,
    STREAM_STEP = 64, /* measured on Zen 3 */
    VALUE_SUMS = 4
};
