/* SPDX-License-Identifier: Apache-2.0
 * What callgrind counts (tests/callgrind/check.py): a dump after each phase, of that phase alone, after a warm-up of the
 * same size. One thread: the count is the same on every run.
 *
 *   phases MODEL.rwkv ISA */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "rwkv_cpu.h"

enum { DECODED = 4, PROMPT = 32 };

static rwkvc_context *ctx;
static rwkvc_model *model;
static float *states[2], *logits;
static uint32_t tokens[PROMPT];

static void fail(const char *what) {
    fprintf(stderr, "phases: %s: %s\n", what, rwkvc_last_error());
    exit(1);
}

static void forward(const uint32_t *ids, uint64_t n, const float *in, float *out) {
    rwkvc_sequence sequence = {
        .tokens = ids, .n_tokens = n, .state_in = in, .state_out = out, .logits = RWKVC_LOGITS_LAST};
    if (rwkvc_forward(ctx, model, &sequence, 1, logits, NULL)) fail("forward");
}

static void prefill(void) { forward(tokens, PROMPT, NULL, states[0]); }

static void decode(uint32_t n) {
    for (uint32_t i = 0; i < n; i++) forward(tokens + i, 1, states[i % 2], states[1 - i % 2]);
}

int main(int argc, char **argv) {
    int file = argc == 3 ? open(argv[1], O_RDONLY) : -1;
    struct stat about;
    if (file < 0 || fstat(file, &about)) {
        fprintf(stderr, "usage: phases MODEL.rwkv ISA\n");
        return 2;
    }
    uint64_t size_bytes = (uint64_t)about.st_size;
    void *bytes = mmap(NULL, size_bytes, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    rwkvc_context_options options;
    rwkvc_context_defaults(&options);
    options.threads = 1;
    options.isa = argv[2];
    if (bytes == MAP_FAILED || rwkvc_model_open(bytes, size_bytes, &model)) fail(argv[1]);
    if (rwkvc_context_create(&options, &ctx)) fail(argv[2]);
    rwkvc_config config;
    rwkvc_model_config(model, &config);
    for (uint32_t i = 0; i < PROMPT; i++) tokens[i] = (i * 31 + 7) % config.size[RWKVC_SIZE_VOCAB];
    logits = calloc(config.size[RWKVC_SIZE_VOCAB], sizeof *logits);
    for (int i = 0; i < 2; i++) states[i] = calloc(rwkvc_state_floats(model), sizeof *states[i]);
    if (!logits || !states[0] || !states[1]) fail("no memory");
    prefill();
    decode(1);
    CALLGRIND_ZERO_STATS;
    prefill();
    CALLGRIND_DUMP_STATS_AT("prefill");
    decode(DECODED);
    CALLGRIND_DUMP_STATS_AT("decode");
    for (int i = 0; i < 2; i++) free(states[i]);
    free(logits);
    rwkvc_context_destroy(ctx);
    rwkvc_model_close(model);
    return 0;
}
