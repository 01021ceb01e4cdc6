/* SPDX-License-Identifier: Apache-2.0
 * libFuzzer on the tokenizer's vocabulary, which comes from model files too: whatever the bytes, rwkvc_world_create
 * refuses them with a text, or gives a tokenizer whose ids spell every text that it encodes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "rwkv_cpu.h"

static void encode_and_spell(const rwkvc_world *world, const uint8_t *text, uint64_t size_bytes) {
    uint64_t n_ids = 0, n_again = 0, at = 0;
    uint32_t *ids = malloc((size_bytes + 1) * sizeof *ids);
    if (!ids) return;
    rwkvc_status status = rwkvc_world_encode(world, text, size_bytes, ids, size_bytes, &n_ids);
    if (status == RWKVC_OK) {
        if (n_ids > size_bytes) abort();
        for (uint64_t i = 0; i < n_ids; i++) {
            const uint8_t *piece;
            uint64_t piece_bytes;
            if (rwkvc_world_bytes(world, ids[i], &piece, &piece_bytes) || piece_bytes == 0) abort();
            if (piece_bytes > size_bytes - at || memcmp(text + at, piece, piece_bytes)) abort();
            at += piece_bytes;
        }
        if (at != size_bytes) abort();
        /* With too little room the count is the same, and nothing is written beyond. */
        if (rwkvc_world_encode(world, text, size_bytes, ids, n_ids / 2, &n_again) || n_again != n_ids) abort();
    } else if (status != RWKVC_E_TOKEN || !*rwkvc_last_error()) {
        abort();
    }
    free(ids);
}

/* The first byte says how much of the rest is text to encode; what is left is the vocabulary. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    size_t n_text = data[0] < size - 1 ? data[0] : size - 1, n_vocabulary = size - 1 - n_text;
    uint8_t *text = malloc(n_text + 1), *vocabulary = malloc(n_vocabulary + 1);
    if (text && vocabulary) {
        memcpy(text, data + 1, n_text);
        memcpy(vocabulary, data + 1 + n_text, n_vocabulary);
        uint8_t *exact = realloc(vocabulary, n_vocabulary ? n_vocabulary : 1);
        vocabulary = exact ? exact : vocabulary;
        rwkvc_world *world = NULL;
        rwkvc_status status = rwkvc_world_create(vocabulary, n_vocabulary, &world);
        if (status == RWKVC_OK) {
            const uint8_t *piece;
            uint64_t piece_bytes;
            for (uint32_t id = 0; id < rwkvc_world_vocab(world) + 2 && id < 5000; id++)
                (void)rwkvc_world_bytes(world, id, &piece, &piece_bytes);
            encode_and_spell(world, text, n_text);
            rwkvc_world_destroy(world);
        } else if (world || !*rwkvc_last_error()) {
            abort();
        }
    }
    free(text);
    free(vocabulary);
    return 0;
}
