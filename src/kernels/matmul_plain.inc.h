/* SPDX-License-Identifier: Apache-2.0
 * Products of f32 and f16 weights with f32 activations: y = sum over inputs in order, one fma each. */

VEC vf KERNEL(plain_weights)(const uint8_t *panel, uint32_t input, const bool half) {
    return half ? vf_load_half((const uint16_t *)panel + 16 * (uint64_t)input)
                : vf_load((const float *)panel + 16 * (uint64_t)input);
}

/* p panels and n tokens at once: enough independent sums to hide the latency of one. */
VEC void KERNEL(plain_block)(const uint8_t *panels, uint64_t panel_bytes, uint32_t cols, const float *x, uint32_t ldx,
                             uint32_t ld_panels, bool sparse, float *out, const bool half, const uint32_t p,
                             const uint32_t n) {
    vf acc[PLAIN_TILE > PLAIN_PANELS ? PLAIN_TILE : PLAIN_PANELS];
    UNROLL for (uint32_t i = 0; i < p * n; i++) acc[i] = vf_zero();
    for (uint32_t c = 0; c < cols; c++) {
        if (sparse && n == 1 && x[c] == 0) continue;
        UNROLL for (uint32_t i = 0; i < p; i++) {
            vf w = KERNEL(plain_weights)(panels + i * panel_bytes, c, half);
            UNROLL for (uint32_t t = 0; t < n; t++) acc[i * n + t] =
                vf_fma(w, vf_set1(x[(uint64_t)t * ldx + c]), acc[i * n + t]);
        }
    }
    UNROLL for (uint32_t i = 0; i < p; i++) UNROLL for (uint32_t t = 0; t < n; t++)
        vf_store(out + ((uint64_t)t * ld_panels + i) * 16, acc[i * n + t]);
}

VEC void KERNEL(plain_format)(const uint8_t *panels, uint64_t panel_bytes, uint32_t n_panels, uint32_t cols,
                              const float *x, uint32_t ldx, uint32_t n, bool sparse, float *out, const bool half) {
    uint32_t p = 0;
    if (n == 1)
        for (; p + PLAIN_PANELS <= n_panels; p += PLAIN_PANELS) KERNEL(plain_block)
    (panels + p * panel_bytes, panel_bytes, cols, x, ldx, n_panels, sparse, out + 16 * p, half, PLAIN_PANELS, 1);
    for (; p < n_panels; p++) {
        const uint8_t *panel = panels + p * panel_bytes;
        if (n == PLAIN_TILE) {
            KERNEL(plain_block)(panel, panel_bytes, cols, x, ldx, n_panels, sparse, out + 16 * p, half, 1, PLAIN_TILE);
            continue;
        }
        for (uint32_t t = 0; t < n; t++) KERNEL(plain_block)
        (panel, panel_bytes, cols, x + (uint64_t)t * ldx, ldx, n_panels, sparse,
         out + 16 * ((uint64_t)t * n_panels + p), half, 1, 1);
    }
}

static void KERNEL(plain_panels)(const uint8_t *panels, uint64_t panel_bytes, uint32_t n_panels, uint32_t format,
                                 uint32_t cols, const float *x, uint32_t ldx, uint32_t n, bool sparse, float *out) {
    if (format == RWKVC_FORMAT_F16)
        KERNEL(plain_format)(panels, panel_bytes, n_panels, cols, x, ldx, n, sparse, out, true);
    else
        KERNEL(plain_format)(panels, panel_bytes, n_panels, cols, x, ldx, n, sparse, out, false);
}
