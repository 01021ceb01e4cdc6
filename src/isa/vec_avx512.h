/* SPDX-License-Identifier: Apache-2.0
 * The vector vocabulary (vec_scalar.h defines it) on AVX-512 F, BW, DQ, VL and VNNI: 16 lanes are one register. */
#include <stdint.h>
#include <string.h>

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;
typedef __m512i vw;

VEC vf vf_set1(float x) { return _mm512_set1_ps(x); }
VEC vf vf_zero(void) { return _mm512_setzero_ps(); }
VEC vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
VEC void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
VEC __mmask16 first_n(uint32_t n) { return (__mmask16)((1u << n) - 1); }
VEC vf vf_load_n(const float *p, uint32_t n) { return _mm512_maskz_loadu_ps(first_n(n), p); }
VEC void vf_stream(float *p, vf a) { _mm512_stream_ps(p, a); }
VEC void vf_stream_end(void) { _mm_sfence(); }
VEC void vf_store_n(float *p, vf a, uint32_t n) { _mm512_mask_storeu_ps(p, first_n(n), a); }
VEC vf vf_keep_n(vf a, uint32_t n) { return _mm512_maskz_mov_ps(first_n(n), a); }
VEC vf vf_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
VEC void vf_store_half(uint16_t *p, vf a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
VEC vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
VEC vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
VEC vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
VEC vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
VEC vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
VEC vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
VEC vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
VEC vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
VEC vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
VEC vf vf_abs(vf a) { return _mm512_abs_ps(a); }
VEC vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
VEC vf vf_where_less(vf x, vf limit, vf a, vf b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
VEC vf vf_scale(vf a, vf n) { return _mm512_scalef_ps(a, n); }
VEC float vf_sum(vf a) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
VEC float vf_largest_size(vf a, vf b) {
    __m512i m = _mm512_set1_epi32(0x7fffffff);
    int32_t bits = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), m), _mm512_and_si512(_mm512_castps_si512(b), m)));
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
VEC float vf_largest(vf a) { return _mm512_reduce_max_ps(a); }
VEC vf vf_from_bits(vi a) { return _mm512_castsi512_ps(a); }
VEC vf vf_from_vi(vi a) { return _mm512_cvtepi32_ps(a); }
VEC vi vi_from_vf(vf a) { return _mm512_cvtps_epi32(a); }
VEC vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
VEC vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
VEC int32_t vi_sum(vi a) { return _mm512_reduce_add_epi32(a); }
/* The lanes of `a` that are chosen, their low bytes and the next ones. */
VEC void compress_bytes(uint8_t *low, uint8_t *high, __mmask16 chosen, vi a) {
    a = _mm512_maskz_compress_epi32(chosen, a);
    _mm_storeu_si128((__m128i *)low, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)high, _mm512_cvtepi32_epi8(_mm512_srli_epi32(a, 8)));
}
VEC uint32_t vi_nonzero(vi lo, vi hi, uint8_t *place, int8_t *value) {
    const vi places = _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 8);
    const vi later = _mm512_add_epi32(places, _mm512_set1_epi32(16 << 8)), low = _mm512_set1_epi32(255);
    __mmask16 in_lo = _mm512_test_epi32_mask(lo, lo), in_hi = _mm512_test_epi32_mask(hi, hi);
    uint32_t n = (uint32_t)__builtin_popcount(in_lo);
    _mm_storeu_si128((__m128i *)(place + 16), _mm_setzero_si128()); /* behind what is stored next */
    _mm_storeu_si128((__m128i *)(value + 16), _mm_setzero_si128());
    /* lo & low | places */
    compress_bytes((uint8_t *)value, place, in_lo, _mm512_ternarylogic_epi32(lo, low, places, 0xea));
    compress_bytes((uint8_t *)value + n, place + n, in_hi, _mm512_ternarylogic_epi32(hi, low, later, 0xea));
    return n + (uint32_t)__builtin_popcount(in_hi);
}
VEC void vi_store_i8(int8_t *p, vi a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }

/* A code book (kernels/book.inc.h): halving, with a table for each step of the limits that it may come to. */
#define VF_BOOK 1
typedef struct {
    vf entry, limit[4];
} vf_book;
VEC vf_book vf_book_of(const float *entry, const float *limit) {
    vf_book b = {.entry = vf_load(entry)};
    b.limit[0] = vf_set1(limit[7]);
    for (uint32_t i = 1; i < 4; i++) {
        uint32_t skip = (8u >> i) - 1;
        b.limit[i] = vf_load_n(limit + skip, 15 - skip);
    }
    return b;
}
VEC vf vf_book_nearest(const vf_book *b, vf x, vf *number) {
    vi at = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(x, b->limit[0], _CMP_NLT_UQ), _mm512_set1_epi32(8));
    UNROLL for (int i = 1; i < 4; i++) {
        __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(at, b->limit[i]), _CMP_NLT_UQ);
        at = _mm512_mask_or_epi32(at, above, at, _mm512_set1_epi32(8 >> i));
    }
    *number = _mm512_cvtepi32_ps(at);
    return _mm512_permutexvar_ps(at, b->entry);
}

