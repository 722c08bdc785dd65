/* SPDX-License-Identifier: MIT */
/* needs: base/error.c mem/bus.c mem/guest_mem.c dev/pci/host.c dev/pci/msix.c dev/pci/assign.c dev/virtio/queue.c */
/* needs: dev/virtio/device.c dev/virtio/pci.c dev/virtio/blk.c block/queue.c block/queue_ring.c block/uring.c */
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

#ifdef __SANITIZE_THREAD__
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif

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
                                       .mem = &d->g.mem, .lock = &d->g.lock, .queue_kind = queue_kind};
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

/* ---- tests ---- */

static void test_identity(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 0);
    struct guest *g = &d.g;
    CHECK(driver_find(g, 2));
    CHECK_EQ(cfg_read(g, 8, 1), 1);
    CHECK_EQ(cfg_read(g, 8, 4) >> 8, 0x018000);
    CHECK_EQ(g->notify_multiplier, 4);
    CHECK_EQ(common_read(g, 0x12, 2), 1);
    CHECK_EQ(driver_offered(g), BIT(32) | BIT(29) | BIT(28) | BIT(2) | BIT(6) | BIT(9) | BIT(13) | BIT(14));
    CHECK_EQ(bus_read(&g->mmio, g->config, 8), DISK_SECTORS);
    CHECK_EQ(bus_read(&g->mmio, g->config + 12, 4), 254);
    CHECK_EQ(bus_read(&g->mmio, g->config + 20, 4), 512);
    bus_write(&g->mmio, g->config, 4, 1); /* read-only */
    CHECK_EQ(bus_read(&g->mmio, g->config, 4), DISK_SECTORS);
    common_write(g, 0x16, 2, 1); /* a queue that is not there */
    CHECK_EQ(common_read(g, 0x18, 2), 0);
    common_write(g, 0x16, 2, 0);
    CHECK_EQ(common_read(g, 0x18, 2), 256);
    common_write(g, 0x18, 2, 100); /* not a power of two */
    common_write(g, 0x18, 2, 512); /* too large */
    CHECK_EQ(common_read(g, 0x18, 2), 256);
    common_write(g, 0x1a, 2, 2); /* two vectors: 0 and 1 */
    CHECK_EQ(common_read(g, 0x1a, 2), 0xffff);
    common_write(g, 0x10, 2, 7);
    CHECK_EQ(common_read(g, 0x10, 2), 0xffff);
    disk_destroy(&d);
}

static void test_negotiation(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 0);
    struct guest *g = &d.g;
    CHECK(driver_find(g, 2));
    common_write(g, 0x14, 1, 3);
    common_write(g, 0x14, 1, 0xb); /* a driver without VERSION_1 */
    CHECK_EQ(driver_status(g), 3);
    common_write(g, 0x14, 1, 7); /* DRIVER_OK without FEATURES_OK */
    CHECK_EQ(driver_status(g), 3);
    CHECK(!driver_negotiate(g, BIT(40))); /* a feature that was not offered */
    CHECK(driver_negotiate(g, BIT(9)));
    common_write(g, 8, 4, 0);
    common_write(g, 0xc, 4, BIT(2)); /* too late */
    CHECK_EQ(common_read(g, 0xc, 4), BIT(9));
    common_write(g, 0x14, 1, 1); /* bits are not taken back */
    CHECK_EQ(driver_status(g), 0xb);
    CHECK(driver_reset(g));
    common_write(g, 8, 4, 0);
    CHECK_EQ(common_read(g, 0xc, 4), 0);
    disk_destroy(&d);
}

