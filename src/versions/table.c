/* SPDX-License-Identifier: Apache-2.0
 * The list of versions; recognising one in a checkpoint; enumerating its tensors. */
#include "versions/table.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

static const rwkvc_arch *const archs[] = {&rwkvc_arch_rwkv4,   &rwkvc_arch_rwkv5_0, &rwkvc_arch_rwkv5_1,
                                          &rwkvc_arch_rwkv5_2, &rwkvc_arch_rwkv6,   &rwkvc_arch_rwkv7,
                                          &rwkvc_arch_rwkv7a};
enum { N_ARCHS = sizeof archs / sizeof *archs, MAX_LAYERS = 1024, MAX_TEXT = 96 };

/* What tells versions apart, first match wins (ARCHITECTURES: "Version from tensors"). All of `present` are there,
 * `absent` is not; head_decay: the decay is [n_head]. */
typedef struct {
    const char *present[3], *absent;
    bool head_decay;
    uint32_t version; /* 0: refused */
    const char *refusal;
} signature;

#define REFUSED(name, why) {{name}, NULL, false, 0, why}
#define DECAY "blocks.0.att.time_decay"
#define LN_X "blocks.0.att.ln_x.weight"
#define GATE "blocks.0.att.gate.weight"

static const signature signatures[] = {
    REFUSED("blocks.0.qkv.qq.weight", "RWKV-7b (DEA: attention with a cache that grows with the text)"),
    {{"blocks.0.ffn.s_emb.weight", "blocks.0.att.r_k"}, NULL, false, RWKVC_RWKV7A, NULL},
    REFUSED("blocks.0.att.tiny_ln.weight", "RWKV-4a (experimental: tiny attention)"),
    REFUSED("blocks.0.tiny_ln.weight", "RWKV-4a (experimental: tiny attention)"),
    REFUSED("head_q.weight", "a model with head_q and head_k (experimental)"),
    {{"blocks.0.att.r_k"}, NULL, false, RWKVC_RWKV7, NULL},
    REFUSED("blocks.0.att.time_maa_rkvw_w1", "RWKV-6b or 6c (experimental)"),
    {{"blocks.0.att.gate_w1"}, GATE, false, 0, "RWKV-6a (experimental)"},
    {{"blocks.0.att.time_maa_x", "blocks.0.att.time_maa_w1"}, NULL, false, RWKVC_RWKV6, NULL},
    {{LN_X, GATE, DECAY}, NULL, true, RWKVC_RWKV5_1, NULL},
    {{LN_X, GATE, DECAY "_done"}, NULL, true, RWKVC_RWKV5_1, NULL},
    {{LN_X, GATE}, NULL, false, RWKVC_RWKV5_2, NULL},
    {{LN_X}, NULL, false, RWKVC_RWKV5_0, NULL},
    {{DECAY}, NULL, false, RWKVC_RWKV4, NULL},
    {{DECAY "_done"}, NULL, false, RWKVC_RWKV4, NULL},
};
enum { N_SIGNATURES = sizeof signatures / sizeof *signatures };

static const char *const size_names[RWKVC_MAX_SIZES] = {
    [RWKVC_SIZE_VOCAB] = "n_vocab",
    [RWKVC_SIZE_EMBD] = "n_embd",
    [RWKVC_SIZE_ATT] = "attention width",
    [RWKVC_SIZE_FFN] = "n_ffn",
    [RWKVC_SIZE_HEADS] = "n_head",
    [RWKVC_SIZE_HEAD] = "head_size",
    [RWKVC_SIZE_RANK_W] = "rank of w",
    [RWKVC_SIZE_RANK_A] = "rank of a",
    [RWKVC_SIZE_RANK_V] = "rank of v",
    [RWKVC_SIZE_RANK_G] = "rank of g",
    [RWKVC_SIZE_RANK_M] = "rank of the token shift",
    [RWKVC_SIZE_RANK_M5] = "five ranks of the token shift",
    [RWKVC_SIZE_RANK_S] = "rank of s",
    [RWKVC_SIZE_RANK_SS] = "squared rank of s",
    [RWKVC_SIZE_FIVE] = "five",
};

