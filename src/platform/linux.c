/* SPDX-License-Identifier: Apache-2.0
 * What Linux has of its own (glibc and musl), and the least that another POSIX system gets by. */
#if !defined(_WIN32) && !defined(__APPLE__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/platform.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "platform/linux_cores.h"

#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#if !defined(MADV_POPULATE_READ) /* older headers; the kernel answers for itself */
#define MADV_POPULATE_READ 22
#endif
#endif

enum { MAX_CPUS = 1 << 16, NICER = 10, NICEST = 19 };

#if defined(__linux__)
/* allowed[cpu] = 1 for the CPUs of the affinity mask; *n_cpus is its length. NULL if it cannot be had. */
static uint8_t *affinity(uint32_t *n_cpus) {
    for (uint32_t n = 1024; n <= MAX_CPUS; n *= 4) { /* the call refuses a mask shorter than the kernel's own */
        cpu_set_t *mask = CPU_ALLOC(n);
        uint8_t *allowed = mask && !sched_getaffinity(0, CPU_ALLOC_SIZE(n), mask) ? calloc(n, 1) : NULL;
        for (uint32_t cpu = 0; allowed && cpu < n; cpu++) allowed[cpu] = CPU_ISSET_S(cpu, CPU_ALLOC_SIZE(n), mask) != 0;
        if (mask) CPU_FREE(mask);
        *n_cpus = n;
        if (allowed) return allowed;
    }
    return NULL;
}
#endif

/* count("", the affinity mask, its length). */
static uint32_t counted(uint32_t (*count)(const char *, const uint8_t *, uint32_t)) {
#if defined(__linux__)
    uint32_t n_cpus;
    uint8_t *allowed = affinity(&n_cpus);
    if (allowed) {
        uint32_t found = count("", allowed, n_cpus);
        free(allowed);
        return found;
    }
#endif
    (void)count;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (uint32_t)online : 0;
}

uint32_t rwkvc_system_cores(void) { return counted(rwkvc_count_cores); }
uint32_t rwkvc_system_cpus(void) { return counted(rwkvc_count_cpus); }

#if defined(__linux__) && defined(__aarch64__) /* <asm/hwcap.h> of an older system lacks the names */
bool rwkvc_arm_dotprod(void) { return getauxval(AT_HWCAP) & 1ul << 20; /* HWCAP_ASIMDDP */ }
bool rwkvc_arm_i8mm(void) { return getauxval(AT_HWCAP2) & 1ul << 13; /* HWCAP2_I8MM */ }
#else
bool rwkvc_arm_dotprod(void) { return false; }
bool rwkvc_arm_i8mm(void) { return false; }
#endif

bool rwkvc_thread_lower(void) {
#if defined(__linux__)
    /* A thread is what POSIX calls a process here. Measured from the process's first thread, since one that is made by a
     * lowered thread is lower already. */
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, (id_t)getpid());
    if (nice == -1 && errno) return false;
    nice = nice + NICER < NICEST ? nice + NICER : NICEST;
    return setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), nice) == 0;
#else
    return false;
#endif
}

void rwkvc_wish_huge_pages(void *memory, size_t size_bytes) {
#if defined(MADV_HUGEPAGE)
    madvise(memory, size_bytes, MADV_HUGEPAGE);
#else
    (void)memory, (void)size_bytes;
#endif
}

int rwkvc_populate(const void *bytes, uint64_t size_bytes, char *reason, size_t reason_bytes) {
#if defined(MADV_POPULATE_READ)
    uint64_t before = (uintptr_t)bytes % (uint64_t)sysconf(_SC_PAGESIZE);
    if (!madvise((void *)((uintptr_t)bytes - before), (size_t)(size_bytes + before), MADV_POPULATE_READ)) return 1;
    if (errno == EINVAL) return 0; /* Linux before 5.14 */
    snprintf(reason, reason_bytes, "%s", strerror(errno));
    return -1;
#else
    (void)bytes, (void)size_bytes, (void)reason, (void)reason_bytes;
    return 0;
#endif
}
#else
typedef int rwkvc_no_linux; /* a unit of C must not be empty */
#endif
