/* SPDX-License-Identifier: Apache-2.0
 * Chat templates: a few plain fields, stored as JSON in the model file, so that a new one needs no new code. */
#include "app/small.h"

#include <math.h>
#include <stdlib.h>

#include "app/json.h"
#include "app/text.h"

enum { MAX_TEMPLATE_BYTES = 65536, MAX_STOPS = 64, MAX_SETTINGS = 32, MAX_NAME = 64 };

struct rwkvc_chat_template {
    const char *name, *system, *user, *assistant, *separator, *jinja;
    bool raw;
    uint32_t n_stops, n_settings;
    const char *stops[MAX_STOPS], *label_stops[3]; /* a thought has paragraphs: only labels end it */
    struct {
        const char *name;
        double value;
    } settings[MAX_SETTINGS];
    char *texts, *labels; /* what the pointers above point into, where it is not a constant */
};

static const rwkvc_think_mode modes[] = {
    {"", "", ""},         {"off", "", "<think></think"},        {"short", " (think a bit)", "<think"},
    {"on", "", "<think"}, {"long", " (think a lot)", "<think"},
};
enum { N_MODES = sizeof modes / sizeof modes[0] };

rwkvc_status rwkvc_think_mode_info(uint32_t i, rwkvc_think_mode *mode) {
    if (i >= N_MODES) return rwkvc_fail(RWKVC_E_ARGUMENT, "there are %d think modes", (int)N_MODES);
    *mode = modes[i];
    return RWKVC_OK;
}

static const rwkvc_think_mode *mode_named(const char *name) {
    for (uint32_t i = 0; i < N_MODES; i++)
        if (strcmp(modes[i].name, name ? name : "") == 0) return &modes[i];
    return NULL;
}

/* ----------------------------------------------------------------------------------------- reading */

static void set_world(rwkvc_chat_template *c) {
    *c = (rwkvc_chat_template){.name = "world",
                               .system = "System",
                               .user = "User",
                               .assistant = "Assistant",
                               .separator = "\n\n",
                               .jinja = "",
                               .n_stops = 3,
                               .stops = {"\n\nUser:", "\n\nSystem:", "\n\nAssistant:"}};
}

static bool set_named(rwkvc_chat_template *c, const char *name, size_t size) {
    set_world(c);
    if (size == 5 && memcmp(name, "world", 5) == 0) return true;
    if (size == 15 && memcmp(name, "world-paragraph", 15) == 0) {
        c->name = "world-paragraph";
        c->n_stops = 1;
        c->stops[0] = "\n\n";
        return true;
    }
    if (size == 3 && memcmp(name, "raw", 3) == 0) {
        c->name = "raw";
        c->separator = "";
        c->n_stops = 0;
        c->raw = true;
        return true;
    }
    return false;
}

/* Unescaped strings are never longer than their JSON, whose quotes leave room for the 0 behind each. */
typedef struct {
    rwkvc_json json;
    char *at, *end;
    const char *wrong; /* the field that is not what it must be */
} parser;

static const char *take_string(parser *p) {
    char *begin = p->at;
    uint64_t size = rwkvc_json_string(&p->json, begin, (uint64_t)(p->end - begin));
    if (p->json.at) p->at += size + 1;
    return begin;
}

static void take_stops(parser *p, rwkvc_chat_template *c) {
    bool first = true;
    c->n_stops = 0;
    if (!rwkvc_json_enter(&p->json, '[')) return;
    while (rwkvc_json_next(&p->json, ']', &first)) {
        const char *stop = take_string(p);
        if (!p->json.at) return;
        if (!*stop || c->n_stops == MAX_STOPS)
            rwkvc_json_fail(&p->json);
        else
            c->stops[c->n_stops++] = stop;
    }
}

static void take_settings(parser *p, rwkvc_chat_template *c) {
    bool first = true;
    c->n_settings = 0;
    if (!rwkvc_json_enter(&p->json, '{')) return;
    while (rwkvc_json_next(&p->json, '}', &first)) {
        const char *name = take_string(p);
        rwkvc_json_colon(&p->json);
        double value = rwkvc_json_number(&p->json);
        if (!p->json.at) return;
        if (!isfinite(value) || c->n_settings == MAX_SETTINGS) {
            rwkvc_json_fail(&p->json);
            return;
        }
        c->settings[c->n_settings].name = name;
        c->settings[c->n_settings++].value = value;
    }
}

