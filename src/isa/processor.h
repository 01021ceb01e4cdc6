/* SPDX-License-Identifier: Apache-2.0
 * What C has no word for and every processor has another one. */
#ifndef RWKVC_PROCESSOR_H
#define RWKVC_PROCESSOR_H

#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility push(hidden)
#endif

/* In a loop that waits for another thread. */
void rwkvc_pause(void);

/* Part of a CRC-32 without its inversions: takes a multiple of 8 of the bytes into *crc and returns how many; 0 where the
 * processor has no instructions for it. */
uint64_t rwkvc_crc32_blocks(uint32_t *crc, const uint8_t *bytes, uint64_t size);

/* The floating point environment that gives the same bits everywhere: round to nearest, keep subnormals, no traps.
 * Returns the one before, to be given back. */
uint64_t rwkvc_float_environment(void);
void rwkvc_float_restore(uint64_t environment);

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility pop
#endif

#endif