static void test_requests(uint64_t features)
{
    static struct disk d;
    disk_init(&d, false, features, 16);
    struct guest *g = &d.g;
    if (g->event_idx)
        store_le16(ram(g, RING_AVAIL + 4 + 2 * 16), 0);
    CHECK_EQ(request(g, 0, 3, DATA, 2048), 0);
    CHECK(!memcmp(ram(g, DATA), d.image.data + 3 * 512, 2048));
    CHECK_EQ(used_field(g, 0, 1), 2049);
    CHECK_EQ(g->messages[1], 1);
    CHECK_EQ(g->messages[0], 0);

    memset(ram(g, DATA), 0x5a, 1024);
    CHECK_EQ(request(g, 1, 10, DATA, 1024), 0);
    CHECK_EQ(d.image.data[10 * 512], 0x5a);
    CHECK_EQ(d.image.data[12 * 512 - 1], 0x5a);
    CHECK(d.image.data[12 * 512] != 0x5a && d.image.data[10 * 512 - 1] != 0x5a);
    CHECK_EQ(used_field(g, 0, 1), 1);
    CHECK_EQ(request(g, 4, 0, 0, 0), 0);
    CHECK_EQ(d.image.flushes, 1);

    memset(ram(g, DATA), 0xff, 64);
    CHECK_EQ(request(g, 8, 0, DATA, 20), 0);
    CHECK(!memcmp(ram(g, DATA), "disk-serial-01234567\xff", 21));
    CHECK_EQ(request(g, 8, 0, DATA, 30), 0);
    CHECK(!memcmp(ram(g, DATA), "disk-serial-01234567\0\0\0\0\0\0\0\0\0\0\xff", 31));
    CHECK_EQ(request(g, 8, 0, DATA, 4), 0);

    /* The last sector, the first past it, a range across the end, a wrapping sector number, an odd length. */
    CHECK_EQ(request(g, 0, DISK_SECTORS - 1, DATA, 512), 0);
    unsigned reads = d.image.reads, writes = d.image.writes;
    memset(ram(g, DATA), 0x77, 1024);
    CHECK_EQ(request(g, 0, DISK_SECTORS, DATA, 512), 1);
    CHECK_EQ(*(uint8_t *)ram(g, DATA), 0); /* the length claims it, so it is zeroed */
    CHECK_EQ(request(g, 0, DISK_SECTORS - 1, DATA, 1024), 1);
    CHECK_EQ(request(g, 0, UINT64_MAX, DATA, 512), 1);
    CHECK_EQ(request(g, 1, UINT64_MAX / 512 + 1, DATA, 512), 1);
    CHECK_EQ(request(g, 0, 0, DATA, 511), 1);
    CHECK_EQ(request(g, 1, 0, DATA, 513), 1);
    CHECK_EQ(request(g, 99, 0, DATA, 512), 2);
    CHECK_EQ(d.image.reads, reads);
    CHECK_EQ(d.image.writes, writes);

    d.image.fail_from = 20 * 512;
    CHECK_EQ(request(g, 0, 19, DATA, 512), 0);
    memset(ram(g, DATA), 0x77, 1024);
    CHECK_EQ(request(g, 0, 19, DATA, 1024), 1);
    CHECK_EQ(*(uint8_t *)ram(g, DATA), 0);
    CHECK_EQ(request(g, 1, 20, DATA, 512), 1);
    d.image.fail_flush = true;
    CHECK_EQ(request(g, 4, 0, 0, 0), 1);
    struct virtio_blk_stats stats;
    virtio_blk_stats(g->device, &stats);
    CHECK_EQ(stats.errors, 10);
    CHECK_EQ(stats.first_error.code, -EIO);
    CHECK(!strcmp(stats.first_error.message, "bad sector"));
    disk_destroy(&d);
}

static void test_read_only(void)
{
    static struct disk d;
    disk_init(&d, true, 0, 16);
    struct guest *g = &d.g;
    CHECK(driver_offered(g) & BIT(5));
    CHECK_EQ(request(g, 1, 0, DATA, 512), 1);
    CHECK_EQ(d.image.writes, 0);
    CHECK_EQ(request(g, 4, 0, 0, 0), 0);
    CHECK_EQ(d.image.flushes, 0);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    disk_destroy(&d);
}

