/* SPDX-License-Identifier: Apache-2.0
 * The contract of every kernel. Each is written once (*.inc.h) over the vector vocabulary of isa/vec_*.h, compiled
 * per instruction set, and reached through one table. All give the same bits on every instruction set: sums over
 * inputs run in order, one fused multiply-add each; sums over lanes are vf_sum. */
#ifndef RWKVC_KERNELS_H
#define RWKVC_KERNELS_H

#include "formats/format.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

enum {
    RWKVC_MAX_TILE = 12, /* largest tile of any instruction set */
    RWKVC_DIRECT = 4,    /* most columns of a tile that formats of less than 8 bits are multiplied with as they are */
    RWKVC_VALUE_FEW = 12 /* most columns that value_sparse multiplies weights with as they lie, not copied */
};

/* What a matrix product does with a finished sum y. */
typedef enum {
    RWKVC_STORE,   /* out = y */
    RWKVC_ADD,     /* out += y */
    RWKVC_TANH,    /* out = tanh(y) */
    RWKVC_SIGMOID, /* out = sigmoid(y) */
    RWKVC_RELU2    /* out = max(y, 0)^2 */
} rwkvc_epilogue;

/* The int8 of a group that are not zero, in order: their places in the group and themselves; up to a multiple of four
 * zeros follow. */
typedef struct {
    uint8_t place[RWKVC_GROUP];
    int8_t value[RWKVC_GROUP];
} rwkvc_sparse_group;

/* What the int8 of a column's group stand for: themselves times 2^e * mantissa, mantissa = 1 + quarter / 4. Such a scale
 * times a weight's (f16) is exact in f32. And the integer sum of a group's products, below 2^22, can be gathered in the
 * low bits of the float `unit` = 1.5 * 2^(23 + e): what it is more than `unit` is the sum times 2^e, exactly, without a
 * conversion or a multiplication. */
typedef struct {
    int32_t begin;    /* bits of `unit`, less 128 times the sum of the int8 */
    float unit;       /* NaN: the activations are not finite */
    float mantissa;   /* 1, 1.25, 1.5 or 1.75 */
    uint32_t quarter; /* 0..3 */
} rwkvc_q8_scale;

/* Activations of `columns` columns (tokens x parts) as int8 in groups of 32 with a scale each, in the order the
 * products read them: tiles of `tile` columns (the last may be smaller, n of them); in a tile group by group
 *   values  [groups, 8 quads, n, 4 int8]     scales [groups, n]
 * groups is even; inputs beyond the last are 0. */
typedef struct {
    int8_t *values;
    rwkvc_q8_scale *scales;
    /* Of a channel mix's value: [groups, n] non-zero int8 of a column's group, and how many they are. NULL otherwise. */
    rwkvc_sparse_group *nonzero;
    uint8_t *counts;
    uint32_t groups, columns, tile;
} rwkvc_q8_input;

/* A head's part of one RWKV-7 sequence, all f32, rows `ld` apart from token to token; pointers at the head's first
 * channel. Sequence rows only; N = head_size. */
typedef struct {
    uint32_t tokens, head_size, ld;
    const float *r;     /* receptance */
    float *w;           /* in: low-rank part of the decay; out: decay */
    float *k;           /* in: raw key; out: key of the update */
    float *v;           /* in: value; out: mixed with v_first */
    float *a;           /* in: low-rank part of the in-context learning rate; out: kk * a */
    float *kk;          /* out: -kk */
    const float *v_mix; /* low-rank part of the value residual; NULL in layer 0 */
    float *v_first;     /* layer 0 writes it, later layers read it */
    const float *g;     /* gate */
    float *y;           /* out: gated output */
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_weight, *ln_bias; /* [N] of this head */
    float gn_eps;
    const float *state_in; /* [N, N]: key channel, value channel */
    float *state_out;      /* [N, N] */
    uint64_t state_step;   /* floats between the states after consecutive tokens; 0: only the last is kept */
} rwkvc_wkv7;

/* The same for RWKV-5 and 6: decay and bonus per channel. */
typedef struct {
    uint32_t tokens, head_size, ld;
    const float *r, *k, *v;
    const float *g;                           /* gate before silu; NULL in 5.0 */
    float *w;                                 /* RWKV-6, in: low-rank part of the decay; out: decay. NULL in RWKV-5 */
    float *y;                                 /* out: gated output */
    const float *decay;                       /* [N]: RWKV-5 the decay itself, RWKV-6 time_decay */
    const float *bonus, *ln_weight, *ln_bias; /* [N] */
    float gn_eps;
    const float *state_in; /* [N, N]: key channel, value channel */
    float *state_out;
    uint64_t state_step;
} rwkvc_wkv6;

