/* SPDX-License-Identifier: Apache-2.0
 * RWKV-7 "Goose" (x070; arXiv:2503.14456): its tensors, its state and one layer. The recurrence: kernels/wkv7.inc.h. */
#include "forward.h"
#include "versions/spec_macros.h"

/* clang-format off */
enum {
    EMB, LN0_WEIGHT, LN0_BIAS,
    LN1_WEIGHT, LN1_BIAS,
    X_R, X_W, X_K, X_V, X_A, X_G,
    RECEPTANCE, KEY, VALUE,
    W1, A1, V1, G1,
    W2, A2, V2, G2,
    W0, A0, V0, K_K, K_A, R_K,
    LN_X_WEIGHT, LN_X_BIAS,
    OUTPUT,
    LN2_WEIGHT, LN2_BIAS,
    FFN_X_K, FFN_KEY, FFN_VALUE,
    LN_OUT_WEIGHT, LN_OUT_BIAS, HEAD,
    N_SPECS,
    S_EMB = N_SPECS, S_EMB_X, S1, S2, S0, /* 7a has these too */
    N_SPECS_7A
};
/* clang-format on */

/* In the order they are read. Layer 0 has no value residual: its v0, v1, v2 stand in many checkpoints, unused. */
static const rwkvc_spec specs[N_SPECS_7A] = {
    [EMB] = TENSOR_EMB,
    [LN0_WEIGHT] = VECTOR("blocks.0.ln0.weight", PLACE_BEGIN, C_),
    [LN0_BIAS] = VECTOR("blocks.0.ln0.bias", PLACE_BEGIN, C_),
    [LN1_WEIGHT] = VECTOR("ln1.weight", PLACE_LAYER, C_),
    [LN1_BIAS] = VECTOR("ln1.bias", PLACE_LAYER, C_),
    [X_R] = VECTOR("att.x_r", PLACE_LAYER, C_),
    [X_W] = VECTOR("att.x_w", PLACE_LAYER, C_),
    [X_K] = VECTOR("att.x_k", PLACE_LAYER, C_),
    [X_V] = VECTOR("att.x_v", PLACE_LAYER, C_),
    [X_A] = VECTOR("att.x_a", PLACE_LAYER, C_),
    [X_G] = VECTOR("att.x_g", PLACE_LAYER, C_),
    [RECEPTANCE] = MATRIX("att.receptance.weight", RWKVC_KIND_MATRIX, A_, C_),
    [KEY] = MATRIX("att.key.weight", RWKVC_KIND_MATRIX, A_, C_),
    [VALUE] = MATRIX("att.value.weight", RWKVC_KIND_MATRIX, A_, C_),
    [W1] = LOW_RANK("att.w1", PLACE_LAYER, C_, RWKVC_SIZE_RANK_W),
    [A1] = LOW_RANK("att.a1", PLACE_LAYER, C_, RWKVC_SIZE_RANK_A),
    [V1] = LOW_RANK("att.v1", PLACE_LATER_LAYER, C_, RWKVC_SIZE_RANK_V),
    [G1] = LOW_RANK("att.g1", PLACE_LAYER, C_, RWKVC_SIZE_RANK_G),
    [W2] = LOW_RANK("att.w2", PLACE_LAYER, RWKVC_SIZE_RANK_W, A_),
    [A2] = LOW_RANK("att.a2", PLACE_LAYER, RWKVC_SIZE_RANK_A, A_),
    [V2] = LOW_RANK("att.v2", PLACE_LATER_LAYER, RWKVC_SIZE_RANK_V, A_),
    [G2] = LOW_RANK("att.g2", PLACE_LAYER, RWKVC_SIZE_RANK_G, A_),
    [W0] = VECTOR("att.w0", PLACE_LAYER, A_),
    [A0] = VECTOR("att.a0", PLACE_LAYER, A_),
    [V0] = VECTOR("att.v0", PLACE_LATER_LAYER, A_),
    [K_K] = VECTOR("att.k_k", PLACE_LAYER, A_),
    [K_A] = VECTOR("att.k_a", PLACE_LAYER, A_),
    [R_K] = {.name = "att.r_k", .place = PLACE_LAYER, .kind = RWKVC_KIND_VECTOR, .n_dims = 2, .shape = {H_, N_}},
    [LN_X_WEIGHT] = VECTOR("att.ln_x.weight", PLACE_LAYER, A_),
    [LN_X_BIAS] = VECTOR("att.ln_x.bias", PLACE_LAYER, A_),
    [OUTPUT] = MATRIX("att.output.weight", RWKVC_KIND_MATRIX, C_, A_),
    [LN2_WEIGHT] = VECTOR("ln2.weight", PLACE_LAYER, C_),
    [LN2_BIAS] = VECTOR("ln2.bias", PLACE_LAYER, C_),
    [FFN_X_K] = VECTOR("ffn.x_k", PLACE_LAYER, C_),
    [FFN_KEY] = MATRIX("ffn.key.weight", RWKVC_KIND_MATRIX, F_, C_),
    [FFN_VALUE] = MATRIX("ffn.value.weight", RWKVC_KIND_VALUE, C_, F_),
    [LN_OUT_WEIGHT] = VECTOR("ln_out.weight", PLACE_END, C_),
    [LN_OUT_BIAS] = VECTOR("ln_out.bias", PLACE_END, C_),
    [HEAD] = TENSOR_HEAD,
    /* 7a, DeepEmbed */
    [S_EMB] = {.name = "ffn.s_emb.weight",
               .place = PLACE_LAYER,
               .kind = RWKVC_KIND_EMBEDDING,
               .n_dims = 2,
               .shape = {V_, RWKVC_SIZE_RANK_SS}},
    [S_EMB_X] = MATRIX("ffn.s_emb_x.weight", RWKVC_KIND_MATRIX, RWKVC_SIZE_RANK_SS, C_),
    [S1] = LOW_RANK("ffn.s1", PLACE_LAYER, C_, RWKVC_SIZE_RANK_S),
    [S2] = LOW_RANK("ffn.s2", PLACE_LAYER, RWKVC_SIZE_RANK_S, F_),
    [S0] = VECTOR("ffn.s0", PLACE_LAYER, F_),
};