/* Without FLUSH a write is safe when it is done, and reported as failed when it cannot be made so. */
static void test_write_through(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    CHECK_EQ(request(g, 1, 0, DATA, 512), 0);
    CHECK_EQ(d.image.flushes, 1);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(d.image.flushes, 1);
    d.image.fail_flush = true;
    CHECK_EQ(request(g, 1, 0, DATA, 512), 1);
    disk_destroy(&d);
    disk_init(&d, false, FLUSH, 16);
    CHECK_EQ(request(g, 1, 0, DATA, 512), 0);
    CHECK_EQ(d.image.flushes, 0);
    disk_destroy(&d);
}

static void test_cache_modes(void)
{
    static struct disk d;
    disk_init_cached(&d, false, IMGVM_CACHE_WRITETHROUGH, 0, 16);
    CHECK(!(driver_offered(&d.g) & FLUSH));
    CHECK_EQ(request(&d.g, 1, 0, DATA, 512), 0);
    CHECK_EQ(d.image.flushes, 1);
    disk_destroy(&d);
    disk_init_cached(&d, false, IMGVM_CACHE_UNSAFE, FLUSH, 16);
    CHECK(driver_offered(&d.g) & FLUSH);
    CHECK_EQ(request(&d.g, 1, 0, DATA, 512), 0);
    CHECK_EQ(request(&d.g, 4, 0, 0, 0), 0);
    CHECK_EQ(d.image.writes, 1);
    CHECK_EQ(d.image.flushes, 0);
    disk_destroy(&d);
}

/* Any layout of the bytes is legal (2.7.4): here the header is cut in pieces, data lies across two regions of memory
 * and ends with the status; then a write through an indirect table. */
static void test_layouts(void)
{
    static struct disk d;
    disk_init(&d, false, INDIRECT_DESC, 16);
    struct guest *g = &d.g;
    uint8_t *h = ram(g, HEADERS);
    memset(h, 0, 16);
    store_le64(h + 8, 5);
    put_descriptor(g, RING_DESC, 0, HEADERS, 3, 1, 9);
    put_descriptor(g, RING_DESC, 9, HEADERS + 3, 0, 1, 4); /* empty */
    put_descriptor(g, RING_DESC, 4, HEADERS + 3, 13, 1, 2);
    put_descriptor(g, RING_DESC, 2, RAM2_BASE - 700, 1025, 2, 0); /* data and status in one */
    driver_offer(g, 0);
    driver_kick(g);
    CHECK(driver_wait(g, 1));
    CHECK(!memcmp(ram(g, RAM2_BASE - 700), d.image.data + 5 * 512, 700));
    CHECK(!memcmp(ram(g, RAM2_BASE), d.image.data + 5 * 512 + 700, 324));
    CHECK_EQ(*(uint8_t *)ram(g, RAM2_BASE + 324), 0);
    CHECK_EQ(used_field(g, 0, 1), 1025);

    /* Write: the header goes before the data in the same descriptor; both behind a normal descriptor with 4 bytes. */
    uint8_t *packed = ram(g, DATA);
    memset(packed, 0, 16);
    packed[0] = 1;
    packed[8] = 30;
    memset(packed + 16, 0xc3, 512);
    put_descriptor(g, INDIRECT, 0, DATA + 4, 12 + 200, 1, 2);
    put_descriptor(g, INDIRECT, 2, DATA + 16 + 200, 312, 1, 1);
    put_descriptor(g, INDIRECT, 1, HEADERS + 16, 1, 2, 0);
    put_descriptor(g, RING_DESC, 7, DATA, 4, 1, 8);
    put_descriptor(g, RING_DESC, 8, INDIRECT, 48, 4, 0);
    driver_offer(g, 7);
    driver_kick(g);
    CHECK(driver_wait(g, 1));
    CHECK_EQ(used_field(g, 0, 0), 7);
    CHECK_EQ(h[16], 0);
    CHECK_EQ(d.image.data[30 * 512], 0xc3);
    CHECK_EQ(d.image.data[31 * 512 - 1], 0xc3);
    CHECK_EQ(d.image.writes, 1); /* neighbours were joined */
    disk_destroy(&d);
}

