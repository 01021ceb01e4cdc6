/* SPDX-License-Identifier: Apache-2.0
 * Short forms in which the tensor tables of the versions are written. */
#ifndef RWKVC_SPEC_MACROS_H
#define RWKVC_SPEC_MACROS_H

#define V_ RWKVC_SIZE_VOCAB
#define C_ RWKVC_SIZE_EMBD
#define A_ RWKVC_SIZE_ATT
#define F_ RWKVC_SIZE_FFN
#define H_ RWKVC_SIZE_HEADS
#define N_ RWKVC_SIZE_HEAD
#define VECTOR(name_, place_, size_)                                                                                   \
    {                                                                                                                  \
        .name = name_, .place = place_, .kind = RWKVC_KIND_VECTOR, .n_dims = 1, .shape = { size_ }                     \
    }
#define MATRIX(name_, kind_, rows_, cols_)                                                                             \
    {                                                                                                                  \
        .name = name_, .place = PLACE_LAYER, .kind = kind_, .n_dims = 2, .shape = { rows_, cols_ }                     \
    }
/* x @ m, stored [in, out] */
#define LOW_RANK(name_, place_, inputs_, outputs_)                                                                     \
    {                                                                                                                  \
        .name = name_, .place = place_, .kind = RWKVC_KIND_LOW_RANK, .transposed = 1, .n_dims = 2, .shape = {          \
            inputs_,                                                                                                   \
            outputs_                                                                                                   \
        }                                                                                                              \
    }

#define TENSOR_EMB                                                                                                     \
    {                                                                                                                  \
        .name = "emb.weight", .place = PLACE_BEGIN, .kind = RWKVC_KIND_EMBEDDING, .n_dims = 2, .shape = { V_, C_ }     \
    }
#define TENSOR_HEAD                                                                                                    \
    {.name = "head.weight",                                                                                            \
     .place = PLACE_END,                                                                                               \
     .kind = RWKVC_KIND_HEAD,                                                                                          \
     .n_dims = 2,                                                                                                      \
     .shape = {V_, C_},                                                                                                \
     .alternative = "emb.weight",                                                                                      \
     .alternative_bit = SOURCE_TIED_HEAD}

#endif
