/* SPDX-License-Identifier: Apache-2.0
 * Products of integer weights (layouts: formats/format.h) with int8 activations. Per group of 32 inputs an exact integer
 * dot product, then acc = fma(dot * 2^e, weight scale * mantissa, acc), group after group: both factors are exact, so each
 * group is added with one rounding. Everything is written for any number of bits, a constant wherever it is inlined. */

/* Eight quads of a group as they lie in memory: `line` low halves are quads 0..3, high ones 4..7, `plane` what is above. */
typedef struct {
    vb line[4], plane[2];
} KERNEL(quads);

/* Stored integers of a quad. */
VEC vb KERNEL(stored)(const uint32_t bits, const KERNEL(quads) * q, const uint32_t quad) {
    vb low = quad < 4 ? vb_low(q->line[quad % 4]) : vb_high(q->line[quad % 4]);
    if (bits == 5) return vb_merge(low, q->plane[0], 4 - (int)quad, 0x10);
    if (bits == 6) return vb_merge(low, q->plane[quad / 4], 4 - 2 * (int)(quad % 4), 0x30);
    return low;
}

/* A quad as the q8 product wants it: + 128. */
VEC vb KERNEL(as_q8)(const uint32_t bits, vb book, const KERNEL(quads) * q, const uint32_t quad) {
    vb stored = KERNEL(stored)(bits, q, quad);
    return bits == 4 ? vb_lookup(book, stored) : vb_add(stored, (uint8_t)(128 - (1 << (bits - 1))));
}

/* Where a dot product begins. Less than 8 bits that are no book's are stored + 2^(bits - 1), not + 128. */
VEC vi KERNEL(begin)(const uint32_t bits, const rwkvc_q8_scale *scale) {
    int32_t unit;
    memcpy(&unit, &scale->unit, sizeof unit);
    return bits == 8 || bits == 4 ? vi_dot_begin(scale->begin, unit)
                                  : vi_set1(unit + (scale->begin - unit) / (256 >> bits));
}

/* acc + a group's sum, of which `s` are the weights' scales times the mantissa. */
VEC vf KERNEL(add_group)(vi dot, const rwkvc_q8_scale *scale, vf s, vf acc) {
    return vf_fma(vf_sub(vf_from_bits(dot), vf_set1(scale->unit)), s, acc);
}

/* Where there is nothing better (vec_scalar.h). */
#if !defined(VI_DOT_SMALL_PAIR)
VEC vi vi_dot_small_pair(vi acc, vb v, vb w, const int8_t *a, const int8_t *b) {
    return vi_dot_small(vi_dot_small(acc, v, a), w, b);
}
#endif

/* A quad as dot products take it: as stored, of a book its entries. Lines of q8 may be unpacked from `was` bits. */
VEC vb KERNEL(quad)(const uint32_t bits, const uint32_t was, vb book, const uint8_t *lines, const KERNEL(quads) * q,
                    const uint32_t quad) {
    if (was == 8) return vb_load(lines + 64 * quad);
    if (bits == 8) return vb_add(vb_load(lines + 64 * quad), (uint8_t)((1 << (was - 1)) - 128));
    vb stored = KERNEL(stored)(bits, q, quad);
    return bits == 4 ? vb_lookup(book, stored) : stored;
}

/* dot[n] += one group times n columns: weights of less than 7 bits two quads at a time. */
VEC void KERNEL(dots)(const uint32_t bits, const uint32_t was, vb book, const uint8_t *lines, const int8_t *a, vi *dot,
                      const uint32_t n) {
    KERNEL(quads) q;
    const uint32_t planes = bits < 8 ? bits - 4 : 0;
    UNROLL for (uint32_t i = 0; i < planes; i++) q.plane[i] = vb_load(lines + 256 + 64 * i);
    UNROLL for (uint32_t i = 0; i < 4; i++) {
        const uint32_t first = bits == 8 ? 2 * i : i, second = bits == 8 ? first + 1 : i + 4;
        const int8_t *x = a + first * n * 4, *y = a + second * n * 4;
        if (bits < 8) q.line[i] = vb_load(lines + 64 * i);
        vb v = KERNEL(quad)(bits, was, book, lines, &q, first), w = KERNEL(quad)(bits, was, book, lines, &q, second);
        if (was == 5 || was == 6) {
            UNROLL for (uint32_t t = 0; t < n; t++) dot[t] = vi_dot_small_pair(dot[t], v, w, x + 4 * t, y + 4 * t);
        } else {
            UNROLL for (uint32_t t = 0; t < n; t++) dot[t] = vi_dot(dot[t], vw_from(v), x + 4 * t);
            UNROLL for (uint32_t t = 0; t < n; t++) dot[t] = vi_dot(dot[t], vw_from(w), y + 4 * t);
        }
    }
}

