/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "blk.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "../../base/bits.h"
#include "../../block/image.h"

#define QUEUE_SIZE 256
#define WORKERS_MAX 4 /* requests in flight; each waits for the host's disk in a thread of its own */
#define SECTOR 512u

/* Feature bits (5.2.3). */
#define VIRTIO_BLK_F_SEG_MAX 2
#define VIRTIO_BLK_F_RO 5
#define VIRTIO_BLK_F_BLK_SIZE 6
#define VIRTIO_BLK_F_FLUSH 9
#define VIRTIO_BLK_F_DISCARD 13
#define VIRTIO_BLK_F_WRITE_ZEROES 14

/* Device configuration (5.2.4). */
#define CONFIG_CAPACITY 0
#define CONFIG_SEG_MAX 12
#define CONFIG_BLK_SIZE 20
#define CONFIG_MAX_DISCARD_SECTORS 36
#define CONFIG_MAX_DISCARD_SEG 40
#define CONFIG_DISCARD_ALIGNMENT 44
#define CONFIG_MAX_ZEROES_SECTORS 48
#define CONFIG_MAX_ZEROES_SEG 52
#define CONFIG_ZEROES_MAY_UNMAP 56
#define CONFIG_BYTES 60

/* Request (5.2.6): u32 type, u32 reserved, u64 sector; data; u8 status, the last byte that the device may write. */
#define HEADER_BYTES 16u
#define VIRTIO_BLK_T_IN 0
#define VIRTIO_BLK_T_OUT 1
#define VIRTIO_BLK_T_FLUSH 4
#define VIRTIO_BLK_T_GET_ID 8
#define VIRTIO_BLK_T_DISCARD 11
#define VIRTIO_BLK_T_WRITE_ZEROES 13
#define VIRTIO_BLK_S_OK 0
#define VIRTIO_BLK_S_IOERR 1
#define VIRTIO_BLK_S_UNSUPP 2

/* A range to discard or to zero: u64 sector, u32 sectors, u32 flags. */
#define RANGE_BYTES 16u
#define RANGES_MAX 64u
#define RANGE_UNMAP 1u
#define RANGE_SECTORS_MAX (UINT32_MAX / SECTOR)

struct worker {
    struct virtio_blk *blk;
    pthread_t thread;
    struct virtq_chain chain; /* its own while it serves a request, without the board lock */
    struct iovec pieces[VIRTQ_SPANS_MAX];
};

