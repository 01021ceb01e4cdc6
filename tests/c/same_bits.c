/* SPDX-License-Identifier: Apache-2.0
 * On every instruction set that this CPU runs: weights packed in every format, then models, a prompt with all its
 * logits and a decoded batch. Prints for each model and instruction set the checksum of the logits and of the states,
 * to be compared between machines; fails if they differ on one.
 *
 *   same_bits [MODEL.rwkv...] */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/digest.h"
#include "platform/platform.h"

enum { THREADS = 2, PROMPT = 17, SEQUENCES = 3 };

typedef struct {
    uint32_t logits, states;
} checksums;

static void fail(const char *what) {
    fprintf(stderr, "same_bits: %s: %s\n", what, rwkvc_last_error());
    exit(2);
}

static float *floats(uint64_t count) {
    float *memory = calloc(count ? count : 1, sizeof *memory);
    if (!memory) fail("no memory");
    return memory;
}

static uint32_t crc(const float *x, uint64_t count) { return rwkvc_crc32(0, (const uint8_t *)x, count * sizeof *x); }

static checksums run(const rwkvc_model *model, const char *isa) {
    rwkvc_config config;
    rwkvc_model_config(model, &config);
    uint32_t n_vocab = config.size[RWKVC_SIZE_VOCAB];
    uint64_t state_floats = rwkvc_state_floats(model);
    float *logits = floats((uint64_t)PROMPT * n_vocab), *states = floats(SEQUENCES * state_floats);

    rwkvc_context_options options;
    rwkvc_context *context;
    rwkvc_context_defaults(&options);
    options.threads = THREADS;
    options.isa = isa;
    if (rwkvc_context_create(&options, &context)) fail(isa);

    uint32_t tokens[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) tokens[i] = (i * 31 + 7) % n_vocab;
    rwkvc_sequence sequences[SEQUENCES] = {
        {.tokens = tokens, .n_tokens = PROMPT, .state_out = states, .logits = RWKVC_LOGITS_ALL}};
    if (rwkvc_forward(context, model, sequences, 1, logits, NULL)) fail("prompt");
    checksums sums = {crc(logits, (uint64_t)PROMPT * n_vocab), crc(states, state_floats)};

    for (uint32_t i = 0; i < SEQUENCES; i++) {
        float *state = states + i * state_floats;
        if (i) memcpy(state, states, state_floats * sizeof *state);
        sequences[i] = (rwkvc_sequence){
            .tokens = &tokens[i], .n_tokens = 1, .state_in = state, .state_out = state, .logits = RWKVC_LOGITS_LAST};
    }
    if (rwkvc_forward(context, model, sequences, 1, logits, NULL)) fail("one token");
    if (rwkvc_forward(context, model, sequences, SEQUENCES, logits + n_vocab, NULL)) fail("batch");
    sums.logits = sums.logits * 31 + crc(logits, (uint64_t)(1 + SEQUENCES) * n_vocab);
    sums.states = sums.states * 31 + crc(states, SEQUENCES * state_floats);
    rwkvc_context_destroy(context);
    free(states);
    free(logits);
    return sums;
}

/* Random weights packed in each format; the packer takes its instruction set from the environment. */
static void use_isa(const char *name) {
#if defined(_WIN32)
    _putenv_s("RWKV_CPU_ISA", name);
#else
    setenv("RWKV_CPU_ISA", name, 1);
#endif
}

static checksums pack(uint32_t format, uint32_t kind, const char *isa) {
    enum { ROWS = 150, COLS = 203 };
    static float values[ROWS * COLS];
    uint32_t random = 1;
    for (uint32_t i = 0; i < ROWS * COLS; i++) {
        random = random * 1664525 + 1013904223;
        values[i] = ((float)(random >> 8) / (1 << 24) - 0.5f) * (float)(1 << i / COLS % 20) * 1e-3f;
    }
    rwkvc_tensor_info info = {.name = "random", .kind = kind, .format = format, .rows = ROWS, .cols = COLS};
    rwkvc_source source = {.data = values, .dtype = RWKVC_DTYPE_F32, .row_stride = COLS, .col_stride = 1};
    uint64_t bytes = rwkvc_packed_bytes(kind, format, ROWS, COLS);
    if (!bytes) return (checksums){0, 0};
    uint8_t *packed = rwkvc_alloc(bytes);
    if (!packed) fail("no memory");
    use_isa(isa);
    if (rwkvc_pack(&info, &source, 0, rwkvc_packed_panels(kind, format, ROWS, COLS), packed)) fail("pack");
    use_isa("");
    checksums sums = {rwkvc_crc32(0, packed, bytes), 0};
    rwkvc_free(packed);
    return sums;
}

static bool pack_all(uint32_t format, uint32_t kind) {
    checksums expected = pack(format, kind, "scalar");
    bool same = true;
    const char *isa;
    for (uint32_t i = 0; (isa = rwkvc_isa_name(i)); i++) {
        if (!rwkvc_isa_usable(isa)) continue;
        checksums sums = pack(format, kind, isa);
        printf("%s-%u %s %08x 0\n", rwkvc_format_name(format), (unsigned)kind, isa, (unsigned)sums.logits);
        same &= sums.logits == expected.logits;
    }
    return same;
}

static bool run_all(const char *path) {
    rwkvc_mapping mapping;
    rwkvc_model *model;
    char reason[256];
    if (rwkvc_map_file(path, &mapping, reason, sizeof reason)) fail(reason);
    if (rwkvc_model_open(mapping.bytes, mapping.size_bytes, &model)) fail(path);
    checksums expected = run(model, "scalar");
    bool same = true;
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path, *isa;
    for (uint32_t i = 0; (isa = rwkvc_isa_name(i)); i++) {
        if (!rwkvc_isa_usable(isa)) continue;
        checksums sums = strcmp(isa, "scalar") ? run(model, isa) : expected;
        printf("%s %s %08x %08x\n", name, isa, (unsigned)sums.logits, (unsigned)sums.states);
        same &= sums.logits == expected.logits && sums.states == expected.states;
    }
    rwkvc_model_close(model);
    rwkvc_unmap_file(&mapping);
    return same;
}

int main(int argc, char **argv) {
    bool same = true;
    const char *isa;
    if (rwkvc_isa_default(&isa)) fail("instruction set");
    printf("default %s\n", isa);
    for (uint32_t format = 0; format < RWKVC_FORMAT_BYTES; format++)
        for (uint32_t kind = 0; kind <= RWKVC_KIND_HEAD && rwkvc_format_name(format); kind++)
            same &= pack_all(format, kind);
    for (int i = 1; i < argc; i++) same &= run_all(argv[i]);
    return same ? 0 : 1;
}
