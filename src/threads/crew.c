/* SPDX-License-Identifier: Apache-2.0
 * See crew.h. */
#include "threads/crew.h"

/* Seconds. STALLED of a WINDOW is what a thread may cost by being waited for; one mishap is less. */
static const double WINDOW = 0.2, STALLED = 0.03, PATIENCE = 0.2, MOST_PATIENCE = 3.0;

void rwkvc_crew_start(rwkvc_crew *crew, uint32_t threads) {
    *crew = (rwkvc_crew){.threads = threads, .active = threads, .patience = PATIENCE};
}

bool rwkvc_crew_waited(rwkvc_crew *crew, double began, double worked, double done) {
    /* Others may hold a last item as long as the caller's whole share without anything being wrong. */
    double stall = (done - worked) - (worked - began);
    if (stall <= 0) return false;
    if (done - crew->window > WINDOW) crew->window = began, crew->stalled = 0;
    crew->stalled += stall;
    if (crew->active == 1 || crew->stalled < STALLED) return false;
    bool in_vain = crew->grew && done - crew->changed < 2 * WINDOW;
    if (in_vain)
        crew->patience = 2 * crew->patience < MOST_PATIENCE ? 2 * crew->patience : MOST_PATIENCE;
    else if (crew->grew)
        crew->patience = PATIENCE;
    crew->grew = false;
    crew->active -= in_vain ? 1 : 1 + crew->active / 8;
    crew->changed = crew->window = done;
    crew->stalled = 0;
    return true;
}

bool rwkvc_crew_retry(rwkvc_crew *crew, double now) {
    if (crew->active == crew->threads || now - crew->changed < crew->patience) return false;
    crew->active++;
    crew->grew = true;
    crew->changed = crew->window = now;
    crew->stalled = 0;
    return true;
}
