/* SPDX-License-Identifier: Apache-2.0
 * Matrix products: cutting them into items for the pool, and the way from packed weights and activations to a
 * finished block of outputs. Formats differ here and in kernels/, nowhere else. */
#include "forward.h"
#include "isa/target.h"

enum {
    ITEM_BYTES = 1 << 15, /* weights of one item when few tokens wait for memory */
    FINISH_TOKENS = 8,
    REPACKING = 96,    /* non-zero inputs of a group */
    GROUP_UNITS = 2,   /* panels whose outputs are one group of inputs */
    PLAIN_GROUP = 4,   /* panels per call of the plain kernel */
    QUARTERS_TILES = 4 /* with more tiles a panel's scales times each mantissa are made beforehand */
};

static bool is_integer(const rwkvc_tensor *weight) { return rwkvc_bits(weight->format) > 0; }

/* ---------------------------------------------------------------------------------- activations */

static uint32_t even_groups(uint64_t cols) { return (uint32_t)rwkvc_ceil_div(cols, 2 * RWKVC_GROUP) * 2; }

uint64_t rwkvc_input_floats(uint64_t cols, uint32_t parts) {
    uint64_t group = (RWKVC_GROUP + sizeof(rwkvc_q8_scale)) / sizeof(float);
    return rwkvc_row_floats(cols) + parts * even_groups(cols) * group + 5 * RWKVC_PANEL;
}

uint64_t rwkvc_nonzero_floats(uint64_t cols) {
    return even_groups(cols) * (sizeof(rwkvc_sparse_group) + 1) / sizeof(float) + 2 * RWKVC_PANEL;
}

rwkvc_input rwkvc_input_take(rwkvc_pass *pass, const rwkvc_tensor *weight, uint32_t n_tokens) {
    rwkvc_input input = {.cols = weight->cols, .ld = (uint32_t)rwkvc_row_floats(weight->cols), .n_tokens = n_tokens};
    input.rows = rwkvc_take(pass, (uint64_t)input.ld * n_tokens);
    if (!is_integer(weight)) return input;
    input.parts = weight->kind == RWKVC_KIND_HEAD ? 2 : 1;
    input.q8 = (rwkvc_q8_input){
        .groups = even_groups(weight->cols), .columns = n_tokens * input.parts, .tile = pass->kernels->q8_tile};
    uint64_t groups = (uint64_t)input.q8.groups * input.q8.columns;
    input.q8.values = (int8_t *)rwkvc_take(pass, groups * RWKVC_GROUP / 4);
    input.q8.scales = (rwkvc_q8_scale *)rwkvc_take(pass, groups * sizeof *input.q8.scales / sizeof(float));
    if (weight->kind == RWKVC_KIND_VALUE) {
        input.q8.nonzero = (rwkvc_sparse_group *)rwkvc_take(pass, groups * sizeof *input.q8.nonzero / sizeof(float));
        input.q8.counts = (uint8_t *)rwkvc_take(pass, rwkvc_ceil_div(groups, sizeof(float)));
    }
    return input;
}

/* Of one token. */
static void count_reads(const rwkvc_input *input, rwkvc_value_reads *reads) {
    reads->inputs += input->cols;
    for (uint32_t g = 0; g < input->q8.groups; g++) {
        reads->columns += input->q8.counts[g];
        reads->groups += input->q8.counts[g] > 0;
    }
}

/* Groups of tokens first..last-1, of which x holds the rows from the first group's inputs on; with the last one comes
 * what makes their number even. */
static void ready_groups(const rwkvc_pass *pass, const rwkvc_input *input, const float *x, uint64_t ldx, uint32_t first,
                         uint32_t last, uint32_t first_group, uint32_t n_groups) {
    if ((uint64_t)(first_group + n_groups) * RWKVC_GROUP >= input->cols) n_groups = input->q8.groups - first_group;
    pass->kernels->q8_quantise(x, ldx, first, last, first_group, n_groups, input->cols, input->parts, &input->q8);
}