static void take_field(parser *p, rwkvc_chat_template *c, const char *field) {
    static const char *const names[] = {"name",  "system", "user",     "assistant", "separator",
                                        "jinja", "stop",   "sampling", "raw"};
    const char **const to[] = {&c->name, &c->system, &c->user, &c->assistant, &c->separator, &c->jinja};
    uint32_t i = 0;
    while (i < sizeof names / sizeof names[0] && strcmp(field, names[i]) != 0) i++;
    if (i == sizeof names / sizeof names[0]) {
        rwkvc_json_skip(&p->json); /* of a newer file */
        return;
    }
    if (i < 6) *to[i] = take_string(p);
    if (i == 6) take_stops(p, c);
    if (i == 7) take_settings(p, c);
    if (i == 8) c->raw = rwkvc_json_boolean(&p->json);
    if (!p->json.at) p->wrong = names[i];
}

/* True, or false with *wrong (NULL: it is no JSON). */
static bool read_fields(parser *p, rwkvc_chat_template *c) {
    bool first = true;
    if (!rwkvc_json_enter(&p->json, '{')) return false;
    while (rwkvc_json_next(&p->json, '}', &first)) {
        char field[MAX_NAME];
        rwkvc_json check = p->json;
        if (!rwkvc_json_string(&check, field, sizeof field)) *field = 0; /* longer than any that is known */
        rwkvc_json_skip(&p->json);
        rwkvc_json_colon(&p->json);
        take_field(p, c, field);
    }
    if (!rwkvc_json_done(&p->json)) return false;
    const char *const labels[] = {c->system, c->user, c->assistant, c->name, c->separator};
    static const char *const names[] = {"system", "user", "assistant", "name", "separator"};
    for (int i = 0; i < 5; i++)
        if (!*labels[i] && !(i == 4 && c->raw)) p->wrong = names[i];
    return !p->wrong;
}

static bool make_label_stops(rwkvc_chat_template *c) {
    const char *const labels[] = {c->user, c->system, c->assistant};
    size_t separator = strlen(c->separator), room = 0;
    for (int i = 0; i < 3; i++) room += separator + strlen(labels[i]) + 2;
    char *at = c->labels = malloc(room);
    for (int i = 0; at && i < 3; i++) {
        size_t n = strlen(labels[i]);
        c->label_stops[i] = at;
        memcpy(at, c->separator, separator);
        memcpy(at + separator, labels[i], n);
        memcpy(at + separator + n, ":", 2);
        at += separator + n + 2;
    }
    return at != NULL;
}

static rwkvc_status parse(const char *text, size_t size, rwkvc_chat_template *c) {
    static const char names[] = "the names are world, world-paragraph, raw";
    if (size == 0) set_world(c);
    if (size == 0 || set_named(c, text, size)) return RWKVC_OK;
    c->texts = malloc(size + MAX_STOPS);
    if (!c->texts) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    parser p = {.json = {(const uint8_t *)text, (const uint8_t *)text + size},
                .at = c->texts,
                .end = c->texts + size + MAX_STOPS};
    if (rwkvc_is_utf8(text, size) && read_fields(&p, c)) {
        /* llama.cpp's name for the World template */
        if (strcmp(c->jinja, "rwkv-world") == 0) c->jinja = "";
        return RWKVC_OK;
    }
    if (p.wrong)
        return rwkvc_fail_hint(RWKVC_E_FORMAT, "", "the chat template's '%s' is not what it must be%s", p.wrong,
                               strcmp(p.wrong, "stop") == 0       ? ", a list of texts"
                               : strcmp(p.wrong, "sampling") == 0 ? ", numbers by name"
                               : strcmp(p.wrong, "raw") == 0      ? ", true or false"
                                                                  : ", a text");
    return rwkvc_fail_hint(RWKVC_E_FORMAT, names, "the chat template is neither a JSON object nor a known name");
}

