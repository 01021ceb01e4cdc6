/* SPDX-License-Identifier: Apache-2.0
 * For ThreadSanitizer (`make tsan`), and for the threads of other systems (tests/portable): two callers with a context of four threads each share one model; prefills,
 * batched decodes and cancelled calls follow each other, contexts come and go. Results must agree to the bit.
 *
 *   pool_tsan MODEL.rwkv */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform/platform.h"

enum { CALLERS = 2, THREADS = 4, CONTEXTS = 3, FORWARDS = 6, PROMPT = 48, SEQUENCES = 3 };

static const rwkvc_model *model;
static uint32_t n_vocab;
static uint64_t state_floats;
static float *expected; /* logits after the prompt, by the first context */

static void fail(const char *what) {
    fprintf(stderr, "pool_tsan: %s: %s\n", what, rwkvc_last_error());
    exit(1);
}

static void *allocate(uint64_t count, uint64_t size) {
    void *memory = calloc(count, size);
    if (!memory) fail("no memory");
    return memory;
}

static rwkvc_context *new_context(void) {
    rwkvc_context_options options;
    rwkvc_context *context;
    rwkvc_context_defaults(&options);
    options.threads = THREADS;
    options.chunk = 16;
    if (rwkvc_context_create(&options, &context)) fail("context");
    return context;
}

static void prefill(rwkvc_context *context, float *state, float *logits) {
    uint32_t tokens[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) tokens[i] = (i * 31 + 7) % n_vocab;
    rwkvc_sequence sequence = {.tokens = tokens, .n_tokens = PROMPT, .state_out = state, .logits = RWKVC_LOGITS_LAST};
    if (rwkvc_forward(context, model, &sequence, 1, logits, NULL)) fail("prefill");
}

static void decode_batch(rwkvc_context *context, float *states, float *logits) {
    uint32_t tokens[SEQUENCES];
    rwkvc_sequence sequences[SEQUENCES];
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        float *state = states + i * state_floats;
        tokens[i] = (i + 3) % n_vocab;
        sequences[i] = (rwkvc_sequence){
            .tokens = &tokens[i], .n_tokens = 1, .state_in = state, .state_out = state, .logits = RWKVC_LOGITS_LAST};
    }
    if (rwkvc_forward(context, model, sequences, SEQUENCES, logits, NULL)) fail("decode");
}

typedef struct {
    _Atomic int32_t flag;
} cancel_flag;

/* Another thread sets the flag at some moment of the call. */
static void set_flag(void *arg) { atomic_store(&((cancel_flag *)arg)->flag, 1); }

static void cancelled_prefill(rwkvc_context *context, float *state) {
    uint32_t tokens[PROMPT] = {0};
    cancel_flag cancel = {0};
    rwkvc_sequence sequence = {.tokens = tokens, .n_tokens = PROMPT, .state_out = state};
    rwkvc_forward_options options = {.struct_size = sizeof options, .cancel = (const int32_t *)&cancel.flag};
    rwkvc_thread thread;
    if (!rwkvc_thread_start(&thread, set_flag, &cancel)) fail("thread");
    rwkvc_status status = rwkvc_forward(context, model, &sequence, 1, NULL, &options);
    rwkvc_thread_join(&thread);
    if (status != RWKVC_OK && status != RWKVC_E_CANCELLED) fail("cancelled prefill");
}

static void caller(void *arg) {
    (void)arg;
    float *states = allocate(SEQUENCES * state_floats, sizeof *states);
    float *logits = allocate((uint64_t)SEQUENCES * n_vocab, sizeof *logits);
    for (int c = 0; c < CONTEXTS; c++) {
        rwkvc_context *context = new_context();
        for (int f = 0; f < FORWARDS; f++) {
            prefill(context, states, logits);
            if (memcmp(logits, expected, n_vocab * sizeof *logits) != 0) fail("logits differ between contexts");
            for (uint32_t i = 1; i < SEQUENCES; i++)
                memcpy(states + i * state_floats, states, state_floats * sizeof *states);
            decode_batch(context, states, logits);
            cancelled_prefill(context, states);
        }
        rwkvc_context_destroy(context);
    }
    free(states);
    free(logits);
}

int main(int argc, char **argv) {
    rwkvc_mapping mapping;
    rwkvc_model *opened = NULL;
    char reason[256];
    if (argc != 2) {
        fprintf(stderr, "usage: pool_tsan MODEL.rwkv\n");
        return 2;
    }
    if (rwkvc_map_file(argv[1], &mapping, reason, sizeof reason)) fail(reason);
    if (rwkvc_model_open(mapping.bytes, mapping.size_bytes, &opened)) fail(argv[1]);
    model = opened;
    rwkvc_config config;
    rwkvc_model_config(model, &config);
    n_vocab = config.size[RWKVC_SIZE_VOCAB];
    state_floats = rwkvc_state_floats(model);

    float *state = allocate(state_floats, sizeof *state);
    expected = allocate(n_vocab, sizeof *expected);
    rwkvc_context *context = new_context();
    prefill(context, state, expected);
    rwkvc_context_destroy(context);
    free(state);

    rwkvc_thread callers[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        if (!rwkvc_thread_start(&callers[i], caller, NULL)) fail("thread");
    for (int i = 0; i < CALLERS; i++) rwkvc_thread_join(&callers[i]);
    free(expected);
    rwkvc_model_close(opened);
    rwkvc_unmap_file(&mapping);
    printf("pool_tsan: %d callers, %d contexts each: no race, same bits\n", CALLERS, CONTEXTS);
    return 0;
}
