/* SPDX-License-Identifier: Apache-2.0
 *
 * The sampler's arithmetic: exp, log, sums and random numbers with the same bits on every machine. No libm, whose
 * results differ between systems; sums in one fixed order.
 */
#ifndef RWKVC_SAMPLER_MATH_H
#define RWKVC_SAMPLER_MATH_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 64u /* what arrays of logits are padded to */

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Four floats at a time, as every x86-64 and aarch64 has them: compilers do not reliably find this themselves. */
typedef float vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));
#define VEC 4u

static inline vec load(const float *x) {
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline void store(float *x, vec v) { memcpy(x, &v, sizeof v); }

static inline vec fill(float x) { return (vec){x, x, x, x}; }

static inline vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

static inline vec larger(vec a, vec b) { return pick(a > b, a, b); }

/* The largest of x[BLOCK]; sets *bad if any is NaN or +Inf. */
static inline float block_peak(const float *x, bool *bad) {
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

/* exp(x) for x <= 0, with a relative error of 1e-7; 0 below -87.
 * exp(x) = 2^n exp(r) with |r| <= ln(2)/2; adding and subtracting 1.5 * 2^23 rounds to an integer. */
static inline vec exp_below(vec x) {
    const float round = 12582912.0f;
    ivec in_range = x > fill(-87.0f);
    vec y = pick(in_range, x, fill(-87.0f));
    vec n = (y * 1.44269504f + round) - round;
    vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = r * 0.0013814601f + 0.008368718f;
    p = p * r + 0.04166839f;
    p = p * r + 0.16666521f;
    p = p * r + 0.49999994f;
    p = p * (r * r) + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return (vec)((ivec)(p * (vec)power) & in_range);
}

/* log(x) for a normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log(m) = 2 artanh((m - 1) / (m + 1)). */
static inline double log_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t e = (int32_t)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    double z = (m - 1) / (m + 1), zz = z * z, series = 0;
    for (int32_t k = 23; k >= 1; k -= 2) series = series * zz + 1.0 / k;
    return e * 0.6931471805599453 + 2 * z * series;
}

static inline double sum_of_lanes(vec x) { return ((double)x[0] + (double)x[2]) + ((double)x[1] + (double)x[3]); }

/* Sum of exp((x - peak) * scale) over x[n], n a multiple of BLOCK; the terms go to weights unless that is NULL. */
static inline double sum_of_exp(const float *x, uint32_t n, float peak, float scale, float *weights) {
    double total = 0;
    for (uint32_t start = 0; start < n; start += BLOCK) {
        vec sum[4] = {{0}, {0}, {0}, {0}};
        for (uint32_t i = start; i < start + BLOCK; i += 4 * VEC)
            for (uint32_t j = 0; j < 4; j++) {
                vec e = exp_below((load(x + i + j * VEC) - peak) * scale);
                if (weights) store(weights + i + j * VEC, e);
                sum[j] += e;
            }
        total += sum_of_lanes((sum[0] + sum[2]) + (sum[1] + sum[3]));
    }
    return total;
}

/* xoshiro256** (Blackman and Vigna), filled by splitmix64. */
static inline void seed_random(uint64_t state[4], uint64_t seed) {
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        state[i] = z ^ z >> 31;
    }
}

static inline uint64_t rotate_left(uint64_t x, uint32_t bits) { return x << bits | x >> (64 - bits); }

/* Uniform in [0, 1), 53 bits. */
static inline double draw_uniform(uint64_t state[4]) {
    uint64_t result = rotate_left(state[1] * 5, 7) * 9, shifted = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate_left(state[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

#endif
