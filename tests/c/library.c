/* SPDX-License-Identifier: Apache-2.0
 * The C library as a program without Python meets it: files that are not what they should be, states, texts, cancelling.
 * `make c-test` runs it with the shared library, `make asan` with an instrumented one.
 *
 *   library MODEL.rwkv OTHER.rwkv FOLDER    MODEL has a World vocabulary, OTHER is another model, FOLDER is empty */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "rwkv_cpu.h"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) fail(__LINE__, #what);                                                                            \
    } while (0)
#define OK(call) CHECK((call) == RWKVC_OK)

enum { ROOM = 4096 };

static const char *folder;
static rwkvc_model *model, *other;
static rwkvc_context *context;
static rwkvc_world *world;
static rwkvc_state_layout layout;
static uint64_t n_vocab;

static void fail(int line, const char *what) {
    fprintf(stderr, "tests/c/library.c:%d: %s; last error: %s\n", line, what, rwkvc_last_error());
    exit(1);
}

static void *memory(size_t n) {
    void *found = malloc(n);
    CHECK(found);
    return found;
}

static const char *path_of(const char *name) {
    static char path[ROOM];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *write_file(const char *name, const void *bytes, size_t size) {
    const char *path = path_of(name);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    return path;
}

static uint64_t encode(const char *text, uint32_t *tokens) {
    uint64_t n;
    OK(rwkvc_world_encode(world, (const uint8_t *)text, strlen(text), tokens, ROOM, &n));
    CHECK(n && n < ROOM);
    return n;
}

/* ------------------------------------------------------------------------------------------- files */

static void refuse_model(const char *path, rwkvc_status expected) {
    rwkvc_model *opened = (rwkvc_model *)1;
    rwkvc_status status = rwkvc_model_open_file(path, &opened);
    CHECK(status == expected);
    CHECK(opened == NULL && strstr(rwkvc_last_error(), path));
}

static void open_what_is_no_model(void) {
    uint64_t size;
    const uint8_t *bytes = rwkvc_model_file(model, &size);
    refuse_model(path_of("missing.rwkv"), RWKVC_E_NOT_FOUND);
    CHECK(*rwkvc_last_hint());
    refuse_model(folder, RWKVC_E_IO);
    refuse_model(write_file("empty", "", 0), RWKVC_E_FORMAT);
    refuse_model(write_file("text",
                            "no model at all, but longer than a table's head: ................................"
                            "......................................................................",
                            150),
                 RWKVC_E_FORMAT);
    CHECK(strstr(rwkvc_last_hint(), "quantize"));
    for (uint64_t cut = 1; cut < size; cut = cut * 3 + 1) refuse_model(write_file("cut", bytes, cut), RWKVC_E_FORMAT);
    refuse_model(write_file("cut", bytes, size - 1), RWKVC_E_FORMAT);
    CHECK(mkfifo(path_of("pipe"), 0600) == 0);
    refuse_model(path_of("pipe"), RWKVC_E_IO);
    CHECK(rwkvc_model_open_file(NULL, &other) == RWKVC_E_ARGUMENT);
}

static void open_under_any_name(void) {
    uint64_t size, again;
    const uint8_t *bytes = rwkvc_model_file(model, &size);
    rwkvc_model *opened;
    const char *path = write_file("Käse, 日本語, 🙂.rwkv", bytes, size);
    OK(rwkvc_model_open_file(path, &opened));
    CHECK(memcmp(rwkvc_model_file(opened, &again), bytes, size) == 0 && again == size);
    rwkvc_model_close(opened);
}

/* ------------------------------------------------------------------------------------------ states */

static void states_come_back(const float *state, const float *logits) {
    rwkvc_text text = {0}, found;
    uint32_t tokens[ROOM], has_logits = 7;
    float *again = memory(layout.floats * 4), *said = memory(n_vocab * 4);
    rwkvc_text_read(&text, NULL, 0);
    CHECK(text.n_tokens == 0 && text.digest[0] == 0);
    rwkvc_text_read(&text, tokens, encode("some text", tokens));
    const char *path = path_of("Zustand ü.state");
    OK(rwkvc_state_save(&layout, path, &(rwkvc_saved_state){state, logits, text}, 0));
    OK(rwkvc_state_load(&layout, path, again, said, &has_logits, &found));
    CHECK(has_logits == 1 && memcmp(said, logits, n_vocab * 4) == 0 && memcmp(again, state, layout.floats * 4) == 0);
    CHECK(memcmp(&found, &text, sizeof text) == 0);
    OK(rwkvc_state_save(&layout, path, &(rwkvc_saved_state){state, NULL, text}, 1));
    OK(rwkvc_state_load(&layout, path, again, NULL, &has_logits, NULL));
    CHECK(has_logits == 0 && memcmp(again, state, layout.floats * 4) != 0);
    CHECK(rwkvc_state_save(&layout, path_of("none/x"), &(rwkvc_saved_state){state, NULL, text}, 0) == RWKVC_E_IO);
    CHECK(rwkvc_state_save(&layout, folder, &(rwkvc_saved_state){state, NULL, text}, 0) == RWKVC_E_IO);
    CHECK(rwkvc_state_load(&layout, path_of("none"), again, NULL, NULL, NULL) == RWKVC_E_NOT_FOUND);
    rwkvc_state_layout foreign;
    rwkvc_state_describe(other, &foreign);
    float *room = memory(foreign.floats * 4);
    CHECK(rwkvc_state_load(&foreign, path_of("Zustand ü.state"), room, NULL, NULL, NULL) == RWKVC_E_STATE);
    free(room);
    CHECK(strstr(rwkvc_last_error(), "another model") && *rwkvc_last_hint());
    free(again);
    free(said);
}

static void damaged_states_are_refused(const float *state) {
    uint64_t size, needed;
    float *again = memory(layout.floats * 4);
    rwkvc_saved_state saved = {state, NULL, {0}};
    OK(rwkvc_state_to_bytes(&layout, &saved, 0, NULL, 0, &size));
    uint8_t *bytes = memory(size);
    OK(rwkvc_state_to_bytes(&layout, &saved, 0, bytes, size - 1, &needed));
    CHECK(needed == size);
    OK(rwkvc_state_to_bytes(&layout, &saved, 0, bytes, size, &needed));
    OK(rwkvc_state_from_bytes(&layout, bytes, size, again, NULL, NULL, NULL));
    for (uint64_t cut = 0; cut < size; cut += cut < 600 ? 1 : size / 7) {
        uint8_t *part = memory(cut ? cut : 1); /* of exactly that size: an access behind it is seen */
        memcpy(part, bytes, cut);
        CHECK(rwkvc_state_from_bytes(&layout, part, cut, again, NULL, NULL, NULL));
        free(part);
    }
    for (uint64_t at = 0; at < 600; at++) {
        bytes[at] ^= 0x15;
        rwkvc_state_from_bytes(&layout, bytes, size, again, NULL, NULL, NULL); /* padding may change */
        bytes[at] ^= 0x15;
    }
    bytes[size - 1] ^= 1;
    CHECK(rwkvc_state_from_bytes(&layout, bytes, size, again, NULL, NULL, NULL) == RWKVC_E_STATE);
    free(bytes);
    free(again);
}

/* --------------------------------------------------------------------------------------- computing */

static int32_t cancel;
static void cancel_after_one(void *user, uint64_t done, uint64_t total) {
    CHECK(done <= total && user == &cancel);
    cancel = done > 0;
}

/* A call that is cancelled leaves a state to go on from: the same bits as without. */
static void cancelled_calls_go_on(float *state, float *logits) {
    uint32_t tokens[ROOM];
    uint64_t n = encode("User: Tell me a long story about a fox, please.\n\nAssistant:", tokens);
    float *whole = memory(layout.floats * 4), *expected = memory(n_vocab * 4);
    rwkvc_sequence sequence = {tokens, n, NULL, whole, RWKVC_LOGITS_LAST, 0, 0, NULL};
    OK(rwkvc_forward(context, model, &sequence, 1, expected, NULL));
    rwkvc_forward_options options = {sizeof options, &cancel, cancel_after_one, &cancel, NULL};
    sequence.state_out = state;
    CHECK(rwkvc_forward(context, model, &sequence, 1, logits, &options) == RWKVC_E_CANCELLED);
    CHECK(sequence.n_done > 0 && sequence.n_done < n);
    sequence.tokens += sequence.n_done;
    sequence.n_tokens -= sequence.n_done;
    sequence.state_in = state;
    OK(rwkvc_forward(context, model, &sequence, 1, logits, NULL));
    CHECK(memcmp(state, whole, layout.floats * 4) == 0 && memcmp(logits, expected, n_vocab * 4) == 0);
    free(whole);
    free(expected);
}

static void tokens_are_chosen(const float *logits) {
    rwkvc_sampler_options options;
    rwkvc_sampler *sampler;
    uint32_t first, second;
    rwkvc_sampler_defaults(&options);
    options.struct_size = 3;
    CHECK(rwkvc_sampler_create((uint32_t)n_vocab, &options, &sampler) == RWKVC_E_ARGUMENT);
    rwkvc_sampler_defaults(&options);
    options.temperature = 0;
    OK(rwkvc_sampler_create((uint32_t)n_vocab, &options, &sampler));
    OK(rwkvc_sampler_sample(sampler, logits, NULL, &first, NULL));
    OK(rwkvc_sampler_ban(sampler, &first, 1));
    OK(rwkvc_sampler_sample(sampler, logits, NULL, &second, NULL));
    CHECK(first < n_vocab && second < n_vocab && first != second);
    rwkvc_sampler_destroy(sampler);
}

/* ------------------------------------------------------------------------------------------- texts */

static void texts_come_back(void) {
    static const char *texts[] = {"Hello", "ein Käse", "日本語 🙂", "\xff\xfe\x00x"};
    for (int i = 0; i < 4; i++) {
        uint8_t back[ROOM];
        uint32_t tokens[ROOM];
        uint64_t n, size = 0, want = i == 3 ? 4 : strlen(texts[i]);
        if (rwkvc_world_encode(world, (const uint8_t *)texts[i], want, tokens, ROOM, &n) == RWKVC_E_TOKEN) continue;
        for (uint64_t t = 0; t < n; t++) {
            const uint8_t *bytes;
            uint64_t count;
            OK(rwkvc_world_bytes(world, tokens[t], &bytes, &count));
            memcpy(back + size, bytes, count);
            size += count;
        }
        CHECK(size == want && memcmp(back, texts[i], size) == 0);
    }
    rwkvc_world *none = NULL;
    CHECK(rwkvc_world_open(other, &none) == RWKVC_E_UNSUPPORTED && !none && *rwkvc_last_hint());
}

/* What a reader makes of `bytes` that come one by one: "thought|text". */
static const char *read_all(const char *bytes, size_t size, const rwkvc_reader_options *options) {
    static char out[ROOM];
    char thought[ROOM], text[ROOM];
    size_t n_thought = 0, n_text = 0;
    rwkvc_reader *reader;
    rwkvc_piece piece;
    OK(rwkvc_reader_create(options, &reader));
    for (size_t i = 0; i <= size; i++) {
        if (i < size)
            OK(rwkvc_reader_feed(reader, (const uint8_t *)bytes + i, 1, &piece));
        else
            OK(rwkvc_reader_finish(reader, &piece));
        if (piece.thought_bytes) memcpy(thought + n_thought, piece.thought, piece.thought_bytes);
        if (piece.text_bytes) memcpy(text + n_text, piece.text, piece.text_bytes);
        n_thought += piece.thought_bytes;
        n_text += piece.text_bytes;
    }
    rwkvc_reader_destroy(reader);
    snprintf(out, sizeof out, "%.*s|%.*s", (int)n_thought, thought, (int)n_text, text);
    return out;
}

static void answers_are_read(void) {
    static const char *const stops[] = {"\n\nUser:"};
    rwkvc_reader_options options;
    rwkvc_reader_defaults(&options);
    options.stops = stops;
    options.n_stops = 1;
    const char *said = "<think>hm\n\nso</think>\nKäse 🙂\n\nUser: more";
    CHECK(strcmp(read_all(said, strlen(said), &options), "hm\n\nso|\nKäse 🙂") == 0);
    CHECK(strcmp(read_all("a\xf0\x9f\x99", 4, &options), "|a\xef\xbf\xbd") == 0);
    options.lead = "<think></think";
    CHECK(strcmp(read_all(">no", 3, &options), "|no") == 0);
    static const char *const nothing[] = {""};
    rwkvc_reader *reader;
    options.stops = nothing;
    CHECK(rwkvc_reader_create(&options, &reader) == RWKVC_E_ARGUMENT && !reader);
}

static void conversations_are_written(void) {
    rwkvc_chat_template *chat;
    char out[ROOM];
    uint64_t size;
    OK(rwkvc_chat_template_create(NULL, 0, &chat));
    OK(rwkvc_chat_template_turn(chat, RWKVC_TURN_USER, " a\r\n\r\nb ", 8, "short", out, sizeof out, &size));
    CHECK(strcmp(out, "User: a\nb (think a bit)\n\nAssistant: <think") == 0 && size == strlen(out));
    memset(out, 'x', sizeof out);
    OK(rwkvc_chat_template_turn(chat, RWKVC_TURN_ASSISTANT, " yes ", 5, NULL, out, 6, &size));
    CHECK(size == 6 && out[0] == 'x');
    CHECK(rwkvc_chat_template_turn(chat, RWKVC_TURN_USER, " ", 1, "", out, sizeof out, &size) == RWKVC_E_ARGUMENT);
    CHECK(rwkvc_chat_template_turn(chat, RWKVC_TURN_USER, "x", 1, "loud", out, sizeof out, &size) == RWKVC_E_ARGUMENT);
    CHECK(strcmp(rwkvc_chat_template_stop(chat, "", 0), "\n\nUser:") == 0 && !rwkvc_chat_template_stop(chat, "", 3));
    rwkvc_chat_template_destroy(chat);
    static const char *const damaged[] = {"{",
                                          "[]",
                                          "nonsense",
                                          "{\"user\": 3}",
                                          "{\"stop\": [\"\"]}",
                                          "{\"user\": \"\xff\"}",
                                          "{\"sampling\": {\"x\": 1e999}}",
                                          "{\"user\": \"a\\u0000b\"}"};
    for (size_t i = 0; i < sizeof damaged / sizeof damaged[0]; i++)
        CHECK(rwkvc_chat_template_create((const uint8_t *)damaged[i], strlen(damaged[i]), &chat) == RWKVC_E_FORMAT);
    const char *jinja = "{\"jinja\": \"{{ x }}\", \"sampling\": {\"temperature\": 0.25, \"top_k\": 7}}";
    rwkvc_sampler_options options;
    rwkvc_sampler_defaults(&options);
    OK(rwkvc_chat_template_create((const uint8_t *)jinja, strlen(jinja), &chat));
    rwkvc_chat_template_sampling(chat, &options);
    CHECK(options.temperature == 0.25f && options.top_k == 7);
    CHECK(rwkvc_chat_template_turn(chat, RWKVC_TURN_USER, "x", 1, "", out, sizeof out, &size) == RWKVC_E_UNSUPPORTED);
    rwkvc_chat_template_destroy(chat);
}

int main(int argc, char **argv) {
    CHECK(argc == 4 && rwkvc_abi_version() == RWKVC_ABI_VERSION);
    folder = argv[3];
    OK(rwkvc_model_open_file(argv[1], &model));
    OK(rwkvc_model_open_file(argv[2], &other));
    OK(rwkvc_world_open(model, &world));
    rwkvc_context_options options;
    rwkvc_context_defaults(&options);
    options.chunk = 4;
    options.threads = 2;
    OK(rwkvc_context_create(&options, &context));
    rwkvc_state_describe(model, &layout);
    n_vocab = layout.n_vocab;
    float *state = memory(layout.floats * 4), *logits = memory(n_vocab * 4);
    open_what_is_no_model();
    open_under_any_name();
    cancelled_calls_go_on(state, logits);
    states_come_back(state, logits);
    damaged_states_are_refused(state);
    tokens_are_chosen(logits);
    texts_come_back();
    answers_are_read();
    conversations_are_written();
    for (rwkvc_status status = RWKVC_OK; status <= RWKVC_E_IO; status++) CHECK(rwkvc_status_name(status));
    CHECK(!rwkvc_status_name(-1) && !rwkvc_status_name(RWKVC_E_IO + 1));
    rwkvc_context_destroy(context);
    rwkvc_context_destroy(NULL);
    rwkvc_world_destroy(world);
    rwkvc_model_close(model);
    rwkvc_model_close(other);
    rwkvc_model_close(NULL);
    rwkvc_reader_destroy(NULL);
    rwkvc_chat_template_destroy(NULL);
    free(state);
    free(logits);
    puts("library: good");
    return 0;
}
