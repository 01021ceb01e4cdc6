/* SPDX-License-Identifier: Apache-2.0
 * Contexts, and the one forward call: a ragged batch cut into passes of bounded size. */
#include "forward.h"

#include <stdlib.h>

enum { DEFAULT_CHUNK = 264 /* whole tiles of every kernel */, MAX_CHUNK = 1 << 16 };

struct rwkvc_context {
    const rwkvc_kernels *kernels;
    rwkvc_pool *pool;
    uint32_t chunk;
    rwkvc_scratch scratch; /* of the layers */
    rwkvc_scratch rows;    /* of a pass: residual stream, v_first, segments, head's rows */
    rwkvc_scratch states;  /* states of a pass that are not committed yet */
    rwkvc_scratch batch;   /* of a call: its parts and segments */
    uint8_t *thread_memory[RWKVC_MAX_THREADS];
    uint64_t thread_bytes;
    rwkvc_value_reads value_reads;
};

/* ------------------------------------------------------------------------------------ contexts */

void rwkvc_context_defaults(rwkvc_context_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
}

rwkvc_status rwkvc_context_create(const rwkvc_context_options *options, rwkvc_context **out) {
    rwkvc_context_options o;
    const char *isa;
    *out = NULL;
    rwkvc_context_defaults(&o);
    if (options && options->struct_size < sizeof o)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "context options of %u bytes: set struct_size", options->struct_size);
    if (options) memcpy(&o, options, sizeof o);
    if (o.threads > RWKVC_MAX_THREADS || o.chunk > MAX_CHUNK)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%u threads, chunks of %u: at most %d and %d", o.threads, o.chunk,
                          RWKVC_MAX_THREADS, MAX_CHUNK);
    isa = o.isa;
    if (!isa) {
        rwkvc_status status = rwkvc_isa_default(&isa);
        if (status) return status;
    }
    const rwkvc_kernels *kernels = rwkvc_kernels_get(isa);
    if (!kernels) return RWKVC_E_UNSUPPORTED;
    rwkvc_context *ctx = rwkvc_alloc(sizeof *ctx);
    if (!ctx) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    ctx->kernels = kernels;
    ctx->chunk = o.chunk ? o.chunk : DEFAULT_CHUNK;
    ctx->pool = rwkvc_pool_create(o.threads ? o.threads : rwkvc_default_threads());
    if (!ctx->pool) {
        rwkvc_context_destroy(ctx);
        return rwkvc_fail(RWKVC_E_NOMEM, "the system gives no more threads or memory");
    }
    *out = ctx;
    return RWKVC_OK;
}

void rwkvc_context_destroy(rwkvc_context *ctx) {
    if (!ctx) return;
    rwkvc_pool_destroy(ctx->pool);
    rwkvc_free(ctx->scratch.memory);
    rwkvc_free(ctx->rows.memory);
    rwkvc_free(ctx->states.memory);
    rwkvc_free(ctx->batch.memory);
    for (uint32_t i = 0; i < RWKVC_MAX_THREADS; i++) rwkvc_free(ctx->thread_memory[i]);
    rwkvc_free(ctx);
}

const char *rwkvc_context_isa(const rwkvc_context *ctx) { return ctx->kernels->name; }

uint32_t rwkvc_context_threads(const rwkvc_context *ctx) { return rwkvc_pool_threads(ctx->pool); }

uint64_t rwkvc_context_bytes(const rwkvc_context *ctx) {
    return ctx->scratch.size + ctx->rows.size + ctx->states.size + ctx->batch.size +
           ctx->thread_bytes * rwkvc_pool_threads(ctx->pool);
}

void rwkvc_context_value_reads(const rwkvc_context *ctx, rwkvc_value_reads *reads) { *reads = ctx->value_reads; }

rwkvc_pool *rwkvc_context_pool(rwkvc_context *ctx) { return ctx->pool; }
const rwkvc_kernels *rwkvc_context_kernels(const rwkvc_context *ctx) { return ctx->kernels; }

/* ------------------------------------------------------------------------------------- scratch */

static bool reserve(rwkvc_scratch *scratch, uint64_t size) {
    scratch->used = 0;
    if (size <= scratch->size) return true;
    rwkvc_free(scratch->memory);
    scratch->memory = rwkvc_alloc(size);
    scratch->size = scratch->memory ? size : 0;
    return scratch->memory != NULL;
}

