/* SPDX-License-Identifier: Apache-2.0
 * RWKV-7's time mix of one head (arXiv:2503.14456; ARCHITECTURES section 6), token after token:
 *   decay = exp(-e^-1/2 sigmoid(w0 + w))       a = sigmoid(a0 + a)       kk = normalised k * k_k
 *   k = k (1 + (a - 1) k_a)                    v = v + (v_first - v) sigmoid(v0 + v_mix)
 *   sa[i] = sum_j S[i][j] * -kk[j]
 *   S[i][j] = S[i][j] decay[j] + sa[i] kk[j] a[j] + v[i] k[j]        y[i] = sum_j S[i][j] r[j]
 *   y = (group norm of y + (sum_j r k r_k) v) * g
 * The state lies as [j][i]: heads.inc.h. */

/* Ask for a head's part of some rows: a token's lie a page from the one's before, where no prefetcher of the processor's
 * follows. Behind the last token it is for nothing, and harmless. */
VEC void KERNEL(wkv7_ask)(const float *const *rows, const uint32_t n_rows, uint64_t at, uint32_t n) {
    for (uint32_t row = 0; row < n_rows; row++)
        for (uint32_t i = 0; i < n; i += 16) PREFETCH(rows[row] + at + i);
}

static void KERNEL(wkv7_prepare)(const rwkvc_wkv7 *h, uint64_t at) {
    const uint32_t n = h->head_size;
    const vf one = vf_set1(1.0f), decay_scale = vf_set1(-0.606530660f); /* -e^-1/2 */
    vf squares = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf kk = vf_mul(LOAD(h->k + at + i, lanes), LOAD(h->k_k + i, lanes));
        squares = vf_fma(kk, kk, squares);
    }
    float norm = sqrtf(vf_sum(squares));
    vf inverse = vf_set1(-1.0f / (norm > 1e-12f ? norm : 1e-12f));
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf k = LOAD(h->k + at + i, lanes), v = LOAD(h->v + at + i, lanes);
        vf w = KERNEL(sigmoid)(vf_add(LOAD(h->w0 + i, lanes), LOAD(h->w + at + i, lanes)));
        vf a = KERNEL(sigmoid)(vf_add(LOAD(h->a0 + i, lanes), LOAD(h->a + at + i, lanes)));
        vf minus_kk = vf_mul(vf_mul(k, LOAD(h->k_k + i, lanes)), inverse);
        KERNEL(store)(h->w + at + i, KERNEL(exp)(vf_mul(decay_scale, w)), lanes);
        KERNEL(store)(h->kk + at + i, minus_kk, lanes);
        KERNEL(store)(h->a + at + i, vf_mul(vf_sub(vf_zero(), minus_kk), a), lanes);
        KERNEL(store)(h->k + at + i, vf_mul(k, vf_fma(vf_sub(a, one), LOAD(h->k_a + i, lanes), one)), lanes);
        if (h->v_mix) {
            vf mix = KERNEL(sigmoid)(vf_add(LOAD(h->v0 + i, lanes), LOAD(h->v_mix + at + i, lanes)));
            v = vf_fma(vf_sub(LOAD(h->v_first + at + i, lanes), v), mix, v);
            KERNEL(store)(h->v + at + i, v, lanes);
        } else {
            KERNEL(store)(h->v_first + at + i, v, lanes);
        }
    }
}

/* Group norm over the head, bonus, gate. */
static void KERNEL(wkv7_finish)(const rwkvc_wkv7 *h, uint64_t at) {
    const uint32_t n = h->head_size;
    vf bonus = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf rk = vf_mul(LOAD(h->r + at + i, lanes), LOAD(h->k + at + i, lanes));
        bonus = vf_fma(rk, LOAD(h->r_k + i, lanes), bonus);
    }
    vf b = vf_set1(vf_sum(bonus));
    KERNEL(group_norm)(h->y + at, n, h->ln_weight, h->ln_bias, h->gn_eps);
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf y = vf_fma(b, LOAD(h->v + at + i, lanes), LOAD(h->y + at + i, lanes));
        KERNEL(store)(h->y + at + i, vf_mul(y, LOAD(h->g + at + i, lanes)), lanes);
    }
}

/* All tokens for `blocks` x 16 value channels from i on (the last block of `lanes`): the sweep over j that updates
 * the state for one token also gathers sa of the next, so each state element is loaded once per token. */