rwkvc_status rwkvc_chat_template_create(const uint8_t *text, uint64_t size_bytes, rwkvc_chat_template **chat) {
    if (!chat || (!text && size_bytes)) return rwkvc_fail(RWKVC_E_ARGUMENT, "no template, or nowhere to put it");
    *chat = NULL;
    const char *begin = (const char *)text;
    if (size_bytes > MAX_TEMPLATE_BYTES)
        return rwkvc_fail_hint(RWKVC_E_FORMAT, "", "the chat template has %llu bytes; no template is that long",
                               (unsigned long long)size_bytes);
    size_t size = (size_t)size_bytes, n;
    while (size && begin[size - 1] == 0) size--; /* byte tensors may be padded */
    while ((n = rwkvc_space_before(begin, size))) size -= n;
    while ((n = rwkvc_space_at(begin, size))) begin += n, size -= n;
    rwkvc_chat_template *c = malloc(sizeof *c);
    if (!c) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    set_world(c);
    rwkvc_status status = parse(begin, size, c);
    if (!status && !make_label_stops(c)) status = rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    if (status) {
        rwkvc_chat_template_destroy(c);
        return status;
    }
    *chat = c;
    return RWKVC_OK;
}

rwkvc_status rwkvc_chat_template_open(const rwkvc_model *model, rwkvc_chat_template **chat) {
    uint64_t size;
    if (!model) return rwkvc_fail(RWKVC_E_ARGUMENT, "no model");
    const uint8_t *text = rwkvc_model_bytes(model, "chat_template", &size);
    return rwkvc_chat_template_create(text, size, chat);
}

void rwkvc_chat_template_destroy(rwkvc_chat_template *chat) {
    if (!chat) return;
    free(chat->texts);
    free(chat->labels);
    free(chat);
}

/* ------------------------------------------------------------------------------------------ asking */

const char *rwkvc_chat_template_field(const rwkvc_chat_template *chat, const char *field) {
    static const char *const names[] = {"name", "system", "user", "assistant", "separator", "jinja"};
    const char *const values[] = {chat->name, chat->system, chat->user, chat->assistant, chat->separator, chat->jinja};
    for (int i = 0; i < 6; i++)
        if (strcmp(field, names[i]) == 0) return values[i];
    return NULL;
}

int32_t rwkvc_chat_template_raw(const rwkvc_chat_template *chat) { return chat->raw; }

rwkvc_status rwkvc_chat_template_setting(const rwkvc_chat_template *chat, uint32_t i, const char **name,
                                         double *value) {
    if (i >= chat->n_settings) return rwkvc_fail(RWKVC_E_ARGUMENT, "the template has %u settings", chat->n_settings);
    *name = chat->settings[i].name;
    *value = chat->settings[i].value;
    return RWKVC_OK;
}

void rwkvc_chat_template_sampling(const rwkvc_chat_template *chat, rwkvc_sampler_options *o) {
    const struct {
        const char *name;
        float *real;
        uint32_t *whole;
    } fields[] = {{"temperature", &o->temperature, NULL},
                  {"top_k", NULL, &o->top_k},
                  {"top_p", &o->top_p, NULL},
                  {"min_p", &o->min_p, NULL},
                  {"top_a", &o->top_a, NULL},
                  {"typical_p", &o->typical_p, NULL},
                  {"xtc_probability", &o->xtc_probability, NULL},
                  {"xtc_threshold", &o->xtc_threshold, NULL},
                  {"mirostat_tau", &o->mirostat_tau, NULL},
                  {"mirostat_eta", &o->mirostat_eta, NULL},
                  {"presence_penalty", &o->presence_penalty, NULL},
                  {"frequency_penalty", &o->frequency_penalty, NULL},
                  {"repetition_penalty", &o->repetition_penalty, NULL},
                  {"penalty_decay", &o->penalty_decay, NULL},
                  {"dry_multiplier", &o->dry_multiplier, NULL},
                  {"dry_base", &o->dry_base, NULL},
                  {"dry_allowed_length", NULL, &o->dry_allowed_length},
                  {"dry_range", NULL, &o->dry_range}};
    for (uint32_t i = 0; i < chat->n_settings; i++)
        for (uint32_t f = 0; f < sizeof fields / sizeof fields[0]; f++) {
            double value = chat->settings[i].value;
            if (strcmp(chat->settings[i].name, fields[f].name) != 0) continue;
            if (fields[f].real) *fields[f].real = (float)value;
            if (fields[f].whole && value >= 0 && value <= UINT32_MAX) *fields[f].whole = (uint32_t)value;
        }
}