/* Guarded by the board lock, except what a worker has of its own. */
struct virtio_blk {
    struct virtio_device device;
    imgvm_image *image;
    bool read_only;
    uint32_t cache; /* IMGVM_CACHE_* */
    char id[VIRTIO_BLK_ID_BYTES];
    uint64_t sectors;
    struct worker *workers[WORKERS_MAX];
    unsigned worker_count, sleeping;
    unsigned busy;        /* requests in flight */
    pthread_cond_t work;  /* kicked or stop changed */
    pthread_cond_t idle;  /* busy became 0 */
    bool kicked, stop;
    struct virtio_blk_stats stats;
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
static int transfer(struct worker *w, uint64_t offset, uint32_t bytes, bool write, imgvm_error *err)
{
    struct virtio_blk *blk = w->blk;
    const struct virtq_chain *chain = &w->chain;
    const struct virtq_span *span = &chain->spans[write ? 0 : chain->out_count];
    unsigned count = write ? chain->out_count : chain->in_count;
    for (unsigned i = 0; i < count; i++)
        w->pieces[i] = (struct iovec){span[i].host, span[i].bytes};
    struct vec vec = {.piece = w->pieces};
    if (!bytes)
        return 0;
    if (write) {
        vec_skip(&vec, HEADER_BYTES);
        return image_write(blk->image, offset, &vec, bytes, err);
    }
    int rc = image_read(blk->image, offset, &vec, bytes, err);
    for (uint32_t n; bytes; span++, bytes -= n) { /* even when it failed, some of it may have been changed */
        n = MIN(bytes, span->bytes);
        guest_mem_written(blk->device.mem, span->gpa, n);
    }
    return rc;
}

static int flush(struct virtio_blk *blk, imgvm_error *err)
{
    return blk->read_only || blk->cache == IMGVM_CACHE_UNSAFE ? 0 : imgvm_image_flush(blk->image, err);
}

/* A driver that does not know FLUSH must find its data safe when the write is done (5.2.6.2). */
static int write_through(struct virtio_blk *blk, int rc, imgvm_error *err)
{
    return rc || virtio_has_feature(&blk->device, VIRTIO_BLK_F_FLUSH) ? rc : flush(blk, err);
}

static bool in_range(const struct virtio_blk *blk, uint64_t sector, uint32_t bytes)
{
    return bytes % SECTOR == 0 && sector <= blk->sectors && bytes / SECTOR <= blk->sectors - sector;
}

static uint8_t status_of(int rc) { return rc < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK; }

/* DISCARD and WRITE_ZEROES (5.2.6.2): the status. All ranges are checked before the first is touched. */
static uint8_t serve_ranges(struct worker *w, uint32_t bytes, bool zero, imgvm_error *err)
{
    struct virtio_blk *blk = w->blk;
    uint8_t ranges[RANGES_MAX * RANGE_BYTES];
    int rc = 0;
    if (blk->read_only || !bytes || bytes % RANGE_BYTES || bytes > sizeof ranges ||
        virtq_chain_read(&w->chain, HEADER_BYTES, ranges, bytes) != bytes)
        return VIRTIO_BLK_S_IOERR;
    for (const uint8_t *range = ranges; range < ranges + bytes; range += RANGE_BYTES) {
        uint32_t sectors = load_le32(range + 8);
        if (load_le32(range + 12) & ~(zero ? RANGE_UNMAP : 0))
            return VIRTIO_BLK_S_UNSUPP;
        if (sectors > RANGE_SECTORS_MAX || !in_range(blk, load_le64(range), sectors * SECTOR))
            return VIRTIO_BLK_S_IOERR;
    }
    for (const uint8_t *range = ranges; !rc && range < ranges + bytes; range += RANGE_BYTES) {
        uint64_t offset = load_le64(range) * SECTOR, length = (uint64_t)load_le32(range + 8) * SECTOR;
        rc = zero ? imgvm_image_zero(blk->image, offset, length, load_le32(range + 12) & RANGE_UNMAP, err)
                  : imgvm_image_discard(blk->image, offset, length, err);
    }
    return status_of(write_through(blk, rc, err));
}

static struct outcome serve(struct worker *w, uint32_t *type_out)
{
    struct virtio_blk *blk = w->blk;
    const struct virtq_chain *chain = &w->chain;
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
            outcome.status = status_of(transfer(w, sector * SECTOR, in, false, &outcome.error));
        break;
    case VIRTIO_BLK_T_OUT:
        if (!blk->read_only && in_range(blk, sector, out)) {
            int rc = transfer(w, sector * SECTOR, out, true, &outcome.error);
            outcome.status = status_of(write_through(blk, rc, &outcome.error));
        }
        break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        outcome.status = serve_ranges(w, out, type == VIRTIO_BLK_T_WRITE_ZEROES, &outcome.error);
        break;
    case VIRTIO_BLK_T_FLUSH:
        outcome.status = status_of(flush(blk, &outcome.error));
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

/* ---- the workers ---- */

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

static void complete(struct worker *w, uint32_t type, const struct outcome *outcome)
{
    struct virtio_blk *blk = w->blk;
    struct virtio_device *device = &blk->device;
    count(blk, type, outcome);
    if (device->resetting) {
        if (!blk->busy)
            virtio_reset_done(device);
    } else if (outcome->malformed) {
        virtqueue_break(&device->queues[0], "a block request without header or status");
        virtio_needs_reset(device);
    } else {
        virtio_push(device, 0, w->chain.head, w->chain.in_bytes);
        virtio_interrupt(device, 0);
    }
}

static bool add_worker(struct virtio_blk *blk);

static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct virtio_blk *blk = w->blk;
    struct virtio_device *device = &blk->device;
    pthread_mutex_lock(device->lock);
    while (!blk->stop) {
        if (!blk->kicked || !virtio_running(device)) {
            blk->sleeping++;
            pthread_cond_wait(&blk->work, device->lock);
            blk->sleeping--;
            continue;
        }
        virtqueue_busy(&device->queues[0]);
        int got = virtqueue_pop(&device->queues[0], &w->chain);
        if (got <= 0) {
            blk->kicked = false;
            if (got < 0)
                virtio_needs_reset(device);
            continue;
        }
        blk->busy++;
        if (virtqueue_pending(&device->queues[0])) { /* somebody else may take the next one meanwhile */
            if (blk->sleeping)
                pthread_cond_signal(&blk->work);
            else
                add_worker(blk);
        }
        pthread_mutex_unlock(device->lock);
        uint32_t type = UINT32_MAX;
        struct outcome outcome = serve(w, &type);
        pthread_mutex_lock(device->lock);
        blk->busy--;
        complete(w, type, &outcome);
        if (!blk->busy)
            pthread_cond_broadcast(&blk->idle);
    }
    pthread_mutex_unlock(device->lock);
    return NULL;
}

/* Workers take no signals: they are for the process's owner and for the vCPU threads. Not enough memory or threads for
 * another one is no error as long as there is one. */
static bool add_worker(struct virtio_blk *blk)
{
    sigset_t all, old;
    struct worker *w = blk->worker_count < WORKERS_MAX ? calloc(1, sizeof *w) : NULL;
    if (!w)
        return false;
    w->blk = blk;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&w->thread, NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        free(w);
        return false;
    }
    pthread_setname_np(w->thread, "imgvm-disk");
    blk->workers[blk->worker_count++] = w;
    return true;
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
    pthread_cond_broadcast(&blk->work);
    pthread_mutex_unlock(device->lock);
    for (unsigned i = 0; i < blk->worker_count; i++) { /* none is added once stop is set */
        pthread_join(blk->workers[i]->thread, NULL);
        free(blk->workers[i]);
    }
    pthread_cond_destroy(&blk->work);
    pthread_cond_destroy(&blk->idle);
    free(blk);
}

