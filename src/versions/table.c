/* SPDX-License-Identifier: Apache-2.0
 * The list of versions; recognising one in a checkpoint; enumerating its tensors. */
#include "versions/table.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

static const rwkvc_arch *const archs[] = {&rwkvc_arch_rwkv7};
enum { N_ARCHS = sizeof archs / sizeof *archs, MAX_LAYERS = 1024, MAX_TEXT = 96 };

/* What tells versions apart, first match wins (ARCHITECTURES: "Version from tensors"). */
typedef struct {
    const char *present[2], *absent;
    uint32_t version; /* 0: refused */
    const char *refusal;
} signature;

static const signature signatures[] = {
    {{"blocks.0.qkv.qq.weight", NULL}, NULL, 0, "RWKV-7b (DEA: attention with a cache that grows with the text)"},
    {{"blocks.0.ffn.s_emb.weight", NULL}, NULL, 0, "RWKV-7a (DeepEmbed)"},
    {{"blocks.0.att.tiny_ln.weight", NULL}, NULL, 0, "RWKV-4a (experimental: tiny attention)"},
    {{"blocks.0.tiny_ln.weight", NULL}, NULL, 0, "RWKV-4a (experimental: tiny attention)"},
    {{"head_q.weight", NULL}, NULL, 0, "a model with head_q/head_k (experimental)"},
    {{"blocks.0.att.r_k", NULL}, NULL, RWKVC_RWKV7, NULL},
    {{"blocks.0.att.time_maa_rkvw_w1", NULL}, NULL, 0, "RWKV-6b/6c (experimental)"},
    {{"blocks.0.att.gate_w1", NULL}, "blocks.0.att.gate.weight", 0, "RWKV-6a (experimental)"},
    {{"blocks.0.att.time_maa_x", NULL}, NULL, 0, "RWKV-6"},
    {{"blocks.0.att.ln_x.weight", "blocks.0.att.time_decay"}, NULL, 0, "RWKV-5"},
    {{"blocks.0.att.time_decay", NULL}, NULL, 0, "RWKV-4"},
};
enum { N_SIGNATURES = sizeof signatures / sizeof *signatures };

