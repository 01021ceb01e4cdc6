/* SPDX-License-Identifier: Apache-2.0
 * Every kernel for one instruction set, and the table of them. */
#include "kernels/vector_math.inc.h"

#include "kernels/elementwise.inc.h"
#include "kernels/matmul_plain.inc.h"
#include "kernels/matmul_q8.inc.h"
#include "kernels/measure.inc.h"
#include "kernels/heads.inc.h"

#include "kernels/wkv4.inc.h"
#include "kernels/wkv6.inc.h"
#include "kernels/wkv7.inc.h"

const rwkvc_kernels KERNEL(rwkvc_kernels) = {
    .name = RWKVC_TEXT(ISA),
    .q8_tile = Q8_TILE,
    .plain_tile = PLAIN_TILE,
    .q8_panel = KERNEL(q8_panel),
    .value_sparse = KERNEL(value_sparse),
    .value_repack = KERNEL(value_repack),
    .plain_panels = KERNEL(plain_panels),
    .q8_quantise = KERNEL(q8_quantise),
    .embedding = KERNEL(embedding),
    .layer_norm = KERNEL(layer_norm),
    .embedding_add = KERNEL(embedding_add),
    .token_shift = KERNEL(token_shift),
    .token_shift_by = KERNEL(token_shift_by),
    .multiply_add = KERNEL(multiply_add),
    .multiply = KERNEL(multiply),
    .finish = KERNEL(finish),
    .wkv7 = KERNEL(wkv7),
    .wkv6 = KERNEL(wkv6),
    .wkv4 = KERNEL(wkv4),
    .elementary = KERNEL(elementary),
    .read_all = KERNEL(read_all),
    .dot_all = KERNEL(dot_all),
};
