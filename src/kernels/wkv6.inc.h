/* SPDX-License-Identifier: Apache-2.0
 * The time mix of one head of RWKV-5 and 6 (arXiv:2404.05892; ARCHITECTURES sections 4 and 5), token after token:
 *   RWKV-6: decay = exp(-exp(time_decay + w))
 *   y[i] = sum_j S[i][j] r[j] + (sum_j r u k) v[i]      S[i][j] = S[i][j] decay[j] + k[j] v[i]
 *   y = group norm of y, times silu(g) where there is a gate */

VEC void KERNEL(wkv6_sweep)(const rwkvc_wkv6 *h, uint32_t i, uint32_t lanes, const uint32_t blocks) {
    const uint32_t n = h->head_size;
    const float *from = h->state_in;
    float *to = h->state_out;
    for (uint32_t t = 0; t < h->tokens; t++) {
        uint64_t at = (uint64_t)t * h->ld;
        const float *decay = h->w ? h->w + at : h->decay;
        vf y[WKV_BLOCKS], v[WKV_BLOCKS];
        UNROLL for (uint32_t b = 0; b < blocks; b++) {
            y[b] = vf_zero();
            v[b] = LOAD(h->v + at + i + 16 * b, lanes);
        }
        for (uint32_t j = 0; j < n; j++) {
            vf r = vf_set1(h->r[at + j]), k = vf_set1(h->k[at + j]), w = vf_set1(decay[j]);
            UNROLL for (uint32_t b = 0; b < blocks; b++) {
                uint64_t place = (uint64_t)j * n + i + 16 * b;
                vf s = LOAD(from + place, lanes);
                y[b] = vf_fma(s, r, y[b]);
                KERNEL(store)(to + place, vf_fma(s, w, vf_mul(k, v[b])), lanes);
            }
        }
        UNROLL for (uint32_t b = 0; b < blocks; b++) KERNEL(store)(h->y + at + i + 16 * b, y[b], lanes);
        from = to;
        to += h->state_step;
    }
}

static void KERNEL(wkv6_decay)(const rwkvc_wkv6 *h, uint64_t at) {
    for (uint32_t i = 0; i < h->head_size; i += 16) {
        uint32_t lanes = LANES(i, h->head_size);
        vf w = KERNEL(exp)(vf_add(LOAD(h->decay + i, lanes), LOAD(h->w + at + i, lanes)));
        KERNEL(store)(h->w + at + i, KERNEL(exp)(vf_sub(vf_zero(), w)), lanes);
    }
}

static void KERNEL(wkv6_finish)(const rwkvc_wkv6 *h, uint64_t at) {
    const uint32_t n = h->head_size;
    vf bonus = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        bonus =
            vf_fma(vf_mul(LOAD(h->r + at + i, lanes), LOAD(h->bonus + i, lanes)), LOAD(h->k + at + i, lanes), bonus);
    }
    vf b = vf_set1(vf_sum(bonus));
    for (uint32_t i = 0; i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        KERNEL(store)(h->y + at + i, vf_fma(b, LOAD(h->v + at + i, lanes), LOAD(h->y + at + i, lanes)), lanes);
    }
    KERNEL(group_norm)(h->y + at, n, h->ln_weight, h->ln_bias, h->gn_eps);
    for (uint32_t i = 0; h->g && i < n; i += 16) {
        uint32_t lanes = LANES(i, n);
        vf g = LOAD(h->g + at + i, lanes);
        KERNEL(store)(h->y + at + i, vf_mul(LOAD(h->y + at + i, lanes), vf_mul(g, KERNEL(sigmoid)(g))), lanes);
    }
}

static void KERNEL(wkv6)(const rwkvc_wkv6 *h) {
    for (uint32_t t = 0; h->w && t < h->tokens; t++) KERNEL(wkv6_decay)(h, (uint64_t)t * h->ld);
    uint32_t i = 0, n = h->head_size;
    for (; i + 16 * WKV_BLOCKS <= n; i += 16 * WKV_BLOCKS) KERNEL(wkv6_sweep)(h, i, 16, WKV_BLOCKS);
    for (; i + 16 <= n; i += 16) KERNEL(wkv6_sweep)(h, i, 16, 1);
    if (i < n) KERNEL(wkv6_sweep)(h, i, n - i, 1);
    for (uint32_t t = 0; t < h->tokens; t++) KERNEL(wkv6_finish)(h, (uint64_t)t * h->ld);
}
