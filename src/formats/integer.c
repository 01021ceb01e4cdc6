/* SPDX-License-Identifier: Apache-2.0
 * q8, q6, q5, q4: 8.5, 6.5, 5.5, 4.5 bits per weight. Layouts: format.h. Packing takes 16 rows x 32 inputs at a time,
 * which the kernels quantise. */
#include "kernels/kernels.h"

enum {
    LANES = RWKVC_PANEL,
    BLOCK = RWKVC_SOURCE_INPUTS, /* inputs of a row that are read at a time */
    BLOCK_GROUPS = BLOCK / RWKVC_GROUP,
    MOST_SLICE = 128
};

/* q - 8, so that a tensor is exactly what Q4_0 is. */
static const int8_t linear_book[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
/* The best 16 values for normally distributed weights in groups of 32, each with the scale that leaves the least squared
 * error: found by alternating between both (Lloyd's method), then rounded. Which end is the longer one is for the scale's
 * sign to say. */
static const int8_t normal_book[16] = {-127, -100, -78, -61, -47, -33, -21, -9, 2, 13, 25, 36, 50, 65, 82, 106};

static bool is_matrix(uint32_t kind, uint32_t bits) {
    return kind == RWKVC_KIND_MATRIX || kind == RWKVC_KIND_HEAD || (kind == RWKVC_KIND_LOW_RANK && bits == 8);
}

static uint64_t integer_bytes(uint32_t format, uint32_t kind, uint64_t rows, uint64_t cols) {
    uint32_t bits = rwkvc_bits(format);
    uint64_t groups = rwkvc_ceil_div(cols, RWKVC_GROUP), bytes = 0;
    if (is_matrix(kind, bits))
        bytes = rwkvc_ceil_div(rows, RWKVC_PANEL) * rwkvc_ceil_div(groups, 2) * rwkvc_record_bytes(bits);
    else if (kind == RWKVC_KIND_VALUE)
        bytes = rwkvc_round_up(rows, rwkvc_value_slice(bits)) * groups * rwkvc_group_bytes(bits);
    else if (kind == RWKVC_KIND_EMBEDDING)
        bytes = rwkvc_round_up(rows * groups * rwkvc_group_bytes(bits), RWKVC_ALIGN);
    return bytes ? rwkvc_header_bytes(bits) + bytes : 0;
}

static uint64_t integer_panel_rows(uint32_t format, uint32_t kind) {
    if (kind == RWKVC_KIND_EMBEDDING) return 1;
    return kind == RWKVC_KIND_VALUE ? rwkvc_value_panel(rwkvc_bits(format)) : RWKVC_PANEL;
}

/* ------------------------------------------------------------------------------------- reading */

float rwkvc_embedding_group(uint32_t bits, const uint8_t *book, const uint8_t *row, uint64_t groups, uint64_t group,
                            int8_t *q) {
    uint16_t scale;
    memcpy(&scale, row + groups * 4 * bits + 2 * group, sizeof scale);
    if (bits == 8) {
        memcpy(q, row + RWKVC_GROUP * group, RWKVC_GROUP);
        return rwkvc_half_to_float(scale);
    }
    const uint8_t *low = row + 16 * group;
    uint64_t high = 0;
    uint32_t more = bits - 4;
    memcpy(&high, row + 16 * groups + 4 * more * group, 4 * more);
    for (uint32_t i = 0; i < RWKVC_GROUP; i++, high >>= more) {
        uint32_t u = i < 16 ? low[i] & 15u : low[i - 16] >> 4;
        u |= (uint32_t)(high & ((1u << more) - 1)) << 4;
        q[i] = (int8_t)(bits == 4 ? book[u] - 128 : (int)u - (1 << (bits - 1)));
    }
    return rwkvc_half_to_float(scale);
}

/* Bits 4 and up of quad `quad` (of 8) where `line` has its byte; planes of a group are `stride` bytes apart. */
static uint32_t higher_bits(uint32_t bits, const uint8_t *plane, uint64_t stride, uint32_t quad) {
    if (bits == 5) return (uint32_t)(plane[0] >> quad & 1) << 4;
    if (bits == 6) return (uint32_t)(plane[quad / 4 * stride] >> 2 * (quad % 4) & 3) << 4;
    return 0;
}

/* Stored integers of a group of a row; returns the scale's bits. */
static uint16_t read_group(const rwkvc_tensor_info *info, const uint8_t *data, uint64_t row, uint64_t group,
                           uint8_t *u) {
    uint32_t bits = rwkvc_bits(info->format);
    uint64_t groups = rwkvc_ceil_div(info->cols, RWKVC_GROUP);
    uint16_t scale;
    if (info->kind == RWKVC_KIND_VALUE) {
        uint64_t panel = row / rwkvc_value_panel(bits), height = rwkvc_value_height(bits, info->rows, panel);
        uint64_t r = row % rwkvc_value_panel(bits), column = height * bits / 8;
        const uint8_t *at =
            data + (panel * rwkvc_value_panel(bits) * groups + group * height) * rwkvc_group_bytes(bits);
        uint32_t in = r % 64, v = in / 4 % 4, lane = 4 * (in / 16) + in % 4, half = r / 64 % 2;
        for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
            const uint8_t *c = at + i * column;
            if (bits == 8) {
                u[i] = c[r];
                continue;
            }
            u[i] = c[r / 128 * 64 + in] >> 4 * half & 15;
            u[i] |= (uint8_t)higher_bits(bits, c + height / 2 + r / 128 * 16 * (bits - 4) + lane, 16, v + 4 * half);
        }
        memcpy(&scale, at + RWKVC_GROUP * column + 2 * (r / 64 * 64 + 16 * v + lane), sizeof scale);
        return scale;
    }
    const uint8_t *record =
        data + (row / RWKVC_PANEL * rwkvc_ceil_div(groups, 2) + group / 2) * rwkvc_record_bytes(bits);
    const uint8_t *lines = record + group % 2 * 64 * bits + 4 * (row % RWKVC_PANEL);
    for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
        uint32_t quad = i / 4;
        const uint8_t *line = lines + i % 4;
        u[i] = bits == 8
                   ? line[64 * quad]
                   : (uint8_t)((line[64 * (quad % 4)] >> quad / 4 * 4 & 15) | higher_bits(bits, line + 256, 64, quad));
    }
    memcpy(&scale, record + 128 * bits + 32 * (group % 2) + 2 * (row % RWKVC_PANEL), sizeof scale);
    return scale;
}

