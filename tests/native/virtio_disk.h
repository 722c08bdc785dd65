/* SPDX-License-Identifier: MIT */
/* A virtio disk before the driver in miniature, with an image of a few sectors that fails and blocks on demand. A program
 * includes this once, names the sources of the queue of requests, and runs its tests with each kind of queue. */
#ifndef IMGVM_TEST_VIRTIO_DISK_H
#define IMGVM_TEST_VIRTIO_DISK_H

#include "dev/virtio/blk.h"
#include "base/error.h"
#include "block/image_plan.h"
#include "block/uring.h"
#include "virtio_driver.h"

#include <errno.h>

#define FLUSH BIT(9)
#define EVENT_IDX BIT(29)
#define INDIRECT_DESC BIT(28)
#define DISK_SECTORS 64

/* ---- an image of a few sectors that fails and blocks on demand ---- */

struct imgvm_image {
    uint8_t data[DISK_SECTORS * 512 + 100]; /* an odd tail that is no whole sector */
    uint64_t fail_from;
    unsigned reads, writes, flushes, outside;
    unsigned discards, zeroes, most_waiting;
    bool fail_flush;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool gate_closed;
    unsigned waiting;
};

/* Counts a request, several of which may come at once. */
static void pass_gate(imgvm_image *image, unsigned *counter, uint64_t end)
{
    pthread_mutex_lock(&image->lock);
    ++*counter;
    image->outside += end > DISK_SECTORS * 512;
    image->waiting++;
    image->most_waiting = MAX(image->most_waiting, image->waiting);
    pthread_cond_broadcast(&image->changed);
    while (image->gate_closed)
        pthread_cond_wait(&image->changed, &image->lock);
    image->waiting--;
    pthread_mutex_unlock(&image->lock);
}

static void gate(imgvm_image *image, bool closed)
{
    pthread_mutex_lock(&image->lock);
    image->gate_closed = closed;
    pthread_cond_broadcast(&image->changed);
    pthread_mutex_unlock(&image->lock);
}

static void await_waiting(imgvm_image *image)
{
    pthread_mutex_lock(&image->lock);
    while (!image->waiting)
        pthread_cond_wait(&image->changed, &image->lock);
    pthread_mutex_unlock(&image->lock);
}

int imgvm_image_get_info(imgvm_image *image, imgvm_image_info *out)
{
    *out = (imgvm_image_info){.disk_bytes = sizeof image->data};
    return 0;
}

int image_read(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    pass_gate(image, &image->reads, offset + bytes);
    if (offset + bytes > image->fail_from) {
        struct iovec part = vec_next(vec, bytes);
        memset(part.iov_base, 0xee, part.iov_len / 2);
        return error_set(err, EIO, "bad sector");
    }
    vec_put(vec, image->data + offset, bytes);
    return 0;
}

int image_write(imgvm_image *image, uint64_t offset, struct vec *vec, uint64_t bytes, imgvm_error *err)
{
    pass_gate(image, &image->writes, offset + bytes);
    if (offset + bytes > image->fail_from)
        return error_set(err, ENOSPC, "disk full");
    vec_get(vec, image->data + offset, bytes);
    return 0;
}

int imgvm_image_zero(imgvm_image *image, uint64_t offset, uint64_t bytes, bool give_back, imgvm_error *err)
{
    pass_gate(image, &image->zeroes, offset + bytes);
    if (offset + bytes > image->fail_from)
        return error_set(err, ENOSPC, "disk full");
    memset(image->data + offset, give_back ? 0 : 0x80, bytes); /* tells which it was */
    return 0;
}

int imgvm_image_discard(imgvm_image *image, uint64_t offset, uint64_t bytes, imgvm_error *err)
{
    (void)err;
    pass_gate(image, &image->discards, offset + bytes);
    memset(image->data + offset, 0xdd, bytes);
    return 0;
}

int imgvm_image_flush(imgvm_image *image, imgvm_error *err)
{
    pass_gate(image, &image->flushes, 0);
    return image->fail_flush ? error_set(err, EIO, "cannot flush") : 0;
}

