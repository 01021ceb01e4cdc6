/* SPDX-License-Identifier: Apache-2.0
 * The engine from C alone: map a .rwkv file, run tokens through the model, print the likeliest next one.
 *
 *   cc -O3 -pthread -Isrc -DRWKVC_VERSION='"0.1.0"' -ffp-contract=off examples/next_token.c \
 *      $(find src -name '*.c') -o next_token -lm
 *   ./next_token model.rwkv 510 4419
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rwkv_cpu.h"

static int engine_failed(const char *what) {
    fprintf(stderr, "next_token: %s: %s\n", what, rwkvc_last_error());
    return 1;
}

static int system_failed(const char *what) {
    fprintf(stderr, "next_token: %s: %s\n", what, strerror(errno));
    return 1;
}

static uint32_t likeliest(const float *logits, uint32_t n_vocab) {
    uint32_t best = 0;
    for (uint32_t token = 1; token < n_vocab; token++)
        if (logits[token] > logits[best]) best = token;
    return best;
}

static int next_token(const rwkvc_model *model, const uint32_t *tokens, uint64_t n_tokens) {
    rwkvc_config config;
    rwkvc_model_config(model, &config);
    uint32_t n_vocab = config.size[RWKVC_SIZE_VOCAB];
    float *state = malloc(rwkvc_state_floats(model) * sizeof *state), *logits = malloc(n_vocab * sizeof *logits);
    rwkvc_context *context = NULL;
    int result = 0;
    if (!state || !logits)
        result = system_failed("memory");
    else if (rwkvc_context_create(NULL, &context))
        result = engine_failed("threads");
    else {
        rwkvc_sequence sequence = {
            .tokens = tokens, .n_tokens = n_tokens, .state_out = state, .logits = RWKVC_LOGITS_LAST};
        if (rwkvc_forward(context, model, &sequence, 1, logits, NULL))
            result = engine_failed("forward");
        else
            printf("%u\n", (unsigned)likeliest(logits, n_vocab));
    }
    rwkvc_context_destroy(context);
    free(logits);
    free(state);
    return result;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: next_token MODEL.rwkv TOKEN...\n");
        return 2;
    }
    uint64_t n_tokens = (uint64_t)argc - 2;
    uint32_t *tokens = malloc(n_tokens * sizeof *tokens);
    if (!tokens) return system_failed("memory");
    for (uint64_t i = 0; i < n_tokens; i++) tokens[i] = (uint32_t)strtoul(argv[i + 2], NULL, 10);

    int file = open(argv[1], O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about)) return system_failed(argv[1]);
    uint64_t size_bytes = (uint64_t)about.st_size;
    void *bytes = mmap(NULL, size_bytes, PROT_READ, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) return system_failed(argv[1]);
    close(file);

    rwkvc_model *model;
    int result =
        rwkvc_model_open(bytes, size_bytes, &model) ? engine_failed(argv[1]) : next_token(model, tokens, n_tokens);
    rwkvc_model_close(model);
    munmap(bytes, size_bytes);
    free(tokens);
    return result;
}
