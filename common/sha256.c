#include "common/sha256.h"

#include "common/err.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>

void sha256(uint8_t out[SHA256_BYTES], const void *bytes, size_t len)
{
    /* Fails only where the library itself is broken. */
    int ok = EVP_Digest(bytes, len, out, NULL, EVP_sha256(), NULL);
    ASSERT(ok == 1);
}

void sha256_hex(char out[SHA256_HEX_BYTES], const void *bytes, size_t len)
{
    uint8_t digest[SHA256_BYTES];
    sha256(digest, bytes, len);
    for (int i = 0; i < SHA256_BYTES; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

uint64_t sha256_u64(const void *bytes, size_t len)
{
    uint8_t digest[SHA256_BYTES];
    uint64_t value = 0;
    sha256(digest, bytes, len);
    for (int i = 0; i < 8; i++)
        value = value << 8 | digest[i];
    return value;
}

void hmac_sha256(uint8_t out[SHA256_BYTES], const void *key, size_t key_len, const void *bytes,
                 size_t len)
{
    const uint8_t *done = HMAC(EVP_sha256(), key, (int)key_len, bytes, len, out, NULL);
    ASSERT(done);
}
