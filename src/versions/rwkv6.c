/* SPDX-License-Identifier: Apache-2.0
 * RWKV-6 "Finch" (arXiv:2404.05892): its tensors and one layer. The recurrence: kernels/wkv6.inc.h. */
#include "blocks/heads.h"
#include "versions/spec_macros.h"

/* clang-format off */
enum {
    EMB, LN0_WEIGHT, LN0_BIAS,
    LN1_WEIGHT, LN1_BIAS,
    MAA_X, MAA_W, MAA_K, MAA_V, MAA_R, MAA_G,
    MAA_W1, MAA_W2,
    RECEPTANCE, KEY, VALUE, GATE,
    DECAY_W1, DECAY_W2,
    DECAY, BONUS,
    LN_X_WEIGHT, LN_X_BIAS,
    OUTPUT,
    LN2_WEIGHT, LN2_BIAS,
    FFN_MAA_K, FFN_MAA_R, FFN_KEY, FFN_RECEPTANCE, FFN_VALUE,
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
    [MAA_X] = VECTOR("att.time_maa_x", PLACE_LAYER, C_),
    [MAA_W] = VECTOR("att.time_maa_w", PLACE_LAYER, C_),
    [MAA_K] = VECTOR("att.time_maa_k", PLACE_LAYER, C_),
    [MAA_V] = VECTOR("att.time_maa_v", PLACE_LAYER, C_),
    [MAA_R] = VECTOR("att.time_maa_r", PLACE_LAYER, C_),
    [MAA_G] = VECTOR("att.time_maa_g", PLACE_LAYER, C_),
    [MAA_W1] = LOW_RANK("att.time_maa_w1", PLACE_LAYER, C_, RWKVC_SIZE_RANK_M5),
    /* five matrices [rank, n_embd], stored one below the other as [5 n_embd, rank] */
    [MAA_W2] = {.name = "att.time_maa_w2",
                .place = PLACE_LAYER,
                .kind = RWKVC_KIND_LOW_RANK,
                .transposed = 1,
                .n_dims = 3,
                .shape = {RWKVC_SIZE_FIVE, RWKVC_SIZE_RANK_M, C_}},
    [RECEPTANCE] = MATRIX("att.receptance.weight", RWKVC_KIND_MATRIX, A_, C_),
    [KEY] = MATRIX("att.key.weight", RWKVC_KIND_MATRIX, A_, C_),
    [VALUE] = MATRIX("att.value.weight", RWKVC_KIND_MATRIX, A_, C_),
    [GATE] = MATRIX("att.gate.weight", RWKVC_KIND_MATRIX, A_, C_),
    [DECAY_W1] = LOW_RANK("att.time_decay_w1", PLACE_LAYER, C_, RWKVC_SIZE_RANK_W),
    [DECAY_W2] = LOW_RANK("att.time_decay_w2", PLACE_LAYER, RWKVC_SIZE_RANK_W, A_),
    [DECAY] = VECTOR("att.time_decay", PLACE_LAYER, A_),
    [BONUS] =
        {.name = "att.time_faaaa", .place = PLACE_LAYER, .kind = RWKVC_KIND_VECTOR, .n_dims = 2, .shape = {H_, N_}},
    [LN_X_WEIGHT] = VECTOR("att.ln_x.weight", PLACE_LAYER, A_),
    [LN_X_BIAS] = VECTOR("att.ln_x.bias", PLACE_LAYER, A_),
    [OUTPUT] = MATRIX("att.output.weight", RWKVC_KIND_MATRIX, C_, A_),
    [LN2_WEIGHT] = VECTOR("ln2.weight", PLACE_LAYER, C_),
    [LN2_BIAS] = VECTOR("ln2.bias", PLACE_LAYER, C_),
    [FFN_MAA_K] = VECTOR("ffn.time_maa_k", PLACE_LAYER, C_),
    [FFN_MAA_R] = VECTOR("ffn.time_maa_r", PLACE_LAYER, C_),
    [FFN_KEY] = MATRIX("ffn.key.weight", RWKVC_KIND_MATRIX, F_, C_),
    [FFN_RECEPTANCE] = MATRIX("ffn.receptance.weight", RWKVC_KIND_MATRIX, C_, C_),
    [FFN_VALUE] = MATRIX("ffn.value.weight", RWKVC_KIND_VALUE, C_, F_),
    [LN_OUT_WEIGHT] = VECTOR("ln_out.weight", PLACE_END, C_),
    [LN_OUT_BIAS] = VECTOR("ln_out.bias", PLACE_END, C_),
    [HEAD] = TENSOR_HEAD,
};