static void integer_unpack_row(const rwkvc_tensor_info *info, const uint8_t *packed, uint64_t row, float *dst) {
    uint32_t bits = rwkvc_bits(info->format);
    uint64_t groups = rwkvc_ceil_div(info->cols, RWKVC_GROUP);
    const uint8_t *data = packed + rwkvc_header_bytes(bits);
    for (uint64_t group = 0; group < groups; group++) {
        int8_t q[RWKVC_GROUP];
        float scale;
        if (info->kind == RWKVC_KIND_EMBEDDING) {
            const uint8_t *bytes = data + row * groups * rwkvc_group_bytes(bits);
            scale = rwkvc_embedding_group(bits, packed, bytes, groups, group, q);
        } else {
            uint8_t u[RWKVC_GROUP];
            scale = rwkvc_half_to_float(read_group(info, data, row, group, u));
            for (int i = 0; i < RWKVC_GROUP; i++)
                q[i] = (int8_t)(bits == 4 ? packed[u[i]] - 128 : u[i] - (1 << (bits - 1)));
        }
        uint64_t n = rwkvc_min(RWKVC_GROUP, info->cols - group * RWKVC_GROUP);
        for (uint64_t i = 0; i < n; i++) dst[group * RWKVC_GROUP + i] = scale * (float)q[i];
    }
}

/* ------------------------------------------------------------------------------------- packing */

typedef struct {
    const rwkvc_tensor_info *info;
    const rwkvc_source *source;
    const rwkvc_kernels *kernels;
    const int8_t *book;
    uint8_t *data;
    uint64_t groups;
    uint32_t bits;
    bool exact; /* the source's integers and scales are taken as they are */
} packing;

/* 16 rows x up to BLOCK inputs, quantised: q[group][input][lane]. */
typedef struct {
    int8_t q[BLOCK_GROUPS][RWKVC_GROUP * LANES];
    uint16_t scale[BLOCK_GROUPS][LANES];
} block;

static rwkvc_status check_scales(const packing *p, const block *b, uint64_t row, uint32_t n_groups) {
    for (uint32_t group = 0; group < n_groups; group++)
        for (uint32_t lane = 0; lane < LANES; lane++)
            if ((b->scale[group][lane] & 0x7c00) == 0x7c00)
                return rwkvc_fail(RWKVC_E_NONFINITE, "%s holds values in row %llu that are too large for %s",
                                  p->info->name, (unsigned long long)(row + lane), rwkvc_format_name(p->info->format));
    return RWKVC_OK;
}

