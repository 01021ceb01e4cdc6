/* SPDX-License-Identifier: Apache-2.0
 *
 * Choosing a token from logits: making a sampler, and the chain from logits to a token (docs/generation.md).
 *
 * The same seed gives the same tokens on every machine (see sampler_math.h).
 */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>

#define MAX_VOCAB (1u << 24)
#define MAX_DRY_RANGE (1u << 20)
#define MAX_TOP 1024u

/* -------------------------------------------------------------------------------------- making a sampler */

void rwkvc_sampler_defaults(rwkvc_sampler_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->temperature = 1.0f;
    options->top_p = 1.0f;
    options->typical_p = 1.0f;
    options->xtc_threshold = 0.1f;
    options->mirostat_eta = 0.1f;
    options->repetition_penalty = 1.0f;
    options->penalty_decay = 0.996f;
    options->dry_base = 1.75f;
    options->dry_allowed_length = 2;
    options->dry_range = 1024;
}

static rwkvc_status check_range(const char *name, float value, float low, float high) {
    if (value >= low && value <= high) return RWKVC_OK;
    if (high < INFINITY)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "%s %g: must be from %g to %g", name, (double)value, (double)low,
                          (double)high);
    return rwkvc_fail(RWKVC_E_ARGUMENT, "%s %g: must be a number from %g", name, (double)value, (double)low);
}

static rwkvc_status check_options(const rwkvc_sampler_options *o) {
    if (o->struct_size < sizeof *o)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "sampler options of another version of this header");
    const struct {
        const char *name;
        float value, low, high;
    } ranges[] = {
        {"temperature", o->temperature, 0, HUGE_VALF},
        {"top_p", o->top_p, 0, 1},
        {"min_p", o->min_p, 0, 1},
        {"top_a", o->top_a, 0, 1},
        {"typical_p", o->typical_p, 0, 1},
        {"xtc_probability", o->xtc_probability, 0, 1},
        {"xtc_threshold", o->xtc_threshold, 0, 1},
        {"mirostat_tau", o->mirostat_tau, 0, HUGE_VALF},
        {"mirostat_eta", o->mirostat_eta, 0, 1},
        {"penalty_decay", o->penalty_decay, 0, 1},
        {"dry_multiplier", o->dry_multiplier, 0, HUGE_VALF},
        {"dry_base", o->dry_base, 1, HUGE_VALF},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        rwkvc_status status = check_range(ranges[i].name, ranges[i].value, ranges[i].low, ranges[i].high);
        if (status) return status;
        if (!isfinite(ranges[i].value)) return rwkvc_fail(RWKVC_E_ARGUMENT, "%s is no finite number", ranges[i].name);
    }
    if (!isfinite(o->presence_penalty) || !isfinite(o->frequency_penalty))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "a penalty that is no finite number");
    if (!(o->repetition_penalty > 0 && isfinite(o->repetition_penalty)))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "repetition_penalty %g: must be above 0", (double)o->repetition_penalty);
    if (o->dry_range > MAX_DRY_RANGE)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "dry_range %u: at most %u", (unsigned)o->dry_range,
                          (unsigned)MAX_DRY_RANGE);
    return RWKVC_OK;
}

static bool allocate(struct rwkvc_sampler *s) {
    size_t n = s->n_padded;
    s->logits = malloc(n * sizeof *s->logits);
    s->peaks = malloc(n / BLOCK * sizeof *s->peaks);
    s->candidates.ids = malloc(n * sizeof *s->candidates.ids);
    s->candidates.logits = malloc(n * sizeof *s->candidates.logits);
    s->candidates.weights = malloc(n * sizeof *s->candidates.weights);
    s->keys = malloc(n * sizeof *s->keys);
    s->masses = malloc(n * sizeof *s->masses);
    s->sums = malloc((n / CHUNK + 1) * sizeof *s->sums);
    s->bins = malloc(RADIX * sizeof *s->bins);
    s->marks = calloc(s->n_vocab, sizeof *s->marks);
    s->place = calloc(s->n_vocab, sizeof *s->place);
    if (s->options.typical_p < 1) s->nearness = malloc(n * sizeof *s->nearness);
    if (s->options.dry_multiplier > 0) {
        size_t range = s->options.dry_range + 1;
        s->history = malloc(2 * range * sizeof *s->history);
        s->matches = malloc(range * sizeof *s->matches);
        s->longest = calloc(s->n_vocab, sizeof *s->longest);
        if (!s->history || !s->matches || !s->longest) return false;
    }
    return s->logits && s->peaks && s->candidates.ids && s->candidates.logits && s->candidates.weights && s->keys &&
           s->masses && s->sums && s->bins && s->marks && s->place && (s->nearness || !(s->options.typical_p < 1));
}

