/* SPDX-License-Identifier: Apache-2.0
 * CRC-32 (polynomial 0xedb88320, reflected), where there are such by the processor's own instructions: carry-less products
 * on x86 (Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ, 2009), CRC32X on ARM from version
 * 8.2 on, which always has it. */
#include <string.h>

#include "isa/processor.h"
#include "isa/target.h"
#include "platform/platform.h"
#include "rwkv_cpu.h"

static uint32_t crc_byte(uint32_t byte) {
    for (int bit = 0; bit < 8; bit++) byte = byte >> 1 ^ (0xedb88320u & (0u - (byte & 1)));
    return byte;
}

/* blocks(): takes a multiple of 8 of the bytes into *crc, without its inversions, and returns how many. */

#if defined(RWKVC_X86_64)
#include <cpuid.h>
#include <immintrin.h>

/* Powers of x modulo the polynomial, in reflected order: x^(512 +- 32) and x^(128 +- 32). */
#define BY_64_BYTES _mm_set_epi64x(0x01c6e41596, 0x0154442bd4)
#define BY_16_BYTES _mm_set_epi64x(0x00ccaa009e, 0x01751997d0)

TARGET_BEGIN("pclmul,sse4.1")
static inline __m128i folded(__m128i x, __m128i by, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* 16 bytes with the same remainder as `size` bytes, a multiple of 64, that begin with `crc`. */
static void fold(uint32_t crc, const uint8_t *bytes, uint64_t size, uint8_t rest[16]) {
    const __m128i *p = (const __m128i *)bytes;
    __m128i a = _mm_xor_si128(_mm_loadu_si128(p), _mm_cvtsi32_si128((int32_t)crc));
    __m128i b = _mm_loadu_si128(p + 1), c = _mm_loadu_si128(p + 2), d = _mm_loadu_si128(p + 3);
    for (const __m128i *end = p + size / 16; (p += 4) < end;) {
        a = folded(a, BY_64_BYTES, _mm_loadu_si128(p));
        b = folded(b, BY_64_BYTES, _mm_loadu_si128(p + 1));
        c = folded(c, BY_64_BYTES, _mm_loadu_si128(p + 2));
        d = folded(d, BY_64_BYTES, _mm_loadu_si128(p + 3));
    }
    b = folded(a, BY_16_BYTES, b);
    c = folded(b, BY_16_BYTES, c);
    _mm_storeu_si128((__m128i *)rest, folded(c, BY_16_BYTES, d));
}
TARGET_END

static bool has_pclmul(void) {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_PCLMUL) && (c & bit_SSE4_1);
}

static uint64_t blocks(uint32_t *crc, const uint8_t *bytes, uint64_t size) {
    static atomic_int known;
    if (size < 64 || !rwkvc_asked_once(&known, has_pclmul)) return 0;
    uint8_t rest[16];
    fold(*crc, bytes, size / 64 * 64, rest);
    *crc = 0;
    for (int i = 0; i < 16; i++) *crc = *crc >> 8 ^ crc_byte((*crc ^ rest[i]) & 255);
    return size / 64 * 64;
}
#elif defined(RWKVC_AARCH64)
static uint64_t blocks(uint32_t *crc, const uint8_t *bytes, uint64_t size) {
    if (!rwkvc_arm_dotprod()) return 0;
    for (uint64_t i = 0; i < size / 8; i++) {
        uint64_t eight;
        memcpy(&eight, bytes + 8 * i, sizeof eight);
        __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(*crc) : "r"(eight));
    }
    return size / 8 * 8;
}
#else
static uint64_t blocks(uint32_t *crc, const uint8_t *bytes, uint64_t size) {
    (void)crc, (void)bytes, (void)size;
    return 0;
}
#endif

/* table[k][b]: what byte b does to the checksum when k bytes follow it. */
static void crc_table(uint32_t table[8][256]) {
    for (uint32_t b = 0; b < 256; b++) table[0][b] = crc_byte(b);
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++) table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
}

uint32_t rwkvc_crc32(uint32_t before, const uint8_t *bytes, uint64_t size) {
    uint32_t crc = ~before;
    uint64_t done = blocks(&crc, bytes, size);
    bytes += done;
    size -= done;
    if (size < 256) { /* the tables take longer */
        for (; size; size--) crc = crc >> 8 ^ crc_byte((crc ^ *bytes++) & 255);
        return ~crc;
    }
    uint32_t table[8][256];
    crc_table(table);
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t low, high;
        memcpy(&low, bytes, 4);
        memcpy(&high, bytes + 4, 4);
        low ^= crc;
        crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^ table[4][low >> 24] ^
              table[3][high & 255] ^ table[2][high >> 8 & 255] ^ table[1][high >> 16 & 255] ^ table[0][high >> 24];
    }
    for (; size; size--) crc = crc >> 8 ^ table[0][(crc ^ *bytes++) & 255];
    return ~crc;
}
