/* SPDX-License-Identifier: Apache-2.0
 * What a version of RWKV is: its tensors, its state, its forward pass. One file per version defines one
 * rwkvc_arch; table.c lists them. A tensor's name, shape and kind stand nowhere else. */
#ifndef RWKVC_TABLE_H
#define RWKVC_TABLE_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

typedef enum {
    PLACE_BEGIN,       /* once, before the layers */
    PLACE_LAYER,       /* "blocks.N." + name, in every layer */
    PLACE_LATER_LAYER, /* in every layer but the first */
    PLACE_END          /* once, behind the layers */
} rwkvc_place;

typedef struct {
    const char *name;
    uint8_t place, kind;
    uint8_t transposed; /* stored [in, out] in checkpoints */
    uint8_t n_dims;
    uint8_t shape[3];              /* RWKVC_SIZE_*, as in the checkpoint */
    uint8_t transform;             /* of the checkpoint's values */
    uint8_t per_head;              /* 1: [n_head] is as good as [n_head, head_size] */
    const char *alternative;       /* what a checkpoint without `name` may have instead, */
    uint8_t alternative_transform; /* its transform, */
    uint8_t alternative_bit;       /* and the bit of rwkvc_config.source that says so */
} rwkvc_spec;

typedef struct {
    const char *name;
    uint8_t n_dims;
    uint8_t shape[3]; /* RWKVC_SIZE_* */
    float initial;
} rwkvc_state_spec;

struct rwkvc_pass;

struct rwkvc_arch {
    uint32_t version;
    const char *name;
    const rwkvc_spec *specs; /* those of one place in the order in which a file has them */
    uint32_t n_specs;
    const rwkvc_state_spec *state; /* parts of a layer's state, in order */
    uint32_t n_state;
    float ln_eps;
    bool deep_embed; /* the layers read the embedding's layer norm again */
    /* Group norm's epsilon for these sizes. */
    float (*gn_eps)(const rwkvc_config *config);
    /* f32 per token of scratch that the layers need. */
    uint64_t (*scratch_floats)(const rwkvc_config *config);
    /* One layer over the pass's tokens: x += time_mix, x += channel_mix. Returns false when cancelled. */
    bool (*layer)(struct rwkvc_pass *pass, uint32_t layer);
    /* Positions of the model tensors that every version has. */
    uint32_t emb, ln0_weight, ln0_bias, ln_out_weight, ln_out_bias, head;
};

extern const rwkvc_arch rwkvc_arch_rwkv4, rwkvc_arch_rwkv5_0, rwkvc_arch_rwkv5_1, rwkvc_arch_rwkv5_2, rwkvc_arch_rwkv6;
extern const rwkvc_arch rwkvc_arch_rwkv7, rwkvc_arch_rwkv7a;

/* Bits of rwkvc_config.source. */
enum { SOURCE_TIED_HEAD = 1, SOURCE_LOG_BONUS = 2, SOURCE_DECAY_DONE = 4 };

const rwkvc_arch *rwkvc_arch_get(uint32_t version); /* NULL for unknown ones */

/* Sizes that no model of the version can have: E_SHAPE, E_UNSUPPORTED. */
rwkvc_status rwkvc_config_check(const rwkvc_config *config);

/* Floats of one layer's state, and where a part begins in it. */
uint64_t rwkvc_state_layer_floats(const rwkvc_arch *arch, const rwkvc_config *config);
uint64_t rwkvc_state_part_floats(const rwkvc_arch *arch, const rwkvc_config *config, uint32_t part);

static inline const rwkvc_tensor *rwkvc_layer_tensor(const rwkvc_model *model, uint32_t layer, uint32_t spec) {
    return &model->tensors[(uint64_t)layer * model->arch->n_specs + spec];
}

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
