/* SPDX-License-Identifier: MIT */
/* The half MD4 of names in a directory of ext4 (fs/ext4/hash.c), with bytes as signed numbers. */
#include <string.h>

#include "../include/imgvm_api.h"
#include "bits.h"

#define PART_BYTES 32

static uint32_t rotate(uint32_t value, unsigned by)
{
    return value << by | value >> (32 - by);
}

/* Up to 32 bytes as eight words; `left` is how much of the name there is from here on. */
static void words_of(const uint8_t *part, size_t left, uint32_t words[8])
{
    uint32_t pad = (uint8_t)left * UINT32_C(0x01010101), word = pad;
    size_t bytes = MIN(left, PART_BYTES), count = 0;
    for (size_t i = 0; i < bytes; i++) {
        word = (uint32_t)(int8_t)part[i] + (word << 8);
        if (i % 4 == 3) {
            words[count++] = word;
            word = pad;
        }
    }
    if (count < 8)
        words[count++] = word;
    while (count < 8)
        words[count++] = pad;
}

/* RFC 1320's three rounds, each with half of the words' uses. */
static void mix(uint32_t state[4], const uint32_t words[8])
{
    static const uint8_t order[3][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 5, 7, 0, 2, 4, 6}, {3, 7, 2, 6, 1, 5, 0, 4}};
    static const uint8_t shifts[3][4] = {{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}};
    static const uint32_t added[3] = {0, 0x5a827999, 0x6ed9eba1};
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < 8; i++) {
            uint32_t f = round == 0 ? (d ^ (b & (c ^ d))) : round == 1 ? (b & c) + ((b ^ c) & d) : b ^ c ^ d;
            uint32_t mixed = rotate(a + f + words[order[round][i]] + added[round], shifts[round][i % 4]);
            a = d;
            d = c;
            c = b;
            b = mixed;
        }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

void imgvm_ext4_name_hash(const uint32_t seed[4], const uint8_t *name, uint32_t bytes, uint32_t out[2])
{
    static const uint32_t usual[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
    uint32_t state[4], words[8];
    memcpy(state, seed[0] | seed[1] | seed[2] | seed[3] ? seed : usual, sizeof state);
    for (uint32_t at = 0; at < bytes; at += PART_BYTES) {
        words_of(name + at, bytes - at, words);
        mix(state, words);
    }
    out[0] = state[1] & ~1u;
    if (out[0] == 0xfffffffe) /* means the end to who reads the directory */
        out[0] = 0xfffffffc;
    out[1] = state[2];
}