/* Code that was decoded from a page which a read then overwrites must be found stale. */
static void test_dma_invalidates_code(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    const struct guest_region *region = guest_mem_find(&g->mem, DATA);
    guest_mem_mark_code(region, DATA + 512, 128);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(region->code_generation[DATA / 4096], 0);
    CHECK_EQ(request(g, 0, 0, DATA, 1024), 0);
    CHECK_EQ(region->code_generation[DATA / 4096], 1);
    disk_destroy(&d);
}

/* Many requests at once, several times around a ring of 8, and past the wrap of the 16-bit indices. */
static void test_many(uint64_t features)
{
    static struct disk d;
    disk_init(&d, false, features, 8);
    struct guest *g = &d.g;
    unsigned bad = 0;
    /* As if it had been running for long: the indices stand shortly before their wrap. */
    const uint16_t start = 65000;
    pthread_mutex_lock(&g->lock);
    g->device->queues[0].next_avail = g->device->queues[0].used_idx = start;
    g->avail_index = g->used_seen = start;
    store_le16(ram(g, RING_AVAIL + 2), start);
    store_le16(ram(g, RING_USED + 2), start);
    store_le16(ram(g, RING_USED + 4 + 8 * 8), start);
    pthread_mutex_unlock(&g->lock);
    for (unsigned round = 0; round < 5000; round++) {
        if (g->event_idx) /* interrupt me for the second */
            __atomic_store_n((uint16_t *)ram(g, RING_AVAIL + 4 + 2 * 8), g->used_seen + 1, __ATOMIC_RELEASE);
        for (uint16_t i = 0; i < 2; i++) {
            put_request(g, (uint16_t)(3 * i), 0, (round + i) % DISK_SECTORS, DATA + 512u * i, 512);
            driver_offer(g, (uint16_t)(3 * i));
        }
        driver_kick_if_wanted(g, 2);
        if (!driver_wait(g, 2)) {
            CHECK(!"lost requests");
            break;
        }
        for (uint16_t i = 0; i < 2; i++)
            bad += status_byte(g, (uint16_t)(3 * i)) != 0 ||
                   memcmp(ram(g, DATA + 512u * i), d.image.data + (round + i) % DISK_SECTORS * 512, 512);
        bad += used_field(g, 1, 0) + used_field(g, 0, 0) != 3 || (used_field(g, 0, 0) && used_field(g, 1, 0)); /* any order */
    }
    CHECK_EQ(bad, 0);
    CHECK_EQ(d.image.reads, 10000);
    /* With event idx one interrupt a pair, the first decision after the reset being free to interrupt early. */
    if (g->event_idx)
        CHECK(g->messages[1] >= 5000 && g->messages[1] <= 5001);
    else
        CHECK_EQ(g->messages[1], 10000);
    disk_destroy(&d);
}

/* The driver's wishes: no interrupt; and the device's: notify me only when I have run dry. */
static void test_suppression(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 8);
    struct guest *g = &d.g;
    store_le16(ram(g, RING_AVAIL), 1);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(g->messages[1], 0);
    store_le16(ram(g, RING_AVAIL), 0);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(g->messages[1], 1);
    /* While all of its threads work, NO_NOTIFY is set, and what is offered then is found without a kick. The ring's thread
     * never works: it has looked for more already. */
    bool busy = queue_kind == QUEUE_THREADS;
    gate(&d.image, true);
    put_request(g, 0, 0, 1, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    await_waiting(&d.image);
    while (!busy && load_le16(ram(g, RING_USED)))
        sched_yield();
    CHECK_EQ(load_le16(ram(g, RING_USED)), busy);
    put_request(g, 3, 0, 2, DATA + 512, 512);
    driver_offer(g, 3);
    if (!busy)
        driver_kick(g);
    gate(&d.image, false);
    CHECK(driver_wait(g, 2));
    CHECK(!memcmp(ram(g, DATA + 512), d.image.data + 1024, 512));
    disk_destroy(&d);

    disk_init(&d, false, EVENT_IDX, 8);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (load_le16(ram(g, RING_USED + 4 + 8 * 8)) != 2 && !deadline_passed(&start))
        sched_yield(); /* avail_event, once it has found the ring empty */
    CHECK_EQ(load_le16(ram(g, RING_USED + 4 + 8 * 8)), 2);
    disk_destroy(&d);
}