enum { ATT_SHIFT, FFN_SHIFT, WKV, N_STATE };

static const rwkvc_state_spec state[N_STATE] = {
    [ATT_SHIFT] = {"att_shift", 1, {C_}, 0},
    [FFN_SHIFT] = {"ffn_shift", 1, {C_}, 0},
    [WKV] = {"wkv", 3, {H_, N_, N_}, 0}, /* [head, key channel, value channel] */
};

/* Training normalises y / 8 with 1e-5 (head_size_divisor 8): the same as y with 64e-5. */
static float gn_eps(const rwkvc_config *config) {
    (void)config;
    return 64e-5f;
}

/* ------------------------------------------------------------------------------------ time mix */

enum { R, K, V, W, A, VR, G, N_PATHS }; /* VR: the value residual, which shares x_v with V */

typedef struct {
    rwkvc_pass *pass;
    uint32_t layer, ld;
    float *path[N_PATHS]; /* [n_tokens, attention width], rows ld apart */
    float *kk;
    rwkvc_input y; /* gated output, input of att.output */
} time_mix;

static const float *vector(const time_mix *m, uint32_t spec) {
    return (const float *)rwkvc_layer_tensor(m->pass->model, m->layer, spec)->data;
}

/* Item: one head of one segment. */
static void wkv_item(void *arg, uint32_t item, uint32_t thread) {
    const time_mix *m = arg;
    const rwkvc_pass *pass = m->pass;
    const rwkvc_config *config = &pass->model->config;
    (void)thread;
    uint32_t n = config->size[N_], head = item % config->size[H_];
    const rwkvc_segment *segment = &pass->segments[item / config->size[H_]];
    uint64_t at = (uint64_t)segment->first * m->ld + (uint64_t)head * n, channel = (uint64_t)head * n;
    uint64_t offset = rwkvc_state_offset(pass, m->layer, WKV) + (uint64_t)head * n * n;
    /* clang-format off */
    rwkvc_wkv7 wkv = {
        .tokens = segment->n, .head_size = n, .ld = m->ld,
        .r = m->path[R] + at, .w = m->path[W] + at, .k = m->path[K] + at, .v = m->path[V] + at,
        .a = m->path[A] + at, .kk = m->kk + at, .v_mix = m->layer ? m->path[VR] + at : NULL,
        .v_first = pass->v_first + at, .g = m->path[G] + at, .y = m->y.rows + at,
        .w0 = vector(m, W0) + channel, .a0 = vector(m, A0) + channel,
        .v0 = m->layer ? vector(m, V0) + channel : NULL,
        .k_k = vector(m, K_K) + channel, .k_a = vector(m, K_A) + channel, .r_k = vector(m, R_K) + channel,
        .ln_weight = vector(m, LN_X_WEIGHT) + channel, .ln_bias = vector(m, LN_X_BIAS) + channel,
        .gn_eps = config->gn_eps,
        .state_in = segment->state_in + offset, .state_out = segment->state_out + offset,
        .state_step = segment->state_step,
    };
    /* clang-format on */
    pass->kernels->wkv7(&wkv);
    rwkvc_head_ready(pass, &m->y, segment, head);
}