const rwkvc_arch *rwkvc_arch_get(uint32_t version) {
    for (int i = 0; i < N_ARCHS; i++)
        if (archs[i]->version == version) return archs[i];
    return NULL;
}

const char *rwkvc_version_name(uint32_t version) {
    const rwkvc_arch *arch = rwkvc_arch_get(version);
    return arch ? arch->name : "unknown";
}

/* ------------------------------------------------------------------------- enumerating tensors */

static bool in_layer(const rwkvc_spec *spec, uint32_t layer) {
    return spec->place == PLACE_LAYER || (spec->place == PLACE_LATER_LAYER && layer > 0);
}

/* The number of specs of a layer (PLACE_LAYER), or of a place. */
static uint32_t count(const rwkvc_arch *arch, rwkvc_place place, uint32_t layer) {
    uint32_t n = 0;
    for (uint32_t s = 0; s < arch->n_specs; s++)
        n += place == PLACE_LAYER ? in_layer(&arch->specs[s], layer) : arch->specs[s].place == place;
    return n;
}

static uint32_t nth(const rwkvc_arch *arch, rwkvc_place place, uint32_t layer, uint32_t n) {
    for (uint32_t s = 0; s < arch->n_specs; s++)
        if ((place == PLACE_LAYER ? in_layer(&arch->specs[s], layer) : arch->specs[s].place == place) && n-- == 0)
            return s;
    return 0;
}

/* The tensors of a version are numbered as they lie in the file: PLACE_BEGIN, each layer's, PLACE_END. Gives the spec
 * and layer of number i. */
static bool tensor_at(const rwkvc_arch *arch, uint32_t n_layer, uint32_t i, uint32_t *spec, uint32_t *layer) {
    uint32_t before = count(arch, PLACE_BEGIN, 0), first = count(arch, PLACE_LAYER, 0),
             later = count(arch, PLACE_LAYER, 1);
    *layer = (uint32_t)RWKVC_NO_LAYER;
    if (i < before) return *spec = nth(arch, PLACE_BEGIN, 0, i), true;
    i -= before;
    if (i >= first + (n_layer - 1) * later) {
        i -= first + (n_layer - 1) * later;
        return *spec = nth(arch, PLACE_END, 0, i), i < count(arch, PLACE_END, 0);
    }
    *layer = i < first ? 0 : 1 + (i - first) / later;
    *spec = nth(arch, PLACE_LAYER, *layer, i < first ? i : (i - first) % later);
    return true;
}

static void full_name(const char *name, uint32_t layer, char *full) {
    if (layer == (uint32_t)RWKVC_NO_LAYER)
        snprintf(full, RWKVC_MAX_NAME, "%s", name);
    else
        snprintf(full, RWKVC_MAX_NAME, "blocks.%u.%s", layer, name);
}

uint32_t rwkvc_config_tensors(const rwkvc_config *config) {
    const rwkvc_arch *arch = rwkvc_arch_get(config->version);
    if (!arch || config->n_layer < 1 || config->n_layer > MAX_LAYERS) return 0;
    return count(arch, PLACE_BEGIN, 0) + count(arch, PLACE_LAYER, 0) +
           (config->n_layer - 1) * count(arch, PLACE_LAYER, 1) + count(arch, PLACE_END, 0);
}

rwkvc_status rwkvc_config_tensor(const rwkvc_config *config, uint32_t i, rwkvc_tensor_info *info) {
    const rwkvc_arch *arch = rwkvc_arch_get(config->version);
    uint32_t spec_index, layer;
    if (!arch || i >= rwkvc_config_tensors(config) || !tensor_at(arch, config->n_layer, i, &spec_index, &layer))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no tensor number %u", i);
    const rwkvc_spec *spec = &arch->specs[spec_index];
    bool alternative = spec->alternative && (config->source & spec->alternative_bit);
    memset(info, 0, sizeof *info);
    full_name(spec->name, layer, info->name);
    full_name(alternative ? spec->alternative : spec->name, layer, info->source);
    info->transform = alternative ? spec->alternative_transform : spec->transform;
    info->kind = spec->kind;
    info->format = RWKVC_FORMAT_F32;
    info->layer = layer;
    info->transposed = spec->transposed;
    info->n_dims = spec->n_dims;
    uint64_t elements = 1;
    for (uint32_t d = 0; d < spec->n_dims; d++) elements *= info->shape[d] = config->size[spec->shape[d]];
    if (spec->kind == RWKVC_KIND_VECTOR) {
        info->rows = 1;
        info->cols = elements;
    } else if (spec->n_dims == 3) { /* a stack of matrices [n, in, out] */
        info->rows = info->shape[0] * info->shape[2];
        info->cols = info->shape[1];
    } else {
        info->rows = info->shape[spec->transposed ? 1 : 0];
        info->cols = info->shape[spec->transposed ? 0 : 1];
    }
    return RWKVC_OK;
}

