/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "uring.h"

#include <errno.h>

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/bits.h"

/* Linux 5.12: both rings in one mapping, no result lost, buffers of submitted operations free again, waiting for an
 * eventfd without a thread, and workers that are threads of this process. */
#define FEATURES_NEEDED                                                                                         \
    (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_FAST_POLL |         \
     IORING_FEAT_NATIVE_WORKERS)

static int map_rings(struct uring *ring, const struct io_uring_params *params)
{
    ring->rings_bytes = MAX(params->sq_off.array + params->sq_entries * sizeof(unsigned),
                            params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe));
    ring->sqes_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
    ring->rings = mmap(NULL, ring->rings_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                       IORING_OFF_SQ_RING);
    ring->sqes = mmap(NULL, ring->sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (ring->rings == MAP_FAILED || (void *)ring->sqes == MAP_FAILED)
        return -ENOMEM;
    uint8_t *base = ring->rings;
    ring->sq_head = (unsigned *)(base + params->sq_off.head);
    ring->sq_tail = (unsigned *)(base + params->sq_off.tail);
    ring->sq_array = (unsigned *)(base + params->sq_off.array);
    ring->sq_mask = *(unsigned *)(base + params->sq_off.ring_mask);
    ring->sq_entries = params->sq_entries;
    ring->cq_head = (unsigned *)(base + params->cq_off.head);
    ring->cq_tail = (unsigned *)(base + params->cq_off.tail);
    ring->cq_mask = *(unsigned *)(base + params->cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(base + params->cq_off.cqes);
    ring->tail = *ring->sq_tail;
    return 0;
}

int uring_open(struct uring *ring, unsigned entries)
{
    struct io_uring_params params = {0};
    *ring = (struct uring){.rings = MAP_FAILED, .sqes = MAP_FAILED};
    ring->fd = (int)syscall(SYS_io_uring_setup, entries, &params);
    if (ring->fd < 0)
        return -errno;
    int result = (params.features & FEATURES_NEEDED) == FEATURES_NEEDED ? map_rings(ring, &params) : -ENOSYS;
    if (result)
        uring_close(ring);
    return result;
}

void uring_close(struct uring *ring)
{
    if (ring->rings != MAP_FAILED)
        munmap(ring->rings, ring->rings_bytes);
    if ((void *)ring->sqes != MAP_FAILED)
        munmap(ring->sqes, ring->sqes_bytes);
    close(ring->fd);
}

static struct io_uring_sqe *next_sqe(struct uring *ring)
{
    while (ring->tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->sq_entries)
        uring_enter(ring, 0);
    unsigned index = ring->tail++ & ring->sq_mask;
    ring->sq_array[index] = index;
    memset(&ring->sqes[index], 0, sizeof ring->sqes[index]);
    return &ring->sqes[index];
}

void uring_read(struct uring *ring, int fd, const struct iovec *pieces, unsigned count, uint64_t offset, uint64_t tag)
{
    struct io_uring_sqe *sqe = next_sqe(ring);
    sqe->fd = fd;
    sqe->off = offset;
    sqe->user_data = tag;
    if (count == 1 && pieces->iov_len <= INT32_MAX) { /* saves the kernel a copy */
        sqe->opcode = IORING_OP_READ;
        sqe->addr = (uintptr_t)pieces->iov_base;
        sqe->len = (unsigned)pieces->iov_len;
    } else {
        sqe->opcode = IORING_OP_READV;
        sqe->addr = (uintptr_t)pieces;
        sqe->len = count;
    }
}

void uring_read_eventfd(struct uring *ring, int fd, uint64_t *value, uint64_t tag)
{
    struct io_uring_sqe *sqe = next_sqe(ring);
    sqe->opcode = IORING_OP_READ;
    sqe->fd = fd;
    sqe->addr = (uintptr_t)value;
    sqe->len = sizeof *value;
    sqe->user_data = tag;
}

int uring_enter(struct uring *ring, unsigned wait)
{
    unsigned pending = ring->tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
    int result = (int)syscall(SYS_io_uring_enter, ring->fd, pending, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
    return result < 0 ? -errno : 0;
}

bool uring_reap(struct uring *ring, uint64_t *tag, int *result)
{
    unsigned head = *ring->cq_head; /* only we change it */
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        return false;
    const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
    *tag = cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

#else

int uring_open(struct uring *ring, unsigned entries)
{
    (void)ring, (void)entries;
    return -ENOSYS;
}

void uring_close(struct uring *ring) { (void)ring; }

void uring_read(struct uring *ring, int fd, const struct iovec *pieces, unsigned count, uint64_t offset, uint64_t tag)
{
    (void)ring, (void)fd, (void)pieces, (void)count, (void)offset, (void)tag;
}

void uring_read_eventfd(struct uring *ring, int fd, uint64_t *value, uint64_t tag)
{
    (void)ring, (void)fd, (void)value, (void)tag;
}

int uring_enter(struct uring *ring, unsigned wait)
{
    (void)ring, (void)wait;
    return -ENOSYS;
}

bool uring_reap(struct uring *ring, uint64_t *tag, int *result)
{
    (void)ring, (void)tag, (void)result;
    return false;
}

#endif
