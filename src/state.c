/* SPDX-License-Identifier: Apache-2.0
 * The layout of a state; making a new one. */
#include "versions/table.h"

uint64_t rwkvc_state_floats(const rwkvc_model *model) {
    return model->config.n_layer * rwkvc_state_layer_floats(model->arch, &model->config);
}

void rwkvc_state_init(const rwkvc_model *model, float *state) {
    for (uint32_t layer = 0; layer < model->config.n_layer; layer++)
        for (uint32_t part = 0; part < model->arch->n_state; part++) {
            uint64_t n = rwkvc_state_part_floats(model->arch, &model->config, part);
            for (uint64_t i = 0; i < n; i++) *state++ = model->arch->state[part].initial;
        }
}

rwkvc_status rwkvc_state_part_info(const rwkvc_model *model, uint32_t i, rwkvc_state_part *part) {
    if (i >= model->arch->n_state) return rwkvc_fail(RWKVC_E_ARGUMENT, "a state has %u parts", model->arch->n_state);
    const rwkvc_state_spec *spec = &model->arch->state[i];
    memset(part, 0, sizeof *part);
    part->name = spec->name;
    for (uint32_t before = 0; before < i; before++)
        part->offset += rwkvc_state_part_floats(model->arch, &model->config, before);
    part->layer_stride = rwkvc_state_layer_floats(model->arch, &model->config);
    part->n_dims = spec->n_dims;
    for (uint32_t d = 0; d < spec->n_dims; d++) part->shape[d] = model->config.size[spec->shape[d]];
    return RWKVC_OK;
}
