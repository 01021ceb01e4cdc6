/* SPDX-License-Identifier: Apache-2.0
 * Channel mix: x += value · relu(key · shifted)^2, in RWKV-4 to 6 times sigmoid(receptance · shifted). Inputs of `value`
 * that are zero are never read. */
#include "forward.h"

typedef struct {
    const float *gate, *y; /* [n_tokens, n_embd] */
} gated;

static void add_gated(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const gated *g = arg;
    uint32_t n = pass->model->config.size[RWKVC_SIZE_EMBD];
    for (uint32_t t = first; t < last; t++) {
        uint64_t at = (uint64_t)t * n;
        pass->kernels->multiply_add(pass->x + at, g->gate + at, g->y + at, n);
    }
}

bool rwkvc_channel_mix(rwkvc_pass *pass, const rwkvc_channel_mix_args *args) {
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD], n = args->receptance ? 2 : 1;
    uint64_t floats = (uint64_t)pass->n_tokens * n_embd;
    pass->scratch.used = 0;
    rwkvc_input hidden = rwkvc_input_take(pass, args->value, pass->n_tokens);
    rwkvc_shifted shifted[2] = {{.mix = args->mix_k, .current_share = args->current_share},
                                {.mix = args->mix_r, .current_share = args->current_share}};
    shifted[0].input = rwkvc_input_take(pass, args->key, pass->n_tokens);
    gated g = {NULL, NULL};
    rwkvc_linear up[2] = {{args->key, &shifted[0].input, hidden.rows, hidden.ld, RWKVC_RELU2, NULL}};
    rwkvc_linear down = {args->value, &hidden, pass->x, n_embd, RWKVC_ADD, NULL};
    if (args->receptance) {
        float *gate = rwkvc_take(pass, floats), *y = rwkvc_take(pass, floats);
        shifted[1].input = rwkvc_input_take(pass, args->receptance, pass->n_tokens);
        up[1] = (rwkvc_linear){args->receptance, &shifted[1].input, gate, n_embd, RWKVC_SIGMOID, NULL};
        down = (rwkvc_linear){args->value, &hidden, y, n_embd, RWKVC_STORE, NULL};
        g = (gated){gate, y};
    }
    const float *normed = rwkvc_norm(pass, args->part_offset, args->ln_weight, args->ln_bias);
    if (!normed || !rwkvc_shift(pass, args->part_offset, normed, shifted, n)) return false;
    if (!rwkvc_linear_run(pass, up, n)) return false;
    if (args->scale_hidden && !args->scale_hidden(pass, args->layer, normed, &hidden)) return false;
    if (!rwkvc_all_ready(pass, &hidden) || !rwkvc_linear_run(pass, &down, 1)) return false;
    return !args->receptance || rwkvc_for_rows(pass, pass->n_tokens, add_gated, &g);
}

uint64_t rwkvc_channel_mix_floats(const rwkvc_config *config) {
    uint64_t n_embd = config->size[RWKVC_SIZE_EMBD];
    return 3 * n_embd + 2 * rwkvc_input_floats(n_embd, 1) + rwkvc_input_floats(config->size[RWKVC_SIZE_FFN], 1);
}