static const char *const size_names[RWKVC_MAX_SIZES] = {
    [RWKVC_SIZE_VOCAB] = "n_vocab",   [RWKVC_SIZE_EMBD] = "n_embd",     [RWKVC_SIZE_ATT] = "attention width",
    [RWKVC_SIZE_FFN] = "n_ffn",       [RWKVC_SIZE_HEADS] = "n_head",    [RWKVC_SIZE_HEAD] = "head_size",
    [RWKVC_SIZE_RANK_W] = "rank of w", [RWKVC_SIZE_RANK_A] = "rank of a", [RWKVC_SIZE_RANK_V] = "rank of v",
    [RWKVC_SIZE_RANK_G] = "rank of g",
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

/* The tensors of a version are numbered as they lie in the file: model tensors before the layers, each layer's,
 * the rest. Gives the spec and layer of number i. */
static bool tensor_at(const rwkvc_arch *arch, uint32_t n_layer, uint32_t i, uint32_t *spec, uint32_t *layer) {
    uint32_t first = 0, last = arch->n_specs, later = 0;
    while (arch->specs[first].place == PLACE_MODEL) first++;
    while (arch->specs[last - 1].place == PLACE_MODEL) last--;
    for (uint32_t s = first; s < last; s++) later += arch->specs[s].place == PLACE_LATER_LAYER;
    uint32_t in_first = last - first - later, in_later = last - first;
    *layer = (uint32_t)RWKVC_NO_LAYER;
    if (i < first) return *spec = i, true;
    i -= first;
    uint32_t in_layers = in_first + (n_layer - 1) * in_later;
    if (i >= in_layers) {
        *spec = last + (i - in_layers);
        return *spec < arch->n_specs;
    }
    if (i < in_first) {
        *layer = 0;
        for (uint32_t s = first; s < last; s++)
            if (arch->specs[s].place == PLACE_LAYER && i-- == 0) return *spec = s, true;
    }
    *layer = 1 + (i - in_first) / in_later;
    *spec = first + (i - in_first) % in_later;
    return true;
}

static void tensor_name(const rwkvc_spec *spec, uint32_t layer, char *name) {
    if (layer == (uint32_t)RWKVC_NO_LAYER)
        snprintf(name, RWKVC_MAX_NAME, "%s", spec->name);
    else
        snprintf(name, RWKVC_MAX_NAME, "blocks.%u.%s", layer, spec->name);
}

uint32_t rwkvc_config_tensors(const rwkvc_config *config) {
    const rwkvc_arch *arch = rwkvc_arch_get(config->version);
    if (!arch || config->n_layer < 1 || config->n_layer > MAX_LAYERS) return 0;
    uint32_t n = 0;
    for (uint32_t s = 0; s < arch->n_specs; s++) {
        uint8_t place = arch->specs[s].place;
        n += place == PLACE_MODEL ? 1 : place == PLACE_LAYER ? config->n_layer : config->n_layer - 1;
    }
    return n;
}

rwkvc_status rwkvc_config_tensor(const rwkvc_config *config, uint32_t i, rwkvc_tensor_info *info) {
    const rwkvc_arch *arch = rwkvc_arch_get(config->version);
    uint32_t spec_index, layer;
    if (!arch || i >= rwkvc_config_tensors(config) || !tensor_at(arch, config->n_layer, i, &spec_index, &layer))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no tensor number %u", i);
    const rwkvc_spec *spec = &arch->specs[spec_index];
    memset(info, 0, sizeof *info);
    tensor_name(spec, layer, info->name);
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

static rwkvc_status choose(const names *all, const rwkvc_arch **arch) {
    for (int i = 0; i < N_SIGNATURES; i++) {
        const signature *s = &signatures[i];
        if (!find(all, s->present[0]) || (s->present[1] && !find(all, s->present[1]))) continue;
        if (s->absent && find(all, s->absent)) continue;
        if (s->version == 0)
            return rwkvc_fail(RWKVC_E_UNSUPPORTED, "this is %s (it holds %s), which this version of rwkv_cpu does not run",
                              s->refusal, s->present[0]);
        *arch = rwkvc_arch_get(s->version);
        return RWKVC_OK;
    }
    if (count_layers(all) == 0)
        return rwkvc_fail(RWKVC_E_UNSUPPORTED, "no RWKV model: no tensor is called blocks.0.…");
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
    uint64_t shape[RWKVC_MAX_DIMS], expected[RWKVC_MAX_DIMS];
    uint32_t n_dims = squeeze(tensor, spec->n_dims, shape);
    bool fits = n_dims == spec->n_dims;
    for (uint32_t d = 0; d < spec->n_dims; d++) {
        uint32_t *size = &config->size[spec->shape[d]];
        if (fits && *size == 0 && shape[d] > 0 && shape[d] <= INT32_MAX) *size = (uint32_t)shape[d];
        expected[d] = *size;
    }
    for (uint32_t d = 0; fits && d < n_dims; d++) fits = shape[d] == expected[d];
    if (fits) return RWKVC_OK;
    char got[MAX_TEXT], want[MAX_TEXT];
    shape_text(tensor->shape, tensor->n_dims < RWKVC_MAX_DIMS ? tensor->n_dims : RWKVC_MAX_DIMS, got);
    shape_text(expected, spec->n_dims, want);
    return rwkvc_fail(RWKVC_E_SHAPE, "%s is %s, expected %s", tensor->name, got, want);
}

static rwkvc_status fit_all(const names *all, const rwkvc_arch *arch, rwkvc_config *config) {
    uint32_t n = rwkvc_config_tensors(config);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t spec, layer;
        char name[RWKVC_MAX_NAME];
        if (!tensor_at(arch, config->n_layer, i, &spec, &layer)) break;
        tensor_name(&arch->specs[spec], layer, name);
        const rwkvc_named_shape *tensor = find(all, name);
        if (!tensor) return rwkvc_fail(RWKVC_E_SHAPE, "%s is missing (%s needs it)", name, arch->name);
        rwkvc_status status = fit(config, &arch->specs[spec], tensor);
        if (status) return status;
    }
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
            if (size[symbol] > 1u << 24)
                return rwkvc_fail(RWKVC_E_SHAPE, "%s is %u: too large", size_names[symbol], size[symbol]);
        }
    if ((uint64_t)size[RWKVC_SIZE_HEADS] * size[RWKVC_SIZE_HEAD] != size[RWKVC_SIZE_ATT])
        return rwkvc_fail(RWKVC_E_SHAPE, "%u heads of size %u do not make the attention width %u", size[RWKVC_SIZE_HEADS],
                          size[RWKVC_SIZE_HEAD], size[RWKVC_SIZE_ATT]);
    if (size[RWKVC_SIZE_EMBD] % RWKVC_PANEL || size[RWKVC_SIZE_ATT] % RWKVC_PANEL || size[RWKVC_SIZE_HEAD] > 512)
        return rwkvc_fail(RWKVC_E_UNSUPPORTED,
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