rwkvc_status rwkvc_sampler_create(uint32_t n_vocab, const rwkvc_sampler_options *options, rwkvc_sampler **sampler) {
    if (!sampler) return rwkvc_fail(RWKVC_E_ARGUMENT, "nowhere to put the sampler");
    *sampler = NULL;
    rwkvc_sampler_options o;
    rwkvc_sampler_defaults(&o);
    if (options) o = *options;
    rwkvc_status status = check_options(&o);
    if (status != RWKVC_OK) return status;
    if (n_vocab == 0 || n_vocab > MAX_VOCAB)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "a vocabulary of %u; must be from 1 to %u", (unsigned)n_vocab,
                          (unsigned)MAX_VOCAB);

    struct rwkvc_sampler *s = calloc(1, sizeof *s);
    if (!s) return rwkvc_fail(RWKVC_E_NOMEM, "no memory for a sampler");
    s->options = o;
    s->n_vocab = n_vocab;
    s->n_padded = (n_vocab + BLOCK - 1) / BLOCK * BLOCK;
    s->log_min_p = o.min_p > 0 ? log_of((double)o.min_p) : -INFINITY;
    if (!allocate(s)) {
        rwkvc_sampler_destroy(s);
        return rwkvc_fail(RWKVC_E_NOMEM, "no memory for a sampler of %u tokens", (unsigned)n_vocab);
    }
    rwkvc_sampler_reset(s);
    *sampler = s;
    return RWKVC_OK;
}

void rwkvc_sampler_destroy(rwkvc_sampler *sampler) {
    if (!sampler) return;
    free(sampler->logits);
    free(sampler->peaks);
    free(sampler->candidates.ids);
    free(sampler->candidates.logits);
    free(sampler->candidates.weights);
    free(sampler->keys);
    free(sampler->masses);
    free(sampler->nearness);
    free(sampler->sums);
    free(sampler->bins);
    free(sampler->marks);
    free(sampler->place);
    free(sampler->seen);
    free(sampler->banned);
    free(sampler->biased);
    free(sampler->biases);
    free(sampler->history);
    free(sampler->matches);
    free(sampler->longest);
    free(sampler);
}

void rwkvc_sampler_reset(rwkvc_sampler *sampler) {
    for (uint32_t j = 0; j < sampler->n_seen; j++) sampler->place[sampler->seen[j].id] = 0;
    sampler->n_seen = sampler->n_history = 0;
    sampler->surprise = 2 * (double)sampler->options.mirostat_tau;
    seed_random(sampler->random, sampler->options.seed);
}

/* ------------------------------------------------------------------------------------------------ the chain */

static void load_logits(struct rwkvc_sampler *s, const float *logits) {
    memcpy(s->logits, logits, s->n_vocab * sizeof *logits);
    for (uint32_t i = s->n_vocab; i < s->n_padded; i++) s->logits[i] = -INFINITY;
}

/* The largest of logits[n_vocab], and the sum of their exp(logit - peak); overwrites s->logits and peaks[]. */
static rwkvc_status weigh_all(struct rwkvc_sampler *s, const float *logits, float *peak, double *total) {
    load_logits(s, logits);
    rwkvc_status status = rwkvc_sampler_peaks(s, peak);
    if (status == RWKVC_OK) *total = sum_of_exp(s->logits, s->n_padded, *peak, 1, NULL);
    return status;
}

static float log_probability(float logit, float peak, double total) {
    return (float)((double)logit - (double)peak - log_of(total));
}

