/* SPDX-License-Identifier: Apache-2.0
 * Linux and macOS alike. */
#if !defined(_WIN32)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/platform.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { STACK_BYTES = 1 << 20 }; /* the default of musl is 128 KB, that of macOS 512 KB */

typedef struct {
    void (*main)(void *arg);
    void *arg;
} start;

static void *run(void *arg) {
    start begin = *(start *)arg;
    free(arg);
    begin.main(begin.arg);
    return NULL;
}

bool rwkvc_thread_start(rwkvc_thread *thread, void (*main)(void *arg), void *arg) {
    start *begin = malloc(sizeof *begin);
    if (!begin) return false;
    *begin = (start){main, arg};
    /* Signals are the host's: handlers run on its threads, but for those that a thread's own fault raises. */
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool ok = pthread_create(thread, &attributes, run, begin) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!ok) free(begin);
    return ok;
}

void rwkvc_thread_join(rwkvc_thread *thread) { pthread_join(*thread, NULL); }
void rwkvc_thread_yield(void) { sched_yield(); }

void rwkvc_mutex_init(rwkvc_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
void rwkvc_mutex_destroy(rwkvc_mutex *mutex) { pthread_mutex_destroy(mutex); }
void rwkvc_mutex_lock(rwkvc_mutex *mutex) { pthread_mutex_lock(mutex); }
void rwkvc_mutex_unlock(rwkvc_mutex *mutex) { pthread_mutex_unlock(mutex); }
void rwkvc_condition_init(rwkvc_condition *condition) { pthread_cond_init(condition, NULL); }
void rwkvc_condition_destroy(rwkvc_condition *condition) { pthread_cond_destroy(condition); }
void rwkvc_condition_wait(rwkvc_condition *condition, rwkvc_mutex *mutex) { pthread_cond_wait(condition, mutex); }
void rwkvc_condition_broadcast(rwkvc_condition *condition) { pthread_cond_broadcast(condition); }

uint64_t rwkvc_process_id(void) { return (uint64_t)getpid(); }

double rwkvc_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void *rwkvc_aligned_new(size_t size_bytes, size_t align) {
    void *memory;
    return posix_memalign(&memory, align, size_bytes) ? NULL : memory;
}
void rwkvc_aligned_free(void *memory) { free(memory); }

void rwkvc_wish_read_ahead(const void *bytes, uint64_t size_bytes) {
    uint64_t before = (uintptr_t)bytes % (uint64_t)sysconf(_SC_PAGESIZE);
    madvise((void *)((uintptr_t)bytes - before), (size_t)(size_bytes + before), MADV_WILLNEED);
}

bool rwkvc_map_file(const char *path, rwkvc_mapping *mapping, char *reason, size_t reason_bytes) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    const char *why = NULL;
    *mapping = (rwkvc_mapping){0};
    if (file < 0 || fstat(file, &about))
        why = strerror(errno);
    else if (!S_ISREG(about.st_mode))
        why = "not a plain file";
    else if (about.st_size <= 0)
        why = "the file is empty";
    else if ((uint64_t)about.st_size > SIZE_MAX)
        why = "the file is larger than this system's memory can be";
    if (!why) {
        void *bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (bytes == MAP_FAILED)
            why = strerror(errno);
        else
            *mapping = (rwkvc_mapping){bytes, (uint64_t)about.st_size};
    }
    if (file >= 0) close(file);
    if (why) snprintf(reason, reason_bytes, "%s", why);
    return !why;
}

void rwkvc_unmap_file(rwkvc_mapping *mapping) {
    if (mapping->bytes) munmap((void *)(uintptr_t)mapping->bytes, (size_t)mapping->size_bytes);
    *mapping = (rwkvc_mapping){0};
}
#else
typedef int rwkvc_no_posix; /* a unit of C must not be empty */
#endif
