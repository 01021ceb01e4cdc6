/* SPDX-License-Identifier: Apache-2.0
 * exp, sigmoid, tanh: polynomials in one fixed order, so that they are the same function on every machine.
 * Error at most 2 ulp for exp, 3 for sigmoid and tanh (tests/engine measures it). */

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; exp(r) by its series to r^7 (error 5e-9). */
LONG_VEC vf KERNEL(exp)(vf x) {
    x = vf_min(vf_set1(89.0f), vf_max(vf_set1(-104.0f), x)); /* below: 0, above: Inf; this way round NaN stays */
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fnma(n, vf_set1(0.693359375f), x); /* ln 2 in two parts, the first exact times any n */
    r = vf_fnma(n, vf_set1(-2.12194440e-4f), r);
    vf p = vf_set1(1.0f / 5040);
    p = vf_fma(p, r, vf_set1(1.0f / 720));
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_scale(p, n);
}

LONG_VEC vf KERNEL(sigmoid)(vf x) {
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, KERNEL(exp)(vf_sub(vf_zero(), x))));
}

/* |x| < 0.625: odd polynomial (coefficients of Cephes' tanhf); else 1 - 2 / (exp(2|x|) + 1) with x's sign. */
LONG_VEC vf KERNEL(tanh)(vf x) {
    vf z = vf_mul(x, x), size = vf_abs(x);
    vf p = vf_set1(-5.70498872745e-3f);
    p = vf_fma(p, z, vf_set1(2.06390887954e-2f));
    p = vf_fma(p, z, vf_set1(-5.37397155531e-2f));
    p = vf_fma(p, z, vf_set1(1.33314422036e-1f));
    p = vf_fma(p, z, vf_set1(-3.33332819422e-1f));
    vf small = vf_fma(vf_mul(p, z), x, x);
    vf e = KERNEL(exp)(vf_add(size, size));
    vf large = vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(e, vf_set1(1.0f))));
    large = vf_where_less(x, vf_zero(), vf_sub(vf_zero(), large), large);
    return vf_where_less(size, vf_set1(0.625f), small, large);
}

static void KERNEL(elementary)(uint32_t which, const float *x, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf v = vf_load(x + i);
        vf_store(y + i, which == 0 ? KERNEL(exp)(v) : which == 1 ? KERNEL(tanh)(v) : KERNEL(sigmoid)(v));
    }
}
