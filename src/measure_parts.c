/* SPDX-License-Identifier: Apache-2.0
 * Matrix products and the recurrence by themselves, through the code that a forward uses: how near each comes to the
 * machine's limits (measure.c). */
#include "measure.h"

enum {
    MAX_ROWS = 1 << 22,
    MAX_TOKENS = 4096,
    MAX_COPIES = 1024,
    SLACK = 256 /* floats: rounding up of every piece of scratch */
};

/* Everything a part needs; all owned. */
typedef struct {
    rwkvc_pass pass;
    rwkvc_model model;
    rwkvc_value_reads reads;
    const rwkvc_part *part;
    uint8_t *weights; /* [copies, bytes] */
    uint64_t bytes;   /* of one copy */
    rwkvc_tensor tensor;
    rwkvc_input input;
    float *out, *vectors;
    uint8_t *thread_memory[RWKVC_MAX_THREADS];
    uint32_t copy;
} bench;

static void release(bench *b) {
    rwkvc_free(b->weights);
    rwkvc_free(b->out);
    rwkvc_free(b->vectors);
    rwkvc_free(b->pass.scratch.memory);
    for (uint32_t i = 0; i < RWKVC_MAX_THREADS; i++) rwkvc_free(b->thread_memory[i]);
}

static uint32_t next_random(uint32_t *seed) { return *seed = *seed * 1664525u + 1013904223u; }

/* Bytes from 0x20 to 0x2f: weights that vary, and wherever a format keeps its scales finite f16 and f32. */
static void fill_weights(uint8_t *bytes, uint64_t n) {
    uint32_t seed = 1;
    for (uint64_t i = 0; i < n; i++) bytes[i] = (uint8_t)(0x20 | next_random(&seed) >> 28);
}

/* ------------------------------------------------------------------------------------- products */

static bool run_product(void *arg) {
    bench *b = arg;
    rwkvc_tensor weight = b->tensor;
    weight.data += b->copy * b->bytes;
    rwkvc_linear product = {&weight, &b->input, b->out, weight.rows, RWKVC_STORE, NULL, NULL};
    b->copy = (b->copy + 1) % b->part->copies;
    return rwkvc_linear_run(&b->pass, &product, 1);
}

static void fill_input(bench *b) {
    uint32_t seed = 2, threshold = (uint32_t)(b->part->zeros * 4294967295.0);
    for (uint32_t t = 0; t < b->part->tokens; t++) {
        float *row = b->input.rows + (uint64_t)t * b->input.ld;
        for (uint32_t i = 0; i < b->part->cols; i++) {
            uint32_t chance = next_random(&seed);
            row[i] = chance < threshold ? 0 : 0.5f + (float)(next_random(&seed) >> 8) / (float)(1 << 24);
        }
        rwkvc_input_ready(&b->pass, &b->input, t);
    }
}

static rwkvc_status prepare_product(bench *b) {
    const rwkvc_part *p = b->part;
    if (p->kind != RWKVC_KIND_MATRIX && p->kind != RWKVC_KIND_LOW_RANK && p->kind != RWKVC_KIND_VALUE &&
        p->kind != RWKVC_KIND_HEAD)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "kind %u is never multiplied", p->kind);
    b->bytes = rwkvc_packed_bytes(p->kind, p->format, p->rows, p->cols);
    if (!b->bytes) return rwkvc_fail(RWKVC_E_ARGUMENT, "format %u cannot hold a tensor of kind %u", p->format, p->kind);
    b->weights = rwkvc_alloc(b->bytes * p->copies);
    b->out = rwkvc_alloc((uint64_t)p->tokens * p->rows * sizeof(float));
    uint64_t floats = (rwkvc_input_floats(p->cols, 2) + rwkvc_nonzero_floats(p->cols)) * p->tokens + SLACK;
    b->pass.scratch = (rwkvc_scratch){rwkvc_alloc(floats * sizeof(float)), floats * sizeof(float), 0};
    if (!b->weights || !b->out || !b->pass.scratch.memory)
        return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for %u weight matrices", p->copies);
    b->model.widest_matrix = b->model.widest_value = p->cols;
    for (uint32_t i = 0; i < rwkvc_pool_threads(b->pass.pool); i++)
        if (!(b->thread_memory[i] = rwkvc_alloc(rwkvc_thread_bytes(&b->model, p->tokens))))
            return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for scratch of thread %u", i);
    fill_weights(b->weights, b->bytes * p->copies);
    uint32_t bits = rwkvc_bits(p->format);
    b->tensor = (rwkvc_tensor){.data = b->weights + rwkvc_header_bytes(bits),
                               .book = bits == 4 ? b->weights : NULL,
                               .kind = p->kind,
                               .format = p->format,
                               .rows = p->rows,
                               .cols = p->cols};
    b->input = rwkvc_input_take(&b->pass, &b->tensor, p->tokens);
    fill_input(b);
    return RWKVC_OK;
}

static double product_bytes(const bench *b) {
    if (!b->reads.inputs) return (double)b->bytes;
    double bits = rwkvc_bits(b->part->format), groups = (double)rwkvc_ceil_div(b->part->cols, RWKVC_GROUP);
    double rows = (double)b->bytes / groups / (4 * bits + 2); /* padded */
    double runs = (double)b->reads.inputs / b->part->cols;
    return rows * ((double)b->reads.columns * bits / 8 + (double)b->reads.groups * 2) / runs;
}

