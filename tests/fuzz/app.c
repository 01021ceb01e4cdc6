/* SPDX-License-Identifier: Apache-2.0
 * libFuzzer on what applications read from files and models: state files, chat templates, and the text of an answer.
 * The first byte chooses. Whatever the bytes, they are refused with a text, or what comes out can be used. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/digest.h"

static const rwkvc_state_layout layout = {
    .floats = 20,
    .n_layer = 2,
    .n_vocab = 5,
    .n_parts = 2,
    .fingerprint = "0123456789abcdef0123456789abcdef",
    .parts = {{"att_shift", 0, 10, 1, {4}}, {"wkv", 4, 10, 3, {1, 2, 3}}},
};

/* Version 1's checksum is of the body alone: put it right, so that not every changed file ends there. */
static void mend_checksum(uint8_t *bytes, size_t size) {
    static const char mark[] = "\"rwkv_cpu.crc32\": \"";
    uint64_t length;
    if (size < 8) return;
    memcpy(&length, bytes, 8);
    if (length > size - 8) return;
    for (size_t at = 8; at + sizeof mark + 8 < 8 + length; at++)
        if (memcmp(bytes + at, mark, sizeof mark - 1) == 0) {
            char crc[9];
            snprintf(crc, sizeof crc, "%08x", (unsigned)rwkvc_crc32(0, bytes + 8 + length, size - 8 - length));
            memcpy(bytes + at + sizeof mark - 1, crc, 8);
            return;
        }
}

static void read_state(uint8_t *bytes, size_t size) {
    float state[20], logits[5];
    uint32_t has_logits = 2;
    rwkvc_text text;
    mend_checksum(bytes, size);
    if (rwkvc_state_from_bytes(&layout, bytes, size, state, logits, &has_logits, &text)) {
        if (!*rwkvc_last_error()) abort();
        return;
    }
    if (has_logits > 1) abort();
    for (int i = 0; i < 20; i++)
        if (!isfinite(state[i])) abort();
    uint8_t again[8192];
    uint64_t needed;
    rwkvc_saved_state saved = {state, has_logits ? logits : NULL, text};
    if (rwkvc_state_to_bytes(&layout, &saved, 0, again, sizeof again, &needed) || needed > sizeof again) abort();
    float twin[20];
    if (rwkvc_state_from_bytes(&layout, again, needed, twin, NULL, NULL, NULL)) abort();
    if (memcmp(state, twin, sizeof state)) abort();
}

static void read_template(const uint8_t *bytes, size_t size) {
    rwkvc_chat_template *chat = NULL;
    if (rwkvc_chat_template_create(bytes, size, &chat)) {
        if (chat || !*rwkvc_last_error()) abort();
        return;
    }
    for (uint32_t turn = 0; turn <= RWKVC_TURN_CLEAN; turn++) {
        char small[8], large[1024];
        uint64_t needed = 0, again = 0;
        const char *text = (const char *)bytes;
        uint64_t n = size < 100 ? size : 100;
        rwkvc_status status = rwkvc_chat_template_turn(chat, turn, text, n, "short", small, sizeof small, &needed);
        if (rwkvc_chat_template_turn(chat, turn, text, n, "short", large, sizeof large, &again) != status) abort();
        if (needed != again) abort();
    }
    for (uint32_t i = 0; rwkvc_chat_template_stop(chat, "on", i); i++)
        if (!*rwkvc_chat_template_stop(chat, "on", i)) abort();
    rwkvc_sampler_options options;
    rwkvc_sampler_defaults(&options);
    rwkvc_chat_template_sampling(chat, &options);
    rwkvc_chat_template_destroy(chat);
}

/* However an answer is cut into pieces, the text is the same. */
static void read_answer(const uint8_t *bytes, size_t size) {
    static const char *const stops[] = {"\n\nUser:", "ab", "\xc3\xa9"};
    rwkvc_reader_options options;
    rwkvc_reader_defaults(&options);
    options.stops = stops;
    options.n_stops = 3;
    char *texts[2] = {calloc(3 * size + 8, 1), calloc(3 * size + 8, 1)};
    if (!texts[0] || !texts[1]) abort();
    for (size_t step = 1, which = 0; which < 2; which++, step = size ? size : 1) {
        rwkvc_reader *reader;
        rwkvc_piece piece;
        size_t n = 0;
        if (rwkvc_reader_create(&options, &reader)) abort();
        for (size_t at = 0; at <= size; at += step) {
            size_t left = size - at < step ? size - at : step;
            if (left ? rwkvc_reader_feed(reader, bytes + at, left, &piece) : rwkvc_reader_finish(reader, &piece))
                abort();
            if (piece.text_bytes) memcpy(texts[which] + n, piece.text, piece.text_bytes);
            n += piece.text_bytes;
        }
        rwkvc_reader_destroy(reader);
    }
    if (strcmp(texts[0], texts[1]) != 0) abort();
    free(texts[0]);
    free(texts[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    uint8_t *exact = malloc(size > 1 ? size - 1 : 1); /* its end is guarded */
    if (!exact) return 0;
    memcpy(exact, data + 1, size - 1);
    if (data[0] == 's') read_state(exact, size - 1);
    if (data[0] == 't') read_template(exact, size - 1);
    if (data[0] == 'a') read_answer(exact, size - 1);
    free(exact);
    return 0;
}
