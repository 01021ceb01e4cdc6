/* SPDX-License-Identifier: Apache-2.0
 * The engine at its smallest: open a .rwkv file, run tokens through the model, print the likeliest next one.
 *
 *   make lib && cc examples/next_token.c -Isrc build/lib/librwkv_cpu.a -pthread -lm -o next_token
 *   ./next_token model.rwkv 510 4419
 */
#include <stdio.h>
#include <stdlib.h>

#include "rwkv_cpu.h"

static int failed(const char *what) {
    fprintf(stderr, "next_token: %s%s%s\n", what, *rwkvc_last_hint() ? ". " : "", rwkvc_last_hint());
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
        result = failed("out of memory");
    else if (rwkvc_context_create(NULL, &context))
        result = failed(rwkvc_last_error());
    else {
        rwkvc_sequence sequence = {
            .tokens = tokens, .n_tokens = n_tokens, .state_out = state, .logits = RWKVC_LOGITS_LAST};
        if (rwkvc_forward(context, model, &sequence, 1, logits, NULL))
            result = failed(rwkvc_last_error());
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
    if (!tokens) return failed("out of memory");
    for (uint64_t i = 0; i < n_tokens; i++) tokens[i] = (uint32_t)strtoul(argv[i + 2], NULL, 10);
    rwkvc_model *model;
    int result =
        rwkvc_model_open_file(argv[1], &model) ? failed(rwkvc_last_error()) : next_token(model, tokens, n_tokens);
    rwkvc_model_close(model);
    free(tokens);
    return result;
}
