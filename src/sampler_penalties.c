/* SPDX-License-Identifier: Apache-2.0
 *
 * What changes logits before a token is chosen: biases, penalties for what was said already, DRY, bans.
 */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>

#define MAX_DRY_PENALTY 1e6

static rwkvc_status check_ids(const struct rwkvc_sampler *s, const uint32_t *ids, uint64_t n) {
    if (!s || (!ids && n)) return rwkvc_fail(RWKVC_E_ARGUMENT, "no sampler, or no ids");
    for (uint64_t i = 0; i < n; i++)
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

rwkvc_status rwkvc_sampler_dry_breakers(rwkvc_sampler *sampler, const uint32_t *ids, uint32_t n) {
    rwkvc_status status = check_ids(sampler, ids, n);
    if (status == RWKVC_OK) mark_only(sampler, ids, n, MARK_BREAKER);
    return status;
}

rwkvc_status rwkvc_sampler_bias(rwkvc_sampler *sampler, const uint32_t *ids, const float *biases, uint32_t n) {
    rwkvc_status status = check_ids(sampler, ids, n);
    if (status != RWKVC_OK) return status;
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(biases[i]))
            return rwkvc_fail(RWKVC_E_ARGUMENT, "the bias of token %u is no finite number", (unsigned)ids[i]);
    uint32_t *own_ids = malloc((n + 1) * sizeof *own_ids);
    float *own_biases = malloc((n + 1) * sizeof *own_biases);
    if (!own_ids || !own_biases) {
        free(own_ids);
        free(own_biases);
        return rwkvc_fail(RWKVC_E_NOMEM, "no memory for %u biases", (unsigned)n);
    }
    if (n) memcpy(own_ids, ids, n * sizeof *ids);
    if (n) memcpy(own_biases, biases, n * sizeof *biases);
    free(sampler->biased);
    free(sampler->biases);
    sampler->biased = own_ids;
    sampler->biases = own_biases;
    sampler->n_biased = n;
    return RWKVC_OK;
}

/* ------------------------------------------------------------------------------------------------ counting */

static bool has_counts(const struct rwkvc_sampler *s) {
    const rwkvc_sampler_options *o = &s->options;
    return o->presence_penalty != 0 || o->frequency_penalty != 0 || o->repetition_penalty != 1;
}

static bool make_room(struct rwkvc_sampler *s, uint32_t wanted) {
    if (wanted <= s->seen_room) return true;
    uint32_t room = s->seen_room ? s->seen_room : 256;
    while (room < wanted) room *= 2;
    struct seen *seen = realloc(s->seen, room * sizeof *seen);
    if (!seen) return false;
    s->seen = seen;
    s->seen_room = room;
    return true;
}

static void remember(struct rwkvc_sampler *s, const uint32_t *tokens, uint64_t n) {
    uint32_t range = s->options.dry_range;
    if (!s->history || range == 0) return;
    if (n > range) {
        tokens += n - range;
        n = range;
    }
    if (s->n_history + n > 2 * (uint64_t)range) {
        uint32_t kept = s->n_history < range ? s->n_history : range;
        memmove(s->history, s->history + s->n_history - kept, kept * sizeof *s->history);
        s->n_history = kept;
    }
    memcpy(s->history + s->n_history, tokens, n * sizeof *tokens);
    s->n_history += (uint32_t)n;
}

rwkvc_status rwkvc_sampler_accept(rwkvc_sampler *sampler, uint32_t token) {
    rwkvc_status status = check_ids(sampler, &token, 1);
    if (status != RWKVC_OK) return status;
    if (has_counts(sampler)) {
        uint32_t i = sampler->place[token];
        if (i == 0 && !make_room(sampler, sampler->n_seen + 1))
            return rwkvc_fail(RWKVC_E_NOMEM, "no memory to count %u tokens", (unsigned)sampler->n_seen + 1);
        double decay = (double)sampler->options.penalty_decay;
        for (uint32_t j = 0; j < sampler->n_seen; j++) sampler->seen[j].count *= decay;
        if (i == 0) {
            sampler->seen[sampler->n_seen] = (struct seen){token, 0};
            i = sampler->place[token] = ++sampler->n_seen;
        }
        if (!(sampler->marks[token] & MARK_EXEMPT)) sampler->seen[i - 1].count += 1;
    }
    remember(sampler, &token, 1);
    return RWKVC_OK;
}

rwkvc_status rwkvc_sampler_observe(rwkvc_sampler *sampler, const uint32_t *tokens, uint64_t n) {
    rwkvc_status status = check_ids(sampler, tokens, n);
    if (status == RWKVC_OK) remember(sampler, tokens, n);
    return status;
}