/* One group of a panel for n columns. quarters [4, 16]: the weights' scales times each mantissa;
 * NULL: yet to be done. */
VEC void KERNEL(group)(const uint32_t bits, const uint32_t was, vb book, const uint8_t *lines,
                       const uint8_t *weight_scales, const float *quarters, const int8_t *a,
                       const rwkvc_q8_scale *scale, vf *acc, const uint32_t n) {
    vi dot[Q8_TILE];
    UNROLL for (uint32_t t = 0; t < n; t++) dot[t] = KERNEL(begin)(was, scale + t);
    KERNEL(dots)(bits, was, book, lines, a, dot, n);
    if (quarters) {
        UNROLL for (uint32_t t = 0; t < n; t++) acc[t] =
            KERNEL(add_group)(dot[t], scale + t, vf_load(quarters + 16 * scale[t].quarter), acc[t]);
        return;
    }
    vf s = vf_load_half((const uint16_t *)weight_scales);
    UNROLL for (uint32_t t = 0; t < n; t++) acc[t] =
        KERNEL(add_group)(dot[t], scale + t, vf_mul(s, vf_set1(scale[t].mantissa)), acc[t]);
}

VEC void KERNEL(panel_n)(const uint32_t bits, const uint32_t was, const uint8_t *record, const uint8_t *book,
                         const float *quarters, uint32_t groups, const int8_t *a, const rwkvc_q8_scale *scale,
                         float *out, const uint32_t n) {
    const uint32_t size = rwkvc_record_bytes(bits);
    vb table = bits == 4 ? vb_table(book) : vb_load(record);
    vf acc[Q8_TILE];
    UNROLL for (uint32_t t = 0; t < n; t++) acc[t] = vf_zero();
    for (uint32_t g = 0; g < groups; g += 2, record += size) {
        if (n <= 2)
            for (uint32_t line = 0; line < size; line += STREAM_STEP) PREFETCH(record + 2048 + line);
        else /* with more to multiply between two lines the processor's own prefetchers fall behind */
            for (uint32_t line = 0; line < size; line += 64) PREFETCH(record + 4 * size + line);
        for (uint32_t half = 0; half < 2; half++) {
            KERNEL(group)
            (bits, was, table, record + half * 64 * bits, record + 128 * bits + 32 * half,
             quarters ? quarters + 64 * (g + half) : NULL, a, scale, acc, n);
            a += RWKVC_GROUP * n;
            scale += n;
        }
    }
    UNROLL for (uint32_t t = 0; t < n; t++) vf_store(out + 16 * t, acc[t]);
}

/* clang-format off */
#define COLUMNS                                                                                         \
    const int8_t *a = input->values + (uint64_t)first_column * input->groups * RWKVC_GROUP;             \
    const rwkvc_q8_scale *scale = input->scales + (uint64_t)first_column * input->groups
#define TILE(bits_, n_)                                                                                 \
    case n_:                                                                                            \
        KERNEL(panel_n)(bits_, bits_, panel, book, NULL, input->groups, a, scale, out,                  \
                        (n_) <= Q8_TILE ? (n_) : Q8_TILE);                                              \
        break;
#if defined(RWKVC_NO_UNROLL) /* lanes are loops there: one more, over the columns, costs little and saves much code */
#define TILES(bits_) TILE(bits_, 1)                                                                     \
    default: KERNEL(panel_n)(bits_, bits_, panel, book, NULL, input->groups, a, scale, out, n); break;
#else
#define TILES(bits_) TILE(bits_, 1) TILE(bits_, 2) TILE(bits_, 3) TILE(bits_, 4) default: break;
#endif
/* clang-format on */

