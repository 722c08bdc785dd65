/* SPDX-License-Identifier: MIT */
/* needs: base/error.c mem/bus.c mem/guest_mem.c dev/pci/host.c dev/pci/msix.c dev/pci/assign.c dev/virtio/queue.c */
/* needs: dev/virtio/device.c dev/virtio/pci.c dev/virtio/blk.c block/queue.c block/queue_ring.c block/uring.c */
/* What a disk says of itself, and its requests in every form. */
#include "virtio_disk.h"

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
    CHECK_EQ(stats.host_errors, 3); /* the others were the driver's fault */
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
    /* While all of its threads work, NO_NOTIFY is set, and what is offered then is found without a kick. Beside
     * a ring, who begins what may take long has looked for more already. */
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

    keeps_space = true;
    disk_init(&d, false, FLUSH, 16);
    keeps_space = false;
    CHECK_EQ(d.g.device->features >> 13 & 3, 2);
    CHECK_EQ(bus_read(&d.g.mmio, d.g.config + 36, 4), 0);
    CHECK_EQ(bus_read(&d.g.mmio, d.g.config + 56, 1), 0);
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{0, 8, 0}}, 1), 2);
    CHECK_EQ(ask_ranges(&d, 13, (const uint32_t[][3]){{20, 2, 1}}, 1), 0);
    CHECK_EQ(d.image.discards, 0);
    CHECK_EQ(d.image.data[20 * 512], 0x80); /* zeroed where it lies */
    disk_destroy(&d);

    disk_init(&d, true, FLUSH, 16);
    CHECK_EQ(d.g.device->features >> 13 & 3, 0);
    CHECK_EQ(ask_ranges(&d, 11, (const uint32_t[][3]){{0, 8, 0}}, 1), 1);
    disk_destroy(&d);
}

static void test_all(void)
{
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
    test_ranges();
}

int main(void) { return disk_main(test_all); }
