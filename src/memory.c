/* SPDX-License-Identifier: Apache-2.0
 * Aligned memory and the checksum of the file's table. */
#include <stdlib.h>

#include "internal.h"

void *rwkvc_alloc(uint64_t size_bytes) {
    if (size_bytes > SIZE_MAX - RWKVC_ALIGN) return NULL;
    size_t size = (size_t)rwkvc_round_up(size_bytes ? size_bytes : 1, RWKVC_ALIGN);
    void *memory = aligned_alloc(RWKVC_ALIGN, size);
    if (memory) memset(memory, 0, size);
    return memory;
}

void rwkvc_free(void *memory) { free(memory); }

/* CRC-32 as in zlib: polynomial 0xedb88320, reflected. Only ever over a table of some kilobytes. */
uint32_t rwkvc_crc32(const uint8_t *bytes, uint64_t size) {
    uint32_t crc = 0xffffffffu;
    for (uint64_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}
