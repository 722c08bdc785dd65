/* SPDX-License-Identifier: MIT */
/* The split virtqueue (VIRTIO 1.2, 2.7), device side. The guest may be hostile and may change the rings while they
 * are read: each word is read once, each index and length is checked, and the first nonsense breaks the queue for
 * good (until reset). Callers serialise on the board lock; only the spans of a popped chain may be used without it. */
#ifndef IMGVM_DEV_VIRTIO_QUEUE_H
#define IMGVM_DEV_VIRTIO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "../../mem/guest_mem.h"

#define VIRTQ_SIZE_MAX 1024
#define VIRTQ_SPANS_MAX 1024

#define VIRTQ_DESC_F_NEXT 1
#define VIRTQ_DESC_F_WRITE 2
#define VIRTQ_DESC_F_INDIRECT 4
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1
#define VIRTQ_USED_F_NO_NOTIFY 1

struct virtqueue {
    /* set by the driver through the transport */
    uint16_t size_max, size;
    bool enabled;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    /* running state */
    uint16_t next_avail;  /* next avail ring entry to take */
    uint16_t used_idx;    /* next used ring entry to fill */
    uint16_t signalled;   /* used_idx at the last interrupt decision (event idx) */
    bool signalled_valid;
    bool event_idx, indirect; /* negotiated */
    bool broken;
    const char *broken_why; /* static text, for the log */
    /* derived from the addresses; recomputed when state is loaded */
    const struct guest_mem *mem;
    uint8_t *desc, *avail, *used;
};

/* A piece of guest memory, contiguous for the host. */
struct virtq_span {
    uint8_t *host;
    uint64_t gpa;
    uint32_t bytes;
};

struct virtq_chain {
    uint16_t head;
    uint16_t out_count, in_count; /* spans[0..out_count) the device reads, then in_count it writes */
    uint32_t out_bytes, in_bytes;
    struct virtq_span spans[VIRTQ_SPANS_MAX];
};

void virtqueue_init(struct virtqueue *queue, const struct guest_mem *mem, uint16_t size_max);
void virtqueue_reset(struct virtqueue *queue);
/* Checks the addresses and starts the queue; the queue is broken when they are not RAM or misaligned. */
void virtqueue_enable(struct virtqueue *queue, bool event_idx, bool indirect);

/* The derived part of it, after the state was loaded. */
void virtqueue_attach(struct virtqueue *queue);

/* 1: *chain is the next chain. 0: none left, and the driver has been asked to notify about the next. -1: broken. */
int virtqueue_pop(struct virtqueue *queue, struct virtq_chain *chain);
/* Has the driver offered more than was popped? A hint, as the driver may go on at any time. */
bool virtqueue_pending(const struct virtqueue *queue);
/* Return the chain; `written` bytes from the start of its in part hold data. */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);
/* After pushing: does the driver want an interrupt? */
bool virtqueue_should_interrupt(struct virtqueue *queue);
/* Ask for no notifications until virtqueue_pop finds the ring empty (a hint; costs nothing to ignore). */
void virtqueue_busy(struct virtqueue *queue);
void virtqueue_break(struct virtqueue *queue, const char *why);

/* Copy from the out part, or into the in part (cached guest code is told). Bytes copied: less than asked at the end. */
uint32_t virtq_chain_read(const struct virtq_chain *chain, uint32_t offset, void *data, uint32_t bytes);
uint32_t virtq_chain_write(const struct guest_mem *mem, const struct virtq_chain *chain, uint32_t offset,
                           const void *data, uint32_t bytes);
uint32_t virtq_chain_zero(const struct guest_mem *mem, const struct virtq_chain *chain, uint32_t offset,
                          uint32_t bytes);

#endif
