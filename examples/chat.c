/* SPDX-License-Identifier: Apache-2.0
 * A chat in the terminal with nothing but the C library: the answer is streamed, Ctrl-C stops it, Ctrl-D ends the chat,
 * and STATE, if given, keeps the conversation until the next time.
 *
 *   make lib && cc examples/chat.c -Isrc -Lbuild/lib -lrwkv_cpu -Wl,-rpath,'$ORIGIN/build/lib' -o chat
 *   ./chat MODEL.rwkv [STATE]        a model with the World vocabulary; examples/README.md has one for a first try
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rwkv_cpu.h"

enum { LINE = 8192, TEXT = 1 << 16, MAX_ANSWER = 1000 };

static int32_t stop; /* the engine looks at it while it works */
static void on_interrupt(int signal_number) { (void)signal_number, *(volatile int32_t *)&stop = 1; }

static rwkvc_model *model;
static rwkvc_context *context;
static rwkvc_world *world;
static rwkvc_chat_template *chat;
static rwkvc_sampler *sampler;
static rwkvc_state_layout layout;
static rwkvc_text text; /* what `state` has read; `work` is state, the question and the answer as it is made */
static float *state, *work, *logits;

static void check(rwkvc_status status) {
    if (status == RWKVC_OK) return;
    fprintf(stderr, "chat: %s\n%s%s", rwkvc_last_error(), rwkvc_last_hint(), *rwkvc_last_hint() ? "\n" : "");
    exit(1);
}

static void show_progress(void *user, uint64_t done, uint64_t total) {
    (void)user;
    if (total > 256) fprintf(stderr, "\rreading: %d %%%s", (int)(100 * done / total), done == total ? "\n" : "");
}

/* Read tokens on from one state into another (which may be the same); only Ctrl-C makes it end early. */
static rwkvc_status read_tokens(const uint32_t *tokens, uint64_t n, const float *from, float *to,
                                const int32_t *cancel) {
    rwkvc_forward_options options = {sizeof options, cancel, show_progress, NULL, NULL};
    rwkvc_sequence sequence = {tokens, n, from, to, RWKVC_LOGITS_LAST, 0, 0, NULL};
    rwkvc_status status = rwkvc_forward(context, model, &sequence, 1, logits, &options);
    if (status != RWKVC_E_CANCELLED) check(status);
    return status;
}

/* Append a turn to out, which has `size` bytes already; its new size. */
static uint64_t add_turn(uint32_t turn, const char *words, uint64_t n, const char *think, char *out, uint64_t size) {
    uint64_t written;
    check(rwkvc_chat_template_turn(chat, turn, words, n, think, out + size, TEXT - size, &written));
    return written < TEXT - size ? size + written : size;
}

static uint64_t encode(const char *words, uint64_t size, uint32_t *tokens) {
    uint64_t n;
    check(rwkvc_world_encode(world, (const uint8_t *)words, size, tokens, TEXT, &n));
    return n; /* never more than bytes, and so than TEXT */
}

/* Choose and show tokens until a stop, the end of the text, Ctrl-C or MAX_ANSWER; the answer's length. */
static uint64_t write_answer(rwkvc_reader *reader, char *answer) {
    uint64_t size = 0, n_bytes;
    rwkvc_piece piece;
    for (int n = 0; n <= MAX_ANSWER; n++) {
        uint32_t token;
        const uint8_t *bytes;
        check(rwkvc_sampler_sample(sampler, logits, NULL, &token, NULL));
        check(rwkvc_sampler_accept(sampler, token));
        int last = token == 0 || n == MAX_ANSWER || read_tokens(&token, 1, work, work, &stop);
        if (rwkvc_world_bytes(world, token, &bytes, &n_bytes)) n_bytes = 0; /* an id that stands for nothing */
        check(last ? rwkvc_reader_finish(reader, &piece) : rwkvc_reader_feed(reader, bytes, n_bytes, &piece));
        printf("%.*s%.*s", (int)piece.thought_bytes, piece.thought, (int)piece.text_bytes, piece.text);
        fflush(stdout);
        if (size + piece.text_bytes > TEXT / 2) break;
        if (piece.text_bytes) memcpy(answer + size, piece.text, piece.text_bytes);
        size += piece.text_bytes;
        if (last || rwkvc_reader_stopped(reader)) break;
    }
    return size;
}

static void ask(const char *question) {
    static char written[TEXT], answer[TEXT];
    static uint32_t tokens[TEXT];
    const char *think = "", *stops[64];
    rwkvc_reader_options options;
    rwkvc_reader *reader;
    rwkvc_reader_defaults(&options);
    for (options.stops = stops; options.n_stops < 64; options.n_stops++)
        if (!(stops[options.n_stops] = rwkvc_chat_template_stop(chat, think, options.n_stops))) break;
    check(rwkvc_reader_create(&options, &reader));

    uint64_t size = add_turn(RWKVC_TURN_USER, question, strlen(question), think, written, 0), answer_size = 0;
    stop = 0;
    if (!read_tokens(tokens, encode(written, size, tokens), state, work, &stop))
        answer_size = write_answer(reader, answer);
    puts("");
    /* The history has the turn as the model was trained on it: without thought, stop and what came after. */
    size = add_turn(RWKVC_TURN_ASSISTANT, answer, answer_size, think, written, size);
    uint64_t n = encode(written, size, tokens);
    read_tokens(tokens, n, state, state, NULL);
    rwkvc_text_read(&text, tokens, n);
    rwkvc_reader_destroy(reader);
}

static void begin(const char *model_path, const char *state_path) {
    rwkvc_sampler_options sampling;
    check(rwkvc_model_open_file(model_path, &model));
    check(rwkvc_world_open(model, &world));
    check(rwkvc_chat_template_open(model, &chat));
    check(rwkvc_context_create(NULL, &context));
    rwkvc_state_describe(model, &layout);
    rwkvc_sampler_defaults(&sampling);
    rwkvc_chat_template_sampling(chat, &sampling);
    sampling.seed = (uint64_t)time(NULL);
    check(rwkvc_sampler_create(layout.n_vocab, &sampling, &sampler));
    state = malloc(layout.floats * sizeof *state);
    work = malloc(layout.floats * sizeof *work);
    logits = malloc(layout.n_vocab * sizeof *logits);
    if (!state || !work || !logits) exit(1);
    rwkvc_state_init(model, state);
    rwkvc_status status = state_path ? rwkvc_state_load(&layout, state_path, state, NULL, NULL, &text) : RWKVC_OK;
    if (status != RWKVC_E_NOT_FOUND) check(status);
    if (text.n_tokens) printf("(going on after %llu tokens)\n", (unsigned long long)text.n_tokens);
}

int main(int argc, char **argv) {
    static char line[LINE];
    if (argc < 2 || argc > 3 || rwkvc_abi_version() != RWKVC_ABI_VERSION) {
        fprintf(stderr, "usage: chat MODEL.rwkv [STATE]\n");
        return 2;
    }
    begin(argv[1], argv[2]);
    signal(SIGINT, on_interrupt);
    while (printf("> "), fflush(stdout), fgets(line, sizeof line, stdin))
        if (line[strspn(line, " \t\r\n")]) ask(line);
    puts("");
    if (argv[2]) check(rwkvc_state_save(&layout, argv[2], &(rwkvc_saved_state){state, NULL, text}, 0));
    rwkvc_sampler_destroy(sampler);
    rwkvc_context_destroy(context);
    rwkvc_chat_template_destroy(chat);
    rwkvc_world_destroy(world);
    rwkvc_model_close(model);
    free(logits);
    free(work);
    free(state);
    return 0;
}
