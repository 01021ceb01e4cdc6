/* SPDX-License-Identifier: Apache-2.0
 * The vocabulary's dot product on 64-bit ARM, in three ways that a unit chooses from by RWKVC_NEON_DOT:
 *   SMULL  every CPU: 16-bit products, of which two fit a 16-bit sum since activations are at most 127 in size
 *   SDOT   dot products of signed by signed: weights lose their offset first
 *   USDOT  I8MM: weights as they are stored */
#define RWKVC_SMULL 0
#define RWKVC_SDOT 1
#define RWKVC_USDOT 2

/* clang's header had these only under -march before version 16, so that a unit of its own could not use them. */
#if defined(__clang__) && __clang_major__ < 16
#define RWKVC_DOT_ASM(instruction)                                                                                     \
    __asm__(instruction " %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(a));                                        \
    return acc
#endif

#if RWKVC_NEON_DOT == RWKVC_USDOT
typedef vb vw;

VEC vw vw_from(vb stored) { return stored; }
VEC vi vi_dot_begin(int32_t with_offset, int32_t without) {
    (void)without;
    return vi_set1(with_offset);
}
VEC int32x4_t dot_4(int32x4_t acc, uint8x16_t w, int8x16_t a) {
#if defined(RWKVC_DOT_ASM)
    RWKVC_DOT_ASM("usdot");
#else
    return vusdotq_s32(acc, w, a);
#endif
}
#else
typedef struct {
    int8x16_t a, b, c, d;
} vw;

VEC int8x16_t signed_16(uint8x16_t stored) { return vreinterpretq_s8_u8(veorq_u8(stored, vdupq_n_u8(128))); }
VEC vw vw_from(vb stored) { return (vw)EACH(signed_16, stored); }
/* Weights are signed here: nothing to make up for. */
VEC vi vi_dot_begin(int32_t with_offset, int32_t without) {
    (void)with_offset;
    return vi_set1(without);
}
VEC int32x4_t dot_4(int32x4_t acc, int8x16_t w, int8x16_t a) {
#if RWKVC_NEON_DOT == RWKVC_SMULL
    int16x8_t lo = vmull_s8(vget_low_s8(w), vget_low_s8(a)), hi = vmull_high_s8(w, a);
    return vpadalq_s16(acc, vpaddq_s16(lo, hi));
#elif defined(RWKVC_DOT_ASM)
    RWKVC_DOT_ASM("sdot");
#else
    return vdotq_s32(acc, w, a);
#endif
}
#endif

VEC vi vi_dot(vi acc, vw w, const int8_t *a) {
    int32_t quad;
    memcpy(&quad, a, sizeof quad);
    int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(quad));
    return (vi){dot_4(acc.a, w.a, x), dot_4(acc.b, w.b, x), dot_4(acc.c, w.c, x), dot_4(acc.d, w.d, x)};
}
/* Weights below 128 are the same signed and unsigned. */
VEC vi vi_dot_small(vi acc, vb w, const int8_t *a) {
#if RWKVC_NEON_DOT == RWKVC_USDOT
    return vi_dot(acc, w, a);
#else
    return vi_dot(acc, (vw)EACH(vreinterpretq_s8_u8, w), a);
#endif
}

#undef EACH
#undef EACH_2
#undef EACH_3

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
