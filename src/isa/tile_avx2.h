/* SPDX-License-Identifier: Apache-2.0
 * One group of 32 inputs of a whole tile of 4 columns made int8 on AVX2: what kernels/activations.inc.h does a column at
 * a time (q8_quantise_group), with a column in each lane where there is one number a column. */

#define Q8_WHOLE_TILE 1

/* Of each column the largest size, as bits. */
VEC __m128i tile_largest(const float *x, uint64_t ldx) {
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    __m256i most[4];
    UNROLL for (uint32_t t = 0; t < 4; t++) {
        __m256i part[4];
        UNROLL for (uint32_t i = 0; i < 4; i++) part[i] =
            _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + t * ldx + 8 * i)), size);
        most[t] = _mm256_max_epi32(_mm256_max_epi32(part[0], part[1]), _mm256_max_epi32(part[2], part[3]));
    }
    __m256i ab = _mm256_max_epi32(_mm256_unpacklo_epi32(most[0], most[1]), _mm256_unpackhi_epi32(most[0], most[1]));
    __m256i cd = _mm256_max_epi32(_mm256_unpacklo_epi32(most[2], most[3]), _mm256_unpackhi_epi32(most[2], most[3]));
    __m256i abcd = _mm256_max_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return _mm_max_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
}

/* q8_scale of each lane, without what is taken from `begin`. */
typedef struct {
    __m128i unit, mantissa, quarter;
    __m128 inverse;
} tile_scales;

VEC tile_scales tile_scales_of(__m128i largest) {
    enum { QUARTER = 1 << 21, LEAST = 20, MOST = 254 - 23 };
    tile_scales s;
    __m128i bits = _mm_castps_si128(_mm_div_ps(_mm_castsi128_ps(largest), _mm_set1_ps(127.0f)));
    bits = _mm_and_si128(_mm_add_epi32(bits, _mm_set1_epi32(QUARTER - 1)), _mm_set1_epi32(-QUARTER));
    __m128i exponent = _mm_srli_epi32(bits, 23);
    __m128i zeros = _mm_cmplt_epi32(exponent, _mm_set1_epi32(LEAST));
    __m128i nan = _mm_cmpgt_epi32(exponent, _mm_set1_epi32(MOST));
    __m128 inverse = _mm_div_ps(_mm_set1_ps(1.0f), _mm_castsi128_ps(bits));
    inverse = _mm_blendv_ps(inverse, _mm_set1_ps(NAN), _mm_castsi128_ps(nan));
    s.inverse = _mm_andnot_ps(_mm_castsi128_ps(zeros), inverse);
    exponent = _mm_blendv_epi8(exponent, _mm_set1_epi32(127), zeros);
    s.quarter = _mm_andnot_si128(zeros, _mm_and_si128(_mm_srli_epi32(bits, 21), _mm_set1_epi32(3)));
    s.mantissa = _mm_add_epi32(_mm_slli_epi32(s.quarter, 21), _mm_set1_epi32(0x3f800000));
    s.unit = _mm_slli_epi32(_mm_add_epi32(exponent, _mm_set1_epi32(23)), 23);
    s.unit = _mm_blendv_epi8(_mm_or_si128(s.unit, _mm_set1_epi32(1 << 22)), _mm_set1_epi32(0x7fc00000), nan);
    return s;
}

/* scales[4] of four numbers each; sums: of each column's int8. */
VEC void tile_store_scales(const tile_scales *s, __m128i sums, rwkvc_q8_scale *scales) {
    __m128i begin = _mm_sub_epi32(s->unit, _mm_slli_epi32(sums, 7));
    __m128i lo = _mm_unpacklo_epi32(begin, s->unit), hi = _mm_unpackhi_epi32(begin, s->unit);
    __m128i more_lo = _mm_unpacklo_epi32(s->mantissa, s->quarter);
    __m128i more_hi = _mm_unpackhi_epi32(s->mantissa, s->quarter);
    _mm_storeu_si128((__m128i *)scales, _mm_unpacklo_epi64(lo, more_lo));
    _mm_storeu_si128((__m128i *)(scales + 1), _mm_unpackhi_epi64(lo, more_lo));
    _mm_storeu_si128((__m128i *)(scales + 2), _mm_unpacklo_epi64(hi, more_hi));
    _mm_storeu_si128((__m128i *)(scales + 3), _mm_unpackhi_epi64(hi, more_hi));
}

/* A column's quads 0, 2, 4, 6 and in the upper half 1, 3, 5, 7 → values[8 quads, 4 columns]; returns the columns' sums. */
VEC __m128i tile_store_quads(int8_t *values, const __m256i column[4]) {
    const __m256i ones = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    __m256i ab_lo = _mm256_unpacklo_epi32(column[0], column[1]), ab_hi = _mm256_unpackhi_epi32(column[0], column[1]);
    __m256i cd_lo = _mm256_unpacklo_epi32(column[2], column[3]), cd_hi = _mm256_unpackhi_epi32(column[2], column[3]);
    __m256i two[4] = {_mm256_unpacklo_epi64(ab_lo, cd_lo), _mm256_unpackhi_epi64(ab_lo, cd_lo),
                      _mm256_unpacklo_epi64(ab_hi, cd_hi), _mm256_unpackhi_epi64(ab_hi, cd_hi)};
    __m256i pairs = _mm256_setzero_si256();
    UNROLL for (uint32_t i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)(values + 32 * i), two[i]);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(ones, two[i]));
    }
    __m256i sums = _mm256_madd_epi16(pairs, words);
    return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

/* x[4, 32], rows ldx apart → values[8 quads, 4, 4], scales[4]; nonzero[4] and counts[4] unless NULL. Only products with a
 * scale that is NaN leave +-127: they become 127, as elsewhere. */
VEC void q8_tile(const float *x, uint64_t ldx, int8_t *values, rwkvc_q8_scale *scales, rwkvc_sparse_group *nonzero,
                 uint8_t *counts) {
    const __m256 most = _mm256_set1_ps(127.0f);
    tile_scales s = tile_scales_of(tile_largest(x, ldx));
    float inverse[4];
    __m256i column[4];
    _mm_storeu_ps(inverse, s.inverse);
    UNROLL for (uint32_t t = 0; t < 4; t++) {
        const __m256 k = _mm256_set1_ps(inverse[t]);
        __m256i q[4];
        UNROLL for (uint32_t i = 0; i < 4; i++) q[i] =
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_loadu_ps(x + t * ldx + 8 * i), k), most));
        if (nonzero)
            counts[t] = (uint8_t)vi_nonzero((vi){q[0], q[1]}, (vi){q[2], q[3]}, nonzero[t].place, nonzero[t].value);
        column[t] = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    }
    tile_store_scales(&s, tile_store_quads(values, column), scales);
}
