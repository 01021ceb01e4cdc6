/* SPDX-License-Identifier: Apache-2.0
 *
 * Which tokens are left to choose from, and the draw.
 *
 * No sorting: the logits are read once, with the largest of each BLOCK of them. What can be chosen is gathered
 * through those, and a cut (the k-th largest logit, the logit where the mass of top-p is full) is found by radix
 * selection. top_k, top_p, min_p and top_a look at the probabilities of the whole vocabulary before temperature, as the
 * rwkv package's PIPELINE.sample_logits does, so their order does not matter; typical_p and XTC look at what those left.
 */
#include <float.h>
#include <math.h>

#include "sampler.h"

#define NEGLIGIBLE 45.0 /* exp(-45) = 3e-20: less than any draw can hit */
#define MIN_TEMPERATURE 1e-6
#define SPLITS 4u /* tries per pass of find_cut_of_many() */
#define FEW 2048u /* among fewer, radix selection alone finds a cut soonest */
#define MANY 50.0 /* mass in units of the likeliest token's, from which no few tokens can hold most of it */
#define LN_2 0.6931471805599453

static double temperature_of(const struct rwkvc_sampler *s) {
    double temperature = (double)s->options.temperature;
    return temperature > MIN_TEMPERATURE ? temperature : MIN_TEMPERATURE;
}

