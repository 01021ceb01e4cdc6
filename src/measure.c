/* SPDX-License-Identifier: Apache-2.0
 * What this machine can do at best at this moment, with a context's own threads and kernels: the limits that decode
 * (reading) and prefill (int8 products) are compared with. Machines are shared and drift, so the best of many short
 * passes counts. */
#include "measure.h"

#include <stdatomic.h>

#include "platform/platform.h"

enum {
    READ_ITEM_BYTES = 1 << 20, /* a thread's turn: long beside handing it out, short beside a pass */
    DOT_OPERANDS = 128,        /* 8 KiB of weights: first-level cache */
    DOT_ITEMS_PER_THREAD = 16,
    DOT_MOST_ROUNDS = 1 << 17,
    MIN_PASSES = 3
};
static const double BUDGET_SECONDS = 0.4;

typedef struct {
    const rwkvc_kernels *kernels;
    rwkvc_pool *pool;
    rwkvc_task task;
    uint32_t n_items;
    float *buffer;
    const uint8_t *weights;
    const int8_t *activations;
    uint32_t rounds;
    _Atomic uint32_t sink;
} measurement;

static const uint64_t ITEM_FLOATS = READ_ITEM_BYTES / sizeof(float);

static void fill_item(void *arg, uint32_t item, uint32_t thread) {
    measurement *m = arg;
    (void)thread;
    float *part = m->buffer + item * ITEM_FLOATS;
    for (uint64_t i = 0; i < ITEM_FLOATS; i++) part[i] = (float)(i & 63);
}

static void read_item(void *arg, uint32_t item, uint32_t thread) {
    measurement *m = arg;
    (void)thread;
    m->sink += (uint32_t)m->kernels->read_all(m->buffer + item * ITEM_FLOATS, ITEM_FLOATS);
}

static void dot_item(void *arg, uint32_t item, uint32_t thread) {
    measurement *m = arg;
    (void)item, (void)thread;
    m->sink += (uint32_t)m->kernels->dot_all(m->weights, DOT_OPERANDS, m->activations, m->rounds);
}

double rwkvc_measure_fastest(bool (*run)(void *arg), void *arg) {
    if (!run(arg)) return 0;
    double best = 0, begin = rwkvc_seconds();
    for (int pass = 0; pass < MIN_PASSES || rwkvc_seconds() - begin < BUDGET_SECONDS; pass++) {
        double start = rwkvc_seconds();
        if (!run(arg)) return 0;
        double seconds = rwkvc_seconds() - start;
        if (pass == 0 || seconds < best) best = seconds;
    }
    return best;
}

rwkvc_status rwkvc_measure_prepare(rwkvc_pool *pool) {
    if (rwkvc_pool_forked(pool))
        return rwkvc_fail(RWKVC_E_FORKED, "this context was made before fork(): its threads exist in the parent only");
    rwkvc_pool_cancel_flag(pool, NULL);
    return RWKVC_OK;
}

static bool run_items(void *arg) {
    measurement *m = arg;
    return rwkvc_parallel(m->pool, m->n_items, m->task, m);
}

rwkvc_status rwkvc_measure_read(rwkvc_context *ctx, uint64_t bytes, double *bytes_per_second) {
    const rwkvc_kernels *kernels = rwkvc_context_kernels(ctx);
    rwkvc_pool *pool = rwkvc_context_pool(ctx);
    rwkvc_status status = rwkvc_measure_prepare(pool);
    if (status) return status;
    uint64_t n_items = bytes / READ_ITEM_BYTES;
    if (!n_items || n_items > UINT32_MAX)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%llu bytes to read: give at least %d", (unsigned long long)bytes,
                          READ_ITEM_BYTES);
    measurement m = {.kernels = kernels, .pool = pool, .task = read_item, .n_items = (uint32_t)n_items};
    m.buffer = rwkvc_alloc(n_items * READ_ITEM_BYTES);
    if (!m.buffer)
        return rwkvc_fail(RWKVC_E_NOMEM, "no memory for a buffer of %llu bytes to read", (unsigned long long)bytes);
    rwkvc_parallel(pool, (uint32_t)n_items, fill_item, &m);
    double seconds = rwkvc_measure_fastest(run_items, &m);
    rwkvc_free(m.buffer);
    *bytes_per_second = seconds > 0 ? (double)(n_items * READ_ITEM_BYTES) / seconds : 0;
    return RWKVC_OK;
}

rwkvc_status rwkvc_measure_int8(rwkvc_context *ctx, double *operations_per_second) {
    const rwkvc_kernels *kernels = rwkvc_context_kernels(ctx);
    rwkvc_pool *pool = rwkvc_context_pool(ctx);
    rwkvc_status status = rwkvc_measure_prepare(pool);
    if (status) return status;
    uint8_t *weights = rwkvc_alloc(DOT_OPERANDS * 64);
    if (!weights) return rwkvc_fail(RWKVC_E_NOMEM, "no memory for %d bytes of weights", DOT_OPERANDS * 64);
    int8_t activations[4 * RWKVC_MAX_TILE];
    for (uint32_t i = 0; i < DOT_OPERANDS * 64; i++) weights[i] = (uint8_t)(i * 37);
    /* Every quad another, or a compiler may do them once; and small, or the sums of plain C overflow. */
    for (uint32_t t = 0; t < RWKVC_MAX_TILE; t++)
        for (uint32_t i = 0, digits = t + 1; i < 4; i++, digits /= 3) activations[4 * t + i] = (int8_t)(digits % 3) - 1;
    uint32_t n_items = rwkvc_pool_threads(pool) * DOT_ITEMS_PER_THREAD;
    measurement m = {.kernels = kernels,
                     .pool = pool,
                     .task = dot_item,
                     .n_items = n_items,
                     .weights = weights,
                     .activations = activations,
                     .rounds = 1};
    double start = rwkvc_seconds();
    dot_item(&m, 0, 0);
    /* Passes of about 20 ms on any instruction set. */
    double once = rwkvc_seconds() - start, wanted = 0.02 / DOT_ITEMS_PER_THREAD / (once > 1e-7 ? once : 1e-7);
    m.rounds = wanted < 1 ? 1 : wanted > DOT_MOST_ROUNDS ? DOT_MOST_ROUNDS : (uint32_t)wanted;
    double seconds = rwkvc_measure_fastest(run_items, &m);
    rwkvc_free(weights);
    double multiply_adds = (double)n_items * m.rounds * DOT_OPERANDS * 64.0 * kernels->q8_tile;
    *operations_per_second = seconds > 0 ? 2 * multiply_adds / seconds : 0;
    return RWKVC_OK;
}