static float gn_eps(const rwkvc_config *config) { /* as in RWKV-7 */
    (void)config;
    return 64e-5f;
}

static const rwkvc_head_specs head_specs = {
    .decay = DECAY, .bonus = BONUS, .ln_x_weight = LN_X_WEIGHT, .ln_x_bias = LN_X_BIAS};

/* The five blends, in the order in which time_maa_w1 and w2 have them. */
enum { W, K, V, R, G, N_BLENDS };
static const struct {
    uint8_t maa, weight;
} blends[N_BLENDS] = {
    [W] = {MAA_W, DECAY_W1}, [K] = {MAA_K, KEY}, [V] = {MAA_V, VALUE}, [R] = {MAA_R, RECEPTANCE}, [G] = {MAA_G, GATE}};

typedef struct {
    const float *z;
    uint32_t ld;
    rwkvc_input inputs[N_BLENDS];
} slices;

static void slice_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const slices *s = arg;
    uint32_t rank = pass->model->config.size[RWKVC_SIZE_RANK_M];
    for (uint32_t t = first; t < last; t++)
        for (uint32_t n = 0; n < N_BLENDS; n++) {
            memcpy(s->inputs[n].rows + (uint64_t)t * s->inputs[n].ld, s->z + (uint64_t)t * s->ld + n * rank,
                   rank * sizeof *s->z);
            rwkvc_input_ready(pass, &s->inputs[n], t);
        }
}

/* extra[n] = tanh(shifted_x @ w1)_n @ w2_n: what each token adds to the blends' own shares. */
static bool data_dependent_shift(rwkvc_pass *pass, uint32_t layer, uint64_t shift, const float *normed, float **extra) {
    const rwkvc_model *model = pass->model;
    const rwkvc_tensor *w1 = rwkvc_layer_tensor(model, layer, MAA_W1), *w2 = rwkvc_layer_tensor(model, layer, MAA_W2);
    uint32_t n_embd = model->config.size[C_], rank = model->config.size[RWKVC_SIZE_RANK_M];
    rwkvc_shifted x = {.mix = rwkvc_layer_tensor(model, layer, MAA_X),
                       .input = rwkvc_input_take(pass, w1, pass->n_tokens)};
    slices s = {.ld = (uint32_t)rwkvc_round_up(w1->rows, RWKVC_PANEL)};
    float *z = rwkvc_take(pass, (uint64_t)pass->n_tokens * s.ld);
    s.z = z;
    if (!rwkvc_shift(pass, shift, normed, &x, 1)) return false;
    rwkvc_linear first = {w1, &x.input, z, s.ld, RWKVC_TANH, NULL, NULL};
    if (!rwkvc_linear_run(pass, &first, 1)) return false;
    rwkvc_tensor weights[N_BLENDS];
    rwkvc_linear products[N_BLENDS];
    for (uint32_t n = 0; n < N_BLENDS; n++) {
        weights[n] = *w2;
        weights[n].rows = n_embd;
        weights[n].data = w2->data + n * rwkvc_packed_bytes(w2->kind, w2->format, n_embd, rank);
        s.inputs[n] = rwkvc_input_take(pass, &weights[n], pass->n_tokens);
        products[n] = (rwkvc_linear){&weights[n], &s.inputs[n], extra[n], n_embd, RWKVC_STORE, NULL, NULL};
    }
    return rwkvc_for_rows(pass, pass->n_tokens, slice_rows, &s) && rwkvc_linear_run(pass, products, N_BLENDS);
}

