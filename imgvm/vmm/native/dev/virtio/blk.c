/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../../base/bits.h"
#include "../../block/image.h"

#define QUEUE_SIZE 256
#define SLOTS_MAX 64 /* requests in flight */
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

/* A request in flight. */
struct slot {
    struct virtio_blk *blk;
    struct block_job job;
    struct slot *next_free;
    struct virtq_chain chain; /* the slot's own until it is given back, without the board lock */
    struct iovec pieces[VIRTQ_SPANS_MAX];
};

/* Guarded by the board lock, except what a slot has of its own. */
struct virtio_blk {
    struct virtio_device device;
    imgvm_image *image;
    bool read_only, keeps_space;
    uint32_t cache; /* IMGVM_CACHE_* */
    char id[VIRTIO_BLK_ID_BYTES];
    uint64_t sectors;
    struct block_queue *queue;
    struct slot *slots[SLOTS_MAX], *free;
    unsigned slot_count;
    unsigned busy;       /* requests in flight */
    pthread_cond_t idle; /* busy became 0 */
    bool kicked, starved, stop; /* starved: requests wait for a slot */
    struct virtio_blk_stats stats;
};

static struct virtio_blk *blk_of(struct virtio_device *device)
{
    return container_of(device, struct virtio_blk, device);
}

/* ---- one request; runs without the board lock ---- */

struct outcome {
    uint8_t status;
    bool malformed; /* no header or no status byte: the driver cannot be answered */
    imgvm_error error;
};

/* The in part, or the out part behind the header. */
static struct vec memory_of(struct slot *s, bool write)
{
    const struct virtq_chain *chain = &s->chain;
    const struct virtq_span *span = &chain->spans[write ? 0 : chain->out_count];
    unsigned count = write ? chain->out_count : chain->in_count;
    for (unsigned i = 0; i < count; i++)
        s->pieces[i] = (struct iovec){span[i].host, span[i].bytes};
    struct vec vec = {.piece = s->pieces};
    if (write)
        vec_skip(&vec, HEADER_BYTES);
    return vec;
}

static void guest_data_written(struct slot *s, uint64_t bytes)
{
    const struct virtq_span *span = &s->chain.spans[s->chain.out_count];
    for (uint64_t n; bytes; span++, bytes -= n) {
        n = MIN(bytes, span->bytes);
        guest_mem_written(s->blk->device.mem, span->gpa, n);
    }
}

/* `bytes` of the image at `offset`. */
static int transfer(struct slot *s, uint64_t offset, uint32_t bytes, bool write, imgvm_error *err)
{
    if (!bytes)
        return 0;
    struct vec memory = memory_of(s, write);
    if (write)
        return image_write(s->blk->image, offset, &memory, bytes, err);
    int rc = image_read(s->blk->image, offset, &memory, bytes, err);
    guest_data_written(s, bytes); /* even when it failed, some of it may have been changed */
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
static uint8_t serve_ranges(struct slot *s, uint32_t bytes, bool zero, imgvm_error *err)
{
    struct virtio_blk *blk = s->blk;
    uint8_t ranges[RANGES_MAX * RANGE_BYTES];
    int rc = 0;
    if (!zero && blk->keeps_space)
        return VIRTIO_BLK_S_UNSUPP;
    if (blk->read_only || !bytes || bytes % RANGE_BYTES || bytes > sizeof ranges ||
        virtq_chain_read(&s->chain, HEADER_BYTES, ranges, bytes) != bytes)
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
        bool give_back = load_le32(range + 12) & RANGE_UNMAP && !blk->keeps_space;
        rc = zero ? imgvm_image_zero(blk->image, offset, length, give_back, err)
                  : imgvm_image_discard(blk->image, offset, length, err);
    }
    return status_of(write_through(blk, rc, err));
}