static void KERNEL(q8_panel)(const uint8_t *panel, const uint8_t *book, const float *quarters,
                             const rwkvc_q8_input *input, uint32_t first_column, uint32_t n, float *out) {
    COLUMNS;
    if (n == Q8_TILE && quarters) {
        KERNEL(panel_n)(8, 8, panel, book, quarters, input->groups, a, scale, out, Q8_TILE);
        return;
    }
    switch (n) {
        TILES(8)
#if RWKVC_WIDE_TILES
        TILE(8, 5)
        TILE(8, 6)
        TILE(8, 7)
        TILE(8, 8)
        TILE(8, 9)
        TILE(8, 10)
        TILE(8, 11)
        TILE(8, 12)
#endif
    }
}

/* A whole tile times a panel unpacked from `was` bits, else as a panel of q8 that it is. */
VEC void KERNEL(unpacked)(const uint32_t was, const uint8_t *panel, const float *quarters, const rwkvc_q8_input *input,
                          uint32_t first_column, uint32_t n, float *out) {
    COLUMNS;
    if (n == Q8_TILE && quarters)
        KERNEL(panel_n)(8, was, panel, NULL, quarters, input->groups, a, scale, out, Q8_TILE);
    else
        KERNEL(q8_panel)(panel, NULL, quarters, input, first_column, n, out);
}

/* [4, ld]: 16 scales times each mantissa. */
VEC void KERNEL(store_quarters)(const uint16_t *scales, uint32_t ld, float *out) {
    vf s = vf_load_half(scales);
    UNROLL for (uint32_t quarter = 0; quarter < 4; quarter++)
        vf_store(out + quarter * ld, vf_mul(s, vf_set1(1.0f + 0.25f * (float)quarter)));
}

static void KERNEL(quarters)(const uint8_t *panel, uint32_t records, float *out) {
    for (uint32_t group = 0; group < 2 * records; group++) {
        const uint8_t *scales = panel + group / 2 * RWKVC_Q8_RECORD + 1024 + 32 * (group % 2);
        KERNEL(store_quarters)((const uint16_t *)scales, 16, out + 64 * (uint64_t)group);
    }
}

/* -------------------------------------------------------------------- value matrices, by columns */

/* Rows of a value panel as a product walks through them, group after group. */
typedef struct {
    const uint8_t *lines, *planes; /* of the first row: 64 bytes of a column, and what is above their low 4 bits */
    const uint16_t *scales;
    uint64_t stride, size; /* bytes from group to group, from column to column */
    uint32_t line_rows;    /* that 64 bytes of a column hold, of less than 8 bits their low 4 */
} KERNEL(value_rows);

VEC KERNEL(value_rows)
    KERNEL(value_rows_at)(const uint32_t bits, const uint8_t *panel, uint32_t height, uint32_t row, uint32_t group) {
    KERNEL(value_rows)
    r = {.stride = (uint64_t)height * rwkvc_group_bytes(bits),
         .size = (uint64_t)height * bits / 8,
         .line_rows = bits == 8 ? 64 : 128};
    panel += group * r.stride;
    r.lines = panel + row / r.line_rows * 64;
    r.planes = panel + height / 2 + 16 * (bits - 4) * (row / r.line_rows);
    r.scales = (const uint16_t *)(panel + RWKVC_GROUP * r.size) + row;
    return r;
}

/* Four inputs of one column: dot[parts] += products of as many times 16 rows. Four parts are 64 bytes of a q8 column;
 * of fewer bits eight are, the first four the rows in a byte's low half. */
