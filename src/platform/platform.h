/* SPDX-License-Identifier: Apache-2.0
 * What the engine asks of an operating system; nothing else names one. linux.c, macos.c and windows.c answer, posix.c
 * has what the first two share. Each file is empty on the other systems, so that all can be compiled everywhere. */
#ifndef RWKVC_PLATFORM_H
#define RWKVC_PLATFORM_H

#include "internal.h"

#if defined(_WIN32)
typedef void *rwkvc_thread;
typedef struct {
    void *srwlock;
} rwkvc_mutex;
typedef struct {
    void *condition_variable;
} rwkvc_condition;
#else
#include <pthread.h>
typedef pthread_t rwkvc_thread;
typedef pthread_mutex_t rwkvc_mutex;
typedef pthread_cond_t rwkvc_condition;
#endif

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility push(hidden)
#endif

/* ------------------------------------------------------------------------------------- threads */

/* The thread runs main(arg); the host's signals are not delivered to it. False if there are no more threads. */
bool rwkvc_thread_start(rwkvc_thread *thread, void (*main)(void *arg), void *arg);
void rwkvc_thread_join(rwkvc_thread *thread);
/* Let another thread have this core. */
void rwkvc_thread_yield(void);
/* Lower the calling thread's priority below that of the process's others, for good. False if the system refuses. */
bool rwkvc_thread_lower(void);

void rwkvc_mutex_init(rwkvc_mutex *mutex);
void rwkvc_mutex_destroy(rwkvc_mutex *mutex);
void rwkvc_mutex_lock(rwkvc_mutex *mutex);
void rwkvc_mutex_unlock(rwkvc_mutex *mutex);
void rwkvc_condition_init(rwkvc_condition *condition);
void rwkvc_condition_destroy(rwkvc_condition *condition);
/* Unlocks, sleeps until a broadcast (or for no reason), locks. */
void rwkvc_condition_wait(rwkvc_condition *condition, rwkvc_mutex *mutex);
void rwkvc_condition_broadcast(rwkvc_condition *condition);

/* Tells a child of fork() from its parent; 0 where there is no fork. */
uint64_t rwkvc_process_id(void);
/* Of a clock that never goes back. */
double rwkvc_seconds(void);

/* ------------------------------------------------------------------------------------ hardware */

/* Physical cores this process may use, as far as the system tells; 0 if it tells nothing. */
uint32_t rwkvc_system_cores(void);
/* The same of hardware threads, of which a core may have several. */
uint32_t rwkvc_system_cpus(void);
/* What a 64-bit ARM can do has to be asked of the system. */
bool rwkvc_arm_dotprod(void);
bool rwkvc_arm_i8mm(void);

/* -------------------------------------------------------------------------------------- memory */

/* Not zeroed; `align` is a power of two, at least sizeof(void *), and divides the size. NULL if there is none. */
void *rwkvc_aligned_new(size_t size_bytes, size_t align);
void rwkvc_aligned_free(void *memory);
/* Ask for huge pages: a wish, small ones work as well. */
void rwkvc_wish_huge_pages(void *memory, size_t size_bytes);
/* Ask the system to read what is mapped here ahead, without waiting. */
void rwkvc_wish_read_ahead(const void *bytes, uint64_t size_bytes);
/* Map every page at once: 1 done, 0 this system cannot (touch them instead), -1 the memory cannot be read (reason[]). */
int rwkvc_populate(const void *bytes, uint64_t size_bytes, char *reason, size_t reason_bytes);

/* --------------------------------------------------------------------------------------- files */

/* Paths are UTF-8 on every system. What fails is E_NOT_FOUND, E_IO (also: no plain file), E_FORMAT (empty) or E_NOMEM, and
 * reason[] says why, in the system's words. */
rwkvc_status rwkvc_map_file(const char *path, rwkvc_mapping *mapping, char *reason, size_t reason_bytes);
void rwkvc_unmap_file(rwkvc_mapping *mapping);
/* The first `most` bytes of a file, in memory for rwkvc_free. */
rwkvc_status rwkvc_read_file(const char *path, uint64_t most, uint8_t **bytes, uint64_t *size_bytes, char *reason,
                             size_t reason_bytes);
/* Replace a file at once and whole: under a temporary name beside it, synced, renamed. What was there stays if that
 * fails, and nothing else. */
rwkvc_status rwkvc_write_file(const char *path, const uint8_t *bytes, uint64_t size_bytes, char *reason,
                              size_t reason_bytes);

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility pop
#endif

#endif