static bool run_time_mix(rwkvc_pass *pass, uint32_t layer) {
    const rwkvc_model *model = pass->model;
    uint64_t ld = rwkvc_row_floats(model->config.size[A_]), n_embd = model->config.size[C_], tokens = pass->n_tokens;
    uint64_t shift = rwkvc_state_offset(pass, layer, RWKVC_ATT_SHIFT);
    pass->scratch.used = 0;
    rwkvc_heads heads = {.pass = pass, .layer = layer, .specs = &head_specs};
    const rwkvc_tensor *w2 = rwkvc_layer_tensor(model, layer, DECAY_W2);
    rwkvc_input decay = rwkvc_input_take(pass, w2, pass->n_tokens);
    float **path[N_BLENDS] = {[W] = &heads.w, [K] = &heads.k, [V] = &heads.v, [R] = &heads.r, [G] = &heads.g};
    float *extra[N_BLENDS];
    rwkvc_shifted shifted[N_BLENDS];
    rwkvc_linear products[N_BLENDS];
    for (uint32_t n = 0; n < N_BLENDS; n++) {
        const rwkvc_tensor *weight = rwkvc_layer_tensor(model, layer, blends[n].weight);
        *path[n] = rwkvc_take(pass, tokens * ld);
        extra[n] = rwkvc_take(pass, tokens * n_embd);
        shifted[n] = (rwkvc_shifted){.mix = rwkvc_layer_tensor(model, layer, blends[n].maa),
                                     .input = rwkvc_input_take(pass, weight, pass->n_tokens),
                                     .extra = extra[n]};
        products[n] = (rwkvc_linear){weight, &shifted[n].input, *path[n], ld, RWKVC_STORE, NULL, NULL};
    }
    products[W].into = &decay;
    products[W].epilogue = RWKVC_TANH;
    const float *normed = rwkvc_norm(pass, shift, rwkvc_layer_tensor(model, layer, LN1_WEIGHT),
                                     rwkvc_layer_tensor(model, layer, LN1_BIAS));
    if (!normed || !data_dependent_shift(pass, layer, shift, normed, extra)) return false;
    if (!rwkvc_shift(pass, shift, normed, shifted, N_BLENDS) || !rwkvc_linear_run(pass, products, N_BLENDS))
        return false;
    rwkvc_linear second = {w2, &decay, heads.w, ld, RWKVC_STORE, NULL, NULL};
    return rwkvc_linear_run(pass, &second, 1) && rwkvc_heads_run(&heads, rwkvc_layer_tensor(model, layer, OUTPUT));
}

static const rwkvc_channel_mix_specs channel_mix = {
    .ln_weight = LN2_WEIGHT,
    .ln_bias = LN2_BIAS,
    .mix_k = FFN_MAA_K,
    .mix_r = FFN_MAA_R,
    .key = FFN_KEY,
    .receptance = FFN_RECEPTANCE,
    .value = FFN_VALUE,
    .shift_part = RWKVC_FFN_SHIFT,
};

static bool layer(rwkvc_pass *pass, uint32_t layer) {
    return run_time_mix(pass, layer) && rwkvc_channel_mix(pass, layer, &channel_mix);
}

static uint64_t scratch_floats(const rwkvc_config *config) {
    const uint32_t *size = config->size;
    uint64_t time = size[C_] + 6 * rwkvc_input_floats(size[C_], 1) + N_BLENDS * (uint64_t)size[C_] +
                    rwkvc_round_up(size[RWKVC_SIZE_RANK_M5], RWKVC_PANEL) +
                    N_BLENDS * rwkvc_input_floats(size[RWKVC_SIZE_RANK_M], 1) +
                    rwkvc_input_floats(size[RWKVC_SIZE_RANK_W], 1) + rwkvc_heads_floats(config);
    uint64_t channel = rwkvc_channel_mix_floats(config);
    return time > channel ? time : channel;
}

const rwkvc_arch rwkvc_arch_rwkv6 = {
    .version = RWKVC_RWKV6,
    .name = "RWKV-6",
    .specs = specs,
    .n_specs = N_SPECS,
    .state = rwkvc_heads_state,
    .n_state = RWKVC_HEADS_STATE,
    .ln_eps = 1e-5f,
    .gn_eps = gn_eps,
    .scratch_floats = scratch_floats,
    .layer = layer,
    .emb = EMB,
    .ln0_weight = LN0_WEIGHT,
    .ln0_bias = LN0_BIAS,
    .ln_out_weight = LN_OUT_WEIGHT,
    .ln_out_bias = LN_OUT_BIAS,
    .head = HEAD,
};
