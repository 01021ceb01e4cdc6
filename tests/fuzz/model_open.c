/* SPDX-License-Identifier: Apache-2.0
 * libFuzzer on the function that meets a stranger's file (`make fuzz`): whatever the bytes, rwkvc_model_open refuses
 * them with a text or gives a model of which everything can be read and, if it is small, a token run. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "rwkv_cpu.h"

enum { LARGEST_RUN = 1 << 20 }; /* floats of state and logits, so that one input takes milliseconds */

static uint8_t read_everything(const rwkvc_model *model) {
    uint8_t sum = 0;
    for (uint32_t i = 0; i < rwkvc_model_tensors(model); i++) {
        rwkvc_tensor_info info;
        uint64_t size_bytes = 0;
        if (rwkvc_model_tensor(model, i, &info)) abort();
        const uint8_t *bytes = rwkvc_model_bytes(model, info.name, &size_bytes);
        if (!bytes) abort();
        for (uint64_t at = 0; at < size_bytes; at += 64) sum ^= bytes[at];
        if (size_bytes) sum ^= bytes[size_bytes - 1];
    }
    rwkvc_state_part part;
    for (uint32_t i = 0; rwkvc_state_part_info(model, i, &part) == RWKVC_OK; i++)
        if (part.offset >= rwkvc_state_floats(model)) abort();
    return sum;
}

static void run_tokens(const rwkvc_model *model) {
    static rwkvc_context *context;
    rwkvc_context_options options;
    rwkvc_config config;
    rwkvc_model_config(model, &config);
    uint64_t n_vocab = config.size[RWKVC_SIZE_VOCAB], floats = rwkvc_state_floats(model);
    if (floats > LARGEST_RUN || n_vocab > LARGEST_RUN) return;
    rwkvc_context_defaults(&options);
    options.threads = 1;
    if (!context && rwkvc_context_create(&options, &context)) abort();
    float *state = malloc(floats * sizeof *state), *logits = malloc(2 * n_vocab * sizeof *logits);
    uint32_t tokens[2] = {0, (uint32_t)(n_vocab - 1)};
    rwkvc_sequence sequence = {.tokens = tokens, .n_tokens = 2, .state_out = state, .logits = RWKVC_LOGITS_ALL};
    /* Weights may be anything, so the result may be an error; it may not be a crash. */
    if (state && logits && rwkvc_forward(context, model, &sequence, 1, logits, NULL) && !*rwkvc_last_error()) abort();
    free(logits);
    free(state);
}

static volatile uint8_t sum; /* keeps the reads */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* A copy of exactly that size: aligned as a mapping is, and its end guarded. */
    void *bytes = NULL;
    if (posix_memalign(&bytes, 64, size ? size : 1)) return 0;
    memcpy(bytes, data, size);
    rwkvc_model *model = NULL;
    if (rwkvc_model_open(bytes, size, &model) == RWKVC_OK) {
        sum = read_everything(model);
        run_tokens(model);
        rwkvc_model_close(model);
    } else if (model || !*rwkvc_last_error()) {
        abort();
    }
    free(bytes);
    return 0;
}
