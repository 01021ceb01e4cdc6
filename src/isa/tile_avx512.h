/* SPDX-License-Identifier: Apache-2.0
 * One group of 32 inputs of a whole tile of 12 columns made int8 on AVX-512: what kernels/activations.inc.h does a
 * column at a time (q8_quantise_group), with a column in each lane where there is one number a column. */

#define Q8_WHOLE_TILE 1

VEC __m512i sizes_512(const float *x) {
    const __m512i m = _mm512_set1_epi32(0x7fffffff);
    return _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x)), m),
                            _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + 16)), m));
}

/* In each quarter of four vectors of 16 the largest: [a, b, c, d]. */
VEC __m512i largest_of_quarters(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_max_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* op over the four quarters of each of three vectors: [a, b, c, c]. */
#define OVER_QUARTERS(op, a, b, c, result)                                                                             \
    do {                                                                                                               \
        __m512i ab_ = op(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));                          \
        __m512i cc_ = op(_mm512_shuffle_i32x4(c, c, 0x44), _mm512_shuffle_i32x4(c, c, 0xee));                          \
        result = op(_mm512_shuffle_i32x4(ab_, cc_, 0x88), _mm512_shuffle_i32x4(ab_, cc_, 0xdd));                       \
    } while (0)

/* q8_scale of each lane, without what is taken from `begin`. */
typedef struct {
    __m512i unit, mantissa, quarter;
    __m512 inverse;
} tile_scales;

VEC tile_scales tile_scales_of(__m512i largest) {
    enum { QUARTER = 1 << 21, LEAST = 20, MOST = 254 - 23 };
    tile_scales s;
    __m512i bits = _mm512_castps_si512(_mm512_div_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(127.0f)));
    bits = _mm512_and_si512(_mm512_add_epi32(bits, _mm512_set1_epi32(QUARTER - 1)), _mm512_set1_epi32(-QUARTER));
    __m512i exponent = _mm512_srli_epi32(bits, 23);
    __mmask16 zeros = _mm512_cmplt_epi32_mask(exponent, _mm512_set1_epi32(LEAST));
    __mmask16 nan = _mm512_cmpgt_epi32_mask(exponent, _mm512_set1_epi32(MOST));
    s.inverse = _mm512_maskz_div_ps((__mmask16)~zeros, _mm512_set1_ps(1.0f), _mm512_castsi512_ps(bits));
    s.inverse = _mm512_mask_mov_ps(s.inverse, nan, _mm512_set1_ps(NAN));
    exponent = _mm512_mask_mov_epi32(exponent, zeros, _mm512_set1_epi32(127));
    s.quarter = _mm512_and_si512(_mm512_srli_epi32(bits, 21), _mm512_set1_epi32(3));
    s.quarter = _mm512_mask_mov_epi32(s.quarter, zeros, _mm512_setzero_si512());
    s.mantissa = _mm512_add_epi32(_mm512_slli_epi32(s.quarter, 21), _mm512_set1_epi32(0x3f800000));
    s.unit = _mm512_slli_epi32(_mm512_add_epi32(exponent, _mm512_set1_epi32(23)), 23);
    s.unit = _mm512_or_si512(s.unit, _mm512_set1_epi32(1 << 22));
    s.unit = _mm512_mask_mov_epi32(s.unit, nan, _mm512_set1_epi32(0x7fc00000));
    return s;
}

/* scales[12] of four numbers each. */
VEC void tile_store_scales(const tile_scales *s, __m512i sums, rwkvc_q8_scale *scales) {
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i begin = _mm512_permutexvar_epi32(order, _mm512_sub_epi32(s->unit, _mm512_slli_epi32(sums, 7)));
    __m512i unit = _mm512_permutexvar_epi32(order, s->unit), mantissa = _mm512_permutexvar_epi32(order, s->mantissa);
    __m512i quarter = _mm512_permutexvar_epi32(order, s->quarter);
    __m512i lo = _mm512_unpacklo_epi32(begin, unit), hi = _mm512_unpackhi_epi32(begin, unit);
    __m512i more_lo = _mm512_unpacklo_epi32(mantissa, quarter), more_hi = _mm512_unpackhi_epi32(mantissa, quarter);
    _mm512_storeu_si512(scales, _mm512_unpacklo_epi64(lo, more_lo));
    _mm512_storeu_si512(scales + 4, _mm512_unpackhi_epi64(lo, more_lo));
    _mm512_storeu_si512(scales + 8, _mm512_unpacklo_epi64(hi, more_hi));
}

VEC void tile_store_quads(int8_t *values, __m512i quads) {
    enum { QUAD = 4 * Q8_TILE };
    _mm_storeu_si128((__m128i *)values, _mm512_castsi512_si128(quads));
    _mm_storeu_si128((__m128i *)(values + QUAD), _mm512_extracti32x4_epi32(quads, 1));
    _mm_storeu_si128((__m128i *)(values + 2 * QUAD), _mm512_extracti32x4_epi32(quads, 2));
    _mm_storeu_si128((__m128i *)(values + 3 * QUAD), _mm512_extracti32x4_epi32(quads, 3));
}

/* x[12, 32], rows ldx apart → values[8 quads, 12, 4], scales[12]; nonzero[12] and counts[12] unless NULL. Only products
 * with a scale that is NaN leave +-127: they become 127, as elsewhere. */
VEC void q8_tile(const float *x, uint64_t ldx, int8_t *values, rwkvc_q8_scale *scales, rwkvc_sparse_group *nonzero,
                 uint8_t *counts) {
    const __m512 most = _mm512_set1_ps(127.0f);
    __m512i part[3], sum[3], largest, sums;
    float inverse[16];
    UNROLL for (uint32_t b = 0; b < 3; b++) {
        const float *four = x + 4 * b * ldx;
        part[b] = largest_of_quarters(sizes_512(four), sizes_512(four + ldx), sizes_512(four + 2 * ldx),
                                      sizes_512(four + 3 * ldx));
    }
    OVER_QUARTERS(_mm512_max_epi32, part[0], part[1], part[2], largest);
    tile_scales s = tile_scales_of(largest);
    _mm512_storeu_ps(inverse, s.inverse);
    UNROLL for (uint32_t b = 0; b < 3; b++) {
        __m512i q[2][4], quads[2];
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            const uint32_t t = 4 * b + j;
            const __m512 k = _mm512_set1_ps(inverse[t]);
            UNROLL for (uint32_t half = 0; half < 2; half++) {
                __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + t * ldx + 16 * half), k);
                q[half][j] = _mm512_cvtps_epi32(_mm512_min_ps(scaled, most));
            }
            if (nonzero) counts[t] = (uint8_t)vi_nonzero(q[0][j], q[1][j], nonzero[t].place, nonzero[t].value);
        }
        UNROLL for (uint32_t half = 0; half < 2; half++) {
            quads[half] = _mm512_packs_epi16(_mm512_packs_epi32(q[half][0], q[half][1]),
                                             _mm512_packs_epi32(q[half][2], q[half][3]));
            tile_store_quads(values + 16 * b + 16 * Q8_TILE * half, quads[half]);
        }
        const __m512i ones = _mm512_set1_epi8(1);
        sum[b] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, quads[0]), ones, quads[1]);
    }
    OVER_QUARTERS(_mm512_add_epi32, sum[0], sum[1], sum[2], sums);
    tile_store_scales(&s, sums, scales);
}
#undef OVER_QUARTERS