/* ------------------------------------------------------------------------------- recognising */

static int by_name(const void *a, const void *b) {
    return strcmp((*(const rwkvc_named_shape *const *)a)->name, (*(const rwkvc_named_shape *const *)b)->name);
}

typedef struct {
    const rwkvc_named_shape **sorted;
    uint32_t n;
} names;

static const rwkvc_named_shape *find(const names *all, const char *name) {
    rwkvc_named_shape key = {.name = name}, *key_pointer = &key;
    const rwkvc_named_shape **hit = bsearch(&key_pointer, all->sorted, all->n, sizeof *all->sorted, by_name);
    return hit ? *hit : NULL;
}

static uint32_t count_layers(const names *all) {
    uint32_t n_layer = 0;
    for (uint32_t i = 0; i < all->n; i++) {
        const char *name = all->sorted[i]->name;
        if (strncmp(name, "blocks.", 7) != 0 || !isdigit((unsigned char)name[7])) continue;
        char *end;
        unsigned long layer = strtoul(name + 7, &end, 10);
        if (*end == '.' && layer < MAX_LAYERS && layer + 1 > n_layer) n_layer = (uint32_t)layer + 1;
    }
    return n_layer;
}

static uint32_t long_dims(const rwkvc_named_shape *tensor) {
    uint32_t n = 0;
    for (uint32_t d = 0; d < tensor->n_dims && d < RWKVC_MAX_DIMS; d++) n += tensor->shape[d] != 1;
    return n;
}

static bool matches(const names *all, const signature *s) {
    for (int i = 0; i < 3 && s->present[i]; i++)
        if (!find(all, s->present[i])) return false;
    if (s->absent && find(all, s->absent)) return false;
    return !s->head_decay || long_dims(find(all, s->present[2])) <= 1;
}

static rwkvc_status choose(const names *all, const rwkvc_arch **arch) {
    for (int i = 0; i < N_SIGNATURES; i++) {
        const signature *s = &signatures[i];
        if (!matches(all, s)) continue;
        if (s->version == 0)
            return rwkvc_fail(RWKVC_E_UNSUPPORTED,
                              "this is %s (it holds %s), which this version of rwkv_cpu does not run", s->refusal,
                              s->present[0]);
        *arch = rwkvc_arch_get(s->version);
        return RWKVC_OK;
    }
    if (count_layers(all) == 0) return rwkvc_fail(RWKVC_E_UNSUPPORTED, "no RWKV model: no tensor is called blocks.0.…");
    return rwkvc_fail(RWKVC_E_UNSUPPORTED, "no version of RWKV is known whose first layer has these tensors");
}

static void shape_text(const uint64_t *shape, uint32_t n_dims, char *text) {
    int at = snprintf(text, MAX_TEXT, "[");
    for (uint32_t d = 0; d < n_dims && at < MAX_TEXT - 24; d++)
        at += snprintf(text + at, (size_t)(MAX_TEXT - at), "%s%llu", d ? ", " : "", (unsigned long long)shape[d]);
    snprintf(text + at, (size_t)(MAX_TEXT - at), "]");
}

/* The shape without singleton dimensions, as far as that is needed to have n_dims of them. */
static uint32_t squeeze(const rwkvc_named_shape *tensor, uint32_t n_dims, uint64_t *shape) {
    uint32_t n = tensor->n_dims < RWKVC_MAX_DIMS ? tensor->n_dims : RWKVC_MAX_DIMS, drop = n > n_dims ? n - n_dims : 0;
    uint32_t kept = 0;
    for (uint32_t d = 0; d < n; d++) {
        if (drop && tensor->shape[d] == 1)
            drop--;
        else
            shape[kept++] = tensor->shape[d];
    }
    return kept;
}

