/* SPDX-License-Identifier: Apache-2.0
 * What a model writes, as text for people: whole characters, up to the stop, the thought apart from the answer. Three
 * stages, each of which holds back what is not yet certain:
 *
 *     bytes of tokens -> characters -> text before a stop string -> thought | answer
 */
#include "app/small.h"

#include <stdlib.h>

#include "app/text.h"

#define OPEN "<think"
#define CLOSE "</think"
enum { OPEN_BYTES = sizeof OPEN - 1, CLOSE_BYTES = sizeof CLOSE - 1 };

struct rwkvc_reader {
    bool decodes, thinks, stopped, failed;
    uint8_t partial[4]; /* the beginning of a character */
    uint32_t n_partial;
    char **stops;
    uint32_t n_stops, matched;
    size_t longest;
    rwkvc_buffer withheld; /* what may be the beginning of a stop */
    enum { START, THOUGHT, CLOSING, ANSWER } part;
    rwkvc_buffer held; /* what may be the beginning of a mark */
    rwkvc_buffer thought, text;
};

/* -------------------------------------------------------------------------------------- characters */

static void replacement(rwkvc_buffer *out) { rwkvc_buffer_add(out, "\xef\xbf\xbd", 3); }

/* Each maximal part of an ill-formed sequence becomes one U+FFFD (Unicode 15, section 3.9, table 3-8). */
static void decode_byte(rwkvc_reader *r, uint8_t byte, rwkvc_buffer *out) {
    uint8_t low, high;
    if (r->n_partial) {
        uint32_t size = rwkvc_character_bytes(r->partial[0], &low, &high);
        if (r->n_partial > 1) low = 0x80, high = 0xbf;
        if (byte >= low && byte <= high) {
            r->partial[r->n_partial++] = byte;
            if (r->n_partial == size) {
                rwkvc_buffer_add(out, (const char *)r->partial, size);
                r->n_partial = 0;
            }
            return;
        }
        replacement(out);
        r->n_partial = 0;
    }
    uint32_t size = rwkvc_character_bytes(byte, &low, &high);
    if (size == 1)
        rwkvc_buffer_add(out, (const char *)&byte, 1);
    else if (size)
        r->partial[r->n_partial++] = byte;
    else
        replacement(out);
}

/* ------------------------------------------------------------------------------------------- stops */

static size_t find(const char *text, size_t size, const char *what, size_t n) {
    for (size_t at = 0; at + n <= size; at++)
        if (text[at] == what[0] && memcmp(text + at, what, n) == 0) return at;
    return SIZE_MAX;
}

/* How many bytes at the end of the text may be the beginning of a stop. */
static size_t undecided(const rwkvc_reader *r, const char *text, size_t size) {
    size_t n = r->longest ? r->longest - 1 : 0;
    for (n = n < size ? n : size; n; n--)
        for (uint32_t i = 0; i < r->n_stops; i++)
            if (strlen(r->stops[i]) > n && memcmp(r->stops[i], text + size - n, n) == 0) return n;
    return 0;
}

/* The stop that is complete first counts; of two that end together, the longer. */
static void pass_stops(rwkvc_reader *r, rwkvc_buffer *in, rwkvc_buffer *out, bool last) {
    rwkvc_buffer *all = &r->withheld;
    rwkvc_buffer_add(all, in->bytes, in->size);
    size_t end = SIZE_MAX, begin = 0;
    for (uint32_t i = 0; i < r->n_stops && all->size; i++) {
        size_t n = strlen(r->stops[i]), at = find(all->bytes, all->size, r->stops[i], n);
        if (at == SIZE_MAX || at + n > end || (at + n == end && at > begin)) continue;
        end = at + n;
        begin = at;
        r->stopped = true;
        r->matched = i;
    }
    size_t ready = r->stopped ? begin : all->size - (last ? 0 : undecided(r, all->bytes, all->size));
    rwkvc_buffer_add(out, all->bytes, ready);
    rwkvc_buffer_drop(all, r->stopped ? all->size : ready);
}