VEC void KERNEL(wkv7_sweep)(const rwkvc_wkv7 *h, uint32_t i, uint32_t lanes, const uint32_t blocks) {
    const uint32_t n = h->head_size;
    const float *from = h->state_in;
    float *to = h->state_out;
    vf sa[WKV_BLOCKS], next[WKV_BLOCKS], y[WKV_BLOCKS], v[WKV_BLOCKS];
    UNROLL for (uint32_t b = 0; b < blocks; b++) sa[b] = vf_zero();
    for (uint32_t j = 0; j < n; j++) {
        PREFETCH_PAGE(from + (uint64_t)j * n + i);
        UNROLL for (uint32_t b = 0; b < blocks; b++) sa[b] =
            vf_fma(LOAD(from + (uint64_t)j * n + i + 16 * b, lanes), vf_set1(h->kk[j]), sa[b]);
    }
    for (uint32_t t = 0; t < h->tokens; t++) {
        uint64_t at = (uint64_t)t * h->ld;
        bool last = t + 1 == h->tokens;
        const float *kk_next = h->kk + (last ? at : at + h->ld); /* of no use after the last token */
        UNROLL for (uint32_t b = 0; b < blocks; b++) {
            next[b] = y[b] = vf_zero();
            v[b] = LOAD(h->v + at + i + 16 * b, lanes);
        }
        for (uint32_t j = 0; j < n; j++) {
            vf decay = vf_set1(h->w[at + j]), kka = vf_set1(h->a[at + j]), k = vf_set1(h->k[at + j]);
            vf r = vf_set1(h->r[at + j]), kk = vf_set1(kk_next[j]);
            UNROLL for (uint32_t b = 0; b < blocks; b++) {
                uint64_t place = (uint64_t)j * n + i + 16 * b;
                vf s = LOAD(from + place, lanes);
                s = vf_fma(s, decay, vf_fma(sa[b], kka, vf_mul(v[b], k)));
                y[b] = vf_fma(s, r, y[b]);
                next[b] = vf_fma(s, kk, next[b]);
                KERNEL(store)(to + place, s, lanes);
            }
        }
        UNROLL for (uint32_t b = 0; b < blocks; b++) {
            KERNEL(store)(h->y + at + i + 16 * b, y[b], lanes);
            sa[b] = next[b];
        }
        from = to;
        to += h->state_step;
    }
}

enum { ONCE_BLOCKS = 4 };

/* One token alone for 64 value channels from i on: rows of the state as they lie, read once from memory and once from the
 * cache. What one token leaves is read again after all weights of the model: fetching its lines before they are
 * written would be traffic for nothing. */
static void KERNEL(wkv7_once)(const rwkvc_wkv7 *h, uint32_t i) {
    const uint32_t n = h->head_size;
    vf sa[ONCE_BLOCKS], y[ONCE_BLOCKS], v[ONCE_BLOCKS];
    UNROLL for (uint32_t b = 0; b < ONCE_BLOCKS; b++) {
        sa[b] = y[b] = vf_zero();
        v[b] = vf_load(h->v + i + 16 * b);
    }
    for (uint32_t j = 0; j < n; j++) {
        const float *from = h->state_in + (uint64_t)j * n + i;
        PREFETCH_PAGE(from);
        UNROLL for (uint32_t b = 0; b < ONCE_BLOCKS; b++) sa[b] =
            vf_fma(vf_load(from + 16 * b), vf_set1(h->kk[j]), sa[b]);
    }
    for (uint32_t j = 0; j < n; j++) {
        const float *from = h->state_in + (uint64_t)j * n + i;
        float *to = h->state_out + (uint64_t)j * n + i;
        vf decay = vf_set1(h->w[j]), kka = vf_set1(h->a[j]), k = vf_set1(h->k[j]), r = vf_set1(h->r[j]);
        UNROLL for (uint32_t b = 0; b < ONCE_BLOCKS; b++) {
            vf s = vf_fma(vf_load(from + 16 * b), decay, vf_fma(sa[b], kka, vf_mul(v[b], k)));
            y[b] = vf_fma(s, r, y[b]);
            vf_stream(to + 16 * b, s);
        }
    }
    UNROLL for (uint32_t b = 0; b < ONCE_BLOCKS; b++) vf_store(h->y + i + 16 * b, y[b]);
}

static void KERNEL(wkv7)(const rwkvc_wkv7 *head) {
    const rwkvc_wkv7 copy = *head, *h = &copy; /* which no store can change */
    const float *const first[] = {h->k, h->v, h->w, h->a, h->v_first, h->kk, h->v_mix ? h->v_mix : h->v};
    const float *const last[] = {h->y, h->r, h->k, h->v, h->g};
    const uint64_t ahead = 2 * (uint64_t)h->ld;
    for (uint32_t t = 0; t < h->tokens; t++) {
        if (h->tokens > 1) KERNEL(wkv7_ask)(first, 7, (uint64_t)t * h->ld + ahead, h->head_size);
        KERNEL(wkv7_prepare)(head, (uint64_t)t * h->ld);
    }
    uint32_t i = 0, n = h->head_size;
    if (h->tokens == 1 && n % 16 == 0 && (uintptr_t)h->state_out % 64 == 0 && h->state_in != h->state_out) {
        for (; i + 16 * ONCE_BLOCKS <= n; i += 16 * ONCE_BLOCKS) KERNEL(wkv7_once)(h, i);
        vf_stream_end();
    }
    for (; i + 16 * WKV_BLOCKS <= n; i += 16 * WKV_BLOCKS) KERNEL(wkv7_sweep)(h, i, 16, WKV_BLOCKS);
    for (; i + 16 <= n; i += 16) KERNEL(wkv7_sweep)(h, i, 16, 1);
    if (i < n) KERNEL(wkv7_sweep)(h, i, n - i, 1);
    for (uint32_t t = 0; t < h->tokens; t++) {
        if (h->tokens > 1) KERNEL(wkv7_ask)(last, 5, (uint64_t)t * h->ld + ahead, n);
        KERNEL(wkv7_finish)(head, (uint64_t)t * h->ld);
    }
}
