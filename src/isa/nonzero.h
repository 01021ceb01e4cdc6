/* SPDX-License-Identifier: Apache-2.0
 * vi_nonzero in 64-bit integers, for vectors without an instruction that brings lanes together. */
#ifndef RWKVC_NONZERO_H
#define RWKVC_NONZERO_H

#include <stdint.h>
#include <string.h>

/* q[33] ends with a zero, which serves where there is nothing left. Eight entries are made without a branch: more are
 * rare where zeros count. */
static inline uint32_t rwkvc_nonzero(const int8_t *q, uint8_t *place, int8_t *value) {
    const uint64_t end = 1ull << 32, sevens = 0x7f7f7f7f7f7f7f7f;
    uint64_t set = end;
    for (uint32_t i = 0; i < 32; i += 8) {
        uint64_t eight;
        memcpy(&eight, q + i, sizeof eight);
        eight = (((eight & sevens) + sevens) | eight) & ~sevens; /* 0x80 in each byte that is not zero */
        set |= (eight >> 7) * 0x0102040810204080 >> 56 << i;     /* a bit for each */
    }
    uint32_t n = (uint32_t)__builtin_popcountll(set) - 1;
    for (uint32_t i = 0; i < 8 || i < (n + 3) / 4 * 4; i++) {
        uint32_t j = (uint32_t)__builtin_ctzll(set);
        place[i] = (uint8_t)(j % 32);
        value[i] = q[j];
        set = (set & (set - 1)) | end;
    }
    return n;
}

#endif