/* What this lane reads next: of a VALUE further rows of the same inputs, else further inputs, then further rows. */
static void prefetch_next(const packing *p, uint64_t row, uint64_t col) {
    const rwkvc_tensor_info *info = p->info;
    if (info->kind == RWKVC_KIND_VALUE || col + BLOCK >= info->cols) {
        col = info->kind == RWKVC_KIND_VALUE ? col : 0;
        row += LANES;
    } else {
        col += BLOCK;
    }
    if (row < info->rows) rwkvc_source_prefetch(p->source, row, col, rwkvc_min(BLOCK, info->cols - col));
}

/* x[input, lane] of n inputs, row by row: the slow way, for what rwkvc_source_read_rows does not take. */
static rwkvc_status read_singly(const packing *p, uint64_t row, uint32_t n_rows, uint64_t col, uint64_t n, float *x) {
    float values[BLOCK];
    for (uint32_t lane = 0; lane < LANES; lane++) {
        memset(values, 0, sizeof values);
        rwkvc_status status = RWKVC_OK;
        if (lane < n_rows) status = rwkvc_source_read(p->info, p->source, p->kernels, row + lane, col, n, values);
        if (status) return status;
        for (uint64_t i = 0; i < n; i++) x[i * LANES + lane] = values[i];
    }
    return RWKVC_OK;
}

/* Groups `group`.. of rows `row`.. of the tensor; what lies outside of it is 0 with scale 0. */
static rwkvc_status quantise_rows(const packing *p, uint64_t row, uint64_t group, uint32_t n_groups, block *b) {
    const rwkvc_tensor_info *info = p->info;
    uint64_t col = group * RWKVC_GROUP, n = col < info->cols ? rwkvc_min(n_groups * RWKVC_GROUP, info->cols - col) : 0;
    uint32_t n_rows = row < info->rows ? (uint32_t)rwkvc_min(LANES, info->rows - row) : 0;
    if (p->exact) {
        int most = (1 << (p->bits - 1)) - 1;
        memset(b, 0, sizeof *b);
        for (uint32_t lane = 0; lane < n_rows; lane++)
            for (uint32_t g = 0; g < rwkvc_ceil_div(n, RWKVC_GROUP); g++) {
                int8_t q[RWKVC_GROUP];
                rwkvc_source_group(p->source, row + lane, info->cols, group + g, q, &b->scale[g][lane]);
                for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
                    if (q[i] > most || q[i] < -most - 1)
                        return rwkvc_fail(RWKVC_E_ARGUMENT, "%s: %d in row %llu does not fit %s", info->name, q[i],
                                          (unsigned long long)(row + lane), rwkvc_format_name(info->format));
                    b->q[g][i * LANES + lane] = q[i];
                }
            }
        return check_scales(p, b, row, n_groups);
    }
    float x[BLOCK * LANES];
    memset(x + n * LANES, 0, (n_groups * RWKVC_GROUP - n) * LANES * sizeof *x);
    if (n_rows == 0) memset(x, 0, n * LANES * sizeof *x);
    if (n_rows && n) {
        for (uint32_t lane = 0; lane < n_rows; lane++) prefetch_next(p, row + lane, col);
        if (!rwkvc_source_read_rows(info, p->source, p->kernels, row, n_rows, col, (uint32_t)n, x)) {
            rwkvc_status status = read_singly(p, row, n_rows, col, n, x);
            if (status) return status;
        }
    }
    for (uint32_t g = 0; g < n_groups; g++)
        p->kernels->quantise[info->format](x + g * RWKVC_GROUP * LANES, p->book, b->q[g], b->scale[g]);
    return check_scales(p, b, row, n_groups);
}

static rwkvc_status pack_matrix(const packing *p, uint64_t panel) {
    block b;
    uint64_t records = rwkvc_ceil_div(p->groups, 2);
    uint8_t *record = p->data + panel * records * rwkvc_record_bytes(p->bits);
    for (uint64_t group = 0; group < 2 * records; group += BLOCK_GROUPS) {
        uint32_t n = (uint32_t)rwkvc_min(BLOCK_GROUPS, 2 * records - group);
        rwkvc_status status = quantise_rows(p, panel * RWKVC_PANEL, group, n, &b);
        if (status) return status;
        for (uint32_t g = 0; g < n; g += 2, record += rwkvc_record_bytes(p->bits))
            for (uint32_t half = 0; half < 2; half++) {
                p->kernels->pack_lines[p->info->format](b.q[g + half], record + half * 64 * p->bits);
                memcpy(record + 128 * p->bits + 32 * half, b.scale[g + half], 32);
            }
    }
    return RWKVC_OK;
}

