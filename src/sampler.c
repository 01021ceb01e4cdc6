/* SPDX-License-Identifier: Apache-2.0
 *
 * Choosing a token from logits: penalties and bans, top-k, top-p, min-p, temperature, a seeded draw.
 *
 * The same seed gives the same tokens on every machine (see sampler_math.h).
 *
 * No sorting: the logits are read once, with the largest of each BLOCK of them. What can be chosen is gathered
 * through those, and a cut (the k-th largest logit, the logit where the mass of top-p is full) is found by radix
 * selection. Cuts look at the probabilities of the whole vocabulary before temperature, as the rwkv package's
 * PIPELINE.sample_logits does, so their order does not matter.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "rwkv_cpu.h"
#include "sampler_math.h"

#define CHUNK 1024u /* weights per entry of sums[] */
#define MAX_VOCAB (1u << 24)
#define MARK_BANNED 1u
#define MARK_EXEMPT 2u
#define RADIX_BITS 11u
#define RADIX (1u << RADIX_BITS)
#define NEGLIGIBLE 45.0 /* exp(-45) = 3e-20: less than any draw can hit */
#define MIN_TEMPERATURE 1e-6
#define SPLITS 4u /* tries per pass of find_cut_of_many() */
#define MANY 50.0 /* mass in units of the likeliest token's, from which no few tokens can hold most of it */

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
    double *sums;    /* [n_padded / CHUNK + 1] */
    double *bins;    /* [RADIX] */
    uint8_t *marks;  /* [n_vocab] */
    uint32_t *place; /* [n_vocab] index into seen[] + 1 */
    struct seen *seen;
    uint32_t n_seen, seen_room;
    uint32_t *banned;
    uint32_t n_banned;
    uint64_t random[4];
};

/* -------------------------------------------------------------------------------------- making a sampler */

void rwkvc_sampler_defaults(rwkvc_sampler_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->temperature = 1.0f;
    options->top_p = 1.0f;
    options->penalty_decay = 0.996f;
}

static rwkvc_status check_options(const rwkvc_sampler_options *o) {
    if (o->struct_size < sizeof *o)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "sampler options of another version of this header");
    if (!(o->temperature >= 0 && isfinite(o->temperature)))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "temperature %g: must be a number from 0", (double)o->temperature);
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "top_p %g: must be from 0 to 1", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "min_p %g: must be from 0 to 1", (double)o->min_p);
    if (!isfinite(o->presence_penalty) || !isfinite(o->frequency_penalty))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "a penalty that is no finite number");
    if (!(o->penalty_decay >= 0 && o->penalty_decay <= 1))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "penalty_decay %g: must be from 0 to 1", (double)o->penalty_decay);
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
    return s->logits && s->peaks && s->candidates.ids && s->candidates.logits && s->candidates.weights && s->keys &&
           s->masses && s->sums && s->bins && s->marks && s->place;
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
    seed_random(s->random, o.seed);
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
    free(sampler->sums);
    free(sampler->bins);
    free(sampler->marks);
    free(sampler->place);
    free(sampler->seen);
    free(sampler->banned);
    free(sampler);
}

static rwkvc_status check_ids(const struct rwkvc_sampler *s, const uint32_t *ids, uint32_t n) {
    if (!s || (!ids && n)) return rwkvc_fail(RWKVC_E_ARGUMENT, "no sampler, or no ids");
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] >= s->n_vocab)
            return rwkvc_fail(RWKVC_E_TOKEN, "token %u is outside the vocabulary of %u", (unsigned)ids[i],
                              (unsigned)s->n_vocab);
    return RWKVC_OK;
}

static void mark_only(struct rwkvc_sampler *s, const uint32_t *ids, uint32_t n, uint32_t mark) {
    for (uint32_t i = 0; i < s->n_vocab; i++) s->marks[i] &= (uint8_t)~mark;
    for (uint32_t i = 0; i < n; i++) s->marks[ids[i]] |= (uint8_t)mark;
}

