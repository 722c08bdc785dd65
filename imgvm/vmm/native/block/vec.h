/* SPDX-License-Identifier: MIT */
/* The memory of a request, in pieces, consumed from the front. */
#ifndef IMGVM_BLOCK_VEC_H
#define IMGVM_BLOCK_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "../base/bits.h"

#define VEC_PIECES_MAX 64 /* handed to one system call */

struct vec {
    const struct iovec *piece;
    size_t used; /* bytes of *piece that are consumed */
};

/* The next stretch of memory, at most `bytes` long; consumes it. `bytes` is not 0 and is there. */
static inline struct iovec vec_next(struct vec *vec, uint64_t bytes)
{
    while (vec->used == vec->piece->iov_len) {
        vec->piece++;
        vec->used = 0;
    }
    struct iovec out = {(uint8_t *)vec->piece->iov_base + vec->used, vec->piece->iov_len - vec->used};
    out.iov_len = MIN(out.iov_len, bytes);
    vec->used += out.iov_len;
    return out;
}

static inline void vec_zero(struct vec *vec, uint64_t bytes)
{
    while (bytes) {
        struct iovec part = vec_next(vec, bytes);
        memset(part.iov_base, 0, part.iov_len);
        bytes -= part.iov_len;
    }
}

static inline void vec_put(struct vec *vec, const uint8_t *data, uint64_t bytes)
{
    while (bytes) {
        struct iovec part = vec_next(vec, bytes);
        memcpy(part.iov_base, data, part.iov_len);
        data += part.iov_len;
        bytes -= part.iov_len;
    }
}

static inline void vec_get(struct vec *vec, uint8_t *data, uint64_t bytes)
{
    while (bytes) {
        struct iovec part = vec_next(vec, bytes);
        memcpy(data, part.iov_base, part.iov_len);
        data += part.iov_len;
        bytes -= part.iov_len;
    }
}

static inline void vec_skip(struct vec *vec, uint64_t bytes)
{
    while (bytes)
        bytes -= vec_next(vec, bytes).iov_len;
}

/* Up to VEC_PIECES_MAX pieces of at most `bytes` in all; *taken is how many bytes they are. */
static inline int vec_take(struct vec *vec, uint64_t bytes, struct iovec out[VEC_PIECES_MAX], uint64_t *taken)
{
    int count = 0;
    for (*taken = 0; *taken < bytes && count < VEC_PIECES_MAX; count++) {
        out[count] = vec_next(vec, bytes - *taken);
        *taken += out[count].iov_len;
    }
    return count;
}

#endif
