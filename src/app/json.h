/* SPDX-License-Identifier: Apache-2.0
 * A reader of small JSON documents (RFC 8259) from files that strangers wrote: a cursor that moves over the text, with
 * no tree, no memory of its own and no recursion deeper than it allows. */
#ifndef RWKVC_APP_JSON_H
#define RWKVC_APP_JSON_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* at NULL: the text broke JSON's rules, or those of the caller; every function then does nothing. */
typedef struct {
    const uint8_t *at, *end;
} rwkvc_json;

/* What stands next: one of { [ " t f n 0 (any number), or \0 at the end and after an error. */
char rwkvc_json_kind(rwkvc_json *json);
/* Step into an object or array: true if it begins here. */
bool rwkvc_json_enter(rwkvc_json *json, char open);
/* The next member: true, and before its value (the key is then the next string in an object); false: `close` was read.
 * *first is true before the first member and changed here. */
bool rwkvc_json_next(rwkvc_json *json, char close, bool *first);
/* A string, unescaped as UTF-8 into out[room], with a 0 behind it; its length. A longer one, and one with a character
 * U+0000 or half a surrogate pair, is an error. */
uint64_t rwkvc_json_string(rwkvc_json *json, char *out, uint64_t room);
/* The colon behind a key. */
void rwkvc_json_colon(rwkvc_json *json);
/* A number that is a whole one from 0 to 2^53. */
uint64_t rwkvc_json_whole(rwkvc_json *json);
double rwkvc_json_number(rwkvc_json *json);
bool rwkvc_json_boolean(rwkvc_json *json);
/* Any value, checked and left out. */
void rwkvc_json_skip(rwkvc_json *json);
/* Whether nothing but space is left, and no error was met. */
bool rwkvc_json_done(rwkvc_json *json);
/* Make it an error. */
void rwkvc_json_fail(rwkvc_json *json);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