rwkvc_status rwkvc_sampler_sample(rwkvc_sampler *sampler, const float *logits, const uint32_t *allowed, uint32_t *token,
                                  float *logprob) {
    if (!sampler || !logits || !token)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no sampler, no logits, or nowhere to put the token");
    const rwkvc_sampler_options *o = &sampler->options;
    float peak;
    load_logits(sampler, logits);
    bool changed = rwkvc_sampler_change(sampler, allowed);
    rwkvc_status status = rwkvc_sampler_peaks(sampler, &peak);
    if (status != RWKVC_OK) return status;
    if (peak == -INFINITY)
        return rwkvc_fail(RWKVC_E_NONFINITE, "every token is banned, not allowed or has a logit of -Inf");

    double total = 0; /* 0: not computed */
    if (o->temperature == 0) {
        *token = rwkvc_sampler_first(sampler, peak);
    } else if (o->mirostat_tau > 0) {
        *token = rwkvc_sampler_mirostat(sampler, peak);
    } else {
        total = rwkvc_sampler_select(sampler, peak);
        *token = rwkvc_sampler_draw(sampler, peak);
    }
    if (!logprob) return RWKVC_OK;
    if (changed)
        status = weigh_all(sampler, logits, &peak, &total);
    else if (total == 0)
        total = sum_of_exp(sampler->logits, sampler->n_padded, peak, 1, NULL);
    if (status == RWKVC_OK) *logprob = log_probability(logits[*token], peak, total);
    return status;
}

rwkvc_status rwkvc_sampler_top(rwkvc_sampler *sampler, const float *logits, uint32_t n, uint32_t *ids,
                               float *logprobs) {
    if (!sampler || !logits || !ids || !logprobs)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no sampler, no logits, or nowhere to put the tokens");
    if (n == 0 || n > MAX_TOP || n > sampler->n_vocab)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "the %u likeliest tokens; must be from 1 to %u, and no more than there are",
                          (unsigned)n, (unsigned)MAX_TOP);
    float peak;
    double total;
    rwkvc_status status = weigh_all(sampler, logits, &peak, &total);
    if (status != RWKVC_OK) return status;
    rwkvc_sampler_largest(sampler, n);
    const struct candidates *c = &sampler->candidates;
    uint64_t sorted[MAX_TOP]; /* by logit, then by id: largest first */
    for (uint32_t i = 0; i < c->n; i++) {
        uint64_t key = (uint64_t)order_key(c->logits[i]) << 32 | ~c->ids[i];
        uint32_t at = i;
        for (; at > 0 && sorted[at - 1] < key; at--) sorted[at] = sorted[at - 1];
        sorted[at] = key;
    }
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = i < c->n ? ~(uint32_t)sorted[i] : ids[0];
        logprobs[i] = i < c->n ? log_probability(logits[ids[i]], peak, total) : -INFINITY;
    }
    return RWKVC_OK;
}

/* How many of x[n] are larger than `than`. */
static uint32_t count_larger(const float *x, uint32_t n, float than) {
    uint32_t i = 0, larger_ones = 0;
    ivec count = {0};
    for (; i + VEC <= n; i += VEC) count -= load(x + i) > fill(than);
    for (uint32_t l = 0; l < VEC; l++) larger_ones += (uint32_t)count[l];
    for (; i < n; i++) larger_ones += x[i] > than;
    return larger_ones;
}

rwkvc_status rwkvc_logprobs(const float *logits, uint32_t n_vocab, const uint32_t *tokens, uint64_t n, float *logprobs,
                            uint32_t *ranks) {
    if (!logits || !tokens || !logprobs || n_vocab == 0)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no logits, no tokens, or nowhere to put their probabilities");
    uint32_t whole = n_vocab / BLOCK * BLOCK;
    for (uint64_t row = 0; row < n; row++, logits += n_vocab) {
        if (tokens[row] >= n_vocab)
            return rwkvc_fail(RWKVC_E_TOKEN, "token %u is outside the vocabulary of %u", (unsigned)tokens[row],
                              (unsigned)n_vocab);
        float tail[BLOCK], peak = -INFINITY;
        bool bad = false;
        for (uint32_t i = 0; i < BLOCK; i++) tail[i] = whole + i < n_vocab ? logits[whole + i] : -INFINITY;
        for (uint32_t i = 0; i < n_vocab; i += BLOCK) {
            float found = block_peak(i < whole ? logits + i : tail, &bad);
            peak = found > peak ? found : peak;
        }
        if (bad || peak == -INFINITY)
            return rwkvc_fail(RWKVC_E_NONFINITE, "row %llu of the logits has NaN or Inf", (unsigned long long)row);
        double total = sum_of_exp(logits, whole, peak, 1, NULL) + sum_of_exp(tail, BLOCK, peak, 1, NULL);
        float own = logits[tokens[row]];
        logprobs[row] = log_probability(own, peak, total);
        if (ranks) ranks[row] = count_larger(logits, n_vocab, own);
    }
    return RWKVC_OK;
}
