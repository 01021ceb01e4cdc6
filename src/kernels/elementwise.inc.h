/* SPDX-License-Identifier: Apache-2.0
 * Embedding rows, layer norm, token shift and what follows a matrix product. */

/* Groups of 32 values of a row, or what is left of the last one. */
VEC void KERNEL(embedding_part)(const rwkvc_tensor *emb, uint64_t row, uint32_t at, float *values) {
    uint32_t n = emb->cols - at < RWKVC_GROUP ? emb->cols - at : RWKVC_GROUP, bits = rwkvc_bits(emb->format);
    if (bits) {
        uint64_t groups = (emb->cols + RWKVC_GROUP - 1) / RWKVC_GROUP;
        int8_t q[RWKVC_GROUP];
        const uint8_t *bytes = emb->data + row * groups * rwkvc_group_bytes(bits);
        vf scale = vf_set1(rwkvc_embedding_group(bits, emb->book, bytes, groups, at / RWKVC_GROUP, q));
        vf_store(values, vf_mul(vf_load_i8(q), scale));
        vf_store(values + 16, vf_mul(vf_load_i8(q + 16), scale));
    } else if (emb->format == RWKVC_FORMAT_F32) {
        memcpy(values, (const float *)emb->data + row * emb->cols + at, n * sizeof *values);
    } else {
        uint16_t half[RWKVC_GROUP] = {0};
        memcpy(half, (const uint16_t *)emb->data + row * emb->cols + at, n * sizeof *half);
        vf_store(values, vf_load_half(half));
        vf_store(values + 16, vf_load_half(half + 16));
    }
}

VEC void KERNEL(embedding_row)(const rwkvc_tensor *emb, uint32_t row, float *out, const bool add) {
    for (uint32_t at = 0; at < emb->cols; at += RWKVC_GROUP) {
        float values[RWKVC_GROUP];
        KERNEL(embedding_part)(emb, row, at, values);
        for (uint32_t i = at; i < emb->cols && i < at + RWKVC_GROUP; i += 16) {
            uint32_t lanes = emb->cols - i < 16 ? emb->cols - i : 16;
            vf y = vf_load(values + (i - at));
            if (add) y = vf_add(lanes == 16 ? vf_load(out + i) : vf_load_n(out + i, lanes), y);
            if (lanes == 16)
                vf_store(out + i, y);
            else
                vf_store_n(out + i, y, lanes);
        }
    }
}

static void KERNEL(embedding)(const rwkvc_tensor *emb, uint32_t row, float *out) {
    KERNEL(embedding_row)(emb, row, out, false);
}

static void KERNEL(embedding_add)(const rwkvc_tensor *emb, uint32_t row, float *out) {
    KERNEL(embedding_row)(emb, row, out, true);
}

static void KERNEL(layer_norm)(const float *x, const float *weight, const float *bias, uint32_t n, float eps,
                               float *y) {
    vf sum = vf_zero(), squares = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) sum = vf_add(sum, vf_load(x + i));
    vf mean = vf_set1(vf_sum(sum) / (float)n);
    for (uint32_t i = 0; i < n; i += 16) {
        vf d = vf_sub(vf_load(x + i), mean);
        squares = vf_fma(d, d, squares);
    }
    vf scale = vf_set1(1.0f / sqrtf(vf_sum(squares) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        vf d = vf_mul(vf_sub(vf_load(x + i), mean), scale);
        vf_store(y + i, vf_fma(d, vf_load(weight + i), vf_load(bias + i)));
    }
}

VEC vf KERNEL(shifted)(const float *x, const float *previous, const float *mix, const float *extra, uint32_t i) {
    vf now = vf_load(x + i), share = vf_load(mix + i);
    if (extra) share = vf_add(share, vf_load(extra + i));
    return vf_fma(vf_sub(vf_load(previous + i), now), share, now);
}

static void KERNEL(token_shift)(const float *x, const float *previous, const float *mix, const float *extra, uint32_t n,
                                float *y) {
    for (uint32_t i = 0; i < n; i += 16) vf_store(y + i, KERNEL(shifted)(x, previous, mix, extra, i));
}

static void KERNEL(multiply_add)(float *x, const float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) vf_store(x + i, vf_fma(vf_load(a + i), vf_load(b + i), vf_load(x + i)));
}

static void KERNEL(multiply)(float *x, const float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16)
        vf_store(x + i, vf_mul(vf_load(x + i), vf_add(vf_load(a + i), vf_load(b + i))));
}

VEC vf KERNEL(epilogue)(const rwkvc_epilogue epilogue, vf y, vf out) {
    switch (epilogue) {
    case RWKVC_ADD: return vf_add(out, y);
    case RWKVC_TANH: return KERNEL(tanh)(y);
    case RWKVC_SIGMOID: return KERNEL(sigmoid)(y);
    case RWKVC_RELU2: y = vf_max(vf_zero(), y); return vf_mul(y, y);
    default: return y;
    }
}

VEC void KERNEL(finish_with)(const rwkvc_epilogue epilogue, const float *sums, uint32_t ld_sums, uint32_t n,
                             uint32_t lanes, float *out, uint64_t ld) {
    if (lanes == 16) {
        for (uint32_t t = 0; t < n; t++, sums += ld_sums, out += ld)
            vf_store(out, KERNEL(epilogue)(epilogue, vf_load(sums), vf_load(out)));
    } else {
        for (uint32_t t = 0; t < n; t++, sums += ld_sums, out += ld)
            vf_store_n(out, KERNEL(epilogue)(epilogue, vf_load(sums), vf_load_n(out, lanes)), lanes);
    }
}

static void KERNEL(finish)(rwkvc_epilogue epilogue, const float *sums, uint32_t ld_sums, uint32_t n, uint32_t lanes,
                           float *out, uint64_t ld) {
#define WITH(epilogue_)                                                                                                \
    case epilogue_: KERNEL(finish_with)(epilogue_, sums, ld_sums, n, lanes, out, ld); break;
    switch (epilogue) {
        WITH(RWKVC_STORE)
        WITH(RWKVC_ADD)
        WITH(RWKVC_TANH)
        WITH(RWKVC_SIGMOID)
        WITH(RWKVC_RELU2)
    }
#undef WITH
}