/* One column of a slice: q[rows of the slice]. */
static void put_column(uint32_t bits, const int8_t *q, uint8_t *low, uint8_t *plane) {
    uint8_t u[MOST_SLICE];
    uint8_t bias = (uint8_t)(1 << (bits - 1));
    for (uint32_t r = 0; r < rwkvc_value_slice(bits); r++) u[r] = (uint8_t)(q[r] + bias);
    if (bits == 8) {
        memcpy(low, u, 64);
        return;
    }
    for (uint32_t r = 0; r < 64; r++) low[r] = (uint8_t)((u[r] & 15) | u[r + 64] << 4);
    for (uint32_t r = 0; bits > 4 && r < 64; r++) {
        uint32_t v = r / 4 % 4, lane = 4 * (r / 16) + r % 4;
        if (bits == 5) {
            plane[lane] |= (uint8_t)((u[r] >> 4) << v | (u[r + 64] >> 4) << (v + 4));
        } else {
            plane[lane] |= (uint8_t)((u[r] >> 4) << 2 * v);
            plane[lane + 16] |= (uint8_t)((u[r + 64] >> 4) << 2 * v);
        }
    }
}

/* Inputs `group`.. of one slice of a panel. */
static rwkvc_status pack_slice(const packing *p, uint64_t panel, uint64_t slice, uint64_t group, uint32_t n) {
    uint32_t rows = rwkvc_value_slice(p->bits), more = p->bits == 8 ? 0 : p->bits - 4;
    uint64_t height = rwkvc_value_height(p->bits, p->info->rows, panel), column = height * p->bits / 8;
    uint8_t *base = p->data + panel * rwkvc_value_panel(p->bits) * p->groups * rwkvc_group_bytes(p->bits);
    int8_t q[BLOCK_GROUPS][RWKVC_GROUP][MOST_SLICE];
    block b;
    for (uint32_t r = 0; r < rows; r += LANES) {
        uint64_t row = panel * rwkvc_value_panel(p->bits) + slice * rows + r;
        rwkvc_status status = quantise_rows(p, row, group, n, &b);
        if (status) return status;
        for (uint32_t g = 0; g < n; g++) {
            for (uint32_t i = 0; i < RWKVC_GROUP; i++) memcpy(q[g][i] + r, b.q[g] + i * LANES, LANES);
            uint8_t *scales = base + ((group + g) * rwkvc_group_bytes(p->bits) + 4 * p->bits) * height;
            for (uint32_t lane = 0; lane < LANES; lane++) {
                uint32_t in = (r + lane) % 64, at = 16 * (in / 4 % 4) + 4 * (in / 16) + in % 4;
                memcpy(scales + 2 * (slice * rows + (r + lane) / 64 * 64 + at), &b.scale[g][lane], 2);
            }
        }
    }
    for (uint32_t g = 0; g < n; g++)
        for (uint32_t i = 0; i < RWKVC_GROUP; i++) {
            uint8_t *c = base + (group + g) * rwkvc_group_bytes(p->bits) * height + i * column;
            put_column(p->bits, q[g][i], c + 64 * slice, c + height / 2 + 16 * more * slice);
        }
    return RWKVC_OK;
}

static rwkvc_status pack_value(const packing *p, uint64_t panel) {
    uint64_t slices = rwkvc_value_height(p->bits, p->info->rows, panel) / rwkvc_value_slice(p->bits);
    for (uint64_t group = 0; group < p->groups; group += BLOCK_GROUPS)
        for (uint64_t slice = 0; slice < slices; slice++) {
            rwkvc_status status =
                pack_slice(p, panel, slice, group, (uint32_t)rwkvc_min(BLOCK_GROUPS, p->groups - group));
            if (status) return status;
        }
    return RWKVC_OK;
}

