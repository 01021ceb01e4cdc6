/* SPDX-License-Identifier: Apache-2.0
 * Digests of files and texts; rwkv_cpu.h has their checksum, CRC-32. */
#ifndef RWKVC_APP_DIGEST_H
#define RWKVC_APP_DIGEST_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

/* SHA-256 (FIPS 180-4). */
void rwkvc_sha256(const uint8_t *bytes, uint64_t size, uint8_t digest[32]);

/* BLAKE2b with a digest of 16 bytes and no key (RFC 7693). */
void rwkvc_blake2b_16(const uint8_t *bytes, uint64_t size, uint8_t digest[16]);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif
