/* SPDX-License-Identifier: Apache-2.0
 * The items of a region are cut into ranges, one a thread: it takes those of its own range in order, which is one
 * sequential read of the weights, then helps with the others'. The state of a range is one 64-bit word, region number
 * << 32 | next item. A thread takes an item by compare-and-swap on it, so that one that slept through a region can
 * never take an item of the next by mistake: what it read of the region (task, argument) is only used when the word
 * has not changed since. The caller waits for finished items, not for threads.
 * Idle workers spin for some microseconds, then sleep. Not all need take part: crew.h. */
#include "threads/pool.h"
#include "threads/crew.h"
#include "threads/priority.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "platform/platform.h"

enum {
    MAX_DEFAULT_THREADS = 256,
    MAX_RANGES = 16,  /* more threads share ranges: opening a region writes to each */
    TAKEN_SHARE = 4,  /* of what is left of a range is taken at once, */
    MOST_TAKEN = 16,  /* but not more: a thread may be put aside while it holds them */
    SPIN_IDLE = 1500, /* pauses before a worker sleeps: about 50 us */
    SPIN_WAIT = 2000  /* pauses before the caller yields its core to a worker that holds the last item */
};
static const uint32_t CLOSED = UINT32_MAX; /* as next item: the region is being set up or over */

typedef struct {
    _Alignas(64) _Atomic uint64_t ticket;
} range;

struct rwkvc_pool {
    range ranges[MAX_RANGES];
    _Alignas(64) _Atomic uint32_t n_items;
    _Atomic(rwkvc_task) task;
    _Atomic(void *) arg;
    _Atomic(const int32_t *) cancel;
    uint32_t n_ranges;
    uint32_t region;
    _Alignas(64) _Atomic uint32_t finished;
    _Atomic uint32_t cancelled;
    _Alignas(64) _Atomic uint32_t sleepers;
    _Atomic uint32_t stop;
    _Atomic uint32_t active; /* threads that take part: crew.h */
    rwkvc_mutex mutex;
    rwkvc_condition wake, again; /* those that take part wait for work, the others for taking part again */
    rwkvc_crew crew;
    uint32_t threads, started, arrived;
    bool lowered; /* the workers get the priority of the thread that makes them */
    rwkvc_thread *workers;
    uint64_t owner;
};

typedef struct {
    rwkvc_pool *pool;
    uint32_t thread;
} worker_start;

static bool is_cancelled(rwkvc_pool *pool) {
    const int32_t *flag = atomic_load_explicit(&pool->cancel, memory_order_relaxed);
    if (!flag || !__atomic_load_n(flag, __ATOMIC_RELAXED)) return false;
    atomic_store_explicit(&pool->cancelled, 1, memory_order_relaxed);
    return true;
}

static uint32_t range_begin(uint32_t n_items, uint32_t n_ranges, uint32_t range) {
    return (uint32_t)((uint64_t)n_items * range / n_ranges);
}

/* Take items of one range of the current region until none is left; returns how many. Several at a time while there are
 * many: a locked instruction makes the loads behind it wait for those before, which interrupts the stream of weights. */
static uint32_t work_range(rwkvc_pool *pool, uint32_t at, uint32_t thread) {
    _Atomic uint64_t *word = &pool->ranges[at].ticket;
    uint32_t done = 0;
    for (;;) {
        uint64_t ticket = atomic_load_explicit(word, memory_order_seq_cst);
        uint32_t item = (uint32_t)ticket;
        rwkvc_task task = atomic_load_explicit(&pool->task, memory_order_acquire);
        void *arg = atomic_load_explicit(&pool->arg, memory_order_acquire);
        uint32_t end = range_begin(atomic_load_explicit(&pool->n_items, memory_order_acquire), pool->n_ranges, at + 1);
        if (item == CLOSED || item >= end) return done;
        uint32_t share = (end - item) / TAKEN_SHARE, n = share < 1 ? 1 : share > MOST_TAKEN ? MOST_TAKEN : share;
        if (!atomic_compare_exchange_weak_explicit(word, &ticket, ticket + n, memory_order_acq_rel,
                                                   memory_order_relaxed))
            continue;
        for (uint32_t i = 0; i < n; i++)
            if (!is_cancelled(pool)) task(arg, item + i, thread);
        done += n;
    }
}