static struct outcome serve(struct slot *s, uint32_t *type_out)
{
    struct virtio_blk *blk = s->blk;
    const struct virtq_chain *chain = &s->chain;
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
            outcome.status = status_of(transfer(s, sector * SECTOR, in, false, &outcome.error));
        break;
    case VIRTIO_BLK_T_OUT:
        if (!blk->read_only && in_range(blk, sector, out)) {
            int rc = transfer(s, sector * SECTOR, out, true, &outcome.error);
            outcome.status = status_of(write_through(blk, rc, &outcome.error));
        }
        break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        outcome.status = serve_ranges(s, out, type == VIRTIO_BLK_T_WRITE_ZEROES, &outcome.error);
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

/* ---- slots ---- */

static void count(struct virtio_blk *blk, uint32_t type, const struct outcome *outcome)
{
    struct virtio_blk_stats *stats = &blk->stats;
    stats->reads += type == VIRTIO_BLK_T_IN;
    stats->writes += type == VIRTIO_BLK_T_OUT;
    stats->flushes += type == VIRTIO_BLK_T_FLUSH;
    stats->errors += outcome->status != VIRTIO_BLK_S_OK;
    stats->host_errors += outcome->error.code != 0;
    if (outcome->error.code && !stats->first_error.code)
        stats->first_error = outcome->error;
}

static struct slot *take_slot(struct virtio_blk *blk)
{
    struct slot *s = blk->free;
    if (s)
        blk->free = s->next_free;
    else if (blk->slot_count < SLOTS_MAX && (s = malloc(sizeof *s))) {
        s->blk = blk;
        blk->slots[blk->slot_count++] = s;
    }
    return s;
}

static void give_slot_back(struct virtio_blk *blk, struct slot *s)
{
    s->next_free = blk->free;
    blk->free = s;
}

static void complete(struct slot *s, uint32_t type, const struct outcome *outcome)
{
    struct virtio_blk *blk = s->blk;
    struct virtio_device *device = &blk->device;
    pthread_mutex_lock(device->lock);
    blk->busy--;
    count(blk, type, outcome);
    if (device->resetting) {
        if (!blk->busy)
            virtio_reset_done(device);
    } else if (outcome->malformed) {
        virtqueue_break(&device->queues[0], "a block request without header or status");
        virtio_needs_reset(device);
    } else {
        virtio_push(device, 0, s->chain.head, s->chain.in_bytes);
        virtio_interrupt(device, 0);
    }
    give_slot_back(blk, s);
    if (!blk->busy)
        pthread_cond_broadcast(&blk->idle);
    if (blk->starved) {
        blk->starved = false;
        block_queue_kick(blk->queue);
    }
    pthread_mutex_unlock(device->lock);
}

/* What the queue may do its own way: transfers that are in order, and end when they are done. */
static void describe(struct slot *s)
{
    struct virtio_blk *blk = s->blk;
    const struct virtq_chain *chain = &s->chain;
    uint8_t header[HEADER_BYTES];
    s->job.kind = JOB_CALL;
    if (virtq_chain_read(chain, 0, header, sizeof header) != sizeof header || !chain->in_bytes)
        return;
    uint32_t type = load_le32(header);
    bool write = type == VIRTIO_BLK_T_OUT;
    uint32_t bytes = write ? chain->out_bytes - HEADER_BYTES : chain->in_bytes - 1;
    uint64_t sector = load_le64(header + 8);
    if ((!write && type != VIRTIO_BLK_T_IN) || !bytes || !in_range(blk, sector, bytes) ||
        (write && (blk->read_only || !virtio_has_feature(&blk->device, VIRTIO_BLK_F_FLUSH))))
        return;
    s->job.kind = write ? JOB_WRITE : JOB_READ;
    s->job.offset = sector * SECTOR;
    s->job.bytes = bytes;
    s->job.memory = memory_of(s, write);
}

/* ---- what the queue calls ---- */

static struct slot *pop(struct virtio_blk *blk, bool *more)
{
    struct virtio_device *device = &blk->device;
    if (blk->stop || !blk->kicked || !virtio_running(device))
        return NULL;
    struct slot *s = take_slot(blk);
    if (!s) {
        blk->starved = true;
        return NULL;
    }
    virtqueue_busy(&device->queues[0]);
    int got = virtqueue_pop(&device->queues[0], &s->chain);
    if (got <= 0) {
        blk->kicked = false;
        if (got < 0)
            virtio_needs_reset(device);
        give_slot_back(blk, s);
        return NULL;
    }
    blk->busy++;
    *more = virtqueue_pending(&device->queues[0]);
    return s;
}

static struct block_job *next_job(void *opaque, bool *more)
{
    struct virtio_blk *blk = opaque;
    pthread_mutex_lock(blk->device.lock);
    struct slot *s = pop(blk, more);
    pthread_mutex_unlock(blk->device.lock);
    if (!s)
        return NULL;
    describe(s);
    return &s->job;
}

static void run_job(void *opaque, struct block_job *job)
{
    (void)opaque;
    struct slot *s = container_of(job, struct slot, job);
    uint32_t type = UINT32_MAX;
    struct outcome outcome = serve(s, &type);
    complete(s, type, &outcome);
}

static void job_moved(void *opaque, struct block_job *job)
{
    struct virtio_blk *blk = opaque;
    struct slot *s = container_of(job, struct slot, job);
    struct outcome outcome = {.status = VIRTIO_BLK_S_OK};
    bool write = job->kind == JOB_WRITE;
    if (!write)
        guest_data_written(s, job->bytes);
    virtq_chain_write(blk->device.mem, &s->chain, s->chain.in_bytes - 1, &outcome.status, 1);
    complete(s, write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, &outcome);
}

/* ---- the device ---- */

static void notify(struct virtio_device *device, unsigned queue)
{
    (void)queue;
    blk_of(device)->kicked = true;
}

static void wake(struct virtio_device *device)
{
    block_queue_kick(blk_of(device)->queue);
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
    pthread_mutex_unlock(device->lock);
    block_queue_destroy(blk->queue);
    for (unsigned i = 0; i < blk->slot_count; i++)
        free(blk->slots[i]);
    pthread_cond_destroy(&blk->idle);
    free(blk);
}

static const struct virtio_device_ops blk_ops = {.notify = notify, .wake = wake, .reset = reset, .drain = drain, .destroy = destroy};

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
                                       : BIT(VIRTIO_BLK_F_WRITE_ZEROES) |
                                             (config->keeps_space ? 0 : BIT(VIRTIO_BLK_F_DISCARD))),
        .config_bytes = CONFIG_BYTES, .queue_count = 1, .queue_size = QUEUE_SIZE,
        .mem = config->mem, .lock = config->lock,
    };
    virtio_device_init(&blk->device, &device, &blk_ops);
    blk->image = config->image;
    blk->read_only = config->read_only;
    blk->cache = config->cache;
    blk->keeps_space = config->keeps_space;
    blk->sectors = info.disk_bytes / SECTOR;
    if (config->serial)
        memcpy(blk->id, config->serial, strnlen(config->serial, sizeof blk->id));
    store_le64(blk->device.config + CONFIG_CAPACITY, blk->sectors);
    store_le32(blk->device.config + CONFIG_SEG_MAX, QUEUE_SIZE - 2); /* header and status take a descriptor each */
    store_le32(blk->device.config + CONFIG_BLK_SIZE, SECTOR);
    if (!config->read_only) {
        store_le32(blk->device.config + CONFIG_MAX_ZEROES_SECTORS, RANGE_SECTORS_MAX);
        store_le32(blk->device.config + CONFIG_MAX_ZEROES_SEG, RANGES_MAX);
        blk->device.config[CONFIG_ZEROES_MAY_UNMAP] = !config->keeps_space;
    }
    if (!config->read_only && !config->keeps_space) {
        uint32_t cluster_sectors = MAX(info.cluster_bytes / SECTOR, 1);
        store_le32(blk->device.config + CONFIG_MAX_DISCARD_SECTORS, RANGE_SECTORS_MAX);
        store_le32(blk->device.config + CONFIG_MAX_DISCARD_SEG, RANGES_MAX);
        store_le32(blk->device.config + CONFIG_DISCARD_ALIGNMENT, cluster_sectors);
    }
    pthread_cond_init(&blk->idle, NULL);
    const struct block_queue_config queue = {.image = config->image, .kind = config->queue_kind, .jobs_max = SLOTS_MAX,
                                             .next = next_job, .run = run_job, .moved = job_moved, .opaque = blk};
    if ((rc = block_queue_create(&blk->queue, &queue, err))) {
        pthread_cond_destroy(&blk->idle);
        free(blk);
        return rc;
    }
    *out = &blk->device;
    return 0;
}

void virtio_blk_stats(struct virtio_device *device, struct virtio_blk_stats *out)
{
    *out = blk_of(device)->stats;
}