/* ---------------------------------------------------------------------------------------- thoughts */

static bool starts(const rwkvc_buffer *text, size_t at, const char *what, size_t n) {
    return text->size - at >= n && memcmp(text->bytes + at, what, n) == 0;
}

/* A thought can only stand at the start. Whether it is clear by now if there is one. */
static bool opened(rwkvc_reader *r) {
    rwkvc_buffer *held = &r->held;
    size_t at = 0, n;
    while (at < held->size && (n = rwkvc_space_at(held->bytes + at, held->size - at))) at += n;
    size_t begun = held->size - at;
    if (starts(held, at, OPEN, OPEN_BYTES)) {
        if (begun == OPEN_BYTES) return false;
        r->part = THOUGHT;
        rwkvc_buffer_drop(held, at + OPEN_BYTES + (held->bytes[at + OPEN_BYTES] == '>'));
        return true;
    }
    if (begun == 0 || (begun < OPEN_BYTES && memcmp(held->bytes + at, OPEN, begun) == 0)) return false;
    r->part = ANSWER;
    return true;
}

static void think(rwkvc_reader *r) {
    rwkvc_buffer *held = &r->held;
    size_t at = find(held->bytes, held->size, CLOSE, CLOSE_BYTES), kept = CLOSE_BYTES - 1;
    if (at != SIZE_MAX) {
        rwkvc_buffer_add(&r->thought, held->bytes, at);
        rwkvc_buffer_drop(held, at + CLOSE_BYTES);
        r->part = CLOSING;
        return;
    }
    if (kept > held->size) kept = held->size;
    while (kept && memcmp(held->bytes + held->size - kept, CLOSE, kept) != 0) kept--;
    rwkvc_buffer_add(&r->thought, held->bytes, held->size - kept);
    rwkvc_buffer_drop(held, held->size - kept);
}

static void pass_thoughts(rwkvc_reader *r, rwkvc_buffer *in, bool last) {
    rwkvc_buffer *held = &r->held;
    rwkvc_buffer_add(held, in->bytes, in->size);
    if (!r->thinks) r->part = ANSWER;
    if (r->part == START && held->size) opened(r);
    if (r->part == THOUGHT && held->size) think(r);
    if (r->part == CLOSING && held->size) {
        if (held->bytes[0] == '>') rwkvc_buffer_drop(held, 1);
        r->part = ANSWER;
    }
    if (r->part == ANSWER || last) {
        rwkvc_buffer_add(r->part == THOUGHT ? &r->thought : &r->text, held->bytes, held->size);
        rwkvc_buffer_drop(held, held->size);
    }
}

/* ------------------------------------------------------------------------------------------ public */

void rwkvc_reader_defaults(rwkvc_reader_options *options) {
    *options = (rwkvc_reader_options){.struct_size = sizeof *options, .decode = 1, .thoughts = 1};
}

static bool copy_stops(rwkvc_reader *r, const rwkvc_reader_options *o) {
    if (o->n_stops == 0) return true;
    r->stops = calloc(o->n_stops, sizeof *r->stops);
    for (uint32_t i = 0; r->stops && i < o->n_stops; i++) {
        size_t n = strlen(o->stops[i]);
        if (!(r->stops[i] = malloc(n + 1))) return false;
        memcpy(r->stops[i], o->stops[i], n + 1);
        r->n_stops = i + 1;
        if (n > r->longest) r->longest = n;
    }
    return r->stops != NULL;
}

