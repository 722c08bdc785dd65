/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "blk.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "../../base/bits.h"

#define QUEUE_SIZE 256
#define SECTOR 512u

/* Feature bits (5.2.3). */
#define VIRTIO_BLK_F_SEG_MAX 2
#define VIRTIO_BLK_F_RO 5
#define VIRTIO_BLK_F_BLK_SIZE 6
#define VIRTIO_BLK_F_FLUSH 9

/* Device configuration (5.2.4): capacity, size_max, seg_max, geometry, blk_size. */
#define CONFIG_CAPACITY 0
#define CONFIG_SEG_MAX 12
#define CONFIG_BLK_SIZE 20
#define CONFIG_BYTES 24

/* Request (5.2.6): u32 type, u32 reserved, u64 sector; data; u8 status, the last byte that the device may write. */
#define HEADER_BYTES 16u
#define VIRTIO_BLK_T_IN 0
#define VIRTIO_BLK_T_OUT 1
#define VIRTIO_BLK_T_FLUSH 4
#define VIRTIO_BLK_T_GET_ID 8
#define VIRTIO_BLK_S_OK 0
#define VIRTIO_BLK_S_IOERR 1
#define VIRTIO_BLK_S_UNSUPP 2

/* Guarded by the board lock, except what the comments give to the worker. */
struct virtio_blk {
    struct virtio_device device;
    imgvm_image *image;
    bool read_only;
    char id[VIRTIO_BLK_ID_BYTES];
    uint64_t sectors;
    pthread_t worker;
    pthread_cond_t work; /* kicked, running or stop changed */
    pthread_cond_t idle; /* busy became false */
    bool kicked, busy, stop;
    struct virtio_blk_stats stats;
    struct virtq_chain chain; /* the worker's, while busy */
};

static struct virtio_blk *blk_of(struct virtio_device *device)
{
    return container_of(device, struct virtio_blk, device);
}

/* ---- one request; runs on the worker without the board lock ---- */

struct outcome {
    uint8_t status;
    bool malformed; /* no header or no status byte: the driver cannot be answered */
    imgvm_error error;
};

/* `bytes` of the image at `offset`, to the in part or from the out part behind the header. */
static int transfer(struct virtio_blk *blk, uint64_t offset, uint32_t bytes, bool write, imgvm_error *err)
{
    const struct virtq_chain *chain = &blk->chain;
    uint32_t skip = write ? HEADER_BYTES : 0;
    for (const struct virtq_span *span = &chain->spans[write ? 0 : chain->out_count]; bytes; span++) {
        if (skip >= span->bytes) {
            skip -= span->bytes;
            continue;
        }
        uint32_t n = MIN(bytes, span->bytes - skip);
        int rc = write ? imgvm_image_write(blk->image, offset, span->host + skip, n, err)
                       : imgvm_image_read(blk->image, offset, span->host + skip, n, err);
        if (!write) /* even when it failed, some of it may have been changed */
            guest_mem_written(blk->device.mem, span->gpa + skip, n);
        if (rc < 0)
            return rc;
        offset += n;
        bytes -= n;
        skip = 0;
    }
    return 0;
}

/* A driver that does not know FLUSH must find its data safe when the write is done (5.2.6.2). */
static int write_out(struct virtio_blk *blk, uint64_t offset, uint32_t bytes, imgvm_error *err)
{
    int rc = transfer(blk, offset, bytes, true, err);
    if (!rc && !virtio_has_feature(&blk->device, VIRTIO_BLK_F_FLUSH))
        rc = imgvm_image_flush(blk->image, err);
    return rc;
}

static bool in_range(const struct virtio_blk *blk, uint64_t sector, uint32_t bytes)
{
    return bytes % SECTOR == 0 && sector <= blk->sectors && bytes / SECTOR <= blk->sectors - sector;
}

static uint8_t status_of(int rc) { return rc < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK; }

