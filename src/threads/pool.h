/* SPDX-License-Identifier: Apache-2.0
 * A pool of threads that work on one region at a time. Each has a range of the items and takes them one by one, so
 * that a thread the system has put aside before it took an item delays nobody: the others do its share. */
#ifndef RWKVC_POOL_H
#define RWKVC_POOL_H

#include "internal.h"
#include "isa/processor.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef struct rwkvc_pool rwkvc_pool;

/* `thread` is 0 for the caller, 1.. for workers. */
typedef void (*rwkvc_task)(void *arg, uint32_t item, uint32_t thread);

/* threads >= 1, the caller counts as one. NULL when threads or memory cannot be had. */
rwkvc_pool *rwkvc_pool_create(uint32_t threads);
void rwkvc_pool_destroy(rwkvc_pool *pool);
uint32_t rwkvc_pool_threads(const rwkvc_pool *pool);
/* In a child of fork() the workers do not exist. */
bool rwkvc_pool_forked(const rwkvc_pool *pool);
/* The flag that stops regions from now on (may be NULL). */
void rwkvc_pool_cancel_flag(rwkvc_pool *pool, const int32_t *cancel);
/* Run task for items 0..n_items-1. False if the flag was seen set: then some items did not run. */
bool rwkvc_parallel(rwkvc_pool *pool, uint32_t n_items, rwkvc_task task, void *arg);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