/* The ring leaves all to its threads: what it can do by itself is for test_qcow2_queue.c. */
bool image_plan_begin(imgvm_image *image, bool write, uint64_t offset, uint64_t bytes, struct image_extent *out,
                      unsigned max, unsigned *count)
{
    (void)image, (void)write, (void)offset, (void)bytes, (void)out, (void)max, (void)count;
    return false;
}

void image_plan_end(imgvm_image *image) { (void)image; }

static enum block_queue_kind queue_kind;

/* ---- fixture ---- */

struct disk {
    struct guest g;
    imgvm_image image;
};

static bool keeps_space; /* of the disks that are made from now on */

static void disk_init_cached(struct disk *d, bool read_only, uint32_t cache, uint64_t features, uint16_t queue_size)
{
    memset(&d->image, 0, sizeof d->image);
    pthread_mutex_init(&d->image.lock, NULL);
    pthread_cond_init(&d->image.changed, NULL);
    d->image.fail_from = UINT64_MAX;
    for (unsigned i = 0; i < sizeof d->image.data; i++)
        d->image.data[i] = (uint8_t)(i / 512 * 7 + i);
    guest_init(&d->g);
    struct virtio_blk_config config = {.image = &d->image, .read_only = read_only, .serial = "disk-serial-0123456789", .cache = cache,
                                       .keeps_space = keeps_space, .mem = &d->g.mem, .lock = &d->g.lock, .queue_kind = queue_kind};
    struct virtio_device *device;
    imgvm_error err;
    CHECK_EQ(virtio_blk_create(&device, &config, &err), 0);
    guest_plug(&d->g, device);
    if (queue_size)
        driver_start(&d->g, 2, features, queue_size);
}

static void disk_init(struct disk *d, bool read_only, uint64_t features, uint16_t queue_size)
{
    disk_init_cached(d, read_only, IMGVM_CACHE_WRITEBACK, features, queue_size);
}

/* Header, data and status as three descriptors from `head`; the header and status live at HEADERS + 32 * head. */
static void put_request(struct guest *g, uint16_t head, uint32_t type, uint64_t sector, uint64_t gpa, uint32_t bytes)
{
    uint64_t header = HEADERS + 32u * head;
    uint8_t *h = ram(g, header);
    store_le32(h, type);
    store_le32(h + 4, 0);
    store_le64(h + 8, sector);
    h[16] = 0xaa;
    bool in = type == 0 || type == 8 || type == 99;
    uint16_t data = bytes ? (uint16_t)(head + 1) : (uint16_t)(head + 2);
    put_descriptor(g, RING_DESC, head, header, 16, 1, data);
    if (bytes)
        put_descriptor(g, RING_DESC, head + 1u, gpa, bytes, in ? 3 : 1, (uint16_t)(head + 2));
    put_descriptor(g, RING_DESC, head + 2u, header + 16, 1, 2, 0);
}

static uint8_t status_byte(struct guest *g, uint16_t head) { return *(uint8_t *)ram(g, HEADERS + 32u * head + 16); }

static uint8_t request(struct guest *g, uint32_t type, uint64_t sector, uint64_t gpa, uint32_t bytes)
{
    put_request(g, 0, type, sector, gpa, bytes);
    driver_offer(g, 0);
    driver_kick(g);
    CHECK(driver_wait(g, 1));
    CHECK_EQ(used_field(g, 0, 0), 0);
    return status_byte(g, 0);
}

static void disk_destroy(struct disk *d)
{
    guest_destroy(&d->g);
    CHECK_EQ(d->image.outside, 0);
}

static int disk_main(void (*test_all)(void))
{
    struct uring ring;
    queue_kind = QUEUE_THREADS;
    test_all();
    if (!uring_open(&ring, 4)) {
        uring_close(&ring);
        queue_kind = QUEUE_RING;
        test_all();
    }
    return check_report();
}

#endif