static struct outcome serve(struct virtio_blk *blk, uint32_t *type_out)
{
    const struct virtq_chain *chain = &blk->chain;
    struct outcome outcome = {.status = VIRTIO_BLK_S_IOERR};
    uint8_t header[HEADER_BYTES];
    if (virtq_chain_read(chain, 0, header, sizeof header) != sizeof header || !chain->in_bytes) {
        outcome.malformed = true;
        return outcome;
    }
    uint32_t type = load_le32(header), in = chain->in_bytes - 1, out = chain->out_bytes - HEADER_BYTES;
    uint64_t sector = load_le64(header + 8);
    *type_out = type;
    switch (type) {
    case VIRTIO_BLK_T_IN:
        if (in_range(blk, sector, in))
            outcome.status = status_of(transfer(blk, sector * SECTOR, in, false, &outcome.error));
        break;
    case VIRTIO_BLK_T_OUT:
        if (!blk->read_only && in_range(blk, sector, out))
            outcome.status = status_of(write_out(blk, sector * SECTOR, out, &outcome.error));
        break;
    case VIRTIO_BLK_T_FLUSH:
        outcome.status = blk->read_only ? VIRTIO_BLK_S_OK : status_of(imgvm_image_flush(blk->image, &outcome.error));
        break;
    case VIRTIO_BLK_T_GET_ID:
        virtq_chain_write(blk->device.mem, chain, 0, blk->id, MIN(in, sizeof blk->id));
        if (in > sizeof blk->id)
            virtq_chain_zero(blk->device.mem, chain, sizeof blk->id, in - (uint32_t)sizeof blk->id);
        outcome.status = VIRTIO_BLK_S_OK;
        break;
    default:
        outcome.status = VIRTIO_BLK_S_UNSUPP;
        break;
    }
    /* The used length reaches to the status byte, so all before it must have been written (2.7.8.2). */
    if (outcome.status != VIRTIO_BLK_S_OK)
        virtq_chain_zero(blk->device.mem, chain, 0, in);
    virtq_chain_write(blk->device.mem, chain, in, &outcome.status, 1);
    return outcome;
}

/* ---- the worker ---- */

static void count(struct virtio_blk *blk, uint32_t type, const struct outcome *outcome)
{
    struct virtio_blk_stats *stats = &blk->stats;
    stats->reads += type == VIRTIO_BLK_T_IN;
    stats->writes += type == VIRTIO_BLK_T_OUT;
    stats->flushes += type == VIRTIO_BLK_T_FLUSH;
    stats->errors += outcome->status != VIRTIO_BLK_S_OK;
    if (outcome->error.code && !stats->first_error.code)
        stats->first_error = outcome->error;
}

static void complete(struct virtio_blk *blk, uint32_t type, const struct outcome *outcome)
{
    struct virtio_device *device = &blk->device;
    count(blk, type, outcome);
    if (device->resetting) {
        virtio_reset_done(device);
    } else if (outcome->malformed) {
        virtqueue_break(&device->queues[0], "a block request without header or status");
        virtio_needs_reset(device);
    } else {
        virtio_push(device, 0, blk->chain.head, blk->chain.in_bytes);
        virtio_interrupt(device, 0);
    }
}

static void *worker(void *opaque)
{
    struct virtio_blk *blk = opaque;
    struct virtio_device *device = &blk->device;
    pthread_mutex_lock(device->lock);
    while (!blk->stop) {
        if (!blk->kicked || !virtio_running(device)) {
            pthread_cond_wait(&blk->work, device->lock);
            continue;
        }
        virtqueue_busy(&device->queues[0]);
        int got = virtqueue_pop(&device->queues[0], &blk->chain);
        if (got <= 0) {
            blk->kicked = false;
            if (got < 0)
                virtio_needs_reset(device);
            continue;
        }
        blk->busy = true;
        pthread_mutex_unlock(device->lock);
        uint32_t type = UINT32_MAX;
        struct outcome outcome = serve(blk, &type);
        pthread_mutex_lock(device->lock);
        blk->busy = false;
        complete(blk, type, &outcome);
        pthread_cond_broadcast(&blk->idle);
    }
    pthread_mutex_unlock(device->lock);
    return NULL;
}

