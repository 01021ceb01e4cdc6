/* SPDX-License-Identifier: Apache-2.0
 * Calibrated quantisation, the inner part: one group of 32 inputs of many rows. */
#include "kernels/kernels.h"
#include "threads/pool.h"

enum { LANES = 16 };

/* 16 rows of a group as the kernel wants them; what lies outside is 0. */
static void gather(const float *rows, uint64_t ld, uint64_t n_rows, uint32_t n, float *out) {
    memset(out, 0, RWKVC_GROUP * LANES * sizeof *out);
    for (uint64_t r = 0; r < n_rows; r++)
        for (uint32_t i = 0; i < n; i++) out[i * LANES + r] = rows[r * ld + i];
}

static rwkvc_status check(const rwkvc_choice *c, uint64_t first, uint64_t last) {
    if (c->struct_size != sizeof *c || !rwkvc_bits(c->format) || c->n_inputs == 0 || c->n_inputs > RWKVC_GROUP ||
        first > last || !c->weights || !c->targets || !c->importance || !c->integers || !c->scales || !c->errors)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "an incomplete choice of integers");
    if (rwkvc_bits(c->format) != 4) return RWKVC_OK;
    if (!c->book) return rwkvc_fail(RWKVC_E_ARGUMENT, "q4 needs a book");
    for (int i = 0; i < 15; i++)
        if (c->book[i] >= c->book[i + 1]) return rwkvc_fail(RWKVC_E_ARGUMENT, "a q4 book must ascend");
    return RWKVC_OK;
}

rwkvc_status rwkvc_choose_group(const rwkvc_choice *c, uint64_t first, uint64_t last) {
    const char *isa;
    rwkvc_status status = check(c, first, last);
    if (!status) status = rwkvc_isa_default(&isa);
    if (status) return status;
    const rwkvc_kernels *kernels = rwkvc_kernels_get(isa);
    float weights[RWKVC_GROUP * LANES], targets[RWKVC_GROUP * LANES], errors[RWKVC_GROUP * LANES];
    float feedback[RWKVC_GROUP * RWKVC_GROUP] = {0}, importance[RWKVC_GROUP] = {0};
    int8_t q[RWKVC_GROUP * LANES];
    uint16_t scales[LANES];
    uint32_t n = (uint32_t)c->n_inputs;
    for (uint32_t j = 0; j < n && c->feedback; j++)
        memcpy(feedback + (uint64_t)j * RWKVC_GROUP, c->feedback + j * c->ld_feedback, n * sizeof *feedback);
    memcpy(importance, c->importance, n * sizeof *importance);
    rwkvc_feedback f = {weights, targets, c->feedback ? feedback : NULL, importance};
    uint64_t environment = rwkvc_float_environment();
    for (uint64_t row = first; row < last && !status; row += LANES) {
        uint64_t n_rows = rwkvc_min(LANES, last - row);
        gather(c->weights + row * c->ld_weights, c->ld_weights, n_rows, n, weights);
        gather(c->targets + row * c->ld_targets, c->ld_targets, n_rows, n, targets);
        kernels->quantise_feedback(&f, rwkvc_bits(c->format), c->book, q, scales, errors);
        for (uint64_t r = 0; r < n_rows && !status; r++) {
            if ((scales[r] & 0x7c00) == 0x7c00)
                status = rwkvc_fail(RWKVC_E_NONFINITE, "row %llu has values that are not finite, or too large for %s",
                                    (unsigned long long)(row + r), rwkvc_format_name(c->format));
            c->scales[(row + r) * c->ld_scales] = scales[r];
            for (uint32_t i = 0; i < n; i++) {
                c->integers[(row + r) * c->ld_integers + i] = q[i * LANES + r];
                c->errors[(row + r) * c->ld_errors + i] = errors[i * LANES + r];
            }
        }
    }
    rwkvc_float_restore(environment);
    return status;
}
