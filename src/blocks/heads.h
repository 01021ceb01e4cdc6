/* SPDX-License-Identifier: Apache-2.0
 * The second half of the time mix of RWKV-5 and 6: recurrence per head, group norm, gate, output product. */
#ifndef RWKVC_HEADS_H
#define RWKVC_HEADS_H

#include "forward.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

enum { RWKVC_ATT_SHIFT, RWKVC_FFN_SHIFT, RWKVC_WKV, RWKVC_HEADS_STATE };
extern const rwkvc_state_spec rwkvc_heads_state[RWKVC_HEADS_STATE];

/* Where a version's table has the tensors of the recurrence. */
typedef struct {
    uint32_t decay, bonus, ln_x_weight, ln_x_bias;
} rwkvc_head_specs;

typedef struct {
    rwkvc_pass *pass;
    uint32_t layer;
    const rwkvc_head_specs *specs;
    float *r, *k, *v; /* [n_tokens, attention width], rows rwkvc_row_floats apart */
    float *g;         /* NULL: no gate */
    float *w;         /* RWKV-6's low-rank part of the decay; NULL in RWKV-5 */
    rwkvc_input y;    /* set by rwkvc_heads_run */
} rwkvc_heads;

/* x += output · gated heads. */
bool rwkvc_heads_run(rwkvc_heads *heads, const rwkvc_tensor *output);
/* f32 of scratch per token, for r, k, v, g, w and the output's input. */
uint64_t rwkvc_heads_floats(const rwkvc_config *config);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