/* What a thread finished it says once, when nothing is left to take: the count's cache line travels from core to core
 * each time, and the next region cannot begin before. */
static bool work(rwkvc_pool *pool, uint32_t thread) {
    uint32_t done = 0;
    for (uint32_t i = 0; i < pool->n_ranges; i++) done += work_range(pool, (thread + i) % pool->n_ranges, thread);
    if (done) atomic_fetch_add_explicit(&pool->finished, done, memory_order_release);
    return done > 0;
}

static bool has_work(rwkvc_pool *pool) {
    for (uint32_t at = 0; at < pool->n_ranges; at++) {
        uint32_t item = (uint32_t)atomic_load_explicit(&pool->ranges[at].ticket, memory_order_seq_cst);
        uint32_t n_items = atomic_load_explicit(&pool->n_items, memory_order_acquire);
        if (item != CLOSED && item < range_begin(n_items, pool->n_ranges, at + 1)) return true;
    }
    return false;
}

static bool takes_part(rwkvc_pool *pool, uint32_t thread) {
    return thread < atomic_load_explicit(&pool->active, memory_order_relaxed);
}

static void sleep_until_work(rwkvc_pool *pool, uint32_t thread) {
    rwkvc_mutex_lock(&pool->mutex);
    while (!takes_part(pool, thread) && !atomic_load(&pool->stop)) rwkvc_condition_wait(&pool->again, &pool->mutex);
    atomic_fetch_add_explicit(&pool->sleepers, 1, memory_order_seq_cst);
    while (takes_part(pool, thread) && !has_work(pool) && !atomic_load(&pool->stop))
        rwkvc_condition_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub_explicit(&pool->sleepers, 1, memory_order_seq_cst);
    rwkvc_mutex_unlock(&pool->mutex);
}

static void worker(void *arg) {
    worker_start start = *(worker_start *)arg;
    free(arg);
    rwkvc_mutex_lock(&start.pool->mutex);
    start.pool->arrived++;
    rwkvc_condition_broadcast(&start.pool->again);
    rwkvc_mutex_unlock(&start.pool->mutex);
    if (start.pool->lowered) rwkvc_lower_priority();
    rwkvc_float_environment();
    while (!atomic_load_explicit(&start.pool->stop, memory_order_relaxed)) {
        bool worked = false;
        for (int spin = 0; spin < SPIN_IDLE && !worked && takes_part(start.pool, start.thread); spin++) {
            worked = work(start.pool, start.thread);
            if (!worked) rwkvc_pause();
        }
        if (!worked) sleep_until_work(start.pool, start.thread);
    }
}

static void wake_crew(rwkvc_pool *pool) {
    rwkvc_mutex_lock(&pool->mutex);
    rwkvc_condition_broadcast(&pool->wake);
    rwkvc_mutex_unlock(&pool->mutex);
}

static void wake_all(rwkvc_pool *pool) {
    rwkvc_mutex_lock(&pool->mutex);
    rwkvc_condition_broadcast(&pool->wake);
    rwkvc_condition_broadcast(&pool->again);
    rwkvc_mutex_unlock(&pool->mutex);
}

/* A worker that no longer takes part finishes what it holds. */
static void set_active(rwkvc_pool *pool) {
    atomic_store(&pool->active, pool->crew.active);
    wake_all(pool);
}

/* Until the last item is finished. */
static void wait_for_others(rwkvc_pool *pool, uint32_t n_items, double began) {
    int spin = 0;
    while (atomic_load_explicit(&pool->finished, memory_order_acquire) != n_items && spin < SPIN_WAIT)
        spin++, rwkvc_pause();
    if (spin < SPIN_WAIT) return;
    double worked = rwkvc_seconds();
    while (atomic_load_explicit(&pool->finished, memory_order_acquire) != n_items) rwkvc_thread_yield();
    if (rwkvc_crew_waited(&pool->crew, began, worked, rwkvc_seconds())) set_active(pool);
}