static void *take(rwkvc_scratch *scratch, uint64_t size_bytes) {
    void *memory = scratch->memory + scratch->used;
    scratch->used += rwkvc_round_up(size_bytes, RWKVC_ALIGN);
    if (scratch->used > scratch->size) abort(); /* an arch promised too little: better than writing past the end */
    return memory;
}

float *rwkvc_take(rwkvc_pass *pass, uint64_t floats) { return take(&pass->scratch, floats * sizeof(float)); }

static rwkvc_status reserve_threads(rwkvc_context *ctx, const rwkvc_model *model, uint32_t n_tokens) {
    uint64_t bytes = rwkvc_thread_bytes(model, n_tokens);
    if (bytes <= ctx->thread_bytes) return RWKVC_OK;
    ctx->thread_bytes = 0;
    for (uint32_t i = 0; i < rwkvc_pool_threads(ctx->pool); i++) {
        rwkvc_free(ctx->thread_memory[i]);
        ctx->thread_memory[i] = rwkvc_alloc(bytes);
        if (!ctx->thread_memory[i]) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for scratch of thread %u", i);
    }
    ctx->thread_bytes = bytes;
    return RWKVC_OK;
}

/* ---------------------------------------------------------------------------------------- pass */

/* A slice of one sequence in a pass. */
typedef struct {
    uint32_t sequence, n;
    uint64_t begin; /* its first token */
    bool shadow;    /* its new state lies in the context until the pass is through */
} part;

typedef struct {
    rwkvc_context *ctx;
    const rwkvc_model *model;
    rwkvc_sequence *sequences;
    uint32_t n_seq;
    float *logits;
    uint64_t state_floats, *first_row; /* first_row[i]: row of logits where sequence i begins */
    rwkvc_pass pass;
    part *parts;
    uint32_t n_parts, n_shadows;
    rwkvc_segment *segments;
} call;

static void embed_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const rwkvc_arch *arch = pass->model->arch;
    const rwkvc_tensor *emb = rwkvc_layer_tensor(pass->model, 0, arch->emb);
    const float *weight = (const float *)rwkvc_layer_tensor(pass->model, 0, arch->ln0_weight)->data;
    const float *bias = (const float *)rwkvc_layer_tensor(pass->model, 0, arch->ln0_bias)->data;
    (void)arg;
    for (uint32_t t = first; t < last; t++) {
        float *x = pass->x + (uint64_t)t * emb->cols;
        pass->kernels->embedding(emb, pass->tokens[t], x);
        pass->kernels->layer_norm(x, weight, bias, emb->cols, pass->model->config.ln_eps, x);
        if (pass->embedded) memcpy(pass->embedded + (uint64_t)t * emb->cols, x, emb->cols * sizeof *x);
    }
}

typedef struct {
    const uint32_t *wanted; /* row of the pass for each row of logits */
    rwkvc_input *input;
} head_arg;

static void head_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const head_arg *head = arg;
    const rwkvc_arch *arch = pass->model->arch;
    const float *weight = (const float *)rwkvc_layer_tensor(pass->model, 0, arch->ln_out_weight)->data;
    const float *bias = (const float *)rwkvc_layer_tensor(pass->model, 0, arch->ln_out_bias)->data;
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t t = first; t < last; t++) {
        pass->kernels->layer_norm(pass->x + (uint64_t)head->wanted[t] * n_embd, weight, bias, n_embd,
                                  pass->model->config.ln_eps, head->input->rows + (uint64_t)t * head->input->ld);
        rwkvc_input_ready(pass, head->input, t);
    }
}

/* The final norm of every row whose sequence wants it. */
static void hidden_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const call *c = arg;
    const rwkvc_arch *arch = pass->model->arch;
    const float *weight = (const float *)rwkvc_layer_tensor(pass->model, 0, arch->ln_out_weight)->data;
    const float *bias = (const float *)rwkvc_layer_tensor(pass->model, 0, arch->ln_out_bias)->data;
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t row = first; row < last; row++) {
        const part *p = &c->parts[pass->segment_of[row]];
        float *hidden = c->sequences[p->sequence].hidden;
        if (!hidden) continue;
        uint64_t token = p->begin + (row - pass->segments[pass->segment_of[row]].first);
        pass->kernels->layer_norm(pass->x + (uint64_t)row * n_embd, weight, bias, n_embd, pass->model->config.ln_eps,
                                  hidden + token * n_embd);
    }
}