void rwkvc_input_ready_groups(const rwkvc_pass *pass, const rwkvc_input *input, uint32_t first, uint32_t last,
                              uint32_t first_group, uint32_t n_groups) {
    if (!input->parts) return;
    const float *x = input->rows + (uint64_t)first * input->ld + first_group * RWKVC_GROUP;
    ready_groups(pass, input, x, input->ld, first, last, first_group, n_groups);
}

void rwkvc_input_ready(const rwkvc_pass *pass, const rwkvc_input *input, uint32_t t) {
    rwkvc_input_ready_groups(pass, input, t, t + 1, 0, input->q8.groups);
}

/* ------------------------------------------------------------------------------------- products */

/* Rows of outputs that are computed together, and their weights' bytes. */
static uint32_t unit_rows(const rwkvc_tensor *w) {
    return is_integer(w) && w->kind == RWKVC_KIND_VALUE ? RWKVC_VALUE_UNIT : RWKVC_PANEL;
}

static uint32_t n_units(const rwkvc_tensor *w) { return (uint32_t)rwkvc_ceil_div(w->rows, unit_rows(w)); }

static uint64_t unit_bytes(const rwkvc_tensor *w) {
    return rwkvc_packed_bytes(w->kind, w->format, unit_rows(w), w->cols) - rwkvc_header_bytes(rwkvc_bits(w->format));
}

/* Whether its outputs become int8 as soon as they stand: a group of 32 is two panels of a matrix. */
static bool quantises(const rwkvc_linear *p) { return p->into && p->into->parts; }

/* Of a panel of q8: rwkvc_kernels.quarters. */
static uint64_t panel_quarters(uint32_t groups) { return (uint64_t)groups * 4 * RWKVC_PANEL; }

/* A thread's memory: panels unpacked from other formats and their quarters, or sums of a value's rows; then rows on their
 * way to int8. */
static uint64_t unpacked_bytes(const rwkvc_model *model, uint32_t n_tokens) {
    uint32_t matrix = even_groups(model->widest_matrix), value = 4 * even_groups(model->widest_value);
    uint32_t groups = matrix > value ? matrix : value;
    uint64_t panels = groups / 2 * (uint64_t)RWKVC_Q8_RECORD + panel_quarters(groups) * sizeof(float);
    uint64_t few = rwkvc_min(n_tokens, RWKVC_VALUE_FEW) * RWKVC_VALUE_MOST;
    uint64_t many = (uint64_t)n_tokens * RWKVC_VALUE_UNIT, sums = (few > many ? few : many) * sizeof(float);
    return panels > sums ? panels : sums;
}

uint64_t rwkvc_thread_bytes(const rwkvc_model *model, uint32_t n_tokens) {
    return unpacked_bytes(model, n_tokens) + (uint64_t)n_tokens * RWKVC_GROUP * sizeof(float);
}

/* Where an item writes its outputs: row `token` of rows `ld` apart, from output `first_row` on. */
typedef struct {
    const rwkvc_linear *p;
    float *out;
    uint64_t ld;
    uint32_t first_row;
    bool sparse; /* is_sparse */
} target;

static void finish(const rwkvc_pass *pass, const target *to, const float *sums, uint32_t ld_sums, uint32_t token,
                   uint32_t n, uint32_t row) {
    const rwkvc_linear *p = to->p;
    uint32_t lanes = p->weight->rows - row < RWKVC_PANEL ? p->weight->rows - row : RWKVC_PANEL;
    float *out = to->out + (row - to->first_row);
    if (!p->out_rows) {
        pass->kernels->finish(p->epilogue, sums, ld_sums, n, lanes, out + token * to->ld, to->ld);
        return;
    }
    for (uint32_t t = 0; t < n; t++)
        pass->kernels->finish(p->epilogue, sums + t * ld_sums, ld_sums, 1, lanes, out + p->out_rows[token + t] * to->ld,
                              to->ld);
}

