/* SPDX-License-Identifier: Apache-2.0
 * Every kernel for one instruction set, and the table of them. */
#include "kernels/vector_math.inc.h"

#include "kernels/elementwise.inc.h"
#include "kernels/matmul_plain.inc.h"
#include "kernels/matmul_integer.inc.h"
#include "kernels/activations.inc.h"
#include "kernels/measure.inc.h"
RARE_BEGIN
#include "kernels/pack.inc.h"
#include "kernels/feedback.inc.h"
RARE_END
#include "kernels/heads.inc.h"

#include "kernels/wkv4.inc.h"
#include "kernels/wkv6.inc.h"
#include "kernels/wkv7.inc.h"

#define OF_FORMATS(kernel)                                                                                             \
    [RWKVC_FORMAT_Q6] = KERNEL(kernel##_6), [RWKVC_FORMAT_Q5] = KERNEL(kernel##_5),                                    \
    [RWKVC_FORMAT_Q4] = KERNEL(kernel##_4)

_Static_assert((int)Q8_TILE <= (int)RWKVC_DIRECT || (int)DIRECT_COLUMNS <= (int)RWKVC_DIRECT,
               "no kernel for so many columns of a tile");

const rwkvc_kernels KERNEL(rwkvc_kernels) = {
    .name = RWKVC_TEXT(ISA),
    .q8_tile = Q8_TILE,
    .plain_tile = PLAIN_TILE,
    .sparse_inputs = SPARSE_INPUTS,
    .direct_columns = DIRECT_COLUMNS,
    .panel = {OF_FORMATS(panel), [RWKVC_FORMAT_Q8] = KERNEL(q8_panel)},
#if defined(VI_DOT_SMALL_PAIR)
    .unpacked = {[RWKVC_FORMAT_Q6] = KERNEL(unpacked_6),
                 [RWKVC_FORMAT_Q5] = KERNEL(unpacked_5),
                 [RWKVC_FORMAT_Q4] = KERNEL(q8_panel)},
#else
    .unpacked = {[RWKVC_FORMAT_Q6] = KERNEL(q8_panel),
                 [RWKVC_FORMAT_Q5] = KERNEL(q8_panel),
                 [RWKVC_FORMAT_Q4] = KERNEL(q8_panel)},
#endif
    .quarters = KERNEL(quarters),
    .unpack = {OF_FORMATS(unpack)},
    .value_sparse = {OF_FORMATS(value_sparse), [RWKVC_FORMAT_Q8] = KERNEL(value_sparse_8)},
    .value_repack = {OF_FORMATS(value_repack), [RWKVC_FORMAT_Q8] = KERNEL(value_repack_8)},
    .quantise = {OF_FORMATS(quantise), [RWKVC_FORMAT_Q8] = KERNEL(quantise_8)},
    .quantise_feedback = KERNEL(quantise_feedback),
    .pack_lines = {OF_FORMATS(pack_lines), [RWKVC_FORMAT_Q8] = KERNEL(pack_lines_8)},
    .widen = KERNEL(widen),
    .widen_rows = KERNEL(widen_rows),
    .by_row = KERNEL(by_row),
    .plain_panels = KERNEL(plain_panels),
    .q8_quantise = KERNEL(q8_quantise),
    .embedding = KERNEL(embedding),
    .layer_norm = KERNEL(layer_norm),
    .embedding_add = KERNEL(embedding_add),
    .token_shift = KERNEL(token_shift),
    .token_shift_q8 = KERNEL(token_shift_q8),
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
#undef OF_FORMATS
