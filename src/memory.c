/* SPDX-License-Identifier: Apache-2.0
 * Aligned memory, and faulting in what a host has mapped. */
#include "platform/platform.h"

enum { HUGE_PAGE = 2 << 20, SMALL_PAGE = 4096 };

/* Zeroing is the first touch: where memory belongs to a node (NUMA), this becomes the calling thread's. */
void *rwkvc_alloc(uint64_t size_bytes) {
    if (size_bytes > SIZE_MAX - HUGE_PAGE) return NULL;
    uint64_t align = size_bytes < 2 * HUGE_PAGE ? RWKVC_ALIGN : HUGE_PAGE;
    size_t size = (size_t)rwkvc_round_up(size_bytes ? size_bytes : 1, align);
    void *memory = rwkvc_aligned_new(size, (size_t)align);
    if (memory && align == HUGE_PAGE) rwkvc_wish_huge_pages(memory, size);
    if (memory) memset(memory, 0, size);
    return memory;
}

void rwkvc_free(void *memory) { rwkvc_aligned_free(memory); }

/* Read a byte of every page. */
static void touch(const volatile uint8_t *bytes, uint64_t size_bytes) {
    for (uint64_t at = 0; at < size_bytes; at += SMALL_PAGE) (void)bytes[at];
}

void rwkvc_read_ahead(const void *bytes, uint64_t size_bytes) {
    if (size_bytes) rwkvc_wish_read_ahead(bytes, size_bytes);
}

rwkvc_status rwkvc_prefault(const void *bytes, uint64_t size_bytes, const int32_t *cancel) {
    const uint8_t *at = bytes, *end = at + size_bytes;
    int populated = 1;
    while (at < end) {
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED))
            return rwkvc_fail(RWKVC_E_CANCELLED, "cancelled while memory was faulted in");
        /* Steps end where a huge page does, so that one can be mapped as a whole, and are short: the system's lock on
         * the process's memory is held during each. */
        uint64_t step = rwkvc_min(HUGE_PAGE - (uintptr_t)at % HUGE_PAGE, (uint64_t)(end - at));
        char reason[128];
        if (populated > 0) populated = rwkvc_populate(at, step, reason, sizeof reason);
        if (populated < 0) return rwkvc_fail(RWKVC_E_FORMAT, "the memory cannot be read: %s", reason);
        if (populated == 0) touch(at, step);
        at += step;
    }
    return RWKVC_OK;
}
