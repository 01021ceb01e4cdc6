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

bool rwkvc_channel_mix(rwkvc_pass *pass, uint32_t layer, const rwkvc_channel_mix_specs *specs) {
    const rwkvc_tensor *tensors = rwkvc_layer_tensor(pass->model, layer, 0);
    const rwkvc_tensor *key = &tensors[specs->key], *value = &tensors[specs->value];
    uint32_t n_embd = pass->model->config.size[RWKVC_SIZE_EMBD], n = specs->receptance ? 2 : 1;
    uint64_t floats = (uint64_t)pass->n_tokens * n_embd, part = rwkvc_state_offset(pass, layer, specs->shift_part);
    pass->scratch.used = 0;
    rwkvc_input hidden = rwkvc_input_take(pass, value, pass->n_tokens);
    rwkvc_shifted shifted[2] = {{.mix = &tensors[specs->mix_k], .current_share = specs->current_share},
                                {.mix = &tensors[specs->mix_r], .current_share = specs->current_share}};
    shifted[0].input = rwkvc_input_take(pass, key, pass->n_tokens);
    gated g = {NULL, NULL};
    rwkvc_linear up[2] = {
        {.weight = key, .input = &shifted[0].input, .out = hidden.rows, .ld = hidden.ld, .epilogue = RWKVC_RELU2}};
    if (!specs->scale_hidden) up[0].into = &hidden;
    rwkvc_linear down = {value, &hidden, pass->x, n_embd, RWKVC_ADD, NULL, NULL};
    if (specs->receptance) {
        const rwkvc_tensor *receptance = &tensors[specs->receptance];
        float *gate = rwkvc_take(pass, floats), *y = rwkvc_take(pass, floats);
        shifted[1].input = rwkvc_input_take(pass, receptance, pass->n_tokens);
        up[1] = (rwkvc_linear){receptance, &shifted[1].input, gate, n_embd, RWKVC_SIGMOID, NULL, NULL};
        down = (rwkvc_linear){value, &hidden, y, n_embd, RWKVC_STORE, NULL, NULL};
        g = (gated){gate, y};
    }
    const float *normed = rwkvc_norm(pass, part, &tensors[specs->ln_weight], &tensors[specs->ln_bias]);
    if (!normed || !rwkvc_shift(pass, part, normed, shifted, n) || !rwkvc_linear_run(pass, up, n)) return false;
    if (specs->scale_hidden && (!specs->scale_hidden(pass, layer, normed, &hidden) || !rwkvc_all_ready(pass, &hidden)))
        return false;
    if (!rwkvc_linear_run(pass, &down, 1)) return false;
    return !specs->receptance || rwkvc_for_rows(pass, pass->n_tokens, add_gated, &g);
}

uint64_t rwkvc_channel_mix_floats(const rwkvc_config *config) {
    uint64_t n_embd = config->size[RWKVC_SIZE_EMBD];
    uint64_t n_ffn = config->size[RWKVC_SIZE_FFN];
    return 3 * n_embd + 2 * rwkvc_input_floats(n_embd, 1) + rwkvc_input_floats(n_ffn, 1) + rwkvc_nonzero_floats(n_ffn);
}