/* 16 rows at most. */
static rwkvc_status pack_embedding(const packing *p, uint64_t first, uint64_t last) {
    block b;
    uint32_t bits = p->bits, more = bits == 8 ? 0 : bits - 4, bias = 1u << (bits - 1);
    for (uint64_t group = 0; group < p->groups; group += BLOCK_GROUPS) {
        uint32_t n = (uint32_t)rwkvc_min(BLOCK_GROUPS, p->groups - group);
        rwkvc_status status = quantise_rows(p, first, group, n, &b);
        if (status) return status;
        uint8_t rows[BLOCK_GROUPS / 2][LANES][2 * RWKVC_GROUP];
        if (n % 2) memset(b.q[n], 0, sizeof b.q[n]);
        for (uint32_t g = 0; g < n; g += 2) p->kernels->by_row(b.q[g], rows[g / 2][0]);
        for (uint64_t row = first; row < last; row++)
            for (uint32_t g = 0; g < n; g++) {
                uint8_t *bytes = p->data + row * p->groups * rwkvc_group_bytes(bits);
                const uint8_t *q = rows[g / 2][row - first] + g % 2 * RWKVC_GROUP;
                memcpy(bytes + p->groups * 4 * bits + 2 * (group + g), &b.scale[g][row - first], 2);
                uint64_t high = 0;
                if (bits == 8) {
                    memcpy(bytes + RWKVC_GROUP * (group + g), q, RWKVC_GROUP);
                    continue;
                }
                for (uint32_t i = RWKVC_GROUP; i-- > 0;) high = high << more | ((q[i] + bias) & 0xff) >> 4;
                memcpy(bytes + 16 * p->groups + 4 * more * (group + g), &high, 4 * more);
                bytes += 16 * (group + g);
                for (uint32_t i = 0; i < 16; i++)
                    bytes[i] = (uint8_t)(((q[i] + bias) & 15) | ((q[i + 16] + bias) & 15) << 4);
            }
    }
    return RWKVC_OK;
}

/* The integers of a source that brings its own: whether they are taken, and by which book. */
static rwkvc_status choose(packing *p) {
    uint32_t source_bits;
    bool integers = rwkvc_source_is_integer(p->source, &source_bits), linear = true;
    p->book = p->source->book ? p->source->book : normal_book;
    for (int i = 0; i < 16 && p->source->book; i++) linear &= p->source->book[i] == linear_book[i];
    if (p->source->dtype == RWKVC_DTYPE_INTEGERS) { /* in this tensor's own range, whatever its book */
        p->exact = true;
    } else {
        p->exact = integers && source_bits <= p->bits && (p->bits > 4 || linear);
        for (int i = 0; i + 1 < 16 && p->bits == 4; i++)
            if (p->book[i] >= p->book[i + 1])
                return rwkvc_fail(RWKVC_E_ARGUMENT, "%s: its book must ascend", p->info->name);
    }
    if (p->exact && !p->source->book) p->book = linear_book;
    return RWKVC_OK;
}

static rwkvc_status integer_pack(const rwkvc_tensor_info *info, const rwkvc_source *source,
                                 const rwkvc_kernels *kernels, uint64_t first, uint64_t last, uint8_t *dst) {

    uint32_t bits = rwkvc_bits(info->format);
    packing p = {.info = info,
                 .source = source,
                 .kernels = kernels,
                 .data = dst + rwkvc_header_bytes(bits),
                 .groups = rwkvc_ceil_div(info->cols, RWKVC_GROUP),
                 .bits = bits};
    rwkvc_status status = choose(&p);
    for (int i = 0; !status && bits == 4 && first == 0 && i < 16; i++) dst[i] = (uint8_t)(p.book[i] + 128);
    for (uint64_t panel = first; !status && panel < last;) {
        if (info->kind == RWKVC_KIND_EMBEDDING) {
            uint64_t end = rwkvc_min(last, panel + LANES);
            status = pack_embedding(&p, panel, end);
            panel = end;
        } else {
            status = info->kind == RWKVC_KIND_VALUE ? pack_value(&p, panel) : pack_matrix(&p, panel);
            panel++;
        }
    }
    return status;
}

#define FORMAT(name, bits) {name, bits, integer_bytes, integer_panel_rows, integer_pack, integer_unpack_row}
const rwkvc_format rwkvc_format_q8 = FORMAT("q8", 8);
const rwkvc_format rwkvc_format_q6 = FORMAT("q6", 6);
const rwkvc_format rwkvc_format_q5 = FORMAT("q5", 5);
const rwkvc_format rwkvc_format_q4 = FORMAT("q4", 4);
