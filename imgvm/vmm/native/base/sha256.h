/* SPDX-License-Identifier: MIT */
/* SHA-256 (FIPS 180-4), for the digests inside images. */
#ifndef IMGVM_BASE_SHA256_H
#define IMGVM_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

struct sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
    void (*compress)(uint32_t state[8], const uint8_t *data, size_t blocks); /* sha256_compress.h */
};

void sha256_init(struct sha256 *sha);
void sha256_update(struct sha256 *sha, const void *data, size_t bytes);
void sha256_final(struct sha256 *sha, uint8_t digest[SHA256_BYTES]);
void sha256(const void *data, size_t bytes, uint8_t digest[SHA256_BYTES]);

#endif
