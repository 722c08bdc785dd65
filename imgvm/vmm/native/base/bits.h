/* SPDX-License-Identifier: MIT */
/* Small helpers that every floor uses: bit fields, little-endian and big-endian access. */
#ifndef IMGVM_BASE_BITS_H
#define IMGVM_BASE_BITS_H

#include <stddef.h>
#include <stdint.h>

#define BIT(n) (UINT64_C(1) << (n))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Bits hi..lo of value, shifted down. */
static inline uint64_t bits_get(uint64_t value, unsigned hi, unsigned lo)
{
    return (value >> lo) & (~UINT64_C(0) >> (63 - (hi - lo)));
}

/* An access of `size` bytes (1, 2, 4, 8) as a mask. */
static inline uint64_t bits_mask_bytes(unsigned size)
{
    return size >= 8 ? ~UINT64_C(0) : BIT(8 * size) - 1;
}

static inline uint64_t align_down(uint64_t v, uint64_t a) { return v & ~(a - 1); }
static inline uint64_t align_up(uint64_t v, uint64_t a) { return (v + a - 1) & ~(a - 1); }

static inline uint16_t load_be16(const void *p) { uint16_t v; __builtin_memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline uint32_t load_be32(const void *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t load_be64(const void *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return __builtin_bswap64(v); }
static inline uint16_t load_le16(const void *p) { uint16_t v; __builtin_memcpy(&v, p, 2); return v; }
static inline uint32_t load_le32(const void *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return v; }
static inline uint64_t load_le64(const void *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return v; }
static inline void store_be16(void *p, uint16_t v) { v = __builtin_bswap16(v); __builtin_memcpy(p, &v, 2); }
static inline void store_be32(void *p, uint32_t v) { v = __builtin_bswap32(v); __builtin_memcpy(p, &v, 4); }
static inline void store_be64(void *p, uint64_t v) { v = __builtin_bswap64(v); __builtin_memcpy(p, &v, 8); }
static inline void store_le16(void *p, uint16_t v) { __builtin_memcpy(p, &v, 2); }
static inline void store_le32(void *p, uint32_t v) { __builtin_memcpy(p, &v, 4); }
static inline void store_le64(void *p, uint64_t v) { __builtin_memcpy(p, &v, 8); }

#endif
