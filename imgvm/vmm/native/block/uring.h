/* SPDX-License-Identifier: MIT */
/* Linux's io_uring by its system calls (io_uring_setup(2), io_uring_enter(2)): one thread submits and reaps. */
#ifndef IMGVM_BLOCK_URING_H
#define IMGVM_BLOCK_URING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct io_uring_sqe;
struct io_uring_cqe;

struct uring {
    int fd;
    unsigned *sq_head, *sq_tail, *sq_array, sq_mask, sq_entries, tail; /* tail: ours, not yet the kernel's */
    unsigned *cq_head, *cq_tail, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *rings;
    size_t rings_bytes, sqes_bytes;
};

/* -errno when the host has none, or none that is good enough. */
int uring_open(struct uring *ring, unsigned entries);
void uring_close(struct uring *ring);

/* These queue an operation, whose `tag` comes back with its result. The kernel reads the pieces at
 * uring_enter. */
void uring_read(struct uring *ring, int fd, const struct iovec *pieces, unsigned count, uint64_t offset, uint64_t tag);
void uring_read_eventfd(struct uring *ring, int fd, uint64_t *value, uint64_t tag);
/* Submits all that is queued, and waits for `wait` results. */
int uring_enter(struct uring *ring, unsigned wait);
/* The next result, if there is one. */
bool uring_reap(struct uring *ring, uint64_t *tag, int *result);

#endif