rwkvc_status rwkvc_sampler_ban(rwkvc_sampler *sampler, const uint32_t *ids, uint32_t n) {
    rwkvc_status status = check_ids(sampler, ids, n);
    if (status != RWKVC_OK) return status;
    mark_only(sampler, ids, n, MARK_BANNED);
    uint32_t n_banned = 0;
    for (uint32_t i = 0; i < sampler->n_vocab; i++) n_banned += sampler->marks[i] & MARK_BANNED;
    uint32_t *banned = malloc((n_banned + 1) * sizeof *banned);
    if (!banned) {
        mark_only(sampler, sampler->banned, sampler->n_banned, MARK_BANNED);
        return rwkvc_fail(RWKVC_E_NOMEM, "no memory for %u banned tokens", (unsigned)n_banned);
    }
    n_banned = 0;
    for (uint32_t i = 0; i < sampler->n_vocab; i++)
        if (sampler->marks[i] & MARK_BANNED) banned[n_banned++] = i;
    free(sampler->banned);
    sampler->banned = banned;
    sampler->n_banned = n_banned;
    return RWKVC_OK;
}

rwkvc_status rwkvc_sampler_exempt(rwkvc_sampler *sampler, const uint32_t *ids, uint32_t n) {
    rwkvc_status status = check_ids(sampler, ids, n);
    if (status == RWKVC_OK) mark_only(sampler, ids, n, MARK_EXEMPT);
    return status;
}

/* ------------------------------------------------------------------------------------- counting for penalties */

static bool has_penalties(const struct rwkvc_sampler *s) {
    return s->options.presence_penalty != 0 || s->options.frequency_penalty != 0;
}

rwkvc_status rwkvc_sampler_accept(rwkvc_sampler *sampler, uint32_t token) {
    rwkvc_status status = check_ids(sampler, &token, 1);
    if (status != RWKVC_OK || !has_penalties(sampler)) return status;
    uint32_t i = sampler->place[token];
    if (i == 0 && sampler->n_seen == sampler->seen_room) {
        uint32_t room = sampler->seen_room ? 2 * sampler->seen_room : 256;
        struct seen *seen = realloc(sampler->seen, room * sizeof *seen);
        if (!seen) return rwkvc_fail(RWKVC_E_NOMEM, "no memory to count %u tokens", (unsigned)room);
        sampler->seen = seen;
        sampler->seen_room = room;
    }
    double decay = (double)sampler->options.penalty_decay;
    for (uint32_t j = 0; j < sampler->n_seen; j++) sampler->seen[j].count *= decay;
    if (i == 0) {
        sampler->seen[sampler->n_seen] = (struct seen){token, 0};
        i = sampler->place[token] = ++sampler->n_seen;
    }
    if (!(sampler->marks[token] & MARK_EXEMPT)) sampler->seen[i - 1].count += 1;
    return RWKVC_OK;
}

void rwkvc_sampler_reset(rwkvc_sampler *sampler) {
    for (uint32_t j = 0; j < sampler->n_seen; j++) sampler->place[sampler->seen[j].id] = 0;
    sampler->n_seen = 0;
    seed_random(sampler->random, sampler->options.seed);
}

/* ------------------------------------------------------------------------------------------------ sampling */

/* The largest of x[BLOCK]; sets *bad if any is NaN or +Inf. */
static float block_peak(const float *x, bool *bad) {
    vec peak[4];
    ivec good = {-1, -1, -1, -1};
    for (uint32_t j = 0; j < 4; j++) peak[j] = fill(-INFINITY);
    for (uint32_t i = 0; i < BLOCK; i += 4 * VEC)
        for (uint32_t j = 0; j < 4; j++) {
            vec v = load(x + i + j * VEC);
            good &= v < fill(INFINITY);
            peak[j] = larger(v, peak[j]);
        }
    peak[0] = larger(larger(peak[0], peak[1]), larger(peak[2], peak[3]));
    *bad |= !(good[0] & good[1] & good[2] & good[3]);
    float a = peak[0][0] > peak[0][1] ? peak[0][0] : peak[0][1], b = peak[0][2] > peak[0][3] ? peak[0][2] : peak[0][3];
    return a > b ? a : b;
}

/* Fill peaks[] from logits[]; the largest of all. */
static rwkvc_status find_peaks(struct rwkvc_sampler *s, float *peak) {
    bool bad = false;
    *peak = -INFINITY;
    for (uint32_t b = 0; b < s->n_padded / BLOCK; b++) {
        s->peaks[b] = block_peak(s->logits + (size_t)b * BLOCK, &bad);
        if (s->peaks[b] > *peak) *peak = s->peaks[b];
    }
    if (!bad) return RWKVC_OK;
    uint32_t id = 0;
    while (s->logits[id] < INFINITY) id++;
    return rwkvc_fail(RWKVC_E_NONFINITE, "the logit of token %u is %s", (unsigned)id,
                      s->logits[id] > 0 ? "+Inf" : "NaN");
}

