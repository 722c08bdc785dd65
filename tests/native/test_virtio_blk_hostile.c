/* SPDX-License-Identifier: MIT */
/* needs: base/error.c mem/bus.c mem/guest_mem.c dev/pci/host.c dev/pci/msix.c dev/pci/assign.c dev/virtio/queue.c */
/* needs: dev/virtio/device.c dev/virtio/pci.c dev/virtio/blk.c block/queue.c block/queue_ring.c block/uring.c */
/* Guests that break the rules: the disk asks for a reset, and nothing outside is touched. */
#include "virtio_disk.h"

#ifdef __SANITIZE_THREAD__
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif

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

static void test_all(void)
{
    test_malformed(no_header);
    test_malformed(no_status);
    test_malformed(nothing_to_read);
    if (!UNDER_TSAN) /* its races are the guest's own */
        test_mad_guest();
}

int main(void) { return disk_main(test_all); }