/* Adding one to an exponent of all ones carries into the sign's place. */
static bool all_finite(const float *x, uint64_t n) {
    uint32_t carry = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        carry |= (bits & 0x7f800000u) + 0x00800000u;
    }
    return !(carry >> 31);
}

/* Logits of the rows that are wanted: `wanted` in the pass, `rows` in the caller's array. */
static rwkvc_status run_head(call *c, const uint32_t *wanted, const uint64_t *rows, uint32_t n) {
    rwkvc_pass *pass = &c->pass;
    const rwkvc_tensor *head = rwkvc_layer_tensor(c->model, 0, c->model->arch->head);
    pass->scratch.used = 0;
    rwkvc_input input = rwkvc_input_take(pass, head, n);
    head_arg arg = {wanted, &input};
    if (!rwkvc_for_rows(pass, n, head_rows, &arg)) return RWKVC_E_CANCELLED;
    rwkvc_linear product = {head, &input, c->logits, head->rows, RWKVC_STORE, rows, NULL};
    if (!rwkvc_linear_run(pass, &product, 1)) return RWKVC_E_CANCELLED;
    for (uint32_t i = 0; i < n; i++)
        if (!all_finite(c->logits + rows[i] * head->rows, head->rows))
            return rwkvc_fail(RWKVC_E_NONFINITE, "the logits are not finite: damaged weights or state");
    return RWKVC_OK;
}

/* Fill a pass with the next tokens of sequences from *sequence on, as many as fit. Where the pass writes a state:
 * the caller's block if nothing there is needed any more, else a shadow that is copied when the pass is through. */
static uint32_t plan(call *c, uint32_t *sequence) {
    uint32_t rows = 0;
    c->n_parts = c->n_shadows = 0;
    while (*sequence < c->n_seq && rows < c->ctx->chunk) {
        rwkvc_sequence *s = &c->sequences[*sequence];
        uint32_t n = (uint32_t)rwkvc_min(s->n_tokens - s->n_done, c->ctx->chunk - rows);
        bool direct = s->every_state || (s->n_done == 0 && s->state_in != s->state_out);
        c->parts[c->n_parts++] = (part){*sequence, n, s->n_done, !direct};
        c->n_shadows += !direct + (s->n_done == 0 && !s->state_in);
        rows += n;
        if (s->n_done + n == s->n_tokens)
            (*sequence)++;
        else
            break;
    }
    return rows;
}

static void place_segments(call *c) {
    uint32_t row = 0, shadow = 0;
    float *shadows = (float *)c->ctx->states.memory;
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const part *p = &c->parts[i];
        const rwkvc_sequence *s = &c->sequences[p->sequence];
        rwkvc_segment *segment = &c->segments[i];
        segment->first = row;
        segment->n = p->n;
        segment->state_step = s->every_state ? c->state_floats : 0;
        segment->state_in = p->begin == 0    ? s->state_in
                            : s->every_state ? s->state_out + (p->begin - 1) * c->state_floats
                                             : s->state_out;
        if (!segment->state_in) { /* the state before the first token, made in a shadow of its own */
            float *initial = shadows + shadow++ * c->state_floats;
            rwkvc_state_init(c->model, initial);
            segment->state_in = initial;
        }
        segment->state_out = p->shadow ? shadows + shadow++ * c->state_floats
                                       : s->state_out + (s->every_state ? p->begin * c->state_floats : 0);
        for (uint32_t t = 0; t < p->n; t++) c->pass.segment_of[row++] = i;
    }
}

static bool wants_hidden(const call *c) {
    for (uint32_t i = 0; i < c->n_parts; i++)
        if (c->sequences[c->parts[i].sequence].hidden) return true;
    return false;
}