rwkvc_status rwkvc_reader_create(const rwkvc_reader_options *options, rwkvc_reader **reader) {
    rwkvc_reader_options o;
    rwkvc_reader_defaults(&o);
    if (!reader) return rwkvc_fail(RWKVC_E_ARGUMENT, "nowhere to put the reader");
    *reader = NULL;
    if (options && options->struct_size < sizeof o)
        return rwkvc_fail(RWKVC_E_ARGUMENT, "reader options of %u bytes: set struct_size", options->struct_size);
    if (options) o = *options;
    if (o.n_stops && !o.stops) return rwkvc_fail(RWKVC_E_ARGUMENT, "%u stops, and none given", o.n_stops);
    for (uint32_t i = 0; i < o.n_stops; i++)
        if (!o.stops[i] || !*o.stops[i])
            return rwkvc_fail(RWKVC_E_ARGUMENT, "a stop must be a text of at least one character");
    rwkvc_reader *r = calloc(1, sizeof *r);
    if (r) {
        r->decodes = o.decode;
        r->thinks = o.thoughts;
        if (o.lead) rwkvc_buffer_add(&r->held, o.lead, strlen(o.lead));
    }
    if (!r || !copy_stops(r, &o) || r->held.failed) {
        rwkvc_reader_destroy(r);
        return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    }
    *reader = r;
    return RWKVC_OK;
}

void rwkvc_reader_destroy(rwkvc_reader *reader) {
    if (!reader) return;
    for (uint32_t i = 0; i < reader->n_stops; i++) free(reader->stops[i]);
    free(reader->stops);
    rwkvc_buffer_free(&reader->withheld);
    rwkvc_buffer_free(&reader->held);
    rwkvc_buffer_free(&reader->thought);
    rwkvc_buffer_free(&reader->text);
    free(reader);
}

static rwkvc_status advance(rwkvc_reader *r, const uint8_t *bytes, uint64_t size, bool last, rwkvc_piece *piece) {
    rwkvc_buffer characters = {0}, before_stop = {0};
    r->thought.size = r->text.size = 0;
    if (!r->stopped) {
        if (!r->decodes) rwkvc_buffer_add(&characters, (const char *)bytes, (size_t)size);
        for (uint64_t i = 0; r->decodes && i < size; i++) decode_byte(r, bytes[i], &characters);
        if (last && r->n_partial) replacement(&characters);
        if (last) r->n_partial = 0;
        pass_stops(r, &characters, &before_stop, last);
    }
    pass_thoughts(r, &before_stop, last);
    r->failed = r->failed || characters.failed || before_stop.failed || r->withheld.failed || r->held.failed ||
                r->thought.failed || r->text.failed;
    rwkvc_buffer_free(&characters);
    rwkvc_buffer_free(&before_stop);
    if (r->failed) return rwkvc_fail(RWKVC_E_NOMEM, "out of memory");
    *piece = (rwkvc_piece){r->thought.bytes, r->thought.size, r->text.bytes, r->text.size};
    return RWKVC_OK;
}

rwkvc_status rwkvc_reader_feed(rwkvc_reader *reader, const uint8_t *bytes, uint64_t size_bytes, rwkvc_piece *piece) {
    if (!reader || !piece || (!bytes && size_bytes))
        return rwkvc_fail(RWKVC_E_ARGUMENT, "no reader, no bytes, or nowhere to put the piece");
    return advance(reader, bytes, size_bytes, false, piece);
}

rwkvc_status rwkvc_reader_finish(rwkvc_reader *reader, rwkvc_piece *piece) {
    if (!reader || !piece) return rwkvc_fail(RWKVC_E_ARGUMENT, "no reader, or nowhere to put the piece");
    return advance(reader, NULL, 0, true, piece);
}

const char *rwkvc_reader_stopped(const rwkvc_reader *reader) {
    return reader->stopped ? reader->stops[reader->matched] : NULL;
}

uint64_t rwkvc_reader_withheld(const rwkvc_reader *reader, const char **text) {
    *text = reader->withheld.bytes;
    return reader->withheld.size;
}

int32_t rwkvc_reader_thinking(const rwkvc_reader *reader) { return reader->part == THOUGHT; }