/* The low-rank pairs: hidden = f(x @ m1) in one region with r, k and v, then hidden @ m2 in the next. */
static const struct {
    uint8_t first, second, from, path, epilogue;
} pairs[] = {
    {W1, W2, 1, W, RWKVC_TANH},
    {A1, A2, 4, A, RWKVC_STORE},
    {G1, G2, 5, G, RWKVC_SIGMOID},
    {V1, V2, 3, VR, RWKVC_STORE}, /* last: layer 0 leaves it out */
};

static bool project(time_mix *m, const rwkvc_shifted *shifted) {
    rwkvc_pass *pass = m->pass;
    uint32_t n_pairs = m->layer ? 4 : 3;
    rwkvc_input hidden[4];
    rwkvc_linear first[7], second[4];
    static const struct {
        uint8_t weight, from, path;
    } main[] = {{RECEPTANCE, 0, R}, {KEY, 2, K}, {VALUE, 3, V}};
    for (uint32_t i = 0; i < 3; i++)
        first[i] = (rwkvc_linear){rwkvc_layer_tensor(pass->model, m->layer, main[i].weight),
                                  &shifted[main[i].from].input,
                                  m->path[main[i].path],
                                  m->ld,
                                  RWKVC_STORE,
                                  NULL,
                                  NULL};
    for (uint32_t i = 0; i < n_pairs; i++) {
        const rwkvc_tensor *m2 = rwkvc_layer_tensor(pass->model, m->layer, pairs[i].second);
        hidden[i] = rwkvc_input_take(pass, m2, pass->n_tokens);
        first[3 + i] = (rwkvc_linear){.weight = rwkvc_layer_tensor(pass->model, m->layer, pairs[i].first),
                                      .input = &shifted[pairs[i].from].input,
                                      .epilogue = (rwkvc_epilogue)pairs[i].epilogue,
                                      .into = &hidden[i]};
        second[i] = (rwkvc_linear){m2, &hidden[i], m->path[pairs[i].path], m->ld, RWKVC_STORE, NULL, NULL};
    }
    return rwkvc_linear_run(pass, first, 3 + n_pairs) && rwkvc_linear_run(pass, second, n_pairs);
}

static bool run_time_mix(rwkvc_pass *pass, uint32_t layer) {
    const rwkvc_model *model = pass->model;
    time_mix m = {.pass = pass, .layer = layer, .ld = (uint32_t)rwkvc_row_floats(model->config.size[A_])};
    static const struct {
        uint8_t mix, weight;
    } blends[] = {{X_R, RECEPTANCE}, {X_W, W1}, {X_K, KEY}, {X_V, VALUE}, {X_A, A1}, {X_G, G1}};
    rwkvc_shifted shifted[6];
    pass->scratch.used = 0;
    for (uint32_t i = 0; i < 6; i++)
        shifted[i] = (rwkvc_shifted){
            .mix = rwkvc_layer_tensor(model, layer, blends[i].mix),
            .input = rwkvc_input_take(pass, rwkvc_layer_tensor(model, layer, blends[i].weight), pass->n_tokens)};
    for (uint32_t i = 0; i < N_PATHS; i++) m.path[i] = rwkvc_take(pass, (uint64_t)pass->n_tokens * m.ld);
    m.kk = rwkvc_take(pass, (uint64_t)pass->n_tokens * m.ld);
    const rwkvc_tensor *output = rwkvc_layer_tensor(model, layer, OUTPUT);
    m.y = rwkvc_input_take(pass, output, pass->n_tokens);

    const float *normed =
        rwkvc_norm(pass, rwkvc_state_offset(pass, layer, ATT_SHIFT), rwkvc_layer_tensor(model, layer, LN1_WEIGHT),
                   rwkvc_layer_tensor(model, layer, LN1_BIAS));
    if (!normed || !rwkvc_shift(pass, rwkvc_state_offset(pass, layer, ATT_SHIFT), normed, shifted, 6)) return false;
    if (!project(&m, shifted)) return false;
    if (!rwkvc_parallel(pass->pool, pass->n_segments * model->config.size[H_], wkv_item, &m)) return false;
    if (!rwkvc_heads_all_ready(pass, &m.y)) return false;
    rwkvc_linear out = {output, &m.y, pass->x, model->config.size[C_], RWKVC_ADD, NULL, NULL};
    return rwkvc_linear_run(pass, &out, 1);
}