/* Everything of a pass that may be cancelled; no state of the caller's is given up before it is through. */
static rwkvc_status run_pass(call *c, uint32_t rows) {
    rwkvc_context *ctx = c->ctx;
    rwkvc_pass *pass = &c->pass;
    const rwkvc_config *config = &c->model->config;
    uint64_t embd = config->size[RWKVC_SIZE_EMBD], att = rwkvc_row_floats(config->size[RWKVC_SIZE_ATT]);
    uint64_t layer_bytes = (c->model->arch->scratch_floats(config) + 64) * sizeof(float) * rows;
    uint64_t head_bytes = rwkvc_input_floats(embd, 2) * sizeof(float) * rows;
    uint64_t row_bytes =
        rows * ((2 * embd + att) * sizeof(float) + sizeof(uint64_t) + 3 * sizeof(uint32_t)) + 8 * RWKVC_ALIGN;
    if (!reserve(&ctx->scratch, layer_bytes > head_bytes ? layer_bytes : head_bytes) ||
        !reserve(&ctx->rows, row_bytes) || !reserve(&ctx->states, c->n_shadows * c->state_floats * sizeof(float)))
        return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for a pass of %u tokens", rows);
    rwkvc_status status = reserve_threads(ctx, c->model, rows);
    if (status) return status;

    uint64_t *logit_rows = take(&ctx->rows, rows * sizeof *logit_rows);
    uint32_t *wanted = take(&ctx->rows, rows * sizeof *wanted), n_wanted = 0, row = 0;
    pass->tokens = take(&ctx->rows, rows * sizeof *pass->tokens);
    pass->segment_of = take(&ctx->rows, rows * sizeof *pass->segment_of);
    pass->x = take(&ctx->rows, rows * embd * sizeof(float));
    pass->v_first = take(&ctx->rows, rows * att * sizeof(float));
    pass->embedded = c->model->arch->deep_embed ? take(&ctx->rows, rows * embd * sizeof(float)) : NULL;
    pass->scratch = ctx->scratch;
    pass->thread_memory = ctx->thread_memory;
    pass->value_reads = &ctx->value_reads;
    pass->n_tokens = rows;
    pass->n_segments = c->n_parts;
    place_segments(c);
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const part *p = &c->parts[i];
        const rwkvc_sequence *s = &c->sequences[p->sequence];
        for (uint32_t t = 0; t < p->n; t++, row++) {
            bool last = p->begin + t + 1 == s->n_tokens;
            pass->tokens[row] = s->tokens[p->begin + t];
            if (pass->tokens[row] >= config->size[RWKVC_SIZE_VOCAB]) /* another thread wrote there since the check */
                return rwkvc_fail(RWKVC_E_TOKEN, "the tokens were changed during the call");
            if (s->logits == RWKVC_LOGITS_ALL || (s->logits == RWKVC_LOGITS_LAST && last)) {
                logit_rows[n_wanted] = c->first_row[p->sequence] + (s->logits == RWKVC_LOGITS_ALL ? p->begin + t : 0);
                wanted[n_wanted++] = row;
            }
        }
    }

    if (!rwkvc_for_rows(pass, rows, embed_rows, NULL)) return RWKVC_E_CANCELLED;
    for (uint32_t layer = 0; layer < config->n_layer; layer++)
        if (!c->model->arch->layer(pass, layer)) return RWKVC_E_CANCELLED;
    if (!all_finite(pass->x, rows * embd))
        return rwkvc_fail(RWKVC_E_NONFINITE, "the hidden state is not finite: damaged weights or state");
    if (wants_hidden(c) && !rwkvc_for_rows(pass, rows, hidden_rows, c)) return RWKVC_E_CANCELLED;
    return n_wanted ? run_head(c, wanted, logit_rows, n_wanted) : RWKVC_OK;
}

static void commit(call *c) {
    for (uint32_t i = 0; i < c->n_parts; i++) {
        const part *p = &c->parts[i];
        rwkvc_sequence *s = &c->sequences[p->sequence];
        if (p->shadow) memcpy(s->state_out, c->segments[i].state_out, c->state_floats * sizeof(float));
        s->n_done = p->begin + p->n;
    }
}

/* A cancelled pass may have written into state_out of sequences that it would have begun. */
static rwkvc_status cancelled(call *c) {
    uint64_t done = 0;
    for (uint32_t i = 0; i < c->n_seq; i++) {
        rwkvc_sequence *s = &c->sequences[i];
        done += s->n_done;
        if (s->n_done > 0) continue;
        if (!s->state_in)
            rwkvc_state_init(c->model, s->state_out);
        else if (s->state_in != s->state_out)
            memcpy(s->state_out, s->state_in, c->state_floats * sizeof(float));
    }
    return rwkvc_fail(RWKVC_E_CANCELLED, "cancelled after %llu tokens", (unsigned long long)done);
}

