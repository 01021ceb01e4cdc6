/* SPDX-License-Identifier: Apache-2.0
 * Products of q8 weights (layout: formats/format.h) with int8 activations. Per group of 32 inputs an exact integer
 * dot product, then acc = fma(dot * weight scale, activation scale, acc), group after group. */

/* One group of a panel for n columns. */
VEC void KERNEL(q8_group)(const uint8_t *lines, const uint8_t *weight_scales, const int8_t *a, const float *scale,
                          const int32_t *offset, vf *acc, const uint32_t n) {
    vi dot[Q8_TILE];
    UNROLL for (uint32_t t = 0; t < n; t++) dot[t] = vi_dot_begin(offset[t]);
    UNROLL for (uint32_t quad = 0; quad < 8; quad++) {
        vw w = vw_from(vb_load(lines + 64 * quad));
        UNROLL for (uint32_t t = 0; t < n; t++) dot[t] = vi_dot(dot[t], w, a + (quad * n + t) * 4);
    }
    vf s = vf_load_half((const uint16_t *)weight_scales);
    UNROLL for (uint32_t t = 0; t < n; t++) acc[t] = vf_fma(vf_mul(vf_from_vi(dot[t]), s), vf_set1(scale[t]), acc[t]);
}

VEC void KERNEL(q8_panel_n)(const uint8_t *record, uint32_t groups, const int8_t *a, const float *scale,
                            const int32_t *offset, float *out, const uint32_t n) {
    vf acc[Q8_TILE];
    UNROLL for (uint32_t t = 0; t < n; t++) acc[t] = vf_zero();
    for (uint32_t g = 0; g < groups; g += 2, record += RWKVC_Q8_RECORD) {
        if (n <= 2) PREFETCH_PAGE(record); /* with more tokens the panel is in the cache after the first tile */
        for (uint32_t half = 0; half < 2; half++) {
            KERNEL(q8_group)(record + 512 * half, record + RWKVC_Q8_LINES + 32 * half, a, scale, offset, acc, n);
            a += RWKVC_GROUP * n;
            scale += n;
            offset += n;
        }
    }
    UNROLL for (uint32_t t = 0; t < n; t++) vf_store(out + 16 * t, acc[t]);
}

static void KERNEL(q8_panel)(const uint8_t *panel, const rwkvc_q8_input *input, uint32_t first_column, uint32_t n,
                             float *out) {
    const int8_t *a = input->values + (uint64_t)first_column * input->groups * RWKVC_GROUP;
    const float *scale = input->scales + (uint64_t)first_column * input->groups;
    const int32_t *offset = input->offsets + (uint64_t)first_column * input->groups;
    /* clang-format off */
#define TILE(n_) \
    case n_: KERNEL(q8_panel_n)(panel, input->groups, a, scale, offset, out, (n_) <= Q8_TILE ? (n_) : Q8_TILE); break;
    switch (n) {
        TILE(1) TILE(2) TILE(3) TILE(4)
#if RWKVC_WIDE_TILES
        TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
    default: break;
    }
/* clang-format on */
#undef TILE
}