LONG_VEC void KERNEL(value_quad)(const uint32_t bits, vb table, const KERNEL(value_rows) * r, const uint8_t *place,
                                 const int8_t *values, vi *dot, const uint32_t parts) {
    const uint32_t in_line = bits == 8 ? 4 : 8;
    uint64_t at[4];
    UNROLL for (int k = 0; k < 4; k++) at[k] = place[k] * r->size;
    for (uint32_t line = 0; line < parts / in_line; line++, dot += in_line) {
        const uint8_t *rows = r->lines + 64 * line, *planes = r->planes + 16 * (bits - 4) * line;
        KERNEL(quads) q;
        vb_interleave(vb_load(rows + at[0]), vb_load(rows + at[1]), vb_load(rows + at[2]), vb_load(rows + at[3]),
                      q.line);
        if (bits == 8) {
            UNROLL for (uint32_t v = 0; v < in_line; v++) dot[v] = vi_dot(dot[v], vw_from(q.line[v]), values);
            continue;
        }
        UNROLL for (uint32_t k = 0; k < bits - 4; k++, planes += 16) q.plane[k] =
            vb_zip(planes + at[0], planes + at[1], planes + at[2], planes + at[3]);
        UNROLL for (uint32_t v = 0; v < in_line; v++) {
            vb w = KERNEL(quad)(bits, bits, table, NULL, &q, v);
            dot[v] = bits == 4 ? vi_dot(dot[v], vw_from(w), values) : vi_dot_small(dot[v], w, values);
        }
    }
}

/* A column's group that is needed later: the same rows (planes NULL: none), and what is not zero. */
typedef struct {
    KERNEL(value_rows) rows;
    const rwkvc_sparse_group *nonzero;
    uint32_t count;
} KERNEL(value_later);

/* Ask for `lines` lines from `row` on (q8; else 0): columns of its inputs first..last-1, with the first one the scales. */
VEC void KERNEL(value_ask)(const KERNEL(value_later) * later, uint32_t first, uint32_t last, uint32_t row,
                           uint32_t lines) {
    const KERNEL(value_rows) *r = &later->rows;
    if (last > later->count) last = later->count;
    for (uint32_t i = 0; first == 0 && last > 0 && i < lines * r->line_rows; i += 32) PREFETCH(r->scales + row + i);
    for (uint32_t i = first; i < last; i++) {
        uint64_t column = later->nonzero->place[i] * r->size;
        for (uint32_t line = 0; line < lines; line++) PREFETCH(r->lines + row + column + 64 * line);
        if (r->planes) PREFETCH(r->planes + column);
    }
}

/* acc[parts] += one group of a column with `count` inputs; of no more than 4 * most, if that is not 0. quarters as in
 * `group`, [4, RWKVC_VALUE_UNIT]. Meanwhile a later group is asked for (NULL: none), a few lines between two products:
 * those that a core waits for are some tens at most, and when they are as many, the products' own loads wait too. */
LONG_VEC void KERNEL(value_group)(const uint32_t bits, vb table, const KERNEL(value_rows) * rows,
                                  const rwkvc_q8_input *input, uint64_t at, uint32_t count, const float *quarters,
                                  const KERNEL(value_later) * later, vf *acc, const uint32_t parts,
                                  const uint32_t most) {
    const rwkvc_sparse_group *nonzero = &input->nonzero[at];
    const rwkvc_q8_scale *scale = &input->scales[at];
    const uint32_t at_once = bits == 8 && parts > VALUE_SUMS ? VALUE_SUMS : parts,
                   lines = at_once / (bits == 8 ? 4 : 8);
    KERNEL(value_rows) r = *rows;
    vf mantissa = vf_set1(scale->mantissa);
    if (quarters) quarters += scale->quarter * RWKVC_VALUE_UNIT;
    UNROLL for (uint32_t first = 0; first < parts; first += at_once, acc += at_once, r.lines += 16 * at_once) {
        vi dot[16];
        UNROLL for (uint32_t v = 0; v < at_once; v++) dot[v] = KERNEL(begin)(bits, scale);
        if (most) {
            if (later) KERNEL(value_ask)(later, 0, RWKVC_GROUP, 16 * first, lines);
            UNROLL for (uint32_t i = 0; i < 4 * most; i += 4)
                KERNEL(value_quad)(bits, table, &r, nonzero->place + i, nonzero->value + i, dot, at_once);
        } else {
            for (uint32_t i = 0; i < count; i += 4) {
                bool last = i + 4 >= count;
                if (later) KERNEL(value_ask)(later, i, last ? RWKVC_GROUP : i + 4, 16 * first, lines);
                KERNEL(value_quad)(bits, table, &r, nonzero->place + i, nonzero->value + i, dot, at_once);
            }
        }
        UNROLL for (uint32_t v = 0; v < at_once; v++) {
            const uint32_t row = 16 * (first + v);
            vf s = quarters ? vf_load(quarters + row) : vf_mul(vf_load_half(r.scales + row), mantissa);
            acc[v] = KERNEL(add_group)(dot[v], scale, s, acc[v]);
        }
    }
}