/* Copy the logits, take penalties off and bans out. */
static rwkvc_status load_logits(struct rwkvc_sampler *s, const float *logits, float *peak, bool *changed) {
    memcpy(s->logits, logits, s->n_vocab * sizeof *logits);
    for (uint32_t i = s->n_vocab; i < s->n_padded; i++) s->logits[i] = -INFINITY;
    *changed = s->n_seen > 0 || s->n_banned > 0;
    for (uint32_t j = 0; j < s->n_seen; j++) {
        double penalty = (double)s->options.presence_penalty + s->seen[j].count * (double)s->options.frequency_penalty;
        float *logit = &s->logits[s->seen[j].id];
        *logit = (float)((double)*logit - penalty);
    }
    for (uint32_t j = 0; j < s->n_banned; j++) {
        float *logit = &s->logits[s->banned[j]];
        if (*logit < INFINITY) *logit = -INFINITY;
    }
    return find_peaks(s, peak);
}

static uint32_t most_likely(const struct rwkvc_sampler *s, float peak) {
    uint32_t i = 0;
    while (s->peaks[i] < peak) i++;
    i *= BLOCK;
    while (s->logits[i] < peak) i++;
    return i;
}

/* Unsigned integers in the order of the floats; -0 as 0. */
static uint32_t order_key(float x) {
    uint32_t bits = bits_of(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float float_of_key(uint32_t key) { return float_of(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

/* Of entries[0..n) (keys[], masses[]): the largest logit t such that those from t up weigh `target` or more, together
 * with `above`, what lies above all of them; the smallest if that is too little. Radix selection: only the bin in which
 * the target is reached is looked into again. */
static float radix_cut(struct rwkvc_sampler *s, uint32_t n, double above, double target) {
    for (uint32_t shift = 32 - RADIX_BITS;; shift = shift > RADIX_BITS ? shift - RADIX_BITS : 0) {
        memset(s->bins, 0, RADIX * sizeof *s->bins);
        uint32_t lowest = RADIX - 1, bin = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t b = s->keys[i] >> shift & (RADIX - 1);
            s->bins[b] += (double)s->masses[i];
            lowest = b < lowest ? b : lowest;
            bin = b > bin ? b : bin;
        }
        for (; bin > lowest && !(above + s->bins[bin] >= target); bin--) above += s->bins[bin];
        uint32_t kept = 0;
        for (uint32_t i = 0; i < n; i++) {
            if ((s->keys[i] >> shift & (RADIX - 1)) != bin) continue;
            s->keys[kept] = s->keys[i];
            s->masses[kept++] = s->masses[i];
        }
        n = kept;
        if (shift == 0) return float_of_key(s->keys[0]);
    }
}

/* The largest t such that the entries x >= t weigh `target` or more (weights NULL: 1 each), else the smallest x. */
static float find_cut(struct rwkvc_sampler *s, const float *x, const float *weights, uint32_t n, double target) {
    for (uint32_t i = 0; i < n; i++) {
        s->keys[i] = order_key(x[i]);
        s->masses[i] = weights ? weights[i] : 1.0f;
    }
    return radix_cut(s, n, 0, target);
}

/* above[k] = what the entries x > t[k] weigh; n a multiple of BLOCK. */
static void weigh_above(const float *x, const float *weights, uint32_t n, const float t[SPLITS], double above[SPLITS]) {
    for (uint32_t k = 0; k < SPLITS; k++) above[k] = 0;
    for (uint32_t start = 0; start < n; start += CHUNK) {
        uint32_t end = n - start < CHUNK ? n : start + CHUNK;
        vec sum[SPLITS] = {{0}};
        for (uint32_t i = start; i < end; i += VEC)
            for (uint32_t k = 0; k < SPLITS; k++) sum[k] += (vec)((load(x + i) > fill(t[k])) & (ivec)load(weights + i));
        for (uint32_t k = 0; k < SPLITS; k++) above[k] += sum_of_lanes(sum[k]);
    }
}

/* find_cut() over the whole vocabulary, whose weights lie in masses[], when many tokens share the mass: narrow the
 * place of the cut by passes that are vectors, then select among the few tokens near it. */
static float find_cut_of_many(struct rwkvc_sampler *s, float low, float high, double target) {
    double above = 0; /* what x > high weighs: less than target */
    for (uint32_t pass = 0; pass < 3; pass++) {
        float t[SPLITS];
        double weights[SPLITS];
        for (uint32_t k = 0; k < SPLITS; k++) t[k] = low + (high - low) * ((float)(k + 1) / (SPLITS + 1));
        weigh_above(s->logits, s->masses, s->n_padded, t, weights);
        for (uint32_t k = 0; k < SPLITS; k++) {
            if (weights[k] >= target) {
                low = t[k];
            } else {
                high = t[k];
                above = weights[k];
                break;
            }
        }
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_padded; i += VEC) {
        vec x = load(s->logits + i), weights = load(s->masses + i);
        ivec inside = (x >= fill(low)) & (x <= fill(high));
        uint64_t any[2];
        memcpy(any, &inside, sizeof any);
        if (!(any[0] | any[1])) continue;
        for (uint32_t l = 0; l < VEC; l++) {
            s->keys[n] = order_key(x[l]);
            s->masses[n] = weights[l];
            n += inside[l] & 1;
        }
    }
    return radix_cut(s, n, above, target);
}

static void pad_candidates(struct candidates *c) {
    for (uint32_t i = c->n; i % BLOCK; i++) c->logits[i] = -INFINITY;
}

/* Take every token with a logit of at least `floor`. */
static void gather(struct rwkvc_sampler *s, float floor) {
    struct candidates *c = &s->candidates;
    uint32_t n = 0;
    if (floor < -FLT_MAX) floor = -FLT_MAX;
    for (uint32_t b = 0; b < s->n_padded / BLOCK; b++) {
        if (!(s->peaks[b] >= floor)) continue;
        for (uint32_t i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            float logit = s->logits[i];
            c->ids[n] = i;
            c->logits[n] = logit;
            n += logit >= floor;
        }
    }
    c->n = n;
    pad_candidates(c);
}

/* Keep the candidates with a logit above `cut`, and the first `ties` of those at it. */
static void keep_from(struct candidates *c, float cut, uint32_t ties) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        bool tie = c->logits[i] == cut;
        if (c->logits[i] < cut || (tie && ties == 0)) continue;
        ties -= tie;
        c->ids[n] = c->ids[i];
        c->logits[n++] = c->logits[i];
    }
    c->n = n;
    pad_candidates(c);
}

/* Give the candidates the weights exp((logit - peak) / temperature), and sums[] those of each CHUNK; the total. */
static double weigh(struct rwkvc_sampler *s, float peak, double temperature) {
    struct candidates *c = &s->candidates;
    double total = 0;
    for (uint32_t start = 0; start < c->n; start += CHUNK) {
        uint32_t n = c->n - start < CHUNK ? (c->n - start + BLOCK - 1) / BLOCK * BLOCK : CHUNK;
        s->sums[start / CHUNK] = sum_of_exp(c->logits + start, n, peak, (float)(1 / temperature), c->weights + start);
        total += s->sums[start / CHUNK];
    }
    return total;
}

/* The lowest logit that min_p, top_k and temperature leave any chance; cheap bounds, top_k is not exact yet. */
static float lowest_chance(struct rwkvc_sampler *s, float peak, double temperature) {
    const rwkvc_sampler_options *o = &s->options;
    uint32_t n_blocks = s->n_padded / BLOCK;
    float floor = (float)((double)peak - NEGLIGIBLE * temperature);
    float min_p = (float)((double)peak + s->log_min_p);
    if (min_p > floor) floor = min_p;
    if (o->top_k > 0 && o->top_k <= n_blocks) {
        /* k blocks have a logit of at least the k-th largest peak. */
        float kth = find_cut(s, s->peaks, NULL, n_blocks, o->top_k);
        if (kth > floor) floor = kth;
    }
    return floor;
}

/* Gather tokens from `lowest` up, at least those that top_p leaves; the logit at which it cuts, -Inf if that is lower.
 * `total`: the sum of exp(logit - peak) over the vocabulary, its terms in masses[]. */
static float gather_top_p(struct rwkvc_sampler *s, float peak, float lowest, double total) {
    struct candidates *c = &s->candidates;
    double wanted = (double)s->options.top_p * total;
    /* All tokens further below the peak than this weigh less than what may be left out. */
    double reach = log_of((double)s->n_padded / ((1 - (double)s->options.top_p) * total));
    if (total > MANY) {
        float low = (float)((double)peak - reach), cut = find_cut_of_many(s, low < peak ? low : peak, peak, wanted);
        gather(s, cut > lowest ? cut : lowest);
        return -INFINITY;
    }
    static const double near_first[] = {3, 8, INFINITY};
    for (uint32_t i = 0;; i++) {
        float floor = (float)((double)peak - (near_first[i] < reach ? near_first[i] : reach));
        gather(s, floor > lowest ? floor : lowest);
        double found = weigh(s, peak, 1);
        if (found > wanted) return find_cut(s, c->logits, c->weights, c->n, wanted);
        if (floor <= lowest || near_first[i] >= reach) return -INFINITY;
    }
}

/* Gather what top_k, top_p and min_p leave, and no token too unlikely for the draw to hit. */
static void select_candidates(struct rwkvc_sampler *s, float peak, double temperature, double total) {
    struct candidates *c = &s->candidates;
    uint32_t k = s->options.top_k;
    float lowest = lowest_chance(s, peak, temperature), cut = -INFINITY;
    if (s->options.top_p < 1)
        cut = gather_top_p(s, peak, lowest, total);
    else
        gather(s, lowest);
    if (k > 0 && c->n > k) {
        float kth = find_cut(s, c->logits, NULL, c->n, k);
        uint32_t above = 0;
        for (uint32_t i = 0; i < c->n; i++) above += c->logits[i] > kth;
        keep_from(c, kth, k - above);
    }
    if (cut > -INFINITY) keep_from(c, cut, UINT32_MAX);
}

/* Draw one of the candidates in proportion to the weights. */
static uint32_t draw(struct rwkvc_sampler *s, double total) {
    const struct candidates *c = &s->candidates;
    double left = draw_uniform(s->random) * total;
    uint32_t start = 0, last = 0;
    while (start + CHUNK < c->n && left >= s->sums[start / CHUNK]) {
        left -= s->sums[start / CHUNK];
        start += CHUNK;
    }
    for (uint32_t i = start; i < c->n; i++) {
        if (!(c->weights[i] > 0)) continue;
        last = i;
        left -= (double)c->weights[i];
        if (left < 0) break;
    }
    return c->ids[last];
}

/* log of the probability of `token` among logits[n_vocab]; overwrites s->logits. */
static float log_probability(struct rwkvc_sampler *s, const float *logits, uint32_t token) {
    float peak = -INFINITY;
    bool bad = false;
    memcpy(s->logits, logits, s->n_vocab * sizeof *logits);
    for (uint32_t b = 0; b < s->n_padded / BLOCK; b++) {
        float found = block_peak(s->logits + (size_t)b * BLOCK, &bad);
        peak = found > peak ? found : peak;
    }
    return (float)((double)logits[token] - (double)peak - log_of(sum_of_exp(s->logits, s->n_padded, peak, 1, NULL)));
}

rwkvc_status rwkvc_sampler_sample(rwkvc_sampler *sampler, const float *logits, uint32_t *token, float *logprob) {
    if (!sampler || !logits || !token)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no sampler, no logits, or nowhere to put the token");
    const rwkvc_sampler_options *o = &sampler->options;
    float peak;
    bool changed;
    rwkvc_status status = load_logits(sampler, logits, &peak, &changed);
    if (status != RWKVC_OK) return status;
    if (peak == -INFINITY) return rwkvc_fail(RWKVC_E_NONFINITE, "every token is banned or has a logit of -Inf");

    double total = 0; /* 0: not computed */
    if (o->temperature == 0) {
        *token = most_likely(sampler, peak);
    } else {
        double temperature = (double)o->temperature > MIN_TEMPERATURE ? (double)o->temperature : MIN_TEMPERATURE;
        if (o->top_p < 1) total = sum_of_exp(sampler->logits, sampler->n_padded, peak, 1, sampler->masses);
        select_candidates(sampler, peak, temperature, total);
        *token = draw(sampler, weigh(sampler, peak, temperature));
    }
    if (!logprob) return RWKVC_OK;
    if (changed) {
        *logprob = log_probability(sampler, logits, *token);
    } else {
        if (total == 0) total = sum_of_exp(sampler->logits, sampler->n_padded, peak, 1, NULL);
        *logprob = (float)((double)logits[*token] - (double)peak - log_of(total));
    }
    return RWKVC_OK;
}
