/* SPDX-License-Identifier: Apache-2.0
 * Aligned memory, faulting in what a host has mapped, and the checksum of the file's table. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__linux__) && !defined(MADV_POPULATE_READ) /* older headers; the kernel answers for itself */
#define MADV_POPULATE_READ 22
#endif

enum { HUGE_PAGE = 2 << 20, SMALL_PAGE = 4096 };

/* Zeroing is the first touch: where memory belongs to a node (NUMA), this becomes the calling thread's. */
void *rwkvc_alloc(uint64_t size_bytes) {
    if (size_bytes > SIZE_MAX - HUGE_PAGE) return NULL;
    uint64_t align = size_bytes < 2 * HUGE_PAGE ? RWKVC_ALIGN : HUGE_PAGE;
    size_t size = (size_t)rwkvc_round_up(size_bytes ? size_bytes : 1, align);
    void *memory = aligned_alloc((size_t)align, size);
#if defined(MADV_HUGEPAGE)
    if (memory && align == HUGE_PAGE) madvise(memory, size, MADV_HUGEPAGE); /* a wish: small pages work as well */
#endif
    if (memory) memset(memory, 0, size);
    return memory;
}

void rwkvc_free(void *memory) { free(memory); }

/* Read a byte of every page. */
static void touch(const volatile uint8_t *bytes, uint64_t size_bytes) {
    for (uint64_t at = 0; at < size_bytes; at += SMALL_PAGE) (void)bytes[at];
}

#if defined(MADV_WILLNEED)
static int advise(const uint8_t *bytes, uint64_t size_bytes, int advice) {
    uint64_t before = (uintptr_t)bytes % (uint64_t)sysconf(_SC_PAGESIZE);
    return madvise((void *)(uintptr_t)(bytes - before), (size_t)(size_bytes + before), advice);
}
#endif

void rwkvc_read_ahead(const void *bytes, uint64_t size_bytes) {
#if defined(MADV_WILLNEED)
    if (size_bytes) advise(bytes, size_bytes, MADV_WILLNEED);
#else
    (void)bytes, (void)size_bytes;
#endif
}

rwkvc_status rwkvc_prefault(const void *bytes, uint64_t size_bytes, const int32_t *cancel) {
    const uint8_t *at = bytes, *end = at + size_bytes;
    bool populate = false;
#if defined(MADV_POPULATE_READ)
    populate = true;
#endif
    while (at < end) {
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED))
            return rwkvc_fail(RWKVC_E_CANCELLED, "cancelled while memory was faulted in");
        /* Steps end where a huge page does, so that one can be mapped as a whole, and are short: the system's lock on
         * the process's memory is held during each. */
        uint64_t step = rwkvc_min(HUGE_PAGE - (uintptr_t)at % HUGE_PAGE, (uint64_t)(end - at));
#if defined(MADV_POPULATE_READ)
        if (populate && advise(at, step, MADV_POPULATE_READ)) {
            if (errno != EINVAL) return rwkvc_fail(RWKVC_E_FORMAT, "the memory cannot be read: %s", strerror(errno));
            populate = false; /* Linux before 5.14 */
        }
#endif
        if (!populate) touch(at, step);
        at += step;
    }
    return RWKVC_OK;
}

/* CRC-32 as in zlib: polynomial 0xedb88320, reflected. Only ever over a table of some kilobytes. */
uint32_t rwkvc_crc32(const uint8_t *bytes, uint64_t size) {
    uint32_t crc = 0xffffffffu;
    for (uint64_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}