static void KERNEL(value_sparse)(const uint8_t *panel, uint32_t height, uint32_t slice, uint32_t groups,
                                 const uint32_t *first, const rwkvc_sparse_quad *quads, const float *scales,
                                 const int32_t *offsets, float *out) {
    enum { AHEAD = 6 };
    vf acc[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    uint64_t stride = (uint64_t)height * 34;
    const uint8_t *rows = panel + 64 * slice;
    for (uint32_t g = 0; g < groups; g++) {
        if (first[g] == first[g + 1]) continue;
        vi dot[4];
        for (int v = 0; v < 4; v++) dot[v] = vi_dot_begin(offsets[g]);
        const uint8_t *group = rows + g * stride;
        for (uint32_t q = first[g]; q < first[g + 1]; q++) {
            for (int i = 0; i < 4; i++) { /* the list has AHEAD more entries than quads */
                uint32_t column = quads[q + AHEAD].column[i];
                PREFETCH(rows + column / RWKVC_GROUP * stride + column % RWKVC_GROUP * height);
            }
            vb w[4];
            const uint32_t *column = quads[q].column;
            vb_interleave(vb_load(group + column[0] % RWKVC_GROUP * height),
                          vb_load(group + column[1] % RWKVC_GROUP * height),
                          vb_load(group + column[2] % RWKVC_GROUP * height),
                          vb_load(group + column[3] % RWKVC_GROUP * height), w);
            for (int v = 0; v < 4; v++) dot[v] = vi_dot(dot[v], vw_from(w[v]), quads[q].value);
        }
        const uint16_t *s = (const uint16_t *)(panel + g * stride + RWKVC_GROUP * height) + 64 * slice;
        for (int v = 0; v < 4; v++)
            acc[v] = vf_fma(vf_mul(vf_from_vi(dot[v]), vf_load_half(s + 16 * v)), vf_set1(scales[g]), acc[v]);
    }
    float sums[64];
    for (int v = 0; v < 4; v++) vf_store(sums + 16 * v, acc[v]);
    for (uint32_t v = 0; v < 4; v++)
        for (uint32_t lane = 0; lane < 16; lane++) out[rwkvc_value_row(v, lane)] = sums[16 * v + lane];
}

static void KERNEL(value_repack)(const uint8_t *panel, uint32_t height, uint32_t slice, uint32_t groups,
                                 uint8_t *panels) {
    uint64_t stride = (uint64_t)height * 34, panel_bytes = (uint64_t)(groups + 1) / 2 * RWKVC_Q8_RECORD;
    for (uint32_t g = 0; g < groups; g++) {
        const uint8_t *group = panel + g * stride + 64 * slice;
        const uint8_t *s = panel + g * stride + RWKVC_GROUP * height + 128 * slice;
        uint8_t *record = panels + g / 2 * RWKVC_Q8_RECORD;
        for (uint32_t quad = 0; quad < 8; quad++) {
            const uint8_t *c = group + 4 * quad * height;
            vb w[4];
            vb_interleave(vb_load(c), vb_load(c + height), vb_load(c + 2 * height), vb_load(c + 3 * height), w);
            for (uint32_t v = 0; v < 4; v++) vb_store(record + v * panel_bytes + 512 * (g % 2) + 64 * quad, w[v]);
        }
        for (uint32_t v = 0; v < 4; v++)
            memcpy(record + v * panel_bytes + RWKVC_Q8_LINES + 32 * (g % 2), s + 32 * v, 32);
    }
    if (groups % 2) /* the last record's second half: weights times zero activations */
        for (uint32_t v = 0; v < 4; v++) {
            uint8_t *record = panels + v * panel_bytes + groups / 2 * RWKVC_Q8_RECORD;
            memset(record + 512, 128, 512);
            memset(record + RWKVC_Q8_LINES + 32, 0, 32);
        }
}

/* s = largest / 127, q = round(x / s); the second part quantises what is left to s / 254. */
VEC void KERNEL(q8_put)(vi q_lo, vi q_hi, float scale, uint64_t column, uint32_t group, uint32_t n,
                        const rwkvc_q8_input *input, uint32_t t) {
    int8_t q[RWKVC_GROUP];
    vi_store_i8(q, q_lo);
    vi_store_i8(q + 16, q_hi);
    int8_t *values = input->values + column * input->groups * RWKVC_GROUP + ((uint64_t)group * 8 * n + t) * 4;
    for (uint32_t quad = 0; quad < 8; quad++) memcpy(values + (uint64_t)quad * n * 4, q + 4 * quad, 4);
    uint64_t at = column * input->groups + (uint64_t)group * n + t;
    input->scales[at] = scale;
    input->offsets[at] = -128 * vi_sum(vi_add(q_lo, q_hi));
}

static void KERNEL(q8_quantise)(const float *x, uint32_t n_inputs, uint32_t parts, uint32_t first_column,
                                const rwkvc_q8_input *input) {
    vf most = vf_set1(127.0f), least = vf_set1(-127.0f);
    rwkvc_column c = rwkvc_column_of(input, first_column);
    for (uint32_t group = 0; group < input->groups; group++) {
        uint32_t at = group * RWKVC_GROUP, left = at < n_inputs ? n_inputs - at : 0;
        vf lo = left >= 16 ? vf_load(x + at) : left ? vf_load_n(x + at, left) : vf_zero();
        vf hi = left >= 32 ? vf_load(x + at + 16) : left > 16 ? vf_load_n(x + at + 16, left - 16) : vf_zero();
        float largest = vf_largest_size(lo, hi);
        /* below 1e-30 the inverse would not be finite; a NaN goes on into the scale, so that it shows in the end */
        float scale = largest < 1e-30f ? 0 : largest / 127.0f, inverse = largest < 1e-30f ? 0 : 127.0f / largest;
        vf k = vf_set1(inverse);
        vf q_lo = vf_round(vf_max(vf_min(vf_mul(lo, k), most), least));
        vf q_hi = vf_round(vf_max(vf_min(vf_mul(hi, k), most), least));
        KERNEL(q8_put)(vi_from_vf(q_lo), vi_from_vf(q_hi), scale, c.base, group, c.n, input, c.t);
        if (parts == 2) {
            vf s = vf_set1(scale), finer = vf_set1(254.0f * inverse);
            lo = vf_mul(vf_fnma(q_lo, s, lo), finer);
            hi = vf_mul(vf_fnma(q_hi, s, hi), finer);
            KERNEL(q8_put)
            (vi_from_vf(vf_max(vf_min(lo, most), least)), vi_from_vf(vf_max(vf_min(hi, most), least)), scale / 254.0f,
             c.base, group, c.n, input, c.t + 1);
        }
    }
}