static void test_intx(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    cfg_write(g, g->msix_capability + 2, 2, 0);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(g->messages[1], 0);
    CHECK(g->line);
    CHECK(cfg_read(g, 6, 2) & 8);
    CHECK_EQ(bus_read(&g->mmio, g->isr, 1), 1);
    CHECK(!g->line);
    CHECK_EQ(bus_read(&g->mmio, g->isr, 1), 0);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(g->line_rises, 2);
    /* The same register through the window in configuration space (4.1.4.9). */
    cfg_write(g, g->window + 4, 1, 0);
    cfg_write(g, g->window + 8, 4, VIRTIO_PCI_ISR);
    cfg_write(g, g->window + 12, 4, 1);
    CHECK_EQ(cfg_read(g, g->window + 16, 1), 1);
    CHECK(!g->line);
    cfg_write(g, g->window + 8, 4, 0x16);
    cfg_write(g, g->window + 12, 4, 2);
    cfg_write(g, g->window + 16, 2, 0x1234);
    CHECK_EQ(common_read(g, 0x16, 2), 0x1234);
    CHECK_EQ(cfg_read(g, g->window + 16, 2), 0x1234);
    cfg_write(g, g->window + 12, 4, 3); /* no such width: nothing happens */
    cfg_write(g, g->window + 16, 2, 0x4321);
    cfg_write(g, g->window + 12, 4, 4);
    cfg_write(g, g->window + 8, 4, 0xfffffffc); /* outside the BAR */
    cfg_write(g, g->window + 16, 4, 0x4321);
    CHECK_EQ(common_read(g, 0x16, 2), 0x1234);
    disk_destroy(&d);
}

/* A reset while the disk is at work: status stays until the request is over, and nothing of it is ever returned. */
static void test_reset_in_flight(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    gate(&d.image, true);
    put_request(g, 0, 0, 0, DATA, 512);
    put_request(g, 3, 0, 0, DATA + 512, 512);
    driver_offer(g, 0);
    driver_offer(g, 3);
    driver_kick(g);
    await_waiting(&d.image);
    common_write(g, 0x14, 1, 0);
    CHECK_EQ(driver_status(g), 0xf);
    common_write(g, 0x14, 1, 0); /* again, and other nonsense meanwhile */
    common_write(g, 0x14, 1, 0x80);
    driver_kick(g);
    CHECK_EQ(driver_status(g), 0xf);
    gate(&d.image, false);
    CHECK(driver_reset(g));
    CHECK_EQ(used_index(g), 0);
    CHECK_EQ(g->messages[1], 0);
    CHECK(d.image.reads == 1 || d.image.reads == 2); /* the other one may have been on its way, too */
    common_write(g, 0x16, 2, 0);
    CHECK_EQ(common_read(g, 0x1c, 2), 0);
    CHECK_EQ(common_read(g, 0x1a, 2), 0xffff);
    driver_start(g, 2, 0, 16);
    CHECK_EQ(request(g, 0, 1, DATA, 512), 0);
    CHECK_EQ(g->messages[1], 1);
    disk_destroy(&d);
}

/* Opens it once it gets the board lock. */
static void *open_gate(void *opaque)
{
    struct disk *d = opaque;
    pthread_mutex_lock(&d->g.lock);
    pthread_mutex_unlock(&d->g.lock);
    gate(&d->image, false);
    return NULL;
}