/* Groups that stay in the first level's cache while all columns use them. */
enum { VALUE_STEP = 4 };

/* sums[parts, 16] += `steps` groups from entry `at` on, entries of a column `n` apart. quarters: of each group. */
LONG_VEC void KERNEL(value_part)(const uint32_t bits, vb table, KERNEL(value_rows) r, const rwkvc_q8_input *input,
                                 uint64_t at, uint32_t n, uint32_t steps, const float *quarters,
                                 const KERNEL(value_later) * later, float *sums, const uint32_t parts) {
    /* Code for few inputs: not where few vectors wait for memory anyway, nor for 64 rows at the end of few matrices. */
    const bool straight = parts > 4 && (RWKVC_WIDE_TILES || !later);
    vf acc[16];
    UNROLL for (uint32_t v = 0; v < parts; v++) acc[v] = vf_load(sums + 16 * v);
    for (uint32_t step = 0; step < steps; step++, at += n) {
        uint32_t count = input->counts[at];
        const float *q = quarters ? quarters + step * 4 * RWKVC_VALUE_UNIT : NULL;
        if (count > 8 || (count > 0 && !straight))
            KERNEL(value_group)(bits, table, &r, input, at, count, q, later, acc, parts, 0);
        else if (straight && count > 4)
            KERNEL(value_group)(bits, table, &r, input, at, count, q, later, acc, parts, 2);
        else if (straight && count > 0)
            KERNEL(value_group)(bits, table, &r, input, at, count, q, later, acc, parts, 1);
        else if (later)
            KERNEL(value_ask)(later, 0, RWKVC_GROUP, 0, parts / (bits == 8 ? 4 : 8));
        r.lines += r.stride, r.planes += r.stride, r.scales += r.stride / 2;
    }
    UNROLL for (uint32_t v = 0; v < parts; v++) vf_store(sums + 16 * v, acc[v]);
}

/* Of many columns all of a later group, line after line: the processor's own prefetchers help with it. */
VEC void KERNEL(value_ask_all)(const KERNEL(value_rows) * r, uint32_t rows) {
    for (uint64_t column = 0; column < RWKVC_GROUP; column++)
        for (uint32_t row = 0; row < rows; row += r->line_rows)
            PREFETCH(r->lines + column * r->size + row / r->line_rows * 64);
    for (uint32_t row = 0; row < rows; row += 32) PREFETCH(r->scales + row);
}

/* Accumulators of 64 rows in the rows' order (rwkvc_value_row). */
VEC void KERNEL(value_order)(float *sums) {
    float acc[RWKVC_VALUE_ROWS];
    memcpy(acc, sums, sizeof acc);
    for (uint32_t v = 0; v < 4; v++)
        for (uint32_t lane = 0; lane < 16; lane += 4)
            memcpy(sums + rwkvc_value_row(v, lane), acc + 16 * v + lane, 4 * sizeof *sums);
}

/* Copy 128 rows (at the end of a q8 panel 64) of a group for reading them over and over: lines a power of two apart
 * that leave out the other rows would use only some of the cache's sets. */
LONG_VEC void KERNEL(value_copy)(const uint32_t bits, const KERNEL(value_rows) * from, uint32_t rows,
                                 const KERNEL(value_rows) * to) {
    uint8_t *lines = (uint8_t *)to->lines, *planes = (uint8_t *)to->planes;
    for (uint32_t column = 0; column < RWKVC_GROUP; column++) {
        for (uint32_t row = 0; row < rows; row += from->line_rows)
            vb_store(lines + column * to->size + row / from->line_rows * 64,
                     vb_load(from->lines + column * from->size + row / from->line_rows * 64));
        if (bits == 5 || bits == 6)
            memcpy(planes + column * to->size, from->planes + column * from->size, 16 * (bits - 4));
    }
}

