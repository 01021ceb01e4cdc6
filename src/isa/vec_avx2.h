/* SPDX-License-Identifier: Apache-2.0
 * The vector vocabulary (vec_scalar.h defines it) on AVX2, FMA and F16C: 16 lanes are two registers. The dot product,
 * vw and the tiles are in dot_avx2.h and dot_avxvnni.h. */
#include <stdint.h>
#include <string.h>

#include "isa/nonzero.h"

typedef struct {
    __m256 lo, hi;
} vf;
typedef struct {
    __m256i lo, hi;
} vi;
typedef vi vb;

#define BOTH(expression_lo, expression_hi)                                                                             \
    (vf) { expression_lo, expression_hi }

VEC vf vf_set1(float x) { return BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
VEC vf vf_zero(void) { return BOTH(_mm256_setzero_ps(), _mm256_setzero_ps()); }
VEC vf vf_load(const float *p) { return BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
VEC void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
VEC void vf_stream(float *p, vf a) {
    _mm256_stream_ps(p, a.lo);
    _mm256_stream_ps(p + 8, a.hi);
}
VEC void vf_stream_end(void) { _mm_sfence(); }
VEC vf vf_load_n(const float *p, uint32_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vf_load(lanes);
}
VEC void vf_store_n(float *p, vf a, uint32_t n) {
    float lanes[16];
    vf_store(lanes, a);
    memcpy(p, lanes, n * sizeof *p);
}
VEC vf vf_keep_n(vf a, uint32_t n) {
    float lanes[16];
    vf_store(lanes, a);
    return vf_load_n(lanes, n);
}
VEC vf vf_load_half(const uint16_t *p) {
    return BOTH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
VEC void vf_store_half(uint16_t *p, vf a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC __m256 bf16_8(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
VEC vf vf_load_bf16(const uint16_t *p) { return BOTH(bf16_8(p), bf16_8(p + 8)); }
VEC vf vf_load_i8(const int8_t *p) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return BOTH(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
VEC vf vf_add(vf a, vf b) { return BOTH(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
VEC vf vf_sub(vf a, vf b) { return BOTH(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
VEC vf vf_mul(vf a, vf b) { return BOTH(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
VEC vf vf_div(vf a, vf b) { return BOTH(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
VEC vf vf_fma(vf a, vf b, vf c) { return BOTH(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)); }
VEC vf vf_fnma(vf a, vf b, vf c) {
    return BOTH(_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi));
}
VEC vf vf_max(vf a, vf b) { return BOTH(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
VEC vf vf_min(vf a, vf b) { return BOTH(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
VEC vf vf_abs(vf a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return BOTH(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}
VEC vf vf_round(vf a) {
    return BOTH(_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC vf vf_where_less(vf x, vf limit, vf a, vf b) {
    return BOTH(_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_LT_OQ)),
                _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_LT_OQ)));
}
VEC __m256 exp2_int_8(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
VEC vf vf_exp2_int(vf n) { return BOTH(exp2_int_8(n.lo), exp2_int_8(n.hi)); }
VEC vf vf_scale(vf a, vf n) {
    vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(a, vf_exp2_int(half)), vf_exp2_int(vf_sub(n, half)));
}
VEC float vf_sum(vf a) {
    __m256 eight = _mm256_add_ps(a.lo, a.hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
VEC float vf_largest_size(vf a, vf b) {
    __m256i m = _mm256_set1_epi32(0x7fffffff);
    __m256i e = _mm256_max_epi32(_mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a.lo), m),
                                                  _mm256_and_si256(_mm256_castps_si256(a.hi), m)),
                                 _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(b.lo), m),
                                                  _mm256_and_si256(_mm256_castps_si256(b.hi), m)));
    __m128i f = _mm_max_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));
    f = _mm_max_epi32(f, _mm_unpackhi_epi64(f, f));
    f = _mm_max_epi32(f, _mm_shuffle_epi32(f, 1));
    return _mm_cvtss_f32(_mm_castsi128_ps(f));
}
VEC float vf_largest(vf a) {
    __m256 eight = _mm256_max_ps(a.lo, a.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
VEC vf vf_from_bits(vi a) { return BOTH(_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)); }
VEC vf vf_from_vi(vi a) { return BOTH(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)); }
VEC vi vi_from_vf(vf a) { return (vi){_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
VEC vi vi_set1(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
VEC vi vi_add(vi a, vi b) { return (vi){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
VEC int32_t vi_sum(vi a) {
    __m256i eight = _mm256_add_epi32(a.lo, a.hi);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
VEC void vi_store_i8(int8_t *p, vi a) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
VEC uint32_t vi_nonzero(vi lo, vi hi, uint8_t *place, int8_t *value) {
    int8_t q[33];
    vi_store_i8(q, lo);
    vi_store_i8(q + 16, hi);
    q[32] = 0;
    return rwkvc_nonzero(q, place, value);
}

VEC vb vb_load(const uint8_t *p) {
    return (vb){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
VEC void vb_store(uint8_t *p, vb a) {
    _mm256_storeu_si256((__m256i *)p, a.lo);
    _mm256_storeu_si256((__m256i *)(p + 32), a.hi);
}
VEC vb vb_table(const uint8_t *p) {
    __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return (vb){table, table};
}
VEC vb vb_lookup(vb table, vb index) {
    return (vb){_mm256_shuffle_epi8(table.lo, index.lo), _mm256_shuffle_epi8(table.hi, index.hi)};
}
VEC vb vb_low(vb a) {
    __m256i mask = _mm256_set1_epi8(15);
    return (vb){_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
VEC vb vb_high(vb a) { return vb_low((vb){_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)}); }
VEC __m256i merge_32(__m256i a, __m256i b, int left, uint8_t mask) {
    b = left < 0 ? _mm256_srl_epi16(b, _mm_cvtsi32_si128(-left)) : _mm256_sll_epi16(b, _mm_cvtsi32_si128(left));
    return _mm256_or_si256(a, _mm256_and_si256(b, _mm256_set1_epi8((char)mask)));
}
VEC vb vb_merge(vb a, vb b, int left, uint8_t mask) {
    return (vb){merge_32(a.lo, b.lo, left, mask), merge_32(a.hi, b.hi, left, mask)};
}
VEC vb vb_add(vb a, uint8_t x) {
    __m256i k = _mm256_set1_epi8((char)x);
    return (vb){_mm256_add_epi8(a.lo, k), _mm256_add_epi8(a.hi, k)};
}
VEC vb vb_zip(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    __m128i first = _mm_loadu_si128((const __m128i *)a), second = _mm_loadu_si128((const __m128i *)b);
    __m128i third = _mm_loadu_si128((const __m128i *)c), fourth = _mm_loadu_si128((const __m128i *)d);
    __m128i ab_lo = _mm_unpacklo_epi8(first, second), ab_hi = _mm_unpackhi_epi8(first, second);
    __m128i cd_lo = _mm_unpacklo_epi8(third, fourth), cd_hi = _mm_unpackhi_epi8(third, fourth);
    return (vb){_mm256_set_m128i(_mm_unpackhi_epi16(ab_lo, cd_lo), _mm_unpacklo_epi16(ab_lo, cd_lo)),
                _mm256_set_m128i(_mm_unpackhi_epi16(ab_hi, cd_hi), _mm_unpacklo_epi16(ab_hi, cd_hi))};
}
VEC void interleave_32(__m256i a, __m256i b, __m256i c, __m256i d, __m256i out[4]) {
    __m256i ab_lo = _mm256_unpacklo_epi8(a, b), ab_hi = _mm256_unpackhi_epi8(a, b);
    __m256i cd_lo = _mm256_unpacklo_epi8(c, d), cd_hi = _mm256_unpackhi_epi8(c, d);
    out[0] = _mm256_unpacklo_epi16(ab_lo, cd_lo);
    out[1] = _mm256_unpackhi_epi16(ab_lo, cd_lo);
    out[2] = _mm256_unpacklo_epi16(ab_hi, cd_hi);
    out[3] = _mm256_unpackhi_epi16(ab_hi, cd_hi);
}
VEC void vb_interleave(vb a, vb b, vb c, vb d, vb out[4]) {
    __m256i lo[4], hi[4];
    interleave_32(a.lo, b.lo, c.lo, d.lo, lo);
    interleave_32(a.hi, b.hi, c.hi, d.hi, hi);
    for (int v = 0; v < 4; v++) out[v] = (vb){lo[v], hi[v]};
}
/* 8 numbers of each of 8 rows. */
VEC void columns_8(const uint8_t *const *rows, uint64_t skip, uint8_t *out) {
    __m256i quad[2][4];
    UNROLL for (int i = 0; i < 2; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(rows[4 * i] + skip));
        __m256i b = _mm256_loadu_si256((const __m256i *)(rows[4 * i + 1] + skip));
        __m256i c = _mm256_loadu_si256((const __m256i *)(rows[4 * i + 2] + skip));
        __m256i d = _mm256_loadu_si256((const __m256i *)(rows[4 * i + 3] + skip));
        __m256i ab_lo = _mm256_unpacklo_epi32(a, b), ab_hi = _mm256_unpackhi_epi32(a, b);
        __m256i cd_lo = _mm256_unpacklo_epi32(c, d), cd_hi = _mm256_unpackhi_epi32(c, d);
        quad[i][0] = _mm256_unpacklo_epi64(ab_lo, cd_lo);
        quad[i][1] = _mm256_unpackhi_epi64(ab_lo, cd_lo);
        quad[i][2] = _mm256_unpacklo_epi64(ab_hi, cd_hi);
        quad[i][3] = _mm256_unpackhi_epi64(ab_hi, cd_hi);
    }
    UNROLL for (int k = 0; k < 4; k++) {
        _mm256_storeu_si256((__m256i *)(out + 64 * k), _mm256_permute2x128_si256(quad[0][k], quad[1][k], 0x20));
        _mm256_storeu_si256((__m256i *)(out + 64 * (4 + k)), _mm256_permute2x128_si256(quad[0][k], quad[1][k], 0x31));
    }
}
VEC void vb_columns(const uint8_t *const rows[16], uint64_t skip, uint8_t *out) {
    UNROLL for (int i = 0; i < 4; i++) columns_8(rows + i / 2 * 8, skip + i % 2 * 32, out + i / 2 * 32 + i % 2 * 512);
}
VEC vf vf_even_bf16(vb a) {
    return BOTH(_mm256_castsi256_ps(_mm256_slli_epi32(a.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(a.hi, 16)));
}
VEC vf vf_odd_bf16(vb a) {
    __m256i mask = _mm256_set1_epi32((int32_t)0xffff0000);
    return BOTH(_mm256_castsi256_ps(_mm256_and_si256(a.lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(a.hi, mask)));
}
/* The low words of 8 numbers that are below 2^16. */
VEC __m256 half_8(__m256i a) {
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}
VEC vf vf_even_half(vb a) {
    __m256i mask = _mm256_set1_epi32(0xffff);
    return BOTH(half_8(_mm256_and_si256(a.lo, mask)), half_8(_mm256_and_si256(a.hi, mask)));
}
VEC vf vf_odd_half(vb a) { return BOTH(half_8(_mm256_srli_epi32(a.lo, 16)), half_8(_mm256_srli_epi32(a.hi, 16))); }

#undef BOTH
