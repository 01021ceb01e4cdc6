/* SPDX-License-Identifier: Apache-2.0
 * Texts in UTF-8: a growing one, and what counts as space. */
#ifndef RWKVC_APP_TEXT_H
#define RWKVC_APP_TEXT_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* Bytes that grow. failed: there was no memory for some; they are not in it, and nothing is added any more. */
typedef struct {
    char *bytes;
    size_t size, room;
    bool failed;
} rwkvc_buffer;

void rwkvc_buffer_add(rwkvc_buffer *buffer, const char *bytes, size_t size);
/* Take n bytes away at the beginning. */
void rwkvc_buffer_drop(rwkvc_buffer *buffer, size_t n);
void rwkvc_buffer_free(rwkvc_buffer *buffer);

/* Bytes of the character that begins with `lead`, 0 if none does; its second byte must lie in *low .. *high, the others in
 * 0x80 .. 0xbf. */
uint32_t rwkvc_character_bytes(uint8_t lead, uint8_t *low, uint8_t *high);
bool rwkvc_is_utf8(const char *text, size_t size);

/* Bytes of the white space character (Unicode's, and the separators U+001C to U+001F, as Python's str.strip takes them)
 * that begins at text, or that ends at text + size; 0: there is none. */
size_t rwkvc_space_at(const char *text, size_t size);
size_t rwkvc_space_before(const char *text, size_t size);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
