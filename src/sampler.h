/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the sampler share: sampler.c (making one, the chain), sampler_penalties.c (what changes logits),
 * sampler_cuts.c (which tokens are left, and the draw).
 */
#ifndef RWKVC_SAMPLER_H
#define RWKVC_SAMPLER_H

#include "internal.h"
#include "rwkv_cpu.h"
#include "sampler_math.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

#define CHUNK 1024u /* weights per entry of sums[] */
#define MARK_BANNED 1u
#define MARK_EXEMPT 2u
#define MARK_BREAKER 4u
#define RADIX_BITS 11u
#define RADIX (1u << RADIX_BITS)

struct seen {
    uint32_t id;
    double count;
};

/* Tokens that may still be chosen, in the order of their ids; padded to BLOCK with logits of -Inf. */
struct candidates {
    uint32_t n;
    uint32_t *ids;
    float *logits;
    float *weights;
};

struct rwkvc_sampler {
    rwkvc_sampler_options options;
    uint32_t n_vocab, n_padded;
    double log_min_p; /* -Inf: no such cut */
    float *logits;    /* [n_padded] after penalties; -Inf: cannot be chosen */
    float *peaks;     /* [n_padded / BLOCK] the largest logit of each block */
    struct candidates candidates;
    uint32_t *keys;  /* [n_padded] of radix selection, */
    float *masses;   /* [n_padded] and what they weigh */
    float *nearness; /* [n_padded] of typical_p; NULL where that is off */
    double *sums;    /* [n_padded / CHUNK + 1] */
    double *bins;    /* [RADIX] */
    uint8_t *marks;  /* [n_vocab] */
    uint32_t *place; /* [n_vocab] index into seen[] + 1 */
    struct seen *seen;
    uint32_t n_seen, seen_room;
    uint32_t *banned;
    uint32_t n_banned;
    uint32_t *biased; /* ids, */
    float *biases;    /* and what is added to their logits */
    uint32_t n_biased;
    uint32_t *history; /* [2 * dry_range] the last tokens, DRY's */
    uint32_t n_history;
    uint32_t *matches; /* [dry_range] */
    uint32_t *longest; /* [n_vocab] 0 between calls */
    double surprise;   /* mirostat's limit, in bits */
    uint64_t random[4];
};

/* ------------------------------------------------------------------------------- sampler_penalties.c */

/* Change s->logits: bias, penalties, bans, and what `allowed` (a bit per token, or NULL) leaves out. Whether any
 * logit changed. */
bool rwkvc_sampler_change(struct rwkvc_sampler *s, const uint32_t *allowed);

/* ------------------------------------------------------------------------------------ sampler_cuts.c */

/* Fill peaks[] from logits[]; the largest of all. E_NONFINITE. */
rwkvc_status rwkvc_sampler_peaks(struct rwkvc_sampler *s, float *peak);
/* The first token with logit `peak`. */
uint32_t rwkvc_sampler_first(const struct rwkvc_sampler *s, float peak);
/* Leave in candidates what the options allow, and no token too unlikely for the draw to hit. The sum of
 * exp(logit - peak) over the vocabulary, 0 where it was not needed. */
double rwkvc_sampler_select(struct rwkvc_sampler *s, float peak);
/* Draw one of the candidates at the options' temperature; peak: the largest logit of all. */
uint32_t rwkvc_sampler_draw(struct rwkvc_sampler *s, float peak);
/* Choose by mirostat instead. */
uint32_t rwkvc_sampler_mirostat(struct rwkvc_sampler *s, float peak);
/* Leave the n largest logits in candidates, the lowest ids of equals. */
void rwkvc_sampler_largest(struct rwkvc_sampler *s, uint32_t n);

/* Unsigned integers in the order of the floats; -0 as 0. */
static inline uint32_t order_key(float x) {
    uint32_t bits = bits_of(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
