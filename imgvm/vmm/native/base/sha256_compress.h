/* SPDX-License-Identifier: MIT */
/* FIPS 180-4, 6.2.2, for blocks of 64 bytes one after another: in C, and by the host's SHA instructions. */
#ifndef IMGVM_BASE_SHA256_COMPRESS_H
#define IMGVM_BASE_SHA256_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern const uint32_t sha256_round_constants[64];

void sha256_compress_portable(uint32_t state[8], const uint8_t *data, size_t blocks);

bool sha256_host_has_sha(void);
void sha256_compress_sha(uint32_t state[8], const uint8_t *data, size_t blocks); /* only if the host has it */

#endif