/* The board's reset is over when it returns; and destroying waits for the worker too. */
static void test_bus_reset_in_flight(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    gate(&d.image, true);
    put_request(g, 0, 1, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    await_waiting(&d.image);
    pthread_t helper;
    pthread_mutex_lock(&g->lock);
    pthread_create(&helper, NULL, open_gate, &d); /* gets the lock while the reset waits for the worker */
    pci_host_reset(&g->host);
    CHECK_EQ(g->device->status, 0);
    CHECK_EQ(d.image.waiting, 0);
    pthread_mutex_unlock(&g->lock);
    pthread_join(helper, NULL);
    CHECK_EQ(used_index(g), 0);
    CHECK_EQ(bus_read(&g->mmio, g->common, 4), 0xffffffff);
    guest_assign(g);
    driver_start(g, 2, 0, 16);
    CHECK_EQ(request(g, 0, 1, DATA, 512), 0);

    gate(&d.image, true);
    put_request(g, 0, 1, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    await_waiting(&d.image);
    pthread_create(&helper, NULL, open_gate, &d);
    disk_destroy(&d);
    pthread_join(helper, NULL);
    CHECK_EQ(d.image.writes, 2);
}

/* Gives the worker every chance to do what it must not. */
static void stay_idle(struct guest *g, uint16_t used)
{
    for (unsigned i = 0; i < 2000; i++) {
        bus_read(&g->mmio, g->config, 4);
        sched_yield();
    }
    CHECK_EQ(used_index(g), used);
}

/* Paused, nothing is served and nothing is lost; without bus mastering neither. */
static void test_pause_and_master(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    pthread_mutex_lock(&g->lock);
    virtio_pause(g->device);
    pthread_mutex_unlock(&g->lock);
    put_request(g, 0, 0, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    stay_idle(g, 0);
    pthread_mutex_lock(&g->lock);
    virtio_resume(g->device);
    pthread_mutex_unlock(&g->lock);
    CHECK(driver_wait(g, 1));
    cfg_write(g, 4, 2, 2);
    put_request(g, 0, 0, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    stay_idle(g, 1);
    cfg_write(g, 4, 2, 6);
    CHECK(driver_wait(g, 1));
    CHECK_EQ(d.image.reads, 2);
    disk_destroy(&d);
}

/* Each puts one malformed chain at head 0; the device must ask for a reset, and work again after one. */
static void no_header(struct guest *g) { put_descriptor(g, RING_DESC, 0, HEADERS, 15, 1, 2); }
static void no_status(struct guest *g) { put_descriptor(g, RING_DESC, 0, HEADERS, 16, 0, 0); }
static void nothing_to_read(struct guest *g) { put_descriptor(g, RING_DESC, 0, HEADERS, 16, 2, 0); }

static void test_malformed(void (*spoil)(struct guest *g))
{
    static struct disk d;
    disk_init(&d, false, INDIRECT_DESC, 16);
    struct guest *g = &d.g;
    put_request(g, 0, 0, 0, DATA, 512);
    spoil(g);
    driver_offer(g, 0);
    driver_kick(g);
    CHECK(driver_wait_status(g, 64));
    CHECK_EQ(g->messages[0], 1);
    CHECK_EQ(used_index(g), 0);
    driver_kick(g);
    CHECK(g->device->queues[0].broken && g->device->queues[0].broken_why);
    CHECK_EQ(d.image.reads, 0);
    driver_start(g, 2, 0, 16);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    disk_destroy(&d);
}

static uint8_t ask_ranges(struct disk *d, uint32_t type, const uint32_t ranges[][3], unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        uint8_t *at = ram(&d->g, DATA + 16 * i);
        store_le64(at, ranges[i][0]);
        store_le32(at + 8, ranges[i][1]);
        store_le32(at + 12, ranges[i][2]);
    }
    return request(&d->g, type, 0, DATA, 16 * count);
}

/* DISCARD is 11, WRITE_ZEROES 13. */
static void test_ranges(void)
{
    static struct disk d;
    disk_init(&d, false, FLUSH, 16);
    CHECK_EQ(d.g.device->features >> 13 & 3, 3);
    CHECK_EQ(bus_read(&d.g.mmio, d.g.config + 40, 4), 64);
    CHECK_EQ(bus_read(&d.g.mmio, d.g.config + 56, 1), 1);
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{2, 3, 0}, {10, 1, 0}}, 2), 0);
    CHECK_EQ(d.image.discards, 2);
    CHECK(d.image.data[2 * 512] == 0xdd && d.image.data[5 * 512 - 1] == 0xdd && d.image.data[10 * 512] == 0xdd);
    CHECK(d.image.data[5 * 512] != 0xdd && d.image.data[11 * 512] != 0xdd);
    CHECK_EQ(ask_ranges(&d, 13, (const uint32_t[][3]){{20, 2, 1}, {30, 2, 0}}, 2), 0);
    CHECK(d.image.data[20 * 512] == 0 && d.image.data[22 * 512 - 1] == 0 && d.image.data[31 * 512] == 0x80);
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{0, 1, 1}}, 1), 2);     /* unmap is for zeroes */
    CHECK_EQ(ask_ranges(&d, 13, (const uint32_t[][3]){{0, 1, 2}}, 1), 2);     /* a flag that is not there */
    CHECK_EQ(ask_ranges(&d, 13, (const uint32_t[][3]){{0, 1, 0}, {63, 2, 0}}, 2), 1); /* all are checked first */
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{0, 0x800001, 0}}, 1), 1);
    CHECK_EQ(request(&d.g, 11, 0, DATA, 15), 1);
    CHECK_EQ(request(&d.g, 11, 0, 0, 0), 1);
    CHECK_EQ(request(&d.g, 13, 0, DATA, 65 * 16), 1);
    CHECK_EQ(d.image.discards, 2);
    CHECK_EQ(d.image.zeroes, 2);
    CHECK_EQ(d.image.flushes, 0);
    d.image.fail_from = 0;
    CHECK_EQ(ask_ranges(&d, 13, (const uint32_t[][3]){{0, 1, 0}}, 1), 1);
    disk_destroy(&d);

    disk_init(&d, false, 0, 16); /* a driver without FLUSH: written through */
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{0, 8, 0}}, 1), 0);
    CHECK_EQ(d.image.flushes, 1);
    disk_destroy(&d);

    disk_init(&d, true, FLUSH, 16);
    CHECK_EQ(d.g.device->features >> 13 & 3, 0);
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{0, 8, 0}}, 1), 1);
    disk_destroy(&d);
}