/* Ask for the outputs of a panel before it is multiplied: they lie a page apart, where no prefetcher of the processor's
 * follows. */
static void ask_for_outputs(const target *to, uint32_t token, uint32_t n, uint32_t row) {
    if (to->p->out_rows) return;
    const float *out = to->out + (row - to->first_row) + token * to->ld;
    for (uint32_t t = 0; t < n; t++) PREFETCH_OUTPUT(out + t * to->ld);
}

/* sums[n columns, 16] → sums[tokens, 16]: the parts of a token's activations add up. */
static void add_parts(float *sums, uint32_t columns, uint32_t parts) {
    if (parts == 1) return;
    for (uint32_t t = 0; t < columns / 2; t++)
        for (uint32_t i = 0; i < RWKVC_PANEL; i++) sums[16 * t + i] = sums[32 * t + i] + sums[32 * t + 16 + i];
}

/* A q8 panel's scales times each mantissa, made in `memory`; NULL where too few tiles use them. */
static const float *make_quarters(const rwkvc_pass *pass, const rwkvc_q8_input *q8, const uint8_t *panel,
                                  float *memory) {
    if (q8->columns <= QUARTERS_TILES * q8->tile) return NULL;
    pass->kernels->quarters(panel, q8->groups / 2, memory);
    return memory;
}

/* A panel; of less than 8 bits it is made one of q8 in `memory` when many columns use it. */
static void matrix_unit(const rwkvc_pass *pass, const target *to, uint32_t panel, uint8_t *memory) {
    const rwkvc_linear *p = to->p;
    const rwkvc_q8_input *q8 = &p->input->q8;
    const uint32_t format = p->weight->format, records = q8->groups / 2;
    const uint8_t *weights = p->weight->data + (uint64_t)panel * records * rwkvc_record_bytes(rwkvc_bits(format));
    rwkvc_panel_kernel *multiply = pass->kernels->panel[format];
    float sums[RWKVC_MAX_TILE * RWKVC_PANEL];
    const bool direct = format != RWKVC_FORMAT_Q8 && q8->columns <= pass->kernels->direct_columns;
    if (format != RWKVC_FORMAT_Q8 && !direct) {
        pass->kernels->unpack[format](weights, p->weight->book, records, memory);
        weights = memory;
        multiply = pass->kernels->unpacked[format];
    }
    float *behind = (float *)(memory + (uint64_t)records * RWKVC_Q8_RECORD);
    const float *quarters = direct ? NULL : make_quarters(pass, q8, weights, behind);
    for (uint32_t c = 0; c < q8->columns; c += q8->tile) {
        uint32_t n = q8->columns - c < q8->tile ? q8->columns - c : q8->tile;
        ask_for_outputs(to, c / p->input->parts, n / p->input->parts, panel * RWKVC_PANEL);
        multiply(weights, p->weight->book, quarters, q8, c, n, sums);
        add_parts(sums, n, p->input->parts);
        finish(pass, to, sums, RWKVC_PANEL, c / p->input->parts, n / p->input->parts, panel * RWKVC_PANEL);
    }
}

/* A panel of a value matrix: where it begins, its height, and which of its rows are meant. */
typedef struct {
    const uint8_t *bytes;
    uint32_t height, row, groups;
} value_panel;

static value_panel value_panel_of(const rwkvc_tensor *w, uint32_t unit) {
    uint32_t bits = rwkvc_bits(w->format), rows = rwkvc_value_panel(bits);
    uint32_t panel = unit * RWKVC_VALUE_UNIT / rows, groups = (uint32_t)rwkvc_ceil_div(w->cols, RWKVC_GROUP);
    uint64_t size = (uint64_t)rows * groups * rwkvc_group_bytes(bits);
    return (value_panel){w->data + panel * size, (uint32_t)rwkvc_value_height(bits, w->rows, panel),
                         unit * RWKVC_VALUE_UNIT % rows, groups};
}

