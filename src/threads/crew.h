/* SPDX-License-Identifier: Apache-2.0
 * How many of a pool's threads take part. Beside other work, or with more threads than cores, the system now and then puts a
 * thread aside that holds items, for milliseconds, and all others wait: then fewer threads are faster. */
#ifndef RWKVC_CREW_H
#define RWKVC_CREW_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* Times are seconds of one clock. */
typedef struct {
    uint32_t threads, active; /* 1 <= active <= threads */
    double window, stalled;   /* when counting began, and what was waited since */
    double changed, patience; /* when `active` changed, and how long it stays before one more is tried */
    bool grew;                /* the last time it changed */
} rwkvc_crew;

void rwkvc_crew_start(rwkvc_crew *crew, uint32_t threads);
/* The caller ran out of items at `worked`, having begun at `began`, and the last of the others' was finished at `done`.
 * True if `active` is another now. */
bool rwkvc_crew_waited(rwkvc_crew *crew, double began, double worked, double done);
/* At the beginning of a region: true if one thread more is to be tried now. */
bool rwkvc_crew_retry(rwkvc_crew *crew, double now);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