bool rwkvc_parallel(rwkvc_pool *pool, uint32_t n_items, rwkvc_task task, void *arg) {
    bool alone = pool->crew.threads == 1 || n_items <= 1;
    double began = alone ? 0 : rwkvc_seconds();
    if (!alone && rwkvc_crew_retry(&pool->crew, began)) set_active(pool);
    if (alone || pool->crew.active == 1) {
        for (uint32_t item = 0; item < n_items; item++) {
            if (is_cancelled(pool)) return false;
            task(arg, item, 0);
        }
        return !is_cancelled(pool);
    }
    uint64_t region = (uint64_t)++pool->region << 32;
    for (uint32_t i = 0; i < pool->n_ranges; i++)
        atomic_store_explicit(&pool->ranges[i].ticket, region | CLOSED, memory_order_release);
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->cancelled, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->task, task, memory_order_release);
    atomic_store_explicit(&pool->arg, arg, memory_order_release);
    atomic_store_explicit(&pool->n_items, n_items, memory_order_release);
    for (uint32_t i = 0; i < pool->n_ranges; i++)
        atomic_store_explicit(&pool->ranges[i].ticket, region | range_begin(n_items, pool->n_ranges, i),
                              memory_order_seq_cst);
    if (atomic_load_explicit(&pool->sleepers, memory_order_seq_cst)) wake_crew(pool);
    work(pool, 0);
    wait_for_others(pool, n_items, began);
    return !atomic_load_explicit(&pool->cancelled, memory_order_relaxed);
}

rwkvc_pool *rwkvc_pool_create(uint32_t threads) {
    rwkvc_pool *pool = rwkvc_alloc(sizeof *pool);
    if (!pool) return NULL;
    pool->threads = threads;
    uint32_t cpus = rwkvc_system_cpus(), at_once = cpus && cpus < threads ? cpus : threads;
    pool->n_ranges = at_once < MAX_RANGES ? at_once : MAX_RANGES;
    rwkvc_crew_start(&pool->crew, at_once);
    atomic_store(&pool->active, at_once);
    pool->owner = rwkvc_process_id();
    pool->lowered = rwkvc_priority_is_lowered();
    pool->workers = calloc(threads, sizeof *pool->workers);
    rwkvc_mutex_init(&pool->mutex);
    rwkvc_condition_init(&pool->wake);
    rwkvc_condition_init(&pool->again);
    for (uint32_t i = 0; i < MAX_RANGES; i++) atomic_store(&pool->ranges[i].ticket, CLOSED);
    bool ok = pool->workers != NULL;
    for (uint32_t thread = 1; ok && thread < threads; thread++) {
        worker_start *start = malloc(sizeof *start);
        ok = start != NULL;
        if (!ok) break;
        *start = (worker_start){pool, thread};
        ok = rwkvc_thread_start(&pool->workers[pool->started], worker, start);
        if (ok)
            pool->started++;
        else
            free(start);
    }
    if (!ok) {
        rwkvc_pool_destroy(pool);
        return NULL;
    }
    /* What the C library allocates for a new thread is no forward's. */
    rwkvc_mutex_lock(&pool->mutex);
    while (pool->arrived < pool->started) rwkvc_condition_wait(&pool->again, &pool->mutex);
    rwkvc_mutex_unlock(&pool->mutex);
    return pool;
}

void rwkvc_pool_destroy(rwkvc_pool *pool) {
    if (!pool) return;
    if (!rwkvc_pool_forked(pool)) {
        atomic_store(&pool->stop, 1);
        wake_all(pool);
        for (uint32_t i = 0; i < pool->started; i++) rwkvc_thread_join(&pool->workers[i]);
        rwkvc_condition_destroy(&pool->wake);
        rwkvc_condition_destroy(&pool->again);
        rwkvc_mutex_destroy(&pool->mutex);
    }
    free(pool->workers);
    rwkvc_free(pool);
}

uint32_t rwkvc_pool_threads(const rwkvc_pool *pool) { return pool->threads; }

bool rwkvc_pool_forked(const rwkvc_pool *pool) { return pool->threads > 1 && rwkvc_process_id() != pool->owner; }

void rwkvc_pool_cancel_flag(rwkvc_pool *pool, const int32_t *cancel) {
    atomic_store_explicit(&pool->cancel, cancel, memory_order_relaxed);
    atomic_store_explicit(&pool->cancelled, 0, memory_order_relaxed);
}

uint32_t rwkvc_default_threads(void) {
    uint32_t cores = rwkvc_system_cores();
    return cores ? (uint32_t)rwkvc_min(cores, MAX_DEFAULT_THREADS) : 1;
}