rwkvc_status rwkvc_sampler_peaks(struct rwkvc_sampler *s, float *peak) {
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

uint32_t rwkvc_sampler_first(const struct rwkvc_sampler *s, float peak) {
    uint32_t i = 0;
    while (s->peaks[i] < peak) i++;
    i *= BLOCK;
    while (s->logits[i] < peak) i++;
    return i;
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

/* find_cut() of many x within [low, high], n a multiple of BLOCK: narrow the place of the cut by passes that are
 * vectors, then select among the few entries near it. weights may be s->masses. */
static float find_cut_of_many(struct rwkvc_sampler *s, const float *x, const float *weights, uint32_t n, float low,
                              float high, double target) {
    double above = 0; /* what x > high weighs: less than target */
    for (uint32_t pass = 0; pass < 3; pass++) {
        float t[SPLITS];
        double heavier[SPLITS];
        for (uint32_t k = 0; k < SPLITS; k++) t[k] = low + (high - low) * ((float)(k + 1) / (SPLITS + 1));
        weigh_above(x, weights, n, t, heavier);
        for (uint32_t k = 0; k < SPLITS; k++) {
            if (heavier[k] >= target) {
                low = t[k];
            } else {
                high = t[k];
                above = heavier[k];
                break;
            }
        }
    }
    uint32_t n_near = 0;
    for (uint32_t i = 0; i < n; i += VEC) {
        vec values = load(x + i), masses = load(weights + i);
        ivec inside = (values >= fill(low)) & (values <= fill(high));
        uint64_t any[2];
        memcpy(any, &inside, sizeof any);
        if (!(any[0] | any[1])) continue;
        for (uint32_t l = 0; l < VEC; l++) {
            s->keys[n_near] = order_key(values[l]);
            s->masses[n_near] = masses[l];
            n_near += inside[l] & 1;
        }
    }
    return radix_cut(s, n_near, above, target);
}

/* Whether all of x[BLOCK] are `floor` or more. */
static bool all_from(const float *x, float floor) {
    ivec all = {-1, -1, -1, -1};
    for (uint32_t i = 0; i < BLOCK; i += VEC) all &= load(x + i) >= fill(floor);
    return all[0] & all[1] & all[2] & all[3];
}

static uint32_t padded(uint32_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

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
        const float *block = s->logits + b * BLOCK;
        if (all_from(block, floor)) { /* as where nothing is cut */
            memcpy(c->logits + n, block, BLOCK * sizeof *block);
            for (uint32_t i = 0; i < BLOCK; i++) c->ids[n++] = b * BLOCK + i;
            continue;
        }
        for (uint32_t i = 0; i < BLOCK; i++) {
            c->ids[n] = b * BLOCK + i;
            c->logits[n] = block[i];
            n += block[i] >= floor;
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

/* Keep the k candidates with the largest logits, the lowest ids of equals. */
static void keep_largest(struct rwkvc_sampler *s, uint32_t k) {
    struct candidates *c = &s->candidates;
    float kth = find_cut(s, c->logits, NULL, c->n, k);
    uint32_t above = 0;
    for (uint32_t i = 0; i < c->n; i++) above += c->logits[i] > kth;
    keep_from(c, kth, k - above);
}

/* Give the candidates the weights exp((logit - peak) / temperature), and sums[] those of each CHUNK; the total. */
static double weigh(struct rwkvc_sampler *s, float peak, double temperature) {
    struct candidates *c = &s->candidates;
    double total = 0;
    for (uint32_t start = 0; start < c->n; start += CHUNK) {
        uint32_t n = c->n - start < CHUNK ? padded(c->n - start) : CHUNK;
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
        float low = (float)((double)peak - reach),
              cut = find_cut_of_many(s, s->logits, s->masses, s->n_padded, low < peak ? low : peak, peak, wanted);
        gather(s, cut > lowest ? cut : lowest);
        return -INFINITY;
    }
    static const double near_first[] = {3, 8, INFINITY};
    for (uint32_t i = 0;; i++) {
        float floor = (float)((double)peak - (near_first[i] < reach ? near_first[i] : reach));
        gather(s, floor > lowest ? floor : lowest);
        double found = weigh(s, peak, 1);
        if (found > wanted && c->n < FEW) return find_cut(s, c->logits, c->weights, c->n, wanted);
        if (found > wanted) return find_cut_of_many(s, c->logits, c->weights, padded(c->n), floor, peak, wanted);
        if (floor <= lowest || near_first[i] >= reach) return -INFINITY;
    }
}

static float smallest_of_lanes(vec v) {
    float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
}

/* Keep the candidates whose logits are nearest to the mean logit, which hold the share typical_p of the mass: the
 * distance is that of a token's surprise from the entropy. */
static void keep_typical(struct rwkvc_sampler *s, float peak) {
    struct candidates *c = &s->candidates;
    uint32_t n_padded = padded(c->n);
    double total = weigh(s, peak, 1), mean = 0;
    for (uint32_t start = 0; start < n_padded; start += BLOCK) {
        vec sum[2] = {{0}, {0}};
        for (uint32_t i = start; i < start + BLOCK; i += 2 * VEC)
            for (uint32_t j = 0; j < 2; j++) {
                vec weights = load(c->weights + i + j * VEC), below = load(c->logits + i + j * VEC) - peak;
                sum[j] += pick(weights > fill(0), weights * below, fill(0));
            }
        mean += sum_of_lanes(sum[0] + sum[1]);
    }
    float middle = (float)((double)peak + mean / total);
    vec least = fill(0);
    for (uint32_t i = 0; i < n_padded; i += VEC) {
        vec distance = load(c->logits + i) - middle, near = pick(distance > fill(0), -distance, distance);
        store(s->nearness + i, near);
        least = pick((near < least) & (near >= fill(-FLT_MAX)), near, least); /* what pads is infinitely far */
    }
    float farthest = smallest_of_lanes(least);
    double wanted = (double)s->options.typical_p * total;
    float cut = find_cut_of_many(s, s->nearness, c->weights, n_padded, farthest, 0, wanted);
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) { /* without branches: near and far ones alternate */
        c->ids[n] = c->ids[i];
        c->logits[n] = c->logits[i];
        n += s->nearness[i] >= cut;
    }
    c->n = n;
    pad_candidates(c);
}

/* XTC: of the candidates as likely as the threshold or more, keep only the least likely. */
static void exclude_top_choices(struct rwkvc_sampler *s, float peak) {
    struct candidates *c = &s->candidates;
    double threshold = (double)s->options.xtc_threshold;
    if (!(draw_uniform(s->random) < (double)s->options.xtc_probability) || threshold > 0.5) return;
    float floor = threshold > 0 ? (float)((double)peak + log_of(threshold * weigh(s, peak, 1))) : -FLT_MAX;
    float least = INFINITY;
    bool bad = false;
    for (uint32_t i = 0; i < c->n; i++) {
        if (i % BLOCK == 0 && block_peak(c->logits + i, &bad) < floor)
            i += BLOCK - 1;
        else if (c->logits[i] >= floor && c->logits[i] < least)
            least = c->logits[i];
    }
    /* What is above the least of the top choices stays among the candidates, without a chance. */
    for (uint32_t i = 0; i < c->n; i++) {
        if (i % BLOCK == 0 && block_peak(c->logits + i, &bad) <= least)
            i += BLOCK - 1;
        else if (c->logits[i] > least)
            c->logits[i] = -INFINITY;
    }
}

static float peak_of(const struct candidates *c) {
    float peak = -INFINITY;
    bool bad = false;
    for (uint32_t i = 0; i < c->n; i += BLOCK) {
        float best = block_peak(c->logits + i, &bad);
        peak = best > peak ? best : peak;
    }
    return peak;
}

double rwkvc_sampler_select(struct rwkvc_sampler *s, float peak) {
    struct candidates *c = &s->candidates;
    const rwkvc_sampler_options *o = &s->options;
    bool typical = o->typical_p < 1, xtc = o->xtc_probability > 0;
    double temperature = temperature_of(s), total = 0;
    /* typical_p and XTC weigh what is left before temperature: nothing may be left out for that alone */
    float lowest = lowest_chance(s, peak, (typical || xtc) && temperature < 1 ? 1 : temperature), cut = -INFINITY;
    if (o->top_p < 1 || o->top_a > 0) total = sum_of_exp(s->logits, s->n_padded, peak, 1, s->masses);
    if (o->top_a > 0) { /* p >= top_a * p_max^2, p_max = 1 / total */
        float top_a = (float)((double)peak + log_of((double)o->top_a) - log_of(total));
        if (top_a > lowest) lowest = top_a < peak ? top_a : peak;
    }
    if (o->top_p < 1)
        cut = gather_top_p(s, peak, lowest, total);
    else
        gather(s, lowest);
    if (o->top_k > 0 && c->n > o->top_k) keep_largest(s, o->top_k);
    if (cut > -INFINITY) keep_from(c, cut, UINT32_MAX);
    if (typical && c->n > 1) keep_typical(s, peak);
    if (xtc) exclude_top_choices(s, typical ? peak_of(c) : peak);
    return total;
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
    return last;
}

uint32_t rwkvc_sampler_draw(struct rwkvc_sampler *s, float peak) {
    const rwkvc_sampler_options *o = &s->options;
    if (o->typical_p < 1 || o->xtc_probability > 0) peak = peak_of(&s->candidates); /* the likeliest may be gone */
    return s->candidates.ids[draw(s, weigh(s, peak, temperature_of(s)))];
}

uint32_t rwkvc_sampler_mirostat(struct rwkvc_sampler *s, float peak) {
    const rwkvc_sampler_options *o = &s->options;
    double temperature = temperature_of(s);
    double log = log_of(sum_of_exp(s->logits, s->n_padded, peak, (float)(1 / temperature), NULL));
    double floor = (double)peak + temperature * (log - s->surprise * LN_2); /* a surprise of just the limit */
    double lowest = (double)peak - NEGLIGIBLE * temperature;
    floor = floor > lowest ? floor : lowest;
    gather(s, floor < (double)peak ? (float)floor : peak);
    uint32_t i = draw(s, weigh(s, peak, temperature));
    double surprise = (log - ((double)s->candidates.logits[i] - (double)peak) / temperature) / LN_2;
    s->surprise -= (double)o->mirostat_eta * (surprise - (double)o->mirostat_tau);
    return s->candidates.ids[i];
}

void rwkvc_sampler_largest(struct rwkvc_sampler *s, uint32_t n) {
    uint32_t n_blocks = s->n_padded / BLOCK;
    gather(s, n <= n_blocks ? find_cut(s, s->peaks, NULL, n_blocks, n) : -FLT_MAX);
    if (s->candidates.n > n) keep_largest(s, n);
}
