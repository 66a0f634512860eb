/*
 * sha256.h: SHA-256 of bytes, and HMAC with it (RFC 2104), by libcrypto. A library of its own
 * (atelier_hash), because the engine builds without libcrypto.
 *
 *     char hex[SHA256_HEX_BYTES];
 *     sha256_hex(hex, bytes, len);
 */
#ifndef ATELIER_COMMON_SHA256_H
#define ATELIER_COMMON_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32
#define SHA256_HEX_BYTES 65 /* with the NUL */

void sha256(uint8_t out[SHA256_BYTES], const void *bytes, size_t len);
void sha256_hex(char out[SHA256_HEX_BYTES], const void *bytes, size_t len);

/* The first eight bytes as a big-endian number: a key for tables. */
uint64_t sha256_u64(const void *bytes, size_t len);

void hmac_sha256(uint8_t out[SHA256_BYTES], const void *key, size_t key_len, const void *bytes,
                 size_t len);

#endif
