/* SPDX-License-Identifier: MIT */
/* virtio-blk (VIRTIO 1.2, 5.2) over an image. The image's queue (block/queue.h) does the I/O on threads of its own, many
 * requests at a time, so that no vCPU waits for it; they take the board lock only to fetch a request and to return it.
 * Requests in flight have no order; a flush makes durable what was returned before it was fetched, as the specification asks.
 * Features: SEG_MAX, BLK_SIZE, FLUSH (write-back; each change is flushed for a driver that does not take it, or is not offered it),
 * DISCARD, WRITE_ZEROES, RO. No multiqueue. */
#ifndef IMGVM_DEV_VIRTIO_BLK_H
#define IMGVM_DEV_VIRTIO_BLK_H

#include "../../block/queue.h"
#include "device.h"

#define VIRTIO_BLK_ID_BYTES 20

struct virtio_blk_config {
    imgvm_image *image; /* borrowed until the device is destroyed */
    bool read_only;
    const char *serial; /* at most 20 bytes are kept; may be NULL */
    uint32_t cache;     /* IMGVM_CACHE_* */
    bool keeps_space;   /* nothing that the driver asks for gives space back to the host */
    struct guest_mem *mem;
    pthread_mutex_t *lock;
    enum block_queue_kind queue_kind;
};

struct virtio_blk_stats {
    uint64_t reads, writes, flushes;
    uint64_t errors, host_errors; /* not answered with OK; those of them that are not the driver's fault */
    imgvm_error first_error; /* code 0: none yet */
};

/* Gives the device for virtio_pci_create; its destroy stops the workers (the board lock must be free). */
int virtio_blk_create(struct virtio_device **out, const struct virtio_blk_config *config, imgvm_error *err);
void virtio_blk_stats(struct virtio_device *device, struct virtio_blk_stats *out);

#endif