rwkvc_status rwkvc_sampler_follow(rwkvc_sampler *sampler, const rwkvc_sampler *leader) {
    if (!sampler || !leader || sampler->n_vocab != leader->n_vocab || !sampler->history != !leader->history ||
        sampler->options.dry_range != leader->options.dry_range)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "a sampler can follow one of the same vocabulary and options only");
    if (!make_room(sampler, leader->n_seen))
        return rwkvc_fail(RWKVC_E_NOMEM, "no memory to count %u tokens", (unsigned)leader->n_seen);
    for (uint32_t j = 0; j < sampler->n_seen; j++) sampler->place[sampler->seen[j].id] = 0;
    for (uint32_t j = 0; j < leader->n_seen; j++) {
        sampler->seen[j] = leader->seen[j];
        sampler->place[leader->seen[j].id] = j + 1;
    }
    sampler->n_seen = leader->n_seen;
    if (leader->history) memcpy(sampler->history, leader->history, leader->n_history * sizeof *leader->history);
    sampler->n_history = leader->n_history;
    sampler->surprise = leader->surprise;
    memcpy(sampler->random, leader->random, sizeof leader->random);
    return RWKVC_OK;
}

/* ------------------------------------------------------------------------------------------ changing logits */

static void subtract(float *logit, double penalty) { *logit = (float)((double)*logit - penalty); }

static void penalise_seen(struct rwkvc_sampler *s) {
    const rwkvc_sampler_options *o = &s->options;
    double repetition = (double)o->repetition_penalty - 1;
    for (uint32_t j = 0; j < s->n_seen; j++) {
        float *logit = &s->logits[s->seen[j].id];
        double count = s->seen[j].count;
        if (repetition != 0) {
            double factor = 1 + repetition * (count < 1 ? count : 1);
            *logit = (float)(*logit > 0 ? (double)*logit / factor : (double)*logit * factor);
        }
        subtract(logit, (double)o->presence_penalty + count * (double)o->frequency_penalty);
    }
}

/* matches[k] = how many tokens before the last k agree with as many at the end (the Z-function of the reversed text);
 * none is longer than `most`. */
static void find_matches(struct rwkvc_sampler *s, const uint32_t *end, uint32_t n, uint32_t most) {
    uint32_t *matches = s->matches, left = 0, right = 0; /* the match that reaches furthest: [left, right) */
    for (uint32_t k = 1; k < n; k++) {
        uint32_t length = k < right ? (matches[k - left] < right - k ? matches[k - left] : right - k) : 0;
        while (k + length < n && length < most && end[-(ptrdiff_t)(k + length)] == end[-(ptrdiff_t)length]) length++;
        matches[k] = length;
        if (k + length > right) {
            left = k;
            right = k + length;
        }
    }
}

/* Against what would go on repeating a sequence (DRY): multiplier * base^(length of the match - allowed length). */
static bool penalise_repeating(struct rwkvc_sampler *s) {
    const rwkvc_sampler_options *o = &s->options;
    uint32_t n = s->n_history < o->dry_range ? s->n_history : o->dry_range, most = 0;
    if (!s->history || n < 2) return false;
    const uint32_t *end = s->history + s->n_history - 1;
    while (most < n && !(s->marks[end[-(ptrdiff_t)most]] & MARK_BREAKER)) most++;
    if (most == 0 || most < o->dry_allowed_length) return false;
    find_matches(s, end, n, most);
    bool any = false;
    for (uint32_t k = 1; k < n; k++) {
        uint32_t *longest = &s->longest[end[1 - (ptrdiff_t)k]]; /* of the token that came after the match */
        if (s->matches[k] > *longest) *longest = s->matches[k];
    }
    for (uint32_t k = 1; k < n; k++) {
        uint32_t token = end[1 - (ptrdiff_t)k], length = s->longest[token];
        s->longest[token] = 0;
        if (length == 0 || length < o->dry_allowed_length) continue;
        double penalty = (double)o->dry_multiplier;
        for (uint32_t i = o->dry_allowed_length; i < length && penalty < MAX_DRY_PENALTY; i++)
            penalty *= (double)o->dry_base;
        subtract(&s->logits[token], penalty < MAX_DRY_PENALTY ? penalty : MAX_DRY_PENALTY);
        any = true;
    }
    return any;
}

/* -Inf unless that would hide a NaN or +Inf. */
static void forbid(float *logit) {
    if (*logit < INFINITY) *logit = -INFINITY;
}

static void keep_allowed(struct rwkvc_sampler *s, const uint32_t *allowed) {
    for (uint32_t i = 0; i < s->n_vocab; i += 32) {
        uint32_t bits = allowed[i / 32];
        if (bits == UINT32_MAX) continue;
        uint32_t n = s->n_vocab - i < 32 ? s->n_vocab - i : 32;
        for (uint32_t j = 0; j < n; j++)
            if (!(bits >> j & 1)) forbid(&s->logits[i + j]);
    }
}

bool rwkvc_sampler_change(struct rwkvc_sampler *s, const uint32_t *allowed) {
    for (uint32_t j = 0; j < s->n_biased; j++) subtract(&s->logits[s->biased[j]], -(double)s->biases[j]);
    penalise_seen(s);
    bool repeating = penalise_repeating(s);
    for (uint32_t j = 0; j < s->n_banned; j++) forbid(&s->logits[s->banned[j]]);
    if (allowed) keep_allowed(s, allowed);
    return allowed || repeating || s->n_biased > 0 || s->n_seen > 0 || s->n_banned > 0;
}
