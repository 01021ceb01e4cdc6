/* SPDX-License-Identifier: Apache-2.0
 * See heads.h. */
#include "blocks/heads.h"

const rwkvc_state_spec rwkvc_heads_state[RWKVC_HEADS_STATE] = {
    [RWKVC_ATT_SHIFT] = {"att_shift", 1, {RWKVC_SIZE_EMBD}, 0},
    [RWKVC_FFN_SHIFT] = {"ffn_shift", 1, {RWKVC_SIZE_EMBD}, 0},
    [RWKVC_WKV] = {"wkv", 3, {RWKVC_SIZE_HEADS, RWKVC_SIZE_HEAD, RWKVC_SIZE_HEAD}, 0}, /* [head, key, value channel] */
};

static const float *vector(const rwkvc_heads *h, uint32_t spec) {
    return (const float *)rwkvc_layer_tensor(h->pass->model, h->layer, spec)->data;
}

/* Item: one head of one segment. */
static void head_item(void *arg, uint32_t item, uint32_t thread) {
    const rwkvc_heads *h = arg;
    const rwkvc_pass *pass = h->pass;
    const uint32_t *size = pass->model->config.size;
    (void)thread;
    uint32_t n = size[RWKVC_SIZE_HEAD], head = item % size[RWKVC_SIZE_HEADS];
    uint32_t ld = (uint32_t)rwkvc_row_floats(size[RWKVC_SIZE_ATT]);
    const rwkvc_segment *segment = &pass->segments[item / size[RWKVC_SIZE_HEADS]];
    uint64_t channel = (uint64_t)head * n, at = (uint64_t)segment->first * ld + channel;
    uint64_t offset = rwkvc_state_offset(pass, h->layer, RWKVC_WKV) + channel * n;
    rwkvc_wkv6 wkv = {
        .tokens = segment->n,
        .head_size = n,
        .ld = ld,
        .r = h->r + at,
        .k = h->k + at,
        .v = h->v + at,
        .g = h->g ? h->g + at : NULL,
        .w = h->w ? h->w + at : NULL,
        .y = h->y.rows + at,
        .decay = vector(h, h->specs->decay) + channel,
        .bonus = vector(h, h->specs->bonus) + channel,
        .ln_weight = vector(h, h->specs->ln_x_weight) + channel,
        .ln_bias = vector(h, h->specs->ln_x_bias) + channel,
        .gn_eps = pass->model->config.gn_eps,
        .state_in = segment->state_in + offset,
        .state_out = segment->state_out + offset,
        .state_step = segment->state_step,
    };
    pass->kernels->wkv6(&wkv);
    rwkvc_head_ready(pass, &h->y, segment, head);
}

bool rwkvc_heads_run(rwkvc_heads *heads, const rwkvc_tensor *output) {
    rwkvc_pass *pass = heads->pass;
    const uint32_t *size = pass->model->config.size;
    heads->y = rwkvc_input_take(pass, output, pass->n_tokens);
    if (!rwkvc_parallel(pass->pool, pass->n_segments * size[RWKVC_SIZE_HEADS], head_item, heads)) return false;
    if (!rwkvc_heads_all_ready(pass, &heads->y)) return false;
    rwkvc_linear product = {output, &heads->y, pass->x, size[RWKVC_SIZE_EMBD], RWKVC_ADD, NULL, NULL};
    return rwkvc_linear_run(pass, &product, 1);
}

uint64_t rwkvc_heads_floats(const rwkvc_config *config) {
    return 5 * rwkvc_row_floats(config->size[RWKVC_SIZE_ATT]) + rwkvc_input_floats(config->size[RWKVC_SIZE_ATT], 1);
}
