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

static void ready_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    for (uint32_t t = first; t < last; t++) rwkvc_input_ready(pass, arg, t);
}

bool rwkvc_all_ready(rwkvc_pass *pass, rwkvc_input *input) {
    return !input->parts || rwkvc_for_rows(pass, input->n_tokens, ready_rows, input);
}

static bool heads_are_groups(const rwkvc_pass *pass) {
    return pass->model->config.size[RWKVC_SIZE_HEAD] % RWKVC_GROUP == 0;
}

void rwkvc_head_ready(const rwkvc_pass *pass, const rwkvc_input *y, const rwkvc_segment *segment, uint32_t head) {
    uint32_t groups = pass->model->config.size[RWKVC_SIZE_HEAD] / RWKVC_GROUP;
    if (heads_are_groups(pass))
        rwkvc_input_ready_groups(pass, y, segment->first, segment->first + segment->n, head * groups, groups);
}

bool rwkvc_heads_all_ready(rwkvc_pass *pass, rwkvc_input *y) {
    return heads_are_groups(pass) || rwkvc_all_ready(pass, y);
}

uint64_t rwkvc_state_offset(const rwkvc_pass *pass, uint32_t layer, uint32_t part) {
    const rwkvc_model *model = pass->model;
    uint64_t offset = layer * rwkvc_state_layer_floats(model->arch, &model->config);
    for (uint32_t i = 0; i < part; i++) offset += rwkvc_state_part_floats(model->arch, &model->config, i);
    return offset;
}

typedef struct {
    float *normed;
    const float *weight, *bias;
} norm;

static void norm_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const norm *n = arg;
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t t = first; t < last; t++)
        pass->kernels->layer_norm(pass->x + (uint64_t)t * n_embd, n->weight, n->bias, n_embd,
                                  pass->model->config.ln_eps, n->normed + (uint64_t)t * n_embd);
}

float *rwkvc_norm(rwkvc_pass *pass, uint64_t part_offset, const rwkvc_tensor *weight, const rwkvc_tensor *bias) {
    uint64_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    norm n = {rwkvc_take(pass, pass->n_tokens * n_embd), (const float *)weight->data, (const float *)bias->data};
    if (!rwkvc_for_rows(pass, pass->n_tokens, norm_rows, &n)) return NULL;
    for (uint32_t i = 0; i < pass->n_segments; i++) { /* state_out is never state_in: forward.c */
        const rwkvc_segment *segment = &pass->segments[i];
        float *out = segment->state_out + part_offset;
        for (uint32_t t = segment->state_step ? 0 : segment->n - 1; t < segment->n; t++, out += segment->state_step)
            memcpy(out, n.normed + (segment->first + t) * n_embd, n_embd * sizeof *out);
    }
    return n.normed;
}

typedef struct {
    const rwkvc_pass *pass;
    const float *normed;
    uint64_t part_offset;
    rwkvc_shifted *shifted;
    uint32_t n_shifted;
} shift;

/* Rows of the tokens first..last-1 and of those before them. */
typedef struct {
    uint32_t first, last;
    const float *now[RWKVC_MAX_TILE], *previous[RWKVC_MAX_TILE];
} shift_tile;

static void shift_to(const rwkvc_pass *pass, const rwkvc_shifted *to, const shift_tile *tile) {
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    const float *mix = (const float *)to->mix->data;
    const float *const *x = to->current_share ? tile->previous : tile->now;
    const float *const *other = to->current_share ? tile->now : tile->previous;
    const float *extra = to->extra ? to->extra + (uint64_t)tile->first * n_embd : NULL;
    if (to->input.parts == 1 && !pass->options->inputs) { /* nobody wants the floats */
        pass->kernels->token_shift_q8(x, other, mix, extra, n_embd, n_embd, tile->first, tile->last, &to->input.q8);
        return;
    }
    for (uint32_t t = tile->first; t < tile->last; t++) {
        pass->kernels->token_shift(x[t - tile->first], other[t - tile->first], mix, extra, n_embd,
                                   to->input.rows + (uint64_t)t * to->input.ld);
        if (extra) extra += n_embd;
        rwkvc_input_ready(pass, &to->input, t);
    }
}

static shift_tile tile_of(const shift *s, uint32_t first, uint32_t last) {
    const rwkvc_pass *pass = s->pass;
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD];
    shift_tile tile = {.first = first, .last = last};
    for (uint32_t t = first; t < last; t++) {
        const rwkvc_segment *segment = &pass->segments[pass->segment_of[t]];
        const float *now = s->normed + (uint64_t)t * n_embd;
        tile.now[t - first] = now;
        tile.previous[t - first] = t == segment->first ? segment->state_in + s->part_offset : now - n_embd;
    }
    return tile;
}

static void shift_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const shift *s = arg;
    shift_tile tile = tile_of(s, first, last);
    for (uint32_t i = 0; i < s->n_shifted; i++) shift_to(pass, &s->shifted[i], &tile);
}

static void shift_mix(void *arg, uint32_t item, uint32_t thread) {
    const shift *s = arg;
    shift_tile tile = tile_of(s, 0, 1);
    (void)thread;
    shift_to(s->pass, &s->shifted[item], &tile);
}

/* One token alone: its mixes are shared out instead of the tokens. */
bool rwkvc_shift(rwkvc_pass *pass, uint64_t part_offset, const float *normed, rwkvc_shifted *shifted,
                 uint32_t n_shifted) {
    shift s = {pass, normed, part_offset, shifted, n_shifted};
    if (pass->n_tokens == 1) return rwkvc_parallel(pass->pool, n_shifted, shift_mix, &s);
    return rwkvc_for_rows(pass, pass->n_tokens, shift_rows, &s);
}