/* Fit one tensor's shape to its spec; sizes still unknown (0) are taken from it. */
static rwkvc_status fit(rwkvc_config *config, const rwkvc_spec *spec, const rwkvc_named_shape *tensor) {
    uint64_t shape[RWKVC_MAX_DIMS], expected[RWKVC_MAX_DIMS] = {0};
    bool per_head = spec->per_head && long_dims(tensor) <= 1;
    uint32_t spec_dims = per_head ? 1 : spec->n_dims, n_dims = squeeze(tensor, spec_dims, shape);
    bool fits = n_dims == spec_dims;
    for (uint32_t d = 0; d < spec_dims; d++) {
        uint32_t *size = &config->size[spec->shape[d]];
        if (fits && *size == 0 && shape[d] > 0 && shape[d] <= INT32_MAX) *size = (uint32_t)shape[d];
        expected[d] = *size;
    }
    for (uint32_t d = 0; fits && d < n_dims; d++) fits = shape[d] == expected[d];
    if (fits) return RWKVC_OK;
    char got[MAX_TEXT], want[MAX_TEXT];
    shape_text(tensor->shape, tensor->n_dims < RWKVC_MAX_DIMS ? tensor->n_dims : RWKVC_MAX_DIMS, got);
    shape_text(expected, spec_dims, want);
    return rwkvc_fail(RWKVC_E_SHAPE, "%s is %s, expected %s", tensor->name, got, want);
}

static rwkvc_status fit_all(const names *all, const rwkvc_arch *arch, rwkvc_config *config) {
    uint32_t n = rwkvc_config_tensors(config);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t spec, layer;
        char name[RWKVC_MAX_NAME];
        if (!tensor_at(arch, config->n_layer, i, &spec, &layer)) break;
        const rwkvc_spec *wanted = &arch->specs[spec];
        full_name(wanted->name, layer, name);
        const rwkvc_named_shape *tensor = (config->source & wanted->alternative_bit) ? NULL : find(all, name);
        if (!tensor && wanted->alternative) {
            char other[RWKVC_MAX_NAME];
            full_name(wanted->alternative, layer, other);
            tensor = find(all, other);
            if (tensor) config->source |= wanted->alternative_bit;
        }
        if (!tensor) return rwkvc_fail(RWKVC_E_SHAPE, "%s is missing (%s needs it)", name, arch->name);
        rwkvc_status status = fit(config, wanted, tensor);
        if (status) return status;
    }
    /* where decay and bonus are one number a head, no shape tells the head's size */
    uint32_t *size = config->size;
    if (size[RWKVC_SIZE_HEAD] == 0 && size[RWKVC_SIZE_HEADS])
        size[RWKVC_SIZE_HEAD] = size[RWKVC_SIZE_ATT] / size[RWKVC_SIZE_HEADS];
    return RWKVC_OK;
}