VEC vb vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
VEC void vb_store(uint8_t *p, vb a) { _mm512_storeu_si512(p, a); }
VEC vb vb_table(const uint8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
VEC vb vb_lookup(vb table, vb index) { return _mm512_shuffle_epi8(table, index); }
VEC vb vb_low(vb a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
VEC vb vb_high(vb a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
VEC vb vb_merge(vb a, vb b, int left, uint8_t mask) {
    b = left < 0 ? _mm512_srl_epi16(b, _mm_cvtsi32_si128(-left)) : _mm512_sll_epi16(b, _mm_cvtsi32_si128(left));
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8((char)mask), 0xf8); /* a | (b & mask) */
}
VEC vb vb_add(vb a, uint8_t x) { return _mm512_add_epi8(a, _mm512_set1_epi8((char)x)); }
VEC vb vb_zip(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    __m128i first = _mm_loadu_si128((const __m128i *)a), second = _mm_loadu_si128((const __m128i *)b);
    __m128i third = _mm_loadu_si128((const __m128i *)c), fourth = _mm_loadu_si128((const __m128i *)d);
    __m128i ab_lo = _mm_unpacklo_epi8(first, second), ab_hi = _mm_unpackhi_epi8(first, second);
    __m128i cd_lo = _mm_unpacklo_epi8(third, fourth), cd_hi = _mm_unpackhi_epi8(third, fourth);
    __m256i lo = _mm256_set_m128i(_mm_unpackhi_epi16(ab_lo, cd_lo), _mm_unpacklo_epi16(ab_lo, cd_lo));
    __m256i hi = _mm256_set_m128i(_mm_unpackhi_epi16(ab_hi, cd_hi), _mm_unpacklo_epi16(ab_hi, cd_hi));
    return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
}
VEC void vb_interleave(vb a, vb b, vb c, vb d, vb out[4]) {
    __m512i ab_lo = _mm512_unpacklo_epi8(a, b), ab_hi = _mm512_unpackhi_epi8(a, b);
    __m512i cd_lo = _mm512_unpacklo_epi8(c, d), cd_hi = _mm512_unpackhi_epi8(c, d);
    out[0] = _mm512_unpacklo_epi16(ab_lo, cd_lo);
    out[1] = _mm512_unpackhi_epi16(ab_lo, cd_lo);
    out[2] = _mm512_unpacklo_epi16(ab_hi, cd_hi);
    out[3] = _mm512_unpackhi_epi16(ab_hi, cd_hi);
}
VEC void vb_columns(const uint8_t *const rows[16], uint64_t skip, uint8_t *out) {
    __m512i quad[4][4]; /* [rows 4i .. 4i + 3][k]: numbers 4m + k of them in lane m of 128 bits */
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i a = vb_load(rows[4 * i] + skip), b = vb_load(rows[4 * i + 1] + skip);
        __m512i c = vb_load(rows[4 * i + 2] + skip), d = vb_load(rows[4 * i + 3] + skip);
        __m512i ab_lo = _mm512_unpacklo_epi32(a, b), ab_hi = _mm512_unpackhi_epi32(a, b);
        __m512i cd_lo = _mm512_unpacklo_epi32(c, d), cd_hi = _mm512_unpackhi_epi32(c, d);
        quad[i][0] = _mm512_unpacklo_epi64(ab_lo, cd_lo);
        quad[i][1] = _mm512_unpackhi_epi64(ab_lo, cd_lo);
        quad[i][2] = _mm512_unpacklo_epi64(ab_hi, cd_hi);
        quad[i][3] = _mm512_unpackhi_epi64(ab_hi, cd_hi);
    }
    UNROLL for (int k = 0; k < 4; k++) {
        __m512i even = _mm512_shuffle_i32x4(quad[0][k], quad[1][k], 0x88);
        __m512i odd = _mm512_shuffle_i32x4(quad[0][k], quad[1][k], 0xdd);
        __m512i even_2 = _mm512_shuffle_i32x4(quad[2][k], quad[3][k], 0x88);
        __m512i odd_2 = _mm512_shuffle_i32x4(quad[2][k], quad[3][k], 0xdd);
        vb_store(out + 64 * k, _mm512_shuffle_i32x4(even, even_2, 0x88));
        vb_store(out + 64 * (4 + k), _mm512_shuffle_i32x4(odd, odd_2, 0x88));
        vb_store(out + 64 * (8 + k), _mm512_shuffle_i32x4(even, even_2, 0xdd));
        vb_store(out + 64 * (12 + k), _mm512_shuffle_i32x4(odd, odd_2, 0xdd));
    }
}
VEC vf vf_even_bf16(vb a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
VEC vf vf_odd_bf16(vb a) { return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int32_t)0xffff0000))); }
VEC vf vf_even_half(vb a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
VEC vf vf_odd_half(vb a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16))); }
VEC vw vw_from(vb stored) { return stored; }
VEC vi vi_dot_begin(int32_t with_offset, int32_t without) {
    (void)without;
    return _mm512_set1_epi32(with_offset);
}
VEC vi vi_dot(vi acc, vw w, const int8_t *a) {
    int32_t quad;
    memcpy(&quad, a, sizeof quad);
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(quad));
}
VEC vi vi_dot_small(vi acc, vb w, const int8_t *a) { return vi_dot(acc, w, a); }

/* 2 x 12 accumulators, weights, scales and one spare are 32 registers' worth of work for a tile of tokens. */
enum {
    Q8_TILE = 12,
    PLAIN_TILE = 8,
    PLAIN_PANELS = 4,
    WKV_BLOCKS = 4,
    SPARSE_INPUTS = 9,
    DIRECT_COLUMNS = 4,
    STREAM_STEP = 128,
    VALUE_SUMS = 16
};

#include "isa/tile_avx512.h"