/* n_blocks of 16 rows, ld_block floats apart, of sums ld_sums apart from token to token. A token's rows are written
 * together: outputs of tokens a power of two apart share few sets of the cache. */
static void value_finish(const rwkvc_pass *pass, const target *to, const float *sums, uint32_t ld_sums,
                         uint32_t n_blocks, uint32_t ld_block, uint32_t token, uint32_t n, uint32_t row) {
    for (uint32_t t = 0; t < n; t += FINISH_TOKENS)
        for (uint32_t block = 0; block < n_blocks && row + 16 * block < to->p->weight->rows; block++)
            finish(pass, to, sums + block * ld_block + (uint64_t)t * ld_sums, ld_sums, token + t,
                   n - t < FINISH_TOKENS ? n - t : FINISH_TOKENS, row + 16 * block);
}

/* As many of the units first..last-1 as lie in one panel; returns how many. */
static uint32_t value_sparse_units(const rwkvc_pass *pass, const target *to, uint32_t first, uint32_t last,
                                   float *sums) {
    const rwkvc_linear *p = to->p;
    value_panel panel = value_panel_of(p->weight, first);
    uint32_t rows = (uint32_t)rwkvc_min(panel.height - panel.row, (uint64_t)(last - first) * RWKVC_VALUE_UNIT);
    pass->kernels->value_sparse[p->weight->format](panel.bytes, p->weight->book, panel.height, panel.row, rows,
                                                   panel.groups, &p->input->q8, sums);
    value_finish(pass, to, sums, rows, rows / RWKVC_PANEL, RWKVC_PANEL, 0, p->input->n_tokens,
                 first * RWKVC_VALUE_UNIT);
    return (rows + RWKVC_VALUE_UNIT - 1) / RWKVC_VALUE_UNIT;
}

/* Whether a value matrix is multiplied by its non-zero inputs one by one, or after making ordinary panels of it, which
 * costs as much as some more inputs of each group, all tokens together. The sums are the same. */
static bool is_sparse(const rwkvc_pass *pass, const rwkvc_linear *p) {
    if (!is_integer(p->weight) || p->weight->kind != RWKVC_KIND_VALUE) return false;
    uint64_t groups = (uint64_t)p->input->q8.groups * p->input->n_tokens, inputs = 0;
    for (uint64_t i = 0; i < groups; i++) inputs += p->input->q8.counts[i];
    return inputs <= pass->kernels->sparse_inputs * groups + (uint64_t)REPACKING * p->input->q8.groups;
}

/* Many tokens: 64 rows become four ordinary panels whose rows stand in rwkvc_value_row's order. */
static void value_dense_part(const rwkvc_pass *pass, const target *to, const value_panel *panel, uint32_t part,
                             uint32_t row, uint8_t *panels) {
    const rwkvc_linear *p = to->p;
    const rwkvc_q8_input *q8 = &p->input->q8;
    uint64_t panel_bytes = (uint64_t)(q8->groups / 2) * RWKVC_Q8_RECORD;
    float sums[4 * RWKVC_MAX_TILE * RWKVC_PANEL], ordered[4 * RWKVC_MAX_TILE * RWKVC_PANEL];
    pass->kernels->value_repack[p->weight->format](panel->bytes, p->weight->book, panel->height, part, panel->groups,
                                                   panels);
    float *memory = (float *)(panels + 4 * panel_bytes);
    const float *quarters[4];
    for (uint32_t v = 0; v < 4; v++)
        quarters[v] = make_quarters(pass, q8, panels + v * panel_bytes, memory + v * panel_quarters(q8->groups));
    for (uint32_t c = 0; c < q8->columns; c += q8->tile) {
        uint32_t n = q8->columns - c < q8->tile ? q8->columns - c : q8->tile, block = n * RWKVC_PANEL;
        for (uint32_t v = 0; v < 4; v++)
            pass->kernels->panel[RWKVC_FORMAT_Q8](panels + v * panel_bytes, NULL, quarters[v], q8, c, n,
                                                  sums + v * block);
        for (uint32_t v = 0; v < 4; v++)
            for (uint32_t t = 0; t < n; t++)
                for (uint32_t b = 0; b < 4; b++)
                    memcpy(ordered + b * block + 16 * t + 4 * v, sums + v * block + 16 * t + 4 * b, 4 * sizeof *sums);
        value_finish(pass, to, ordered, RWKVC_PANEL, 4, block, c, n, row);
    }
}

