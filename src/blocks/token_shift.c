/* SPDX-License-Identifier: Apache-2.0
 * Layer norm and token shift: what stands before every mix of every version. */
#include "forward.h"

typedef struct {
    rwkvc_pass *pass;
    rwkvc_rows_task task;
    void *arg;
    uint32_t n_rows, step;
} rows_region;

static void rows_item(void *arg, uint32_t item, uint32_t thread) {
    const rows_region *r = arg;
    (void)thread;
    uint32_t first = item * r->step, left = r->n_rows - first;
    r->task(r->pass, r->arg, first, first + (left < r->step ? left : r->step));
}

/* A tile of int8 activations is written by one item. */
bool rwkvc_for_rows(rwkvc_pass *pass, uint32_t n_rows, rwkvc_rows_task task, void *arg) {
    rows_region r = {pass, task, arg, n_rows, pass->kernels->q8_tile};
    return rwkvc_parallel(pass->pool, (uint32_t)rwkvc_ceil_div(n_rows, r.step), rows_item, &r);
}

typedef struct {
    float *normed; /* [n_tokens, n_embd] */
    uint64_t part_offset;
    const rwkvc_tensor *weight, *bias;
    rwkvc_shifted *shifted;
    uint32_t n_shifted;
} shift;

static void norm_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    shift *s = arg;
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t t = first; t < last; t++)
        pass->kernels->layer_norm(pass->x + (uint64_t)t * n_embd, (const float *)s->weight->data, (const float *)s->bias->data,
                                  n_embd, pass->model->config.ln_eps, s->normed + (uint64_t)t * n_embd);
}

static void shift_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    shift *s = arg;
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t t = first; t < last; t++) {
        const rwkvc_segment *segment = &pass->segments[pass->segment_of[t]];
        const float *now = s->normed + (uint64_t)t * n_embd;
        const float *previous = t == segment->first ? segment->state_in + s->part_offset : now - n_embd;
        for (uint32_t i = 0; i < s->n_shifted; i++) {
            rwkvc_shifted *to = &s->shifted[i];
            pass->kernels->token_shift(now, previous, (const float *)to->mix->data, n_embd,
                                       to->input.rows + (uint64_t)t * to->input.ld);
            rwkvc_input_ready(pass, &to->input, t);
        }
    }
}

/* After all rows were blended: state_out may be state_in, which the first rows read. */
static void keep_rows(rwkvc_pass *pass, const shift *s) {
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t i = 0; i < pass->n_segments; i++) {
        const rwkvc_segment *segment = &pass->segments[i];
        float *out = segment->state_out + s->part_offset;
        for (uint32_t t = segment->state_step ? 0 : segment->n - 1; t < segment->n; t++, out += segment->state_step)
            memcpy(out, s->normed + (uint64_t)(segment->first + t) * n_embd, n_embd * sizeof *out);
    }
}

bool rwkvc_norm_and_shift(rwkvc_pass *pass, uint64_t part_offset, const rwkvc_tensor *weight,
                          const rwkvc_tensor *bias, rwkvc_shifted *shifted, uint32_t n_shifted) {
    uint64_t floats = (uint64_t)pass->n_tokens * pass->model->config.size[RWKVC_SIZE_EMBD];
    shift s = {rwkvc_take(pass, floats), part_offset, weight, bias, shifted, n_shifted};
    if (!rwkvc_for_rows(pass, pass->n_tokens, norm_rows, &s)) return false;
    if (!rwkvc_for_rows(pass, pass->n_tokens, shift_rows, &s)) return false;
    keep_rows(pass, &s);
    return true;
}

uint64_t rwkvc_norm_and_shift_floats(const rwkvc_config *config) { return config->size[RWKVC_SIZE_EMBD]; }