static rwkvc_status check_sequence(const rwkvc_sequence *s, uint32_t i, uint32_t n_vocab) {
    if (s->n_tokens == 0 || !s->tokens) return rwkvc_fail(RWKVC_E_TOKEN, "sequence %u has no tokens", i);
    if (!s->state_out) return rwkvc_fail(RWKVC_E_ARGUMENT, "sequence %u: no place for its state", i);
    if (s->logits > RWKVC_LOGITS_ALL)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "sequence %u: unknown choice of logits %u", i, s->logits);
    if (s->every_state && s->state_in == s->state_out)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "sequence %u: with every_state, state_out cannot be state_in", i);
    for (uint64_t t = 0; t < s->n_tokens; t++)
        if (s->tokens[t] >= n_vocab)
            return rwkvc_fail(RWKVC_E_TOKEN, "sequence %u: token %u at position %llu: the vocabulary has %u", i,
                              s->tokens[t], (unsigned long long)t, n_vocab);
    return RWKVC_OK;
}

static rwkvc_status check(call *c) {
    uint64_t rows = 0;
    for (uint32_t i = 0; i < c->n_seq; i++) c->sequences[i].n_done = 0;
    for (uint32_t i = 0; i < c->n_seq; i++) {
        const rwkvc_sequence *s = &c->sequences[i];
        rwkvc_status status = check_sequence(s, i, c->model->config.size[RWKVC_SIZE_VOCAB]);
        if (status) return status;
        c->first_row[i] = rows;
        rows += s->logits == RWKVC_LOGITS_ALL ? s->n_tokens : s->logits == RWKVC_LOGITS_LAST;
    }
    if (rows && !c->logits) return rwkvc_fail(RWKVC_E_ARGUMENT, "logits are wanted but there is no place for them");
    return RWKVC_OK;
}

static rwkvc_status run(call *c, const rwkvc_forward_options *options, uint64_t environment) {
    rwkvc_status status = check(c);
    uint64_t total = 0, done = 0;
    uint32_t sequence = 0;
    for (uint32_t i = 0; i < c->n_seq; i++) total += c->sequences[i].n_tokens;
    while (!status && sequence < c->n_seq) {
        uint32_t rows = plan(c, &sequence);
        status = run_pass(c, rows);
        if (status == RWKVC_E_CANCELLED) return cancelled(c);
        if (status) return status;
        commit(c);
        done += rows;
        if (options->progress) { /* the host's code, in the host's environment */
            rwkvc_float_restore(environment);
            options->progress(options->user, done, total);
            rwkvc_float_environment();
        }
    }
    return status;
}

rwkvc_status rwkvc_forward(rwkvc_context *ctx, const rwkvc_model *model, rwkvc_sequence *sequences, uint32_t n_seq,
                           float *logits, const rwkvc_forward_options *options) {
    rwkvc_forward_options o = {0};
    if (options && options->struct_size < sizeof o)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "forward options of %u bytes: set struct_size", options->struct_size);
    if (options) memcpy(&o, options, sizeof o);
    if (rwkvc_pool_forked(ctx->pool))
        return rwkvc_fail(RWKVC_E_FORKED, "this context was made before fork(): its threads stayed in the parent");
    if (n_seq == 0) return rwkvc_fail(RWKVC_E_ARGUMENT, "an empty batch");
    uint32_t most_parts = n_seq < ctx->chunk ? n_seq : ctx->chunk;
    uint64_t bytes = n_seq * sizeof(uint64_t) + most_parts * (sizeof(part) + sizeof(rwkvc_segment)) + 3 * RWKVC_ALIGN;
    if (!reserve(&ctx->batch, bytes)) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for %u sequences", n_seq);
    call c = {.ctx = ctx,
              .model = model,
              .sequences = sequences,
              .n_seq = n_seq,
              .logits = logits,
              .state_floats = rwkvc_state_floats(model),
              .first_row = take(&ctx->batch, n_seq * sizeof(uint64_t)),
              .parts = take(&ctx->batch, most_parts * sizeof(part)),
              .segments = take(&ctx->batch, most_parts * sizeof(rwkvc_segment)),
              .pass = {.model = model, .kernels = ctx->kernels, .pool = ctx->pool, .options = &o}};
    c.pass.segments = c.segments;
    uint64_t environment = c.pass.host_environment = rwkvc_float_environment();
    rwkvc_pool_cancel_flag(ctx->pool, o.cancel);
    rwkvc_status status = run(&c, &o, environment);
    rwkvc_pool_cancel_flag(ctx->pool, NULL);
    rwkvc_float_restore(environment);
    return status;
}