/* --------------------------------------------------------------------------------------- layer */

#define CHANNEL_MIX                                                                                                    \
    .ln_weight = LN2_WEIGHT, .ln_bias = LN2_BIAS, .mix_k = FFN_X_K, .key = FFN_KEY, .value = FFN_VALUE,                \
    .shift_part = FFN_SHIFT

static const rwkvc_channel_mix_specs channel_mix = {CHANNEL_MIX};

static bool layer(rwkvc_pass *pass, uint32_t layer) {
    return run_time_mix(pass, layer) && rwkvc_channel_mix(pass, layer, &channel_mix);
}

static uint64_t scratch_floats(const rwkvc_config *config) {
    uint64_t embd = rwkvc_input_floats(config->size[C_], 1), att = config->size[A_];
    uint64_t time = config->size[C_] + 6 * embd + (N_PATHS + 1) * (att + RWKVC_PANEL) + rwkvc_input_floats(att, 1);
    for (uint32_t rank = RWKVC_SIZE_RANK_W; rank <= RWKVC_SIZE_RANK_G; rank++)
        time += rwkvc_input_floats(config->size[rank], 1);
    uint64_t channel = rwkvc_channel_mix_floats(config);
    return time > channel ? time : channel;
}

/* ------------------------------------------------------------------------------ 7a: DeepEmbed */

typedef struct {
    uint32_t layer;
    const float *normed;                     /* ln2's output [n_tokens, n_embd] */
    rwkvc_input embedded, normed_input, low; /* inputs of s_emb_x, s1, s2 */
    float *token, *inner;                    /* [n_tokens, RANK_SS], [n_tokens, RANK_S] */
} deep_embed;

/* inner = h @ reshape(s_emb[token] + s_emb_x · LN(emb[token])), h = normed @ s1 */
static void deep_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const deep_embed *d = arg;
    const rwkvc_tensor *table = rwkvc_layer_tensor(pass->model, d->layer, S_EMB);
    uint32_t rank = pass->model->config.size[RWKVC_SIZE_RANK_S],
             ld = (uint32_t)rwkvc_round_up(table->cols, RWKVC_PANEL);
    for (uint32_t t = first; t < last; t++) {
        float *token = d->token + (uint64_t)t * ld, *row = d->low.rows + (uint64_t)t * d->low.ld;
        const float *h = d->inner + t * rwkvc_round_up(rank, RWKVC_PANEL);
        pass->kernels->embedding_add(table, pass->tokens[t], token);
        for (uint32_t q = 0; q < rank; q++) row[q] = 0;
        for (uint32_t p = 0; p < rank; p++)
            for (uint32_t q = 0; q < rank; q++) row[q] += h[p] * token[p * rank + q];
        rwkvc_input_ready(pass, &d->low, t);
    }
}

static void copy_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    deep_embed *d = arg;
    uint64_t n_embd = pass->model->config.size[C_];
    for (uint32_t t = first; t < last; t++) {
        memcpy(d->embedded.rows + (uint64_t)t * d->embedded.ld, pass->embedded + t * n_embd, n_embd * sizeof(float));
        memcpy(d->normed_input.rows + (uint64_t)t * d->normed_input.ld, d->normed + t * n_embd, n_embd * sizeof(float));
        rwkvc_input_ready(pass, &d->embedded, t);
        rwkvc_input_ready(pass, &d->normed_input, t);
    }
}

typedef struct {
    const rwkvc_input *gate, *hidden;
    const float *s0;
} scale;

static void scale_rows(rwkvc_pass *pass, void *arg, uint32_t first, uint32_t last) {
    const scale *s = arg;
    for (uint32_t t = first; t < last; t++)
        pass->kernels->multiply(s->hidden->rows + (uint64_t)t * s->hidden->ld,
                                s->gate->rows + (uint64_t)t * s->gate->ld, s->s0,
                                (uint32_t)rwkvc_round_up(s->hidden->cols, RWKVC_PANEL));
}

