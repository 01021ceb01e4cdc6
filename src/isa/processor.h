/* SPDX-License-Identifier: Apache-2.0
 * What C has no word for and every processor has another one. */
#ifndef RWKVC_PROCESSOR_H
#define RWKVC_PROCESSOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility push(hidden)
#endif

/* In a loop that waits for another thread. */
void rwkvc_pause(void);

/* What the processor answers, asked once and kept in *known (0 before): where a hypervisor answers for it, that takes longer
 * than packing a panel of a tensor. */
bool rwkvc_asked_once(atomic_int *known, bool (*ask)(void));

/* The floating point environment that gives the same bits everywhere: round to nearest, keep subnormals, no traps.
 * Returns the one before, to be given back. */
uint64_t rwkvc_float_environment(void);
void rwkvc_float_restore(uint64_t environment);

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility pop
#endif

#endif
