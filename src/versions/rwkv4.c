/* SPDX-License-Identifier: Apache-2.0
 * RWKV-4 (arXiv:2305.13048): its tensors, its state and one layer. The recurrence: kernels/wkv4.inc.h. */
#include "forward.h"
#include "versions/spec_macros.h"

/* clang-format off */
enum {
    EMB, LN0_WEIGHT, LN0_BIAS,
    LN1_WEIGHT, LN1_BIAS,
    MIX_K, MIX_V, MIX_R,
    RECEPTANCE, KEY, VALUE,
    DECAY, BONUS,
    OUTPUT,
    LN2_WEIGHT, LN2_BIAS,
    FFN_MIX_K, FFN_MIX_R, FFN_KEY, FFN_RECEPTANCE, FFN_VALUE,
    LN_OUT_WEIGHT, LN_OUT_BIAS, HEAD,
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
               .n_dims = 1,
               .shape = {A_},
               .transform = RWKVC_TRANSFORM_NEG_EXP,
               .alternative = "att.time_decay_done",
               .alternative_bit = SOURCE_DECAY_DONE},
    [BONUS] = VECTOR("att.time_first", PLACE_LAYER, A_),
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
};

enum { ATT_SHIFT, FFN_SHIFT, AA, BB, PP, N_STATE };

static const rwkvc_state_spec state[N_STATE] = {
    [ATT_SHIFT] = {"att_shift", 1, {C_}, 0},
    [FFN_SHIFT] = {"ffn_shift", 1, {C_}, 0},
    [AA] = {"aa", 1, {A_}, 0},
    [BB] = {"bb", 1, {A_}, 0},
    [PP] = {"pp", 1, {A_}, -1e38f}, /* log of the scale of aa and bb: nothing so far */
};

static float no_group_norm(const rwkvc_config *config) {
    (void)config;
    return 64e-5f;
}

typedef struct {
    rwkvc_pass *pass;
    uint32_t layer, width, ld;
    float *r, *k, *v; /* [n_tokens, width], rows ld apart */
    rwkvc_input y;
} time_mix;

/* Item: 16 channels of one segment. */
static void wkv_item(void *arg, uint32_t item, uint32_t thread) {
    const time_mix *m = arg;
    const rwkvc_pass *pass = m->pass;
    (void)thread;
    uint32_t blocks = m->width / RWKVC_PANEL, channel = item % blocks * RWKVC_PANEL;
    const rwkvc_segment *segment = &pass->segments[item / blocks];
    uint64_t at = (uint64_t)segment->first * m->ld + channel;
    uint64_t offset = rwkvc_state_offset(pass, m->layer, AA) + channel;
    rwkvc_wkv4 wkv = {
        .tokens = segment->n,
        .ld = m->ld,
        .r = m->r + at,
        .k = m->k + at,
        .v = m->v + at,
        .y = m->y.rows + at,
        .decay = (const float *)rwkvc_layer_tensor(pass->model, m->layer, DECAY)->data + channel,
        .bonus = (const float *)rwkvc_layer_tensor(pass->model, m->layer, BONUS)->data + channel,
        .state_in = segment->state_in + offset,
        .state_out = segment->state_out + offset,
        .part = m->width,
        .state_step = segment->state_step,
    };
    pass->kernels->wkv4(&wkv);
}

static bool run_time_mix(rwkvc_pass *pass, uint32_t layer) {
    const rwkvc_model *model = pass->model;
    time_mix m = {.pass = pass, .layer = layer, .width = model->config.size[A_]};
    m.ld = (uint32_t)rwkvc_row_floats(m.width);
    static const struct {
        uint8_t mix, weight;
    } paths[] = {{MIX_R, RECEPTANCE}, {MIX_K, KEY}, {MIX_V, VALUE}};
    float **out[] = {&m.r, &m.k, &m.v};
    rwkvc_shifted shifted[3];
    rwkvc_linear products[3];
    pass->scratch.used = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const rwkvc_tensor *weight = rwkvc_layer_tensor(model, layer, paths[i].weight);
        *out[i] = rwkvc_take(pass, (uint64_t)pass->n_tokens * m.ld);
        shifted[i] = (rwkvc_shifted){.mix = rwkvc_layer_tensor(model, layer, paths[i].mix),
                                     .input = rwkvc_input_take(pass, weight, pass->n_tokens),
                                     .current_share = true};
        products[i] =
            (rwkvc_linear){weight, &shifted[i].input, *out[i], m.ld, i == 0 ? RWKVC_SIGMOID : RWKVC_STORE, NULL, NULL};
    }
    const rwkvc_tensor *output = rwkvc_layer_tensor(model, layer, OUTPUT);
    m.y = rwkvc_input_take(pass, output, pass->n_tokens);
    uint64_t shift = rwkvc_state_offset(pass, layer, ATT_SHIFT);
    const float *normed = rwkvc_norm(pass, shift, rwkvc_layer_tensor(model, layer, LN1_WEIGHT),
                                     rwkvc_layer_tensor(model, layer, LN1_BIAS));
    if (!normed || !rwkvc_shift(pass, shift, normed, shifted, 3)) return false;
    if (!rwkvc_linear_run(pass, products, 3)) return false;
    if (!rwkvc_parallel(pass->pool, pass->n_segments * (m.width / RWKVC_PANEL), wkv_item, &m)) return false;
    if (!rwkvc_all_ready(pass, &m.y)) return false;
    rwkvc_linear last = {output, &m.y, pass->x, model->config.size[C_], RWKVC_ADD, NULL, NULL};
    return rwkvc_linear_run(pass, &last, 1);
}

static const rwkvc_channel_mix_specs channel_mix = {
    .ln_weight = LN2_WEIGHT,
    .ln_bias = LN2_BIAS,
    .mix_k = FFN_MIX_K,
    .mix_r = FFN_MIX_R,
    .key = FFN_KEY,
    .receptance = FFN_RECEPTANCE,
    .value = FFN_VALUE,
    .shift_part = FFN_SHIFT,
    .current_share = true,
};

static bool layer(rwkvc_pass *pass, uint32_t layer) {
    return run_time_mix(pass, layer) && rwkvc_channel_mix(pass, layer, &channel_mix);
}

static uint64_t scratch_floats(const rwkvc_config *config) {
    uint64_t time = config->size[C_] + 3 * rwkvc_input_floats(config->size[C_], 1) +
                    3 * rwkvc_row_floats(config->size[A_]) + rwkvc_input_floats(config->size[A_], 1);
    uint64_t channel = rwkvc_channel_mix_floats(config);
    return time > channel ? time : channel;
}

const rwkvc_arch rwkvc_arch_rwkv4 = {
    .version = RWKVC_RWKV4,
    .name = "RWKV-4",
    .specs = specs,
    .n_specs = N_SPECS,
    .state = state,
    .n_state = N_STATE,
    .ln_eps = 1e-5f,
    .gn_eps = no_group_norm,
    .scratch_floats = scratch_floats,
    .layer = layer,
    .emb = EMB,
    .ln0_weight = LN0_WEIGHT,
    .ln0_bias = LN0_BIAS,
    .ln_out_weight = LN_OUT_WEIGHT,
    .ln_out_bias = LN_OUT_BIAS,
    .head = HEAD,
};