/* k = relu(key)^2 ⊙ (inner @ s2 + s0) */
static bool scale_hidden(rwkvc_pass *pass, uint32_t layer, const float *normed, const rwkvc_input *hidden) {
    const rwkvc_tensor *s_emb_x = rwkvc_layer_tensor(pass->model, layer, S_EMB_X),
                       *s1 = rwkvc_layer_tensor(pass->model, layer, S1);
    const rwkvc_tensor *s2 = rwkvc_layer_tensor(pass->model, layer, S2);
    uint32_t n = pass->n_tokens, token_ld = (uint32_t)rwkvc_round_up(s_emb_x->rows, RWKVC_PANEL);
    uint32_t inner_ld = (uint32_t)rwkvc_round_up(s1->rows, RWKVC_PANEL);
    deep_embed d = {.layer = layer, .normed = normed};
    d.embedded = rwkvc_input_take(pass, s_emb_x, n);
    d.normed_input = rwkvc_input_take(pass, s1, n);
    d.low = rwkvc_input_take(pass, s2, n);
    d.token = rwkvc_take(pass, (uint64_t)n * token_ld);
    d.inner = rwkvc_take(pass, (uint64_t)n * inner_ld);
    rwkvc_input gate = {.rows = rwkvc_take(pass, (uint64_t)n * hidden->ld), .ld = hidden->ld};
    if (!rwkvc_for_rows(pass, n, copy_rows, &d)) return false;
    rwkvc_linear first[] = {{s_emb_x, &d.embedded, d.token, token_ld, RWKVC_STORE, NULL, NULL},
                            {s1, &d.normed_input, d.inner, inner_ld, RWKVC_STORE, NULL, NULL}};
    if (!rwkvc_linear_run(pass, first, 2) || !rwkvc_for_rows(pass, n, deep_rows, &d)) return false;
    rwkvc_linear second = {s2, &d.low, gate.rows, gate.ld, RWKVC_STORE, NULL, NULL};
    if (!rwkvc_linear_run(pass, &second, 1)) return false;
    scale s = {&gate, hidden, (const float *)rwkvc_layer_tensor(pass->model, layer, S0)->data};
    return rwkvc_for_rows(pass, n, scale_rows, &s);
}

static const rwkvc_channel_mix_specs channel_mix_7a = {CHANNEL_MIX, .scale_hidden = scale_hidden};

static bool layer_7a(rwkvc_pass *pass, uint32_t layer) {
    return run_time_mix(pass, layer) && rwkvc_channel_mix(pass, layer, &channel_mix_7a);
}

static uint64_t scratch_floats_7a(const rwkvc_config *config) {
    uint64_t embd = config->size[C_], ranks = rwkvc_round_up(config->size[RWKVC_SIZE_RANK_SS], RWKVC_PANEL);
    return scratch_floats(config) + 2 * rwkvc_input_floats(embd, 1) +
           2 * rwkvc_input_floats(config->size[RWKVC_SIZE_RANK_S], 1) + ranks + rwkvc_input_floats(config->size[F_], 1);
}

#define RWKV7_COMMON                                                                                                   \
    .specs = specs, .state = state, .n_state = N_STATE, .ln_eps = 1e-5f, .gn_eps = gn_eps, .emb = EMB,                 \
    .ln0_weight = LN0_WEIGHT, .ln0_bias = LN0_BIAS, .ln_out_weight = LN_OUT_WEIGHT, .ln_out_bias = LN_OUT_BIAS,        \
    .head = HEAD

const rwkvc_arch rwkvc_arch_rwkv7 = {.version = RWKVC_RWKV7,
                                     .name = "RWKV-7",
                                     .n_specs = N_SPECS,
                                     .scratch_floats = scratch_floats,
                                     .layer = layer,
                                     RWKV7_COMMON};

const rwkvc_arch rwkvc_arch_rwkv7a = {.version = RWKVC_RWKV7A,
                                      .name = "RWKV-7a",
                                      .n_specs = N_SPECS_7A,
                                      .deep_embed = true,
                                      .scratch_floats = scratch_floats_7a,
                                      .layer = layer_7a,
                                      RWKV7_COMMON};