/* Requests wait for the host's disk side by side; a pause waits for them all. */
static void test_in_flight(void)
{
    static struct disk d;
    disk_init(&d, false, FLUSH, 16);
    struct guest *g = &d.g;
    gate(&d.image, true);
    for (uint16_t i = 0; i < 5; i++) {
        put_request(g, (uint16_t)(3 * i), 0, i, DATA + 512u * i, 512);
        driver_offer(g, (uint16_t)(3 * i));
    }
    driver_kick(g);
    pthread_mutex_lock(&d.image.lock);
    while (d.image.waiting < 4)
        pthread_cond_wait(&d.image.changed, &d.image.lock);
    pthread_mutex_unlock(&d.image.lock);
    CHECK_EQ(used_index(g), 0);
    pthread_t helper;
    pthread_mutex_lock(&g->lock);
    pthread_create(&helper, NULL, open_gate, &d);
    virtio_pause(g->device);
    CHECK_EQ(d.image.waiting, 0);
    CHECK(used_index(g) >= 4);
    virtio_resume(g->device);
    pthread_mutex_unlock(&g->lock);
    pthread_join(helper, NULL);
    CHECK(driver_wait(g, 5));
    for (uint16_t i = 0; i < 5; i++) {
        CHECK_EQ(status_byte(g, (uint16_t)(3 * i)), 0);
        CHECK(!memcmp(ram(g, DATA + 512u * i), d.image.data + 512u * i, 512));
    }
    CHECK_EQ(d.image.most_waiting, 4);
    disk_destroy(&d);
}

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* A guest gone mad: random configuration writes, BAR moves, registers, rings and doorbells. Nothing outside may be
 * touched (ASan looks on), nothing may hang, and a reset brings the device back. */
