/* SPDX-License-Identifier: Apache-2.0
 * RWKV-4's recurrence (arXiv:2305.13048; ARCHITECTURES section 3), channel by channel, 16 side by side. aa / bb is the
 * weighted mean so far, both scaled by exp(-pp) so that nothing overflows:
 *   q = max(pp, u + k)      y = (e^(pp - q) aa + e^(u + k - q) v) / (e^(pp - q) bb + e^(u + k - q))
 *   q = max(pp + w, k)      aa = e^(pp + w - q) aa + e^(k - q) v      bb = e^(pp + w - q) bb + e^(k - q)      pp = q
 * One of the two exponentials is 1, so the denominators are at least 1. */

static void KERNEL(wkv4)(const rwkvc_wkv4 *c) {
    const vf w = vf_load(c->decay), u = vf_load(c->bonus);
    vf aa = vf_load(c->state_in), bb = vf_load(c->state_in + c->part), pp = vf_load(c->state_in + 2 * c->part);
    float *out = c->state_out;
    for (uint32_t t = 0; t < c->tokens; t++) {
        uint64_t at = (uint64_t)t * c->ld;
        vf k = vf_load(c->k + at), v = vf_load(c->v + at);
        vf now = vf_add(u, k), q = vf_max(pp, now);
        vf e1 = KERNEL(exp)(vf_sub(pp, q)), e2 = KERNEL(exp)(vf_sub(now, q));
        vf y = vf_div(vf_fma(e1, aa, vf_mul(e2, v)), vf_fma(e1, bb, e2));
        vf_store(c->y + at, vf_mul(vf_load(c->r + at), y));
        vf faded = vf_add(pp, w);
        q = vf_max(faded, k);
        e1 = KERNEL(exp)(vf_sub(faded, q));
        e2 = KERNEL(exp)(vf_sub(k, q));
        aa = vf_fma(e1, aa, vf_mul(e2, v));
        bb = vf_fma(e1, bb, e2);
        pp = q;
        if (c->state_step == 0 && t + 1 < c->tokens) continue;
        vf_store(out, aa);
        vf_store(out + c->part, bb);
        vf_store(out + 2 * c->part, pp);
        out += c->state_step;
    }
}