const char *rwkvc_chat_template_stop(const rwkvc_chat_template *chat, const char *think, uint32_t i) {
    const rwkvc_think_mode *mode = mode_named(think);
    bool separator_ends = false;
    for (uint32_t s = 0; s < chat->n_stops; s++)
        separator_ends = separator_ends || strcmp(chat->stops[s], chat->separator) == 0;
    if (mode && *mode->lead && separator_ends) return i < 3 ? chat->label_stops[i] : NULL;
    return i < chat->n_stops ? chat->stops[i] : NULL;
}

/* ----------------------------------------------------------------------------------------- writing */

static void add_text(rwkvc_buffer *out, const char *text) { rwkvc_buffer_add(out, text, strlen(text)); }

/* Without space around it. */
static void strip(const char **text, uint64_t *size) {
    size_t n;
    while ((n = rwkvc_space_at(*text, (size_t)*size))) *text += n, *size -= n;
    while ((n = rwkvc_space_before(*text, (size_t)*size))) *size -= n;
}

/* Line ends as \n, runs of them closed up, no space around. */
static void add_clean(rwkvc_buffer *out, const char *text, uint64_t size) {
    bool after_end = false;
    strip(&text, &size);
    for (uint64_t i = 0; i < size; i++) {
        char c = text[i];
        if (c == '\r' && i + 1 < size && text[i + 1] == '\n') continue;
        if (c == '\r') c = '\n';
        if (c != '\n' || !after_end) rwkvc_buffer_add(out, &c, 1);
        after_end = c == '\n';
    }
}

static void add_turn(const rwkvc_chat_template *c, uint32_t turn, const char *text, uint64_t size,
                     const rwkvc_think_mode *mode, rwkvc_buffer *out) {
    if (c->raw) {
        rwkvc_buffer_add(out, text, (size_t)size);
        return;
    }
    if (turn == RWKVC_TURN_ASSISTANT) {
        strip(&text, &size);
        if (size) add_text(out, " ");
        rwkvc_buffer_add(out, text, (size_t)size);
        add_text(out, c->separator);
        return;
    }
    rwkvc_buffer clean = {0};
    add_clean(&clean, text, size);
    bool user = turn == RWKVC_TURN_USER, words = turn != RWKVC_TURN_CLEAN && clean.size;
    if (words) add_text(out, user ? c->user : c->system);
    if (words) add_text(out, ": ");
    rwkvc_buffer_add(out, clean.bytes, clean.size);
    if (words && user) add_text(out, mode->remark);
    if (words) add_text(out, c->separator);
    if (words && user) {
        add_text(out, c->assistant);
        add_text(out, *mode->lead ? ": " : ":");
        add_text(out, mode->lead);
    }
    out->failed = out->failed || clean.failed;
    rwkvc_buffer_free(&clean);
}

rwkvc_status rwkvc_chat_template_turn(const rwkvc_chat_template *chat, uint32_t turn, const char *text,
                                      uint64_t size_bytes, const char *think, char *out, uint64_t room,
                                      uint64_t *written_bytes) {
    const rwkvc_think_mode *mode = mode_named(think);
    if (!chat || (!text && size_bytes) || (!out && room) || !written_bytes || turn > RWKVC_TURN_CLEAN)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no template, no such turn, no text, or nowhere to put it");
    if (!mode)
        return rwkvc_fail_hint(RWKVC_E_ARGUMENT, "The modes are off, short, on, long and none at all.",
                               "there is no think mode '%s'", think);
    if (*chat->jinja && turn != RWKVC_TURN_CLEAN)
        return rwkvc_fail_hint(RWKVC_E_UNSUPPORTED,
                               "Render rwkvc_chat_template_field(chat, \"jinja\") with a library of the host.",
                               "a Jinja template writes this model's conversations");
    rwkvc_buffer written = {0};
    add_turn(chat, turn, text, size_bytes, mode, &written);
    rwkvc_status status = RWKVC_OK;
    if (written.failed)
        status = rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    else if (turn == RWKVC_TURN_USER && written.size == 0)
        status = rwkvc_fail(RWKVC_E_ARGUMENT, "the message is empty");
    *written_bytes = status ? 0 : written.size;
    if (!status && written.size < room) {
        if (written.size) memcpy(out, written.bytes, written.size);
        out[written.size] = 0;
    }
    rwkvc_buffer_free(&written);
    return status;
}
