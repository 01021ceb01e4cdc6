/* SPDX-License-Identifier: Apache-2.0
 * What measure.c and measure_parts.c share. */
#ifndef RWKVC_MEASURE_H
#define RWKVC_MEASURE_H

#include "forward.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* No work in a fork's child, no cancel flag of an earlier call. */
rwkvc_status rwkvc_measure_prepare(rwkvc_pool *pool);
/* Seconds of the fastest of many passes of run(arg), after one that is not timed; 0 if a cancel flag stopped it. */
double rwkvc_measure_fastest(bool (*run)(void *arg), void *arg);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