/* 16 channels of RWKV-4's recurrence; pointers at the first of them. */
typedef struct {
    uint32_t tokens, ld;
    const float *r, *k, *v; /* r after its sigmoid */
    float *y;               /* out: r * wkv */
    const float *decay, *bonus;
    const float *state_in; /* aa; bb and pp are `part` and 2 * `part` floats on */
    float *state_out;
    uint64_t part, state_step;
} rwkvc_wkv4;

/* 16 rows x 32 inputs to be quantised with feedback, a row a lane. */
typedef struct {
    const float *weights;    /* [32, 16] */
    const float *targets;    /* [32, 16] weights plus what the errors of earlier groups add */
    const float *feedback;   /* [32, 32] row j, column k > j: share of input j's error that input k takes; NULL: none */
    const float *importance; /* [32] of each input's squared error */
} rwkvc_feedback;

typedef void rwkvc_panel_kernel(const uint8_t *panel, const uint8_t *book, const float *quarters,
                                const rwkvc_q8_input *input, uint32_t first_column, uint32_t n, float *out);

typedef struct rwkvc_kernels {
    const char *name;
    uint32_t q8_tile, plain_tile;
    uint32_t sparse_inputs; /* of a group's 32: with many columns and fewer non-zero ones, value_sparse is the faster */
    uint32_t direct_columns; /* most that formats of less than 8 bits are multiplied with as they are, not unpacked */

    /* The following by format; NULL for formats of floats. `book`: of a q4 tensor, else NULL. */

    /* out[c, 16] for the n columns of a tile: one panel of `groups` / 2 records. n <= q8_tile for q8, else
     * n <= RWKVC_DIRECT. `quarters` (q8 only; NULL: none): what the kernel of that name made of the panel. */
    rwkvc_panel_kernel *panel[RWKVC_N_FORMATS];
    /* The same for a panel that `unpack` made of one (not for q8). */
    rwkvc_panel_kernel *unpacked[RWKVC_N_FORMATS];
    /* f32 [2 * records, 4, 16]: the scales of a q8 panel times each mantissa. */
    void (*quarters)(const uint8_t *panel, uint32_t records, float *out);
    /* The same panel as one of q8 (not for q8). */
    void (*unpack[RWKVC_N_FORMATS])(const uint8_t *panel, const uint8_t *book, uint32_t records, uint8_t *out);
    /* Rows of a value panel, from a multiple of 128 on, a multiple of 128 (of a q8 panel's end 64) of them, times all
     * columns of an input that lists what is not zero: sums[column, rows]. */
    void (*value_sparse[RWKVC_N_FORMATS])(const uint8_t *panel, const uint8_t *book, uint32_t height,
                                          uint32_t first_row, uint32_t rows, uint32_t groups,
                                          const rwkvc_q8_input *input, float *sums);
    /* Rows 64 * part.. as four MATRIX panels of q8, of even groups / 2 records, row order rwkvc_value_row. */
    void (*value_repack[RWKVC_N_FORMATS])(const uint8_t *panel, const uint8_t *book, uint32_t height, uint32_t part,
                                          uint32_t groups, uint8_t *panels);
    /* Integers q[32, 16] and scales[16] of 16 rows x 32 inputs x[32, 16]. book: 16 ascending values (q4 only). */
    void (*quantise[RWKVC_N_FORMATS])(const float *x, const int8_t *book, int8_t *q, uint16_t *scales);
    /* The same with feedback, for any number of bits. error[32, 16]: weights less what is stored. */
    void (*quantise_feedback)(const rwkvc_feedback *f, uint32_t bits, const int8_t *book, int8_t *q, uint16_t *scales,
                              float *error);
    /* Such integers as the lines of a MATRIX's group. */
    void (*pack_lines[RWKVC_N_FORMATS])(const int8_t *q, uint8_t *lines);

    /* n values of a float dtype as f32. */
    bool (*widen)(uint32_t dtype, const void *source, uint64_t n, float *out);
    /* The same of 16 rows, x[input, 16]; n % 32 == 0. */
    bool (*widen_rows)(uint32_t dtype, const uint8_t *const rows[16], uint64_t n, float *x);
    /* Integers q[64, 16] of two groups as rows [16, 64]. */
    void (*by_row)(const int8_t *q, uint8_t *rows);
    /* Panels of 16 rows stored as f32 or f16: out[t, panel, 16] for tokens x[t, ldx], n <= plain_tile.
     * Inputs that are 0 are skipped when `sparse` and n = 1, which changes no bit but the sign of a zero. */
    void (*plain_panels)(const uint8_t *panels, uint64_t panel_bytes, uint32_t n_panels, uint32_t format, uint32_t cols,
                         const float *x, uint32_t ldx, uint32_t n, bool sparse, float *out);
    /* Quantise groups first_group.. of tokens first..last-1, of which x holds the inputs from 32 * first_group on, rows
     * ldx apart; inputs from n_inputs on are 0. A token has `parts` columns: 2 keeps 16 bits. */
    void (*q8_quantise)(const float *x, uint64_t ldx, uint32_t first, uint32_t last, uint32_t first_group,
                        uint32_t n_groups, uint32_t n_inputs, uint32_t parts, const rwkvc_q8_input *input);
    /* One row of an embedding matrix as f32. */
    void (*embedding)(const rwkvc_tensor *emb, uint32_t row, float *out);
    /* y[n] = (x - mean) / sqrt(var + eps) * weight + bias, n % 16 == 0. May be in place. */
    void (*layer_norm)(const float *x, const float *weight, const float *bias, uint32_t n, float eps, float *y);
    /* out[cols] += that row. */
    void (*embedding_add)(const rwkvc_tensor *emb, uint32_t row, float *out);
    /* y[n] = x + (previous - x) * (mix + extra); extra NULL: none */
    void (*token_shift)(const float *x, const float *previous, const float *mix, const float *extra, uint32_t n,
                        float *y);
    /* The same of rows x[token - first], previous[token - first], quantised to the columns first..last-1 of an input of one
     * part, all in one tile. extra: rows ld_extra apart. */
    void (*token_shift_q8)(const float *const *x, const float *const *previous, const float *mix, const float *extra,
                           uint64_t ld_extra, uint32_t n, uint32_t first, uint32_t last, const rwkvc_q8_input *input);
    /* x[n] += a * b */
    void (*multiply_add)(float *x, const float *a, const float *b, uint32_t n);
    /* x[n] *= a + b */
    void (*multiply)(float *x, const float *a, const float *b, uint32_t n);
    /* Apply an epilogue to sums[t, 16] (rows ld_sums apart) of n tokens on the way to out[t, lanes] (ld apart). */
    void (*finish)(rwkvc_epilogue epilogue, const float *sums, uint32_t ld_sums, uint32_t n, uint32_t lanes, float *out,
                   uint64_t ld);
    /* All tokens of one head: prepare, recurrence, group norm, bonus, gate. */
    void (*wkv7)(const rwkvc_wkv7 *head);
    void (*wkv6)(const rwkvc_wkv6 *head);
    void (*wkv4)(const rwkvc_wkv4 *channels);
    /* Tests and benchmarks: exp, tanh, sigmoid of x[n], n % 16 == 0 (which: 0, 1, 2). */
    void (*elementary)(uint32_t which, const float *x, uint32_t n, float *y);
    /* measure.c: read n floats in order, n % 64 == 0. */
    float (*read_all)(const float *p, uint64_t n);
    /* measure.c: `rounds` times n x 64 weights against a tile of 4 int8 each: rounds * n * 64 * q8_tile multiply-adds. */
    int32_t (*dot_all)(const uint8_t *weights, uint32_t n, const int8_t *activations, uint32_t rounds);
} rwkvc_kernels;

/* Those of other processors are declared and not there; isa/dispatch.c knows. */
extern const rwkvc_kernels rwkvc_kernels_scalar;
extern const rwkvc_kernels rwkvc_kernels_avx2, rwkvc_kernels_avxvnni, rwkvc_kernels_avx512vnni;
extern const rwkvc_kernels rwkvc_kernels_neon, rwkvc_kernels_neon_dotprod, rwkvc_kernels_neon_i8mm;

/* dispatch.c. NULL (and the error's text) if unknown or not usable here. */
const rwkvc_kernels *rwkvc_kernels_get(const char *isa);

/* Where column c of an input lies: its tile begins at `base` columns and has n, c is number t of them. */
typedef struct {
    uint32_t base, n, t;
} rwkvc_column;

static inline rwkvc_column rwkvc_column_of(const rwkvc_q8_input *input, uint32_t c) {
    uint32_t base = c / input->tile * input->tile, left = input->columns - base;
    return (rwkvc_column){base, left < input->tile ? left : input->tile, c - base};
}

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
