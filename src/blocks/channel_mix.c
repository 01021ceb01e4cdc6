/* SPDX-License-Identifier: Apache-2.0
 * Channel mix: x += value · relu(key · shifted)^2. Inputs of `value` that are zero are never read. */
#include "forward.h"

static void hidden_ready(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    for (uint32_t t = first; t < last; t++) rwkvc_input_ready(pass, arg, t);
}

bool rwkvc_channel_mix(rwkvc_pass *pass, uint64_t part_offset, const rwkvc_tensor *ln_weight,
                       const rwkvc_tensor *ln_bias, const rwkvc_tensor *mix_k, const rwkvc_tensor *key,
                       const rwkvc_tensor *value) {
    pass->scratch.used = 0;
    rwkvc_shifted shifted = {mix_k, rwkvc_input_take(pass, key, pass->n_tokens)};
    rwkvc_input hidden = rwkvc_input_take(pass, value, pass->n_tokens);
    if (!rwkvc_norm_and_shift(pass, part_offset, ln_weight, ln_bias, &shifted, 1)) return false;
    rwkvc_linear up = {key, &shifted.input, hidden.rows, hidden.ld, RWKVC_RELU2, NULL};
    if (!rwkvc_linear_run(pass, &up, 1)) return false;
    if (hidden.parts && !rwkvc_for_rows(pass, pass->n_tokens, hidden_ready, &hidden)) return false;
    rwkvc_linear down = {value, &hidden, pass->x, pass->model->config.size[RWKVC_SIZE_EMBD], RWKVC_ADD, NULL};
    return rwkvc_linear_run(pass, &down, 1);
}

uint64_t rwkvc_channel_mix_floats(const rwkvc_config *config) {
    return rwkvc_norm_and_shift_floats(config) + rwkvc_input_floats(config->size[RWKVC_SIZE_EMBD], 1) +
           rwkvc_input_floats(config->size[RWKVC_SIZE_FFN], 1);
}
