/* SPDX-License-Identifier: Apache-2.0
 * RWKV-5 "Eagle" (arXiv:2404.05892) in its three forms: 5.0 has no gate; 5.1 adds it; 5.2 has a decay for each channel,
 * where the others have one for each head (stored for each channel all the same). The recurrence: kernels/wkv6.inc.h. */
#include "blocks/heads.h"
#include "versions/spec_macros.h"

/* clang-format off */
enum {
    EMB, LN0_WEIGHT, LN0_BIAS,
    LN1_WEIGHT, LN1_BIAS,
    MIX_K, MIX_V, MIX_R,
    RECEPTANCE, KEY, VALUE,
    DECAY, BONUS,
    LN_X_WEIGHT, LN_X_BIAS,
    OUTPUT,
    LN2_WEIGHT, LN2_BIAS,
    FFN_MIX_K, FFN_MIX_R, FFN_KEY, FFN_RECEPTANCE, FFN_VALUE,
    LN_OUT_WEIGHT, LN_OUT_BIAS, HEAD,
    N_SPECS_5_0,
    MIX_G = N_SPECS_5_0, GATE, /* 5.1 and 5.2 have these too */
    N_SPECS
};
/* clang-format on */

static const rwkvc_spec specs[N_SPECS] = {
    [EMB] = TENSOR_EMB,
    [LN0_WEIGHT] = VECTOR("blocks.0.ln0.weight", PLACE_BEGIN, C_),
    [LN0_BIAS] = VECTOR("blocks.0.ln0.bias", PLACE_BEGIN, C_),
    [LN1_WEIGHT] = VECTOR("ln1.weight", PLACE_LAYER, C_),
    [LN1_BIAS] = VECTOR("ln1.bias", PLACE_LAYER, C_),
    [MIX_K] = VECTOR("att.time_mix_k", PLACE_LAYER, C_),
    [MIX_V] = VECTOR("att.time_mix_v", PLACE_LAYER, C_),
    [MIX_R] = VECTOR("att.time_mix_r", PLACE_LAYER, C_),
    [RECEPTANCE] = MATRIX("att.receptance.weight", RWKVC_KIND_MATRIX, A_, C_),
    [KEY] = MATRIX("att.key.weight", RWKVC_KIND_MATRIX, A_, C_),
    [VALUE] = MATRIX("att.value.weight", RWKVC_KIND_MATRIX, A_, C_),
    [DECAY] = {.name = "att.time_decay",
               .place = PLACE_LAYER,
               .kind = RWKVC_KIND_VECTOR,
               .n_dims = 2,
               .shape = {H_, N_},
               .transform = RWKVC_TRANSFORM_EXP_NEG_EXP,
               .per_head = 1,
               .alternative = "att.time_decay_done",
               .alternative_bit = SOURCE_DECAY_DONE},
    /* time_first is the bonus' logarithm, time_faaaa the bonus */
    [BONUS] = {.name = "att.time_faaaa",
               .place = PLACE_LAYER,
               .kind = RWKVC_KIND_VECTOR,
               .n_dims = 2,
               .shape = {H_, N_},
               .per_head = 1,
               .alternative = "att.time_first",
               .alternative_transform = RWKVC_TRANSFORM_EXP,
               .alternative_bit = SOURCE_LOG_BONUS},
    [LN_X_WEIGHT] = VECTOR("att.ln_x.weight", PLACE_LAYER, A_),
    [LN_X_BIAS] = VECTOR("att.ln_x.bias", PLACE_LAYER, A_),
    [OUTPUT] = MATRIX("att.output.weight", RWKVC_KIND_MATRIX, C_, A_),
    [LN2_WEIGHT] = VECTOR("ln2.weight", PLACE_LAYER, C_),
    [LN2_BIAS] = VECTOR("ln2.bias", PLACE_LAYER, C_),
    [FFN_MIX_K] = VECTOR("ffn.time_mix_k", PLACE_LAYER, C_),
    [FFN_MIX_R] = VECTOR("ffn.time_mix_r", PLACE_LAYER, C_),
    [FFN_KEY] = MATRIX("ffn.key.weight", RWKVC_KIND_MATRIX, F_, C_),
    [FFN_RECEPTANCE] = MATRIX("ffn.receptance.weight", RWKVC_KIND_MATRIX, C_, C_),
    [FFN_VALUE] = MATRIX("ffn.value.weight", RWKVC_KIND_VALUE, C_, F_),
    [LN_OUT_WEIGHT] = VECTOR("ln_out.weight", PLACE_END, C_),
    [LN_OUT_BIAS] = VECTOR("ln_out.bias", PLACE_END, C_),
    [HEAD] = TENSOR_HEAD,
    [MIX_G] = VECTOR("att.time_mix_g", PLACE_LAYER, C_),
    [GATE] = MATRIX("att.gate.weight", RWKVC_KIND_MATRIX, A_, C_),
};

