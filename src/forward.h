/* SPDX-License-Identifier: Apache-2.0
 * One pass: some tokens of some sequences through all layers. What forward.c, blocks/ and versions/ share. */
#ifndef RWKVC_FORWARD_H
#define RWKVC_FORWARD_H

#include "kernels/kernels.h"
#include "threads/pool.h"
#include "versions/table.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* Consecutive rows of a pass that belong to one sequence. */
typedef struct {
    uint32_t first, n;
    const float *state_in; /* before the first row */
    float *state_out;      /* after the last; with state_step after each */
    uint64_t state_step;   /* floats between the states after consecutive rows; 0: only the last */
} rwkvc_segment;

/* Grows to what the largest pass needs, is reused from layer to layer. */
typedef struct {
    uint8_t *memory;
    uint64_t size, used;
} rwkvc_scratch;

typedef struct rwkvc_pass {
    const rwkvc_model *model;
    const rwkvc_kernels *kernels;
    rwkvc_pool *pool;
    uint32_t n_tokens, n_segments;
    const rwkvc_segment *segments;
    uint32_t *segment_of; /* [n_tokens] */
    float *x;             /* residual stream [n_tokens, n_embd] */
    float *v_first;       /* RWKV-7: layer 0's values [n_tokens, attention width], rows rwkvc_row_floats apart */
    uint32_t *tokens;     /* [n_tokens] */
    float *embedded;      /* deep_embed: the residual stream before the first layer [n_tokens, n_embd] */
    rwkvc_scratch scratch;
    uint8_t **thread_memory; /* [threads], each rwkvc_thread_bytes */
    rwkvc_value_reads *value_reads;
    const rwkvc_forward_options *options;
    uint64_t host_environment; /* of floats, for the host's callbacks */
} rwkvc_pass;

/* ------------------------------------------------------------------------- scratch (forward.c) */

/* The next n floats, 64-byte aligned; the arch's scratch_floats promised that they are there. */
float *rwkvc_take(rwkvc_pass *pass, uint64_t floats);
uint64_t rwkvc_thread_bytes(const rwkvc_model *model, uint32_t n_tokens); /* blocks/linear.c */
/* For src/measure.c. */
rwkvc_pool *rwkvc_context_pool(rwkvc_context *ctx);
const rwkvc_kernels *rwkvc_context_kernels(const rwkvc_context *ctx);

/* ---------------------------------------------------------------- matrix products (blocks/linear.c) */

/* Activations as products want them: f32 rows, and int8 where the weights are integers. */
typedef struct {
    float *rows; /* [n_tokens, ld] */
    uint32_t ld, cols, n_tokens;
    uint32_t parts; /* int8 numbers per activation: 1, or 2 for 16 bits; 0 when the weights are floats */
    rwkvc_q8_input q8;
} rwkvc_input;

/* Floats from row to row where tokens have `cols` each: rows a power of two apart would share few sets of the cache. */
static inline uint64_t rwkvc_row_floats(uint64_t cols) {
    return rwkvc_round_up(cols, RWKVC_PANEL) + (cols % 256 == 0 ? RWKVC_PANEL : 0);
}

/* f32 of scratch that an input of `cols` takes per token, at most, */
uint64_t rwkvc_input_floats(uint64_t cols, uint32_t parts);
/* and that the list of its non-zero inputs takes where the weights are a channel mix's value. */
uint64_t rwkvc_nonzero_floats(uint64_t cols);
/* Take scratch for the activations of a product with `weight`. */
rwkvc_input rwkvc_input_take(rwkvc_pass *pass, const rwkvc_tensor *weight, uint32_t n_tokens);
/* After rows[t] was written: what else the product needs of it, */
void rwkvc_input_ready(const rwkvc_pass *pass, const rwkvc_input *input, uint32_t t);
/* or of some of its groups of 32, for tokens first..last-1. */
void rwkvc_input_ready_groups(const rwkvc_pass *pass, const rwkvc_input *input, uint32_t first, uint32_t last,
                              uint32_t first_group, uint32_t n_groups);

typedef struct {
    const rwkvc_tensor *weight; /* [out, in] */
    const rwkvc_input *input;
    float *out; /* [n_tokens, ld] */
    uint64_t ld;
    rwkvc_epilogue epilogue;
    const uint64_t *out_rows; /* row of out for each token; NULL: 0, 1, 2… */
    /* NULL, or an input that the outputs are: it is ready when they stand, and `out` and `ld` say nothing. Its rows are
     * written only where the next product wants floats. */
    const rwkvc_input *into;
} rwkvc_linear;

/* All products in one parallel region; they do not depend on each other. False when cancelled. */
bool rwkvc_linear_run(const rwkvc_pass *pass, const rwkvc_linear *products, uint32_t n);

/* -------------------------------------------------------------------------- parts of a layer */

/* Task over tiles of tokens: rows first..last-1. */
typedef void (*rwkvc_rows_task)(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last);
bool rwkvc_for_rows(rwkvc_pass *pass, uint32_t n_rows, rwkvc_rows_task task, void *arg);

bool rwkvc_all_ready(rwkvc_pass *pass, rwkvc_input *input);
/* The same for one head's part of a segment, by who wrote it, and for what no head could make ready alone. */
void rwkvc_head_ready(const rwkvc_pass *pass, const rwkvc_input *y, const rwkvc_segment *segment, uint32_t head);
bool rwkvc_heads_all_ready(rwkvc_pass *pass, rwkvc_input *y);

/* Where a part of a layer's state begins. */
uint64_t rwkvc_state_offset(const rwkvc_pass *pass, uint32_t layer, uint32_t part);

/* One blend of the current and the previous token's norm.
 *   RWKV-6, 7: input = x + (previous - x) * (mix + extra)     RWKV-4, 5: input = previous + (x - previous) * mix */
typedef struct {
    const rwkvc_tensor *mix;
    rwkvc_input input;
    bool current_share; /* as in RWKV-4 and 5 */
    const float *extra; /* [n_tokens, n_embd], NULL: none */
} rwkvc_shifted;

/* blocks/token_shift.c: layer norm of x, whose last row goes to the state at part_offset [n_tokens, n_embd]; NULL when
 * cancelled. Takes n_tokens * n_embd of scratch. */
float *rwkvc_norm(rwkvc_pass *pass, uint64_t part_offset, const rwkvc_tensor *weight, const rwkvc_tensor *bias);
/* Every blend of its rows. */
bool rwkvc_shift(rwkvc_pass *pass, uint64_t part_offset, const float *normed, rwkvc_shifted *shifted,
                 uint32_t n_shifted);

/* blocks/channel_mix.c: x += value · relu(key · shifted)^2, in RWKV-4 to 6 times sigmoid(receptance · shifted).
 * Where a version's table has the tensors, and what is special about it. */
typedef struct {
    uint32_t ln_weight, ln_bias, mix_k, key, value;
    uint32_t mix_r, receptance; /* 0 in RWKV-7, which has none */
    uint32_t shift_part;        /* of the state */
    bool current_share;
    /* Changes relu(key · shifted)^2, given the norm's rows (7a). NULL: nothing does. */
    bool (*scale_hidden)(rwkvc_pass *pass, uint32_t layer, const float *normed, const rwkvc_input *hidden);
} rwkvc_channel_mix_specs;

bool rwkvc_channel_mix(rwkvc_pass *pass, uint32_t layer, const rwkvc_channel_mix_specs *specs);
uint64_t rwkvc_channel_mix_floats(const rwkvc_config *config);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