static void value_dense_unit(const rwkvc_pass *pass, const target *to, uint32_t unit, uint8_t *panels) {
    value_panel panel = value_panel_of(to->p->weight, unit);
    for (uint32_t row = 0; row < RWKVC_VALUE_UNIT && unit * RWKVC_VALUE_UNIT + row < to->p->weight->rows;
         row += RWKVC_VALUE_ROWS)
        value_dense_part(pass, to, &panel, (panel.row + row) / RWKVC_VALUE_ROWS, unit * RWKVC_VALUE_UNIT + row, panels);
}

static void plain_units(const rwkvc_pass *pass, const target *to, uint32_t first, uint32_t n_panels) {
    const rwkvc_linear *p = to->p;
    uint64_t panel_bytes = unit_bytes(p->weight);
    float sums[RWKVC_MAX_TILE * PLAIN_GROUP * RWKVC_PANEL];
    uint32_t tile = pass->kernels->plain_tile, tokens = p->input->n_tokens;
    for (uint32_t t = 0; t < tokens; t += tile) {
        uint32_t n = tokens - t < tile ? tokens - t : tile;
        pass->kernels->plain_panels(p->weight->data + first * panel_bytes, panel_bytes, n_panels, p->weight->format,
                                    p->weight->cols, p->input->rows + (uint64_t)t * p->input->ld, p->input->ld, n,
                                    p->weight->kind == RWKVC_KIND_VALUE, sums);
        for (uint32_t i = 0; i < n_panels; i++)
            finish(pass, to, sums + 16 * i, 16 * n_panels, t, n, (first + i) * RWKVC_PANEL);
    }
}

static void units(const rwkvc_pass *pass, const target *to, uint32_t first, uint32_t last, uint32_t thread) {
    const rwkvc_linear *p = to->p;
    if (!is_integer(p->weight)) {
        for (uint32_t u = first; u < last; u += PLAIN_GROUP)
            plain_units(pass, to, u, last - u < PLAIN_GROUP ? last - u : PLAIN_GROUP);
        return;
    }
    if (to->sparse) {
        for (uint32_t u = first; u < last;)
            u += value_sparse_units(pass, to, u, last, (float *)pass->thread_memory[thread]);
        return;
    }
    for (uint32_t u = first; u < last; u++) {
        if (p->weight->kind == RWKVC_KIND_VALUE)
            value_dense_unit(pass, to, u, pass->thread_memory[thread]);
        else
            matrix_unit(pass, to, u, pass->thread_memory[thread]);
    }
}

/* Units whose outputs become int8 inputs stay in the thread's cache until a group of them stands. */
static void units_into(const rwkvc_pass *pass, const rwkvc_linear *p, uint32_t first, uint32_t last, uint32_t thread) {
    const rwkvc_input *into = p->into;
    bool listened = pass->options->inputs; /* then the rows themselves are wanted */
    float *memory = (float *)(pass->thread_memory[thread] + unpacked_bytes(pass->model, into->n_tokens));
    for (uint32_t u = first; u < last; u += GROUP_UNITS) {
        uint32_t row = u * RWKVC_PANEL;
        target to = listened ? (target){p, into->rows, into->ld, 0, false}
                             : (target){p, memory, GROUP_UNITS * RWKVC_PANEL, row, false};
        units(pass, &to, u, last - u < GROUP_UNITS ? last : u + GROUP_UNITS, thread);
        ready_groups(pass, into, listened ? into->rows + row : memory, to.ld, 0, into->n_tokens, u / GROUP_UNITS, 1);
    }
}