/* `steps` groups of one unit of rows times all columns, out of copies. */
VEC void KERNEL(value_many)(const uint32_t bits, vb table, const uint8_t *panel, uint32_t height, uint32_t first_row,
                            uint32_t rows, uint32_t g, uint32_t steps, const rwkvc_q8_input *input, float *sums,
                            uint32_t ld_sums) {
    enum { COLUMN = 128 };
    float quarters[VALUE_STEP * 4 * RWKVC_VALUE_UNIT];
    uint8_t copy[VALUE_STEP * RWKVC_GROUP * COLUMN];
    KERNEL(value_rows)
    tile = {copy, copy + 64, (const uint16_t *)copy, RWKVC_GROUP * COLUMN, COLUMN, bits == 8 ? 64 : 128};
    for (uint32_t step = 0; step < steps; step++) {
        KERNEL(value_rows) from = KERNEL(value_rows_at)(bits, panel, height, first_row, g + step), to = tile;
        to.lines += step * tile.stride, to.planes += step * tile.stride;
        KERNEL(value_copy)(bits, &from, rows, &to);
        for (uint32_t row = 0; row < rows; row += 16) KERNEL(store_quarters)
        (from.scales + row, RWKVC_VALUE_UNIT, quarters + step * 4 * RWKVC_VALUE_UNIT + row);
    }
    for (uint32_t base = 0; base < input->columns; base += input->tile) {
        uint32_t n = input->columns - base < input->tile ? input->columns - base : input->tile;
        for (uint32_t t = 0; t < n; t++, sums += ld_sums) {
            uint64_t at = (uint64_t)base * input->groups + (uint64_t)g * n + t;
            for (uint32_t step = 0; step < VALUE_STEP; step++)
                PREFETCH(&input->nonzero[at + step * n + (uint64_t)input->tile * input->groups]);
            if (rows == RWKVC_VALUE_UNIT)
                KERNEL(value_part)(bits, table, tile, input, at, n, steps, quarters, NULL, sums, 8);
            else if (bits == 8)
                KERNEL(value_part)(bits, table, tile, input, at, n, steps, quarters, NULL, sums, 4);
        }
    }
}

/* Groups that value products ask for ahead: for each of few columns what it needs, for many of them all. */
enum { VALUE_FEW_AHEAD = 4, VALUE_MANY_AHEAD = 8 };

/* One group for few columns, as the weights lie. Where a column has many inputs, as many rows at once as the registers
 * hold sums for: the weights are then read nearly in order. */
VEC void KERNEL(value_few)(const uint32_t bits, vb table, const uint8_t *panel, uint32_t height, uint32_t first_row,
                           uint32_t rows, uint32_t groups, uint32_t g, const rwkvc_q8_input *input, float *sums) {
    for (uint32_t c = 0; c < input->columns; c++, sums += rows) {
        rwkvc_column column = rwkvc_column_of(input, c);
        uint64_t at = (uint64_t)column.base * input->groups + g * column.n + column.t;
        uint64_t then = at + VALUE_FEW_AHEAD * column.n;
        const bool wide = RWKVC_WIDE_TILES && input->counts[at] > 8;
        KERNEL(value_later) later = {.count = 0};
        if (g + VALUE_FEW_AHEAD < groups) later.count = input->counts[then], later.nonzero = &input->nonzero[then];
        for (uint32_t row = 0; row < rows;) {
            KERNEL(value_rows) r = KERNEL(value_rows_at)(bits, panel, height, first_row + row, g);
            float *to = sums + row;
            if (later.count)
                later.rows = KERNEL(value_rows_at)(bits, panel, height, first_row + row, g + VALUE_FEW_AHEAD);
            if (bits == 4 || bits == 8) later.rows.planes = NULL;
            if (wide && row + 2 * RWKVC_VALUE_UNIT <= rows) {
                KERNEL(value_part)(bits, table, r, input, at, 0, 1, NULL, &later, to, 16);
                row += 2 * RWKVC_VALUE_UNIT;
            } else if (row + RWKVC_VALUE_UNIT <= rows) {
                KERNEL(value_part)(bits, table, r, input, at, 0, 1, NULL, &later, to, 8);
                row += RWKVC_VALUE_UNIT;
            } else {
                if (bits == 8) KERNEL(value_part)(bits, table, r, input, at, 0, 1, NULL, &later, to, 4);
                break;
            }
        }
    }
}