static const struct virtio_device_ops blk_ops = {.notify = notify, .reset = reset, .drain = drain, .destroy = destroy};

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
        .features = BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) |
                    (config->cache == IMGVM_CACHE_WRITETHROUGH ? 0 : BIT(VIRTIO_BLK_F_FLUSH)) |
                    (config->read_only ? BIT(VIRTIO_BLK_F_RO)
                                       : BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES)),
        .config_bytes = CONFIG_BYTES, .queue_count = 1, .queue_size = QUEUE_SIZE,
        .mem = config->mem, .lock = config->lock,
    };
    virtio_device_init(&blk->device, &device, &blk_ops);
    blk->image = config->image;
    blk->read_only = config->read_only;
    blk->cache = config->cache;
    blk->sectors = info.disk_bytes / SECTOR;
    if (config->serial)
        memcpy(blk->id, config->serial, strnlen(config->serial, sizeof blk->id));
    store_le64(blk->device.config + CONFIG_CAPACITY, blk->sectors);
    store_le32(blk->device.config + CONFIG_SEG_MAX, QUEUE_SIZE - 2); /* header and status take a descriptor each */
    store_le32(blk->device.config + CONFIG_BLK_SIZE, SECTOR);
    if (!config->read_only) {
        uint32_t cluster_sectors = MAX(info.cluster_bytes / SECTOR, 1);
        store_le32(blk->device.config + CONFIG_MAX_DISCARD_SECTORS, RANGE_SECTORS_MAX);
        store_le32(blk->device.config + CONFIG_MAX_DISCARD_SEG, RANGES_MAX);
        store_le32(blk->device.config + CONFIG_DISCARD_ALIGNMENT, cluster_sectors);
        store_le32(blk->device.config + CONFIG_MAX_ZEROES_SECTORS, RANGE_SECTORS_MAX);
        store_le32(blk->device.config + CONFIG_MAX_ZEROES_SEG, RANGES_MAX);
        blk->device.config[CONFIG_ZEROES_MAY_UNMAP] = 1;
    }
    pthread_cond_init(&blk->work, NULL);
    pthread_cond_init(&blk->idle, NULL);
    if (!add_worker(blk)) {
        pthread_cond_destroy(&blk->work);
        pthread_cond_destroy(&blk->idle);
        free(blk);
        return error_set(err, EAGAIN, "virtio-blk: cannot start its thread");
    }
    *out = &blk->device;
    return 0;
}

void virtio_blk_stats(struct virtio_device *device, struct virtio_blk_stats *out)
{
    *out = blk_of(device)->stats;
}