/* ----------------------------------------------------------------------------------- recurrence */

enum { ROWS_OF_HEADS = 9, VECTORS_OF_HEADS = 8 }; /* [tokens, width] r, w, k, v, a, kk, v_first, g, y; [width] */

static void head_item(void *arg, uint32_t item, uint32_t thread) {
    bench *b = arg;
    const rwkvc_part *p = b->part;
    (void)thread;
    uint32_t n = p->cols, width = p->rows * n;
    uint64_t rows = (uint64_t)p->tokens * width;
    float *at = b->out + (uint64_t)item * n, *state = (float *)b->weights + (b->copy * (uint64_t)width + item * n) * n;
    const float *vector = b->vectors + (uint64_t)item * n;
    rwkvc_wkv7 head = {
        .tokens = p->tokens,
        .head_size = n,
        .ld = width,
        .r = at,
        .w = at + rows,
        .k = at + 2 * rows,
        .v = at + 3 * rows,
        .a = at + 4 * rows,
        .kk = at + 5 * rows,
        .v_first = at + 6 * rows,
        .g = at + 7 * rows,
        .y = at + 8 * rows,
        .w0 = vector,
        .a0 = vector + width,
        .v0 = vector + 2ull * width,
        .k_k = vector + 3ull * width,
        .k_a = vector + 4ull * width, /* 0: the key, which is written in place, stays as it is */
        .r_k = vector + 5ull * width,
        .ln_weight = vector + 6ull * width,
        .ln_bias = vector + 7ull * width,
        .gn_eps = 64e-5f,
        .state_in = state,
        .state_out = state,
    };
    b->pass.kernels->wkv7(&head);
}

static bool run_recurrence(void *arg) {
    bench *b = arg;
    bool done = rwkvc_parallel(b->pass.pool, b->part->rows, head_item, b);
    b->copy = (b->copy + 1) % b->part->copies;
    return done;
}

static rwkvc_status prepare_recurrence(bench *b) {
    const rwkvc_part *p = b->part;
    uint64_t width = (uint64_t)p->rows * p->cols, rows = ROWS_OF_HEADS * p->tokens * width;
    if (p->cols % RWKVC_PANEL || p->cols > 1024)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "heads of %u channels: must be a multiple of 16 up to 1024", p->cols);
    b->bytes = width * p->cols * sizeof(float);
    b->weights = rwkvc_alloc(b->bytes * p->copies);
    b->out = rwkvc_alloc(rows * sizeof(float));
    b->vectors = rwkvc_alloc(VECTORS_OF_HEADS * width * sizeof(float));
    if (!b->weights || !b->out || !b->vectors) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for %u heads", p->rows);
    uint32_t seed = 3;
    for (uint64_t i = 0; i < rows; i++) b->out[i] = (float)(next_random(&seed) >> 8) / (float)(1 << 24) - 0.5f;
    for (uint64_t i = 0; i < VECTORS_OF_HEADS * width; i++) b->vectors[i] = i / width == 4 ? 0.0f : 0.5f;
    return RWKVC_OK;
}

/* ------------------------------------------------------------------------------------- the call */

rwkvc_status rwkvc_measure_part(rwkvc_context *ctx, const rwkvc_part *part, rwkvc_part_cost *cost) {
    rwkvc_pool *pool = rwkvc_context_pool(ctx);
    rwkvc_status status = rwkvc_measure_prepare(pool);
    if (status) return status;
    bool product = part->part == RWKVC_PART_PRODUCT;
    if (!product && part->part != RWKVC_PART_RECURRENCE)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "there is no part %u", part->part);
    if (!part->rows || !part->cols || !part->tokens || !part->copies || part->rows > MAX_ROWS ||
        part->cols > MAX_ROWS || part->tokens > MAX_TOKENS || part->copies > MAX_COPIES ||
        !(part->zeros >= 0 && part->zeros <= 1))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%u x %u, %u tokens, %u copies, a share of %g zeros: cannot be measured",
                          part->rows, part->cols, part->tokens, part->copies, part->zeros);
    static const rwkvc_forward_options no_callbacks = {.struct_size = sizeof no_callbacks};
    bench b = {.part = part};
    b.pass = (rwkvc_pass){.model = &b.model,
                          .kernels = rwkvc_context_kernels(ctx),
                          .pool = pool,
                          .options = &no_callbacks,
                          .n_tokens = part->tokens};
    b.pass.thread_memory = b.thread_memory;
    b.pass.value_reads = &b.reads;
    uint64_t environment = rwkvc_float_environment();
    status = product ? prepare_product(&b) : prepare_recurrence(&b);
    if (!status) cost->seconds = rwkvc_measure_fastest(product ? run_product : run_recurrence, &b);
    rwkvc_float_restore(environment);
    if (!status) {
        cost->bytes = product ? product_bytes(&b) : (double)b.bytes;
        /* the recurrence: S·kk, S·decay + sa·a + v·k, S·r */
        cost->multiply_adds = (double)part->rows * part->cols * part->tokens * (product ? 1.0 : 5.0 * part->cols);
    }
    release(&b);
    return status;
}