VEC void KERNEL(value_sparse)(const uint32_t bits, const uint8_t *panel, const uint8_t *book, uint32_t height,
                              uint32_t first_row, uint32_t rows, uint32_t groups, const rwkvc_q8_input *all,
                              float *sums) {
    const rwkvc_q8_input input = *all; /* no store can change a copy */
    const bool few = input.columns <= RWKVC_VALUE_FEW;
    const uint32_t step = few ? 1 : VALUE_STEP;
    vb table = bits == 4 ? vb_table(book) : vb_load(panel);
    for (uint64_t i = 0; i < (uint64_t)input.columns * rows; i += 16) vf_store(sums + i, vf_zero());
    for (uint32_t g = 0; g < groups; g += step) {
        uint32_t steps = groups - g < step ? groups - g : step;
        if (few) {
            KERNEL(value_few)(bits, table, panel, height, first_row, rows, groups, g, &input, sums);
            continue;
        }
        for (uint32_t ahead = g + VALUE_MANY_AHEAD; ahead < g + VALUE_MANY_AHEAD + steps && ahead < groups; ahead++) {
            KERNEL(value_rows) r = KERNEL(value_rows_at)(bits, panel, height, first_row, ahead);
            KERNEL(value_ask_all)(&r, rows);
        }
        for (uint32_t row = 0; row < rows; row += RWKVC_VALUE_UNIT) {
            uint32_t unit = rows - row < RWKVC_VALUE_UNIT ? rows - row : RWKVC_VALUE_UNIT;
            KERNEL(value_many)(bits, table, panel, height, first_row + row, unit, g, steps, &input, sums + row, rows);
        }
    }
    for (uint64_t i = 0; i < (uint64_t)input.columns * rows; i += RWKVC_VALUE_ROWS) KERNEL(value_order)(sums + i);
}

VEC void KERNEL(value_repack)(const uint32_t bits, const uint8_t *panel, const uint8_t *book, uint32_t height,
                              uint32_t part, uint32_t groups, uint8_t *panels) {
    uint64_t stride = (uint64_t)height * rwkvc_group_bytes(bits), size = (uint64_t)height * bits / 8;
    uint64_t panel_bytes = (uint64_t)(groups + 1) / 2 * RWKVC_Q8_RECORD;
    const uint32_t slice = bits == 8 ? part : part / 2, half = bits == 8 ? 0 : part % 2;
    vb table = bits == 4 ? vb_table(book) : vb_load(panel);
    for (uint32_t g = 0; g < groups; g++) {
        const uint8_t *group = panel + g * stride, *planes = group + height / 2 + 16 * (bits - 4) * slice;
        const uint8_t *s = group + RWKVC_GROUP * size + 128 * part;
        uint8_t *record = panels + g / 2 * RWKVC_Q8_RECORD + 512 * (g % 2);
        for (uint32_t quad = 0; quad < 8; quad++, record += 64, planes += 4 * size) {
            const uint8_t *c = group + 64 * slice + 4 * quad * size;
            KERNEL(quads) q;
            vb_interleave(vb_load(c), vb_load(c + size), vb_load(c + 2 * size), vb_load(c + 3 * size), q.line);
            if (bits == 8) {
                for (uint32_t v = 0; v < 4; v++) vb_store(record + v * panel_bytes, q.line[v]);
                continue;
            }
            UNROLL for (uint32_t k = 0; k < bits - 4; k++) q.plane[k] =
                vb_zip(planes + 16 * k, planes + size + 16 * k, planes + 2 * size + 16 * k, planes + 3 * size + 16 * k);
            UNROLL for (uint32_t v = 0; v < 4; v++) {
                vb w = half ? KERNEL(as_q8)(bits, table, &q, v + 4) : KERNEL(as_q8)(bits, table, &q, v);
                vb_store(record + v * panel_bytes, w);
            }
        }
        for (uint32_t v = 0; v < 4; v++)
            memcpy(panels + v * panel_bytes + g / 2 * RWKVC_Q8_RECORD + 1024 + 32 * (g % 2), s + 32 * v, 32);
    }
    if (groups % 2) /* the last record's second half: weights times zero activations */
        for (uint32_t v = 0; v < 4; v++) {
            uint8_t *record = panels + v * panel_bytes + groups / 2 * RWKVC_Q8_RECORD;
            memset(record + 512, 128, 512);
            memset(record + 1024 + 32, 0, 32);
        }
}