/* Released models were trained with head_size_divisor 8: the norm of y / 8 with 1e-5 is that of y with 64e-5. The test
 * models of rwkv.cpp, whose heads are smaller, with 1. */
static float gn_eps(const rwkvc_config *config) { return config->size[N_] == 64 ? 64e-5f : 1e-5f; }

static const rwkvc_head_specs head_specs = {
    .decay = DECAY, .bonus = BONUS, .ln_x_weight = LN_X_WEIGHT, .ln_x_bias = LN_X_BIAS};

static bool run_time_mix(rwkvc_pass *pass, uint32_t layer) {
    const rwkvc_model *model = pass->model;
    static const struct {
        uint8_t mix, weight;
    } paths[] = {{MIX_R, RECEPTANCE}, {MIX_K, KEY}, {MIX_V, VALUE}, {MIX_G, GATE}};
    uint32_t n = model->arch->n_specs > GATE ? 4 : 3, ld = (uint32_t)rwkvc_row_floats(model->config.size[A_]);
    rwkvc_shifted shifted[4];
    rwkvc_linear products[4];
    pass->scratch.used = 0;
    rwkvc_heads heads = {.pass = pass, .layer = layer, .specs = &head_specs};
    float **out[] = {&heads.r, &heads.k, &heads.v, &heads.g};
    for (uint32_t i = 0; i < n; i++) {
        const rwkvc_tensor *weight = rwkvc_layer_tensor(model, layer, paths[i].weight);
        *out[i] = rwkvc_take(pass, (uint64_t)pass->n_tokens * ld);
        shifted[i] = (rwkvc_shifted){.mix = rwkvc_layer_tensor(model, layer, paths[i].mix),
                                     .input = rwkvc_input_take(pass, weight, pass->n_tokens),
                                     .current_share = true};
        products[i] = (rwkvc_linear){weight, &shifted[i].input, *out[i], ld, RWKVC_STORE, NULL, NULL};
    }
    uint64_t shift = rwkvc_state_offset(pass, layer, RWKVC_ATT_SHIFT);
    const float *normed = rwkvc_norm(pass, shift, rwkvc_layer_tensor(model, layer, LN1_WEIGHT),
                                     rwkvc_layer_tensor(model, layer, LN1_BIAS));
    return normed && rwkvc_shift(pass, shift, normed, shifted, n) && rwkvc_linear_run(pass, products, n) &&
           rwkvc_heads_run(&heads, rwkvc_layer_tensor(model, layer, OUTPUT));
}

static const rwkvc_channel_mix_specs channel_mix = {
    .ln_weight = LN2_WEIGHT,
    .ln_bias = LN2_BIAS,
    .mix_k = FFN_MIX_K,
    .mix_r = FFN_MIX_R,
    .key = FFN_KEY,
    .receptance = FFN_RECEPTANCE,
    .value = FFN_VALUE,
    .shift_part = RWKVC_FFN_SHIFT,
    .current_share = true,
};

static bool layer(rwkvc_pass *pass, uint32_t layer) {
    return run_time_mix(pass, layer) && rwkvc_channel_mix(pass, layer, &channel_mix);
}

static uint64_t scratch_floats(const rwkvc_config *config) {
    uint64_t time = config->size[C_] + 4 * rwkvc_input_floats(config->size[C_], 1) + rwkvc_heads_floats(config);
    uint64_t channel = rwkvc_channel_mix_floats(config);
    return time > channel ? time : channel;
}

#define RWKV5_COMMON                                                                                                   \
    .specs = specs, .state = rwkvc_heads_state, .n_state = RWKVC_HEADS_STATE, .ln_eps = 1e-5f, .gn_eps = gn_eps,       \
    .scratch_floats = scratch_floats, .layer = layer, .emb = EMB, .ln0_weight = LN0_WEIGHT, .ln0_bias = LN0_BIAS,      \
    .ln_out_weight = LN_OUT_WEIGHT, .ln_out_bias = LN_OUT_BIAS, .head = HEAD

const rwkvc_arch rwkvc_arch_rwkv5_0 = {
    .version = RWKVC_RWKV5_0, .name = "RWKV-5.0", .n_specs = N_SPECS_5_0, RWKV5_COMMON};
const rwkvc_arch rwkvc_arch_rwkv5_1 = {.version = RWKVC_RWKV5_1, .name = "RWKV-5.1", .n_specs = N_SPECS, RWKV5_COMMON};
const rwkvc_arch rwkvc_arch_rwkv5_2 = {.version = RWKVC_RWKV5_2, .name = "RWKV-5.2", .n_specs = N_SPECS, RWKV5_COMMON};
