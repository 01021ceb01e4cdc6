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

/* -------------------------------------------------------------------------------------- files */

enum { NAMES_TO_TRY = 100 };

/* Of errno. */
static rwkvc_status say(char *reason, size_t reason_bytes) {
    int error = errno;
    snprintf(reason, reason_bytes, "%s", strerror(error));
    return error == ENOENT || error == ENOTDIR ? RWKVC_E_NOT_FOUND : error == ENOMEM ? RWKVC_E_NOMEM : RWKVC_E_IO;
}

static rwkvc_status not_plain(mode_t mode, char *reason, size_t reason_bytes) {
    snprintf(reason, reason_bytes, S_ISDIR(mode) ? "this is a directory" : "this is not a plain file");
    return RWKVC_E_IO;
}

/* A plain file's descriptor and size. O_NONBLOCK: not to wait for the other end of a pipe. */
static rwkvc_status open_plain(const char *path, int *file, uint64_t *size_bytes, char *reason, size_t reason_bytes) {
    struct stat about;
    *file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*file < 0) return say(reason, reason_bytes);
    rwkvc_status status = RWKVC_OK;
    if (fstat(*file, &about))
        status = say(reason, reason_bytes);
    else if (!S_ISREG(about.st_mode))
        status = not_plain(about.st_mode, reason, reason_bytes);
    if (status)
        close(*file);
    else
        *size_bytes = (uint64_t)about.st_size;
    return status;
}

rwkvc_status rwkvc_map_file(const char *path, rwkvc_mapping *mapping, char *reason, size_t reason_bytes) {
    int file;
    uint64_t size;
    *mapping = (rwkvc_mapping){0};
    rwkvc_status status = open_plain(path, &file, &size, reason, reason_bytes);
    if (status) return status;
    if (size == 0) {
        snprintf(reason, reason_bytes, "the file is empty");
        status = RWKVC_E_FORMAT;
    } else if (size > SIZE_MAX) {
        snprintf(reason, reason_bytes, "the file is larger than this system's memory can be");
        status = RWKVC_E_NOMEM;
    } else {
        void *bytes = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, file, 0);
        if (bytes == MAP_FAILED)
            status = say(reason, reason_bytes);
        else
            *mapping = (rwkvc_mapping){bytes, size};
    }
    close(file);
    /* Lets the system read and map 2 MB at a time where the file system can. */
    if (!status) rwkvc_wish_huge_pages((void *)(uintptr_t)mapping->bytes, (size_t)size);
    return status;
}

void rwkvc_unmap_file(rwkvc_mapping *mapping) {
    if (mapping->bytes) munmap((void *)(uintptr_t)mapping->bytes, (size_t)mapping->size_bytes);
    *mapping = (rwkvc_mapping){0};
}

rwkvc_status rwkvc_read_file(const char *path, uint64_t most, uint8_t **bytes, uint64_t *size_bytes, char *reason,
                             size_t reason_bytes) {
    int file;
    uint64_t size;
    *bytes = NULL;
    *size_bytes = 0;
    rwkvc_status status = open_plain(path, &file, &size, reason, reason_bytes);
    if (status) return status;
    size = rwkvc_min(size, most);
    uint8_t *memory = rwkvc_alloc(size);
    errno = ENOMEM;
    if (!memory) status = say(reason, reason_bytes);
    while (!status && *size_bytes < size) {
        ssize_t n = read(file, memory + *size_bytes, (size_t)rwkvc_min(size - *size_bytes, 1 << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) status = say(reason, reason_bytes);
        if (n <= 0) break; /* 0: it became shorter, and what is in it will not make sense */
        *size_bytes += (uint64_t)n;
    }
    close(file);
    if (status)
        rwkvc_free(memory);
    else
        *bytes = memory;
    return status;
}

/* A new file beside path; its name goes to name[room]. */
static int open_beside(const char *path, char *name, size_t room) {
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    for (unsigned i = 0; i < NAMES_TO_TRY; i++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        uint32_t tag = ((uint32_t)now.tv_nsec + i) * 2654435761u + (uint32_t)getpid();
        snprintf(name, room, "%.*s.%s.%08x.part", (int)folder, path, path + folder, tag);
        int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file >= 0 || errno != EEXIST) return file;
    }
    return -1;
}

static bool write_all(int file, const uint8_t *bytes, uint64_t size) {
    while (size) {
        ssize_t n = write(file, bytes, (size_t)rwkvc_min(size, 1 << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        bytes += n;
        size -= (uint64_t)n;
    }
    return fsync(file) == 0;
}

rwkvc_status rwkvc_write_file(const char *path, const uint8_t *bytes, uint64_t size_bytes, char *reason,
                              size_t reason_bytes) {
    struct stat about;
    if (stat(path, &about) == 0 && !S_ISREG(about.st_mode)) return not_plain(about.st_mode, reason, reason_bytes);
    size_t room = strlen(path) + sizeof "..01234567.part";
    char *name = rwkvc_alloc(room);
    errno = ENOMEM;
    if (!name) return say(reason, reason_bytes);
    int file = open_beside(path, name, room);
    rwkvc_status status = file < 0 ? say(reason, reason_bytes) : RWKVC_OK;
    if (!status) {
        if (!write_all(file, bytes, size_bytes)) status = say(reason, reason_bytes);
        if (close(file) && !status) status = say(reason, reason_bytes);
        if (!status && rename(name, path)) status = say(reason, reason_bytes);
        if (status) unlink(name);
    }
    rwkvc_free(name);
    return status ? RWKVC_E_IO : RWKVC_OK;
}
#else
typedef int rwkvc_no_posix; /* a unit of C must not be empty */
#endif
