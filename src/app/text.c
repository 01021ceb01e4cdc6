/* SPDX-License-Identifier: Apache-2.0
 * See text.h. */
#include "app/small.h"

#include "app/text.h"

#include <stdlib.h>

void rwkvc_buffer_add(rwkvc_buffer *buffer, const char *bytes, size_t size) {
    if (buffer->failed || size == 0) return;
    if (size > buffer->room - buffer->size) {
        size_t room = 2 * buffer->room + size + 64;
        char *grown = realloc(buffer->bytes, room);
        if (!grown) {
            buffer->failed = true;
            return;
        }
        buffer->bytes = grown;
        buffer->room = room;
    }
    memcpy(buffer->bytes + buffer->size, bytes, size);
    buffer->size += size;
}

void rwkvc_buffer_drop(rwkvc_buffer *buffer, size_t n) {
    buffer->size -= n;
    if (buffer->size) memmove(buffer->bytes, buffer->bytes + n, buffer->size);
}

void rwkvc_buffer_free(rwkvc_buffer *buffer) {
    free(buffer->bytes);
    *buffer = (rwkvc_buffer){0};
}

uint32_t rwkvc_character_bytes(uint8_t lead, uint8_t *low, uint8_t *high) {
    *low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    *high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) return 3;
    return lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
}

bool rwkvc_is_utf8(const char *text, size_t size) {
    const uint8_t *b = (const uint8_t *)text;
    for (size_t i = 0; i < size;) {
        uint8_t low, high;
        uint32_t n = rwkvc_character_bytes(b[i], &low, &high);
        if (n == 0 || n > size - i) return false;
        for (uint32_t k = 1; k < n; k++, low = 0x80, high = 0xbf)
            if (b[i + k] < low || b[i + k] > high) return false;
        i += n;
    }
    return true;
}

static bool is_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f ||
           code == 0x205f || code == 0x3000;
}

/* All of them are below U+10000 and none needs more than 3 bytes. */
size_t rwkvc_space_at(const char *text, size_t size) {
    const uint8_t *b = (const uint8_t *)text;
    if (size >= 1 && b[0] < 0x80) return is_space(b[0]) ? 1 : 0;
    if (size >= 2 && (b[0] & 0xe0) == 0xc0) return is_space((b[0] & 0x1fu) << 6 | (b[1] & 0x3fu)) ? 2 : 0;
    if (size >= 3 && (b[0] & 0xf0) == 0xe0)
        return is_space((b[0] & 0x0fu) << 12 | (b[1] & 0x3fu) << 6 | (b[2] & 0x3fu)) ? 3 : 0;
    return 0;
}

size_t rwkvc_space_before(const char *text, size_t size) {
    for (size_t n = 1; n <= 3 && n <= size; n++)
        if (((uint8_t)text[size - n] & 0xc0) != 0x80) return rwkvc_space_at(text + size - n, n) == n ? n : 0;
    return 0;
}