rwkvc_status rwkvc_config_check(const rwkvc_config *config) {
    const rwkvc_arch *arch = rwkvc_arch_get(config->version);
    if (!arch) return rwkvc_fail(RWKVC_E_UNSUPPORTED, "architecture 0x%x is unknown to this engine", config->version);
    if (config->n_layer < 1 || config->n_layer > MAX_LAYERS)
        return rwkvc_fail(RWKVC_E_SHAPE, "%u layers: expected 1 to %d", config->n_layer, MAX_LAYERS);
    const uint32_t *size = config->size;
    for (uint32_t s = 0; s < arch->n_specs; s++)
        for (uint32_t d = 0; d < arch->specs[s].n_dims; d++) {
            uint32_t symbol = arch->specs[s].shape[d];
            /* the rank of v exists from the second layer on only */
            if (size[symbol] == 0 && !(arch->specs[s].place == PLACE_LATER_LAYER && config->n_layer == 1))
                return rwkvc_fail(RWKVC_E_SHAPE, "%s is 0", size_names[symbol]);
            /* items of a region, heads or panels times sequences, stay within 32 bits */
            if (size[symbol] >= (symbol == RWKVC_SIZE_VOCAB || symbol == RWKVC_SIZE_RANK_SS ? 1u << 24 : 1u << 20))
                return rwkvc_fail(RWKVC_E_SHAPE, "%s is %u: too large", size_names[symbol], size[symbol]);
        }
    if (size[RWKVC_SIZE_HEADS] && (uint64_t)size[RWKVC_SIZE_HEADS] * size[RWKVC_SIZE_HEAD] != size[RWKVC_SIZE_ATT])
        return rwkvc_fail(RWKVC_E_SHAPE, "%u heads of size %u do not make the attention width %u",
                          size[RWKVC_SIZE_HEADS], size[RWKVC_SIZE_HEAD], size[RWKVC_SIZE_ATT]);
    if (size[RWKVC_SIZE_RANK_M5] != 5 * size[RWKVC_SIZE_RANK_M] ||
        (size[RWKVC_SIZE_FIVE] && size[RWKVC_SIZE_FIVE] != 5) ||
        size[RWKVC_SIZE_RANK_SS] != size[RWKVC_SIZE_RANK_S] * size[RWKVC_SIZE_RANK_S] || size[RWKVC_SIZE_RANK_S] > 4096)
        return rwkvc_fail(RWKVC_E_SHAPE, "the ranks %u and %u, %u and %u do not fit together", size[RWKVC_SIZE_RANK_M],
                          size[RWKVC_SIZE_RANK_M5], size[RWKVC_SIZE_RANK_S], size[RWKVC_SIZE_RANK_SS]);
    if (size[RWKVC_SIZE_HEADS] > UINT16_MAX)
        return rwkvc_fail(RWKVC_E_SHAPE, "%u heads: at most %u", size[RWKVC_SIZE_HEADS], UINT16_MAX);
    if (size[RWKVC_SIZE_EMBD] % RWKVC_PANEL || size[RWKVC_SIZE_ATT] % RWKVC_PANEL || size[RWKVC_SIZE_HEAD] > 512)
        return rwkvc_fail(
            RWKVC_E_UNSUPPORTED,
            "n_embd %u, attention width %u, head_size %u: widths must be multiples of 16, heads at most 512",
            size[RWKVC_SIZE_EMBD], size[RWKVC_SIZE_ATT], size[RWKVC_SIZE_HEAD]);
    return RWKVC_OK;
}

rwkvc_status rwkvc_config_detect(const rwkvc_named_shape *tensors, uint32_t n, rwkvc_config *config) {
    names all = {calloc(n ? n : 1, sizeof *all.sorted), n};
    if (!all.sorted) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory for %u tensor names", n);
    for (uint32_t i = 0; i < n; i++) all.sorted[i] = &tensors[i];
    qsort(all.sorted, n, sizeof *all.sorted, by_name);
    const rwkvc_arch *arch = NULL;
    rwkvc_status status = choose(&all, &arch);
    if (!status) {
        memset(config, 0, sizeof *config);
        config->version = arch->version;
        config->n_layer = count_layers(&all);
        config->size[RWKVC_SIZE_ONE] = 1;
        config->size[RWKVC_SIZE_FIVE] = arch->version == RWKVC_RWKV6 ? 5 : 0;
        status = fit_all(&all, arch, config);
    }
    if (!status) {
        config->ln_eps = arch->ln_eps;
        config->gn_eps = arch->gn_eps(config);
        status = rwkvc_config_check(config);
    }
    free(all.sorted);
    return status;
}

/* -------------------------------------------------------------------------------------- state */

uint64_t rwkvc_state_part_floats(const rwkvc_arch *arch, const rwkvc_config *config, uint32_t part) {
    uint64_t floats = 1;
    for (uint32_t d = 0; d < arch->state[part].n_dims; d++) floats *= config->size[arch->state[part].shape[d]];
    return floats;
}

uint64_t rwkvc_state_layer_floats(const rwkvc_arch *arch, const rwkvc_config *config) {
    uint64_t floats = 0;
    for (uint32_t part = 0; part < arch->n_state; part++) floats += rwkvc_state_part_floats(arch, config, part);
    return floats;
}