/* ------------------------------------------------------------------------------ one set per format */

/* A MATRIX panel as q8. */
VEC void KERNEL(unpack)(const uint32_t bits, const uint8_t *record, const uint8_t *book, uint32_t records,
                        uint8_t *out) {
    vb table = bits == 4 ? vb_table(book) : vb_load(record);
    for (uint32_t r = 0; r < records; r++, record += rwkvc_record_bytes(bits), out += RWKVC_Q8_RECORD) {
        PREFETCH_PAGE(record);
        for (uint32_t half = 0; half < 2; half++) {
            const uint8_t *lines = record + half * 64 * bits;
            KERNEL(quads) q;
            UNROLL for (uint32_t i = 0; i < 4; i++) q.line[i] = vb_load(lines + 64 * i);
            UNROLL for (uint32_t i = 0; i < bits - 4; i++) q.plane[i] = vb_load(lines + 256 + 64 * i);
            UNROLL for (uint32_t quad = 0; quad < 8; quad++)
                vb_store(out + 512 * half + 64 * quad, KERNEL(as_q8)(bits, table, &q, quad));
        }
        vb_store(out + 1024, vb_load(record + 128 * bits));
    }
}

#define VALUE_KERNELS(bits_)                                                                                           \
    static void KERNEL(value_sparse_##bits_)(const uint8_t *panel, const uint8_t *book, uint32_t height,               \
                                             uint32_t first_row, uint32_t rows, uint32_t groups,                       \
                                             const rwkvc_q8_input *input, float *sums) {                               \
        KERNEL(value_sparse)(bits_, panel, book, height, first_row, rows, groups, input, sums);                        \
    }                                                                                                                  \
    static void KERNEL(value_repack_##bits_)(const uint8_t *panel, const uint8_t *book, uint32_t height,               \
                                             uint32_t part, uint32_t groups, uint8_t *panels) {                        \
        KERNEL(value_repack)(bits_, panel, book, height, part, groups, panels);                                        \
    }

/* Where pairs of quads of few bits are no faster than two quads, what is unpacked is a panel of q8 like any other. */
#if defined(VI_DOT_SMALL_PAIR)
#define UNPACKED_KERNEL(bits_)                                                                                         \
    static void KERNEL(unpacked_##bits_)(const uint8_t *panel, const uint8_t *book, const float *quarters,             \
                                         const rwkvc_q8_input *input, uint32_t first_column, uint32_t n, float *out) { \
        (void)book;                                                                                                    \
        KERNEL(unpacked)(bits_, panel, quarters, input, first_column, n, out);                                         \
    }
UNPACKED_KERNEL(6)
UNPACKED_KERNEL(5)
#undef UNPACKED_KERNEL
#endif

#define MATRIX_KERNELS(bits_)                                                                                          \
    static void KERNEL(panel_##bits_)(const uint8_t *panel, const uint8_t *book, const float *quarters,                \
                                      const rwkvc_q8_input *input, uint32_t first_column, uint32_t n, float *out) {    \
        COLUMNS;                                                                                                       \
        (void)quarters;                                                                                                \
        switch (n) { TILES(bits_) }                                                                                    \
    }                                                                                                                  \
    static void KERNEL(unpack_##bits_)(const uint8_t *panel, const uint8_t *book, uint32_t records, uint8_t *out) {    \
        KERNEL(unpack)(bits_, panel, book, records, out);                                                              \
    }

VALUE_KERNELS(8)
VALUE_KERNELS(6)
VALUE_KERNELS(5)
VALUE_KERNELS(4)
MATRIX_KERNELS(6)
MATRIX_KERNELS(5)
MATRIX_KERNELS(4)
#undef COLUMNS
#undef TILES
#undef TILE