/* ---- the device ---- */

static void notify(struct virtio_device *device, unsigned queue)
{
    (void)queue;
    struct virtio_blk *blk = blk_of(device);
    blk->kicked = true;
    pthread_cond_signal(&blk->work);
}

static bool reset(struct virtio_device *device)
{
    struct virtio_blk *blk = blk_of(device);
    blk->kicked = false;
    return !blk->busy;
}

static void drain(struct virtio_device *device)
{
    struct virtio_blk *blk = blk_of(device);
    while (blk->busy)
        pthread_cond_wait(&blk->idle, device->lock);
}

static void destroy(struct virtio_device *device)
{
    struct virtio_blk *blk = blk_of(device);
    pthread_mutex_lock(device->lock);
    blk->stop = true;
    pthread_cond_signal(&blk->work);
    pthread_mutex_unlock(device->lock);
    pthread_join(blk->worker, NULL);
    pthread_cond_destroy(&blk->work);
    pthread_cond_destroy(&blk->idle);
    free(blk);
}

static const struct virtio_device_ops blk_ops = {.notify = notify, .reset = reset, .drain = drain, .destroy = destroy};

/* The worker takes no signals: they are for the process's owner and for the vCPU threads. */
static int start_worker(struct virtio_blk *blk)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&blk->worker, NULL, worker, blk);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!rc)
        pthread_setname_np(blk->worker, "imgvm-disk");
    return rc;
}

int virtio_blk_create(struct virtio_device **out, const struct virtio_blk_config *config, imgvm_error *err)
{
    imgvm_image_info info;
    int rc = imgvm_image_get_info(config->image, &info);
    if (rc < 0)
        return error_set(err, -rc, "virtio-blk: cannot tell the image's size");
    struct virtio_blk *blk = calloc(1, sizeof *blk);
    if (!blk)
        return error_set(err, ENOMEM, "virtio-blk: out of memory");
    const struct virtio_device_config device = {
        .name = "virtio-blk", .id = VIRTIO_ID_BLOCK, .class_code = 0x018000,
        .features = BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_FLUSH) |
                    (config->read_only ? BIT(VIRTIO_BLK_F_RO) : 0),
        .config_bytes = CONFIG_BYTES, .queue_count = 1, .queue_size = QUEUE_SIZE,
        .mem = config->mem, .lock = config->lock,
    };
    virtio_device_init(&blk->device, &device, &blk_ops);
    blk->image = config->image;
    blk->read_only = config->read_only;
    blk->sectors = info.disk_bytes / SECTOR;
    if (config->serial)
        memcpy(blk->id, config->serial, strnlen(config->serial, sizeof blk->id));
    store_le64(blk->device.config + CONFIG_CAPACITY, blk->sectors);
    store_le32(blk->device.config + CONFIG_SEG_MAX, QUEUE_SIZE - 2); /* header and status take a descriptor each */
    store_le32(blk->device.config + CONFIG_BLK_SIZE, SECTOR);
    pthread_cond_init(&blk->work, NULL);
    pthread_cond_init(&blk->idle, NULL);
    rc = start_worker(blk);
    if (rc) {
        pthread_cond_destroy(&blk->work);
        pthread_cond_destroy(&blk->idle);
        free(blk);
        return error_set(err, rc, "virtio-blk: cannot start its thread: %s", strerror(rc));
    }
    *out = &blk->device;
    return 0;
}

void virtio_blk_stats(struct virtio_device *device, struct virtio_blk_stats *out)
{
    *out = blk_of(device)->stats;
}