typedef struct {
    const rwkvc_pass *pass;
    const rwkvc_linear *products;
    uint32_t grain[16], first_item[17];
    bool sparse[16];
} region;

static void run_item(void *arg, uint32_t item, uint32_t thread) {
    const region *r = arg;
    uint32_t i = 0;
    while (item >= r->first_item[i + 1]) i++;
    uint32_t first = (item - r->first_item[i]) * r->grain[i], end = n_units(r->products[i].weight);
    uint32_t last = end - first < r->grain[i] ? end : first + r->grain[i];
    const rwkvc_linear *p = &r->products[i];
    if (quantises(p)) {
        units_into(r->pass, p, first, last, thread);
        return;
    }
    target to = {p, p->into ? p->into->rows : p->out, p->into ? p->into->ld : p->ld, 0, r->sparse[i]};
    units(r->pass, &to, first, last, thread);
}

/* Hand the products' inputs to the host, in the host's environment of floats. */
static void show_inputs(const rwkvc_pass *pass, const rwkvc_linear *products, uint32_t n) {
    const rwkvc_model *model = pass->model;
    rwkvc_float_restore(pass->host_environment);
    for (uint32_t p = 0; p < n; p++) {
        const rwkvc_input *input = products[p].input;
        uint64_t offset = (uint64_t)(products[p].weight->data - model->data);
        uint32_t i = 0; /* a book stands before the weights, so that they begin somewhere inside */
        while (offset - model->infos[i].offset >= model->infos[i].size_bytes) i++;
        pass->options->inputs(pass->options->user, model->infos[i].name, input->rows, input->n_tokens, input->cols,
                              input->ld);
    }
    rwkvc_float_environment();
}

bool rwkvc_linear_run(const rwkvc_pass *pass, const rwkvc_linear *products, uint32_t n) {
    region r = {.pass = pass, .products = products};
    uint64_t bytes = 0;
    if (pass->options->inputs) show_inputs(pass, products, n);
    for (uint32_t i = 0; i < n; i++) bytes += unit_bytes(products[i].weight) * n_units(products[i].weight);
    /* at least sixteen items a thread, at most ITEM_BYTES of weights, less when many tokens use them */
    uint64_t target =
        rwkvc_min(ITEM_BYTES / (1 + products[0].input->n_tokens / 16), bytes / (16 * rwkvc_pool_threads(pass->pool)));
    for (uint32_t i = 0; i < n; i++) {
        uint64_t grain = target / unit_bytes(products[i].weight);
        r.grain[i] = grain < 1 ? 1 : (uint32_t)grain;
        r.sparse[i] = is_sparse(pass, &products[i]);
        if (r.sparse[i] && products[i].input->n_tokens > RWKVC_VALUE_FEW)
            r.grain[i] = 1;
        else if (r.sparse[i]) { /* whole columns, as far as that leaves the same to every thread */
            uint32_t panel = rwkvc_value_panel(rwkvc_bits(products[i].weight->format)) / RWKVC_VALUE_UNIT;
            uint32_t share = (uint32_t)rwkvc_ceil_div(n_units(products[i].weight), rwkvc_pool_threads(pass->pool));
            r.grain[i] = share % panel ? share : panel;
        }
        if (quantises(&products[i])) r.grain[i] = (uint32_t)rwkvc_round_up(r.grain[i], GROUP_UNITS);
        r.first_item[i + 1] = r.first_item[i] + (uint32_t)rwkvc_ceil_div(n_units(products[i].weight), r.grain[i]);
    }
    if (r.sparse[0] && products[0].input->n_tokens == 1) count_reads(products[0].input, pass->value_reads);
    return rwkvc_parallel(pass->pool, r.first_item[n], run_item, &r);
}
