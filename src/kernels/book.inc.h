/* SPDX-License-Identifier: Apache-2.0
 * Entries of a code book of 16 ascending values, the nearest to each lane. Here for instruction sets that have no better
 * way, VF_BOOK says. */
#if !defined(VF_BOOK)
typedef struct {
    float entry[16], limit[15];
} vf_book;

/* limit [15]: where one entry ends and the next begins. */
VEC vf_book vf_book_of(const float *entry, const float *limit) {
    vf_book b;
    memcpy(b.entry, entry, sizeof b.entry);
    memcpy(b.limit, limit, sizeof b.limit);
    return b;
}

/* The entry, and its number from 0 on: how many limits x is not below. */
VEC vf vf_book_nearest(const vf_book *b, vf x, vf *number) {
    vf value = vf_set1(b->entry[0]), n = vf_zero();
    UNROLL for (int e = 0; e < 15; e++) {
        vf limit = vf_set1(b->limit[e]);
        value = vf_where_less(x, limit, value, vf_set1(b->entry[e + 1]));
        n = vf_where_less(x, limit, n, vf_set1((float)(e + 1)));
    }
    *number = n;
    return value;
}
#endif

VEC vf_book KERNEL(book_of)(const int8_t *values, float entry[16]) {
    float limit[15];
    for (int i = 0; i < 16; i++) entry[i] = (float)values[i];
    for (int i = 0; i < 15; i++) limit[i] = 0.5f * (entry[i] + entry[i + 1]);
    return vf_book_of(entry, limit);
}