static void test_mad_guest(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    uint64_t seed = 0x9e3779b97f4a7c15;
    for (unsigned step = 0; step < 60000; step++) {
        uint64_t r = next_random(&seed), value = next_random(&seed);
        unsigned size = 1u << (r >> 8 & 3);
        switch (r & 15) {
        case 0:
            if ((r >> 40 & 15) == 0)
                cfg_write(g, (unsigned)(r >> 16 & 0xff & ~(MIN(size, 4) - 1)), MIN(size, 4), (uint32_t)value);
            break;
        case 1: /* back to where it can be reached */
            guest_assign(g);
            driver_find(g, 2);
            break;
        case 2: case 3:
            bus_write(&g->mmio, g->common + (r >> 16 & 0x3f), size, value >> (r >> 32 & 63));
            break;
        case 4:
            bus_write(&g->mmio, g->common + (r >> 16 & 0x4fff), size, value);
            break;
        case 5:
            bus_read(&g->mmio, g->common + (r >> 16 & 0x4fff), size);
            cfg_read(g, (unsigned)(r >> 16 & 0xfc), 4);
            break;
        case 6: /* rings of noise where rings have been before */
            store_le64(ram(g, RING_DESC + (value % (HEADERS - RING_DESC) & ~UINT64_C(7))), next_random(&seed) & value);
            break;
        case 7:
            if ((r >> 16 & 7) == 0)
                store_le16(ram(g, RING_AVAIL + 2), (uint16_t)(value & 31));
            break;
        case 8:
            if ((r >> 16 & 1) == 0) {
                guest_assign(g);
                if (driver_find(g, 2) && driver_reset(g) && driver_negotiate(g, BIT(28) | BIT(29))) {
                    driver_queue(g, 16);
                    common_write(g, 0x14, 1, 0xf);
                }
            }
            break;
        default:
            put_request(g, 0, (uint32_t)(value & 9), value >> 8 & 63, DATA + (value >> 16 & 0xffff),
                        (uint32_t)(value >> 32 & (value & 0x100000 ? 0x3fff : 0x1e00)));
            driver_offer(g, (uint16_t)(r >> 20 & 15 ? 0 : value));
            driver_kick(g);
            for (unsigned i = 0; i < 20 && used_index(g) != g->avail_index; i++)
                sched_yield();
            break;
        }
    }
    pthread_mutex_lock(&g->lock);
    pci_host_reset(&g->host);
    pthread_mutex_unlock(&g->lock);
    guest_assign(g);
    g->bad_messages = 0;
    driver_start(g, 2, 0, 16);
    CHECK_EQ(request(g, 0, 0, DATA, 512), 0);
    CHECK_EQ(g->messages[1], 1);
    CHECK(d.image.reads > 100 && d.image.writes > 100); /* some of it made sense */
    disk_destroy(&d);
}

static void test_all(enum block_queue_kind kind)
{
    queue_kind = kind;
    test_identity();
    test_negotiation();
    test_requests(FLUSH);
    test_requests(FLUSH | EVENT_IDX | INDIRECT_DESC);
    test_read_only();
    test_cache_modes();
    test_write_through();
    test_layouts();
    test_dma_invalidates_code();
    test_many(0);
    test_many(EVENT_IDX);
    test_suppression();
    test_intx();
    test_reset_in_flight();
    test_bus_reset_in_flight();
    test_pause_and_master();
    test_ranges();
    test_in_flight();
    test_malformed(no_header);
    test_malformed(no_status);
    test_malformed(nothing_to_read);
    if (!UNDER_TSAN) /* its races are the guest's own */
        test_mad_guest();
}

int main(void)
{
    struct uring ring;
    test_all(QUEUE_THREADS);
    if (!uring_open(&ring, 4)) {
        uring_close(&ring);
        test_all(QUEUE_RING);
    }
    return check_report();
}
