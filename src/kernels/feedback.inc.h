/* SPDX-License-Identifier: Apache-2.0
 * Integers for calibrated tensors: 16 rows x 32 inputs, a row a lane. Input by input the nearest value is taken, and
 * what it misses is added to the later inputs as `feedback` says. Every scale tried goes through all of that. */

/* The nearest value that the format has, in units of the scale, and its integer. */
typedef struct {
    float least, most; /* linear formats */
    vf_book book;      /* q4 */
} KERNEL(values);

VEC vf KERNEL(nearest)(const bool has_book, const KERNEL(values) * v, vf x, vf *integer) {
    if (!has_book) return *integer = vf_max(vf_min(vf_round(x), vf_set1(v->most)), vf_set1(v->least));
    vf number, value = vf_book_nearest(&v->book, x, &number);
    *integer = vf_sub(number, vf_set1(8));
    return value;
}

/* One scale: the weighted squared error it leaves; with the sums for the best scale of the integers found. */
typedef struct {
    vf cost, tv, vv;
} KERNEL(trial);

VEC KERNEL(trial) KERNEL(try_values)(const bool has_book, const rwkvc_feedback *f, const KERNEL(values) * values,
                                     vf scale, int8_t *q, float *error) {
    vf tiny = vf_set1(0x1p-24f), one = vf_set1(1), size = vf_abs(scale);
    vf inverse = vf_where_less(size, tiny, vf_zero(), vf_div(one, vf_where_less(size, tiny, one, scale)));
    KERNEL(trial) r = {vf_zero(), vf_zero(), vf_zero()};
    for (uint32_t k = 0; k < RWKVC_GROUP; k++) {
        vf integer, target = vf_load(f->targets + 16 * k);
        if (f->feedback)
            for (uint32_t j = 0; j < k; j++)
                target = vf_fma(vf_set1(f->feedback[RWKVC_GROUP * j + k]), vf_load(error + 16 * j), target);
        vf value = KERNEL(nearest)(has_book, values, vf_mul(target, inverse), &integer), stored = vf_mul(value, scale);
        vf miss = vf_sub(target, stored), weight = vf_set1(f->importance[k]), weighted = vf_mul(weight, value);
        r.cost = vf_fma(vf_mul(weight, miss), miss, r.cost);
        r.tv = vf_fma(weighted, target, r.tv);
        r.vv = vf_fma(weighted, value, r.vv);
        vf_store(error + 16 * k, vf_sub(vf_load(f->weights + 16 * k), stored));
        if (q) vi_store_i8(q + 16 * k, vi_from_vf(integer));
    }
    return r;
}

static KERNEL(trial)
    KERNEL(try_linear)(const rwkvc_feedback *f, const KERNEL(values) * values, vf scale, int8_t *q, float *error) {
    return KERNEL(try_values)(false, f, values, scale, q, error);
}

static KERNEL(trial)
    KERNEL(try_book)(const rwkvc_feedback *f, const KERNEL(values) * values, vf scale, int8_t *q, float *error) {
    return KERNEL(try_values)(true, f, values, scale, q, error);
}

/* As halves store it. */
VEC vf KERNEL(as_half)(vf scale) {
    uint16_t half[16];
    vf_store_half(half, scale);
    return vf_load_half(half);
}

static void KERNEL(quantise_feedback)(const rwkvc_feedback *f, uint32_t bits, const int8_t *book, int8_t *q,
                                      uint16_t *scales, float *error) {
    /* tries of each end of the range: how far the extreme target may lie outside or inside of it */
    static const struct {
        int32_t outside, inside;
        float step;
    } tries[9] = {[4] = {5, 4, 0.035f}, [5] = {5, 4, 0.02f}, [6] = {5, 4, 0.012f}, [8] = {4, 2, 0.003f}};
    KERNEL(values) values = {.least = bits == 8 ? -127 : -(float)(1 << (bits - 1))};
    const bool has_book = bits == 4;
    KERNEL(trial)
    (*const try_scale)(const rwkvc_feedback *, const KERNEL(values) *, vf, int8_t *, float *) =
        has_book ? KERNEL(try_book) : KERNEL(try_linear);
    values.most = (float)((1 << (bits - 1)) - 1);
    float entry[16];
    if (has_book) values.book = KERNEL(book_of)(book, entry);
    /* a group that no half can scale keeps an infinite one, which is refused where scales are checked */
    vf largest, best = vf_set1(HUGE_VALF), tv = vf_zero(), vv = vf_zero(), least = vf_set1(HUGE_VALF);
    vf extreme = KERNEL(extreme)(f->targets, &largest), one = vf_set1(1);
    for (int end = 0; end < (bits == 8 ? 1 : 2); end++) {
        float at = end ? values.most : values.least;
        if (has_book) at = entry[end ? 15 : 0];
        for (int i = -tries[bits].inside; i <= tries[bits].outside; i++) {
            vf scale = KERNEL(as_half)(vf_div(extreme, vf_set1(at * (1 + tries[bits].step * (float)i))));
            KERNEL(trial) t = try_scale(f, &values, scale, NULL, error);
            best = vf_where_less(t.cost, least, scale, best);
            tv = vf_where_less(t.cost, least, t.tv, tv);
            vv = vf_where_less(t.cost, least, t.vv, vv);
            least = vf_min(least, t.cost);
        }
    }
    vf refined = vf_where_less(vf_zero(), vv, vf_div(tv, vf_where_less(vf_zero(), vv, vv, one)), best);
    refined = KERNEL(as_half)(refined);
    KERNEL(trial) t = try_scale(f, &values, refined, NULL, error);
    best = vf_where_less(t.cost, least, refined, best);
    vf_store_half(scales, best);
    try_scale(f, &values, best, q, error);
}
