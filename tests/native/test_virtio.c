/* SPDX-License-Identifier: MIT */
/* needs: base/error.c mem/bus.c mem/guest_mem.c dev/pci/host.c dev/pci/msix.c dev/pci/assign.c dev/virtio/queue.c */
/* needs: dev/virtio/device.c dev/virtio/pci.c dev/virtio/rng.c */
#include "dev/virtio/rng.h"
#include "virtio_driver.h"

#define INDIRECT_FLAG 4

/* ---- the queue alone, against drivers that lie ---- */

static struct virtqueue queue;
static struct virtq_chain chain;

static void queue_start(struct guest *g, uint16_t size, bool event_idx, bool indirect)
{
    memset(ram(g, RING_DESC), 0, HEADERS - RING_DESC);
    virtqueue_init(&queue, &g->mem, size);
    queue.desc_gpa = RING_DESC;
    queue.avail_gpa = RING_AVAIL;
    queue.used_gpa = RING_USED;
    virtqueue_enable(&queue, event_idx, indirect);
    g->size = size;
    g->avail_index = g->used_seen = 0;
}

static bool breaks(struct guest *g, const char *why)
{
    driver_offer(g, 0);
    bool broke = virtqueue_pop(&queue, &chain) == -1 && queue.broken && strstr(queue.broken_why, why);
    if (!broke)
        printf("expected \"%s\", got \"%s\"\n", why, queue.broken_why ? queue.broken_why : "nothing");
    return broke && virtqueue_pop(&queue, &chain) == -1; /* and stays so */
}

static void test_chains(struct guest *g)
{
    queue_start(g, 8, false, true);
    CHECK_EQ(virtqueue_pop(&queue, &chain), 0);
    memcpy(ram(g, DATA), "abcdefgh", 8);
    put_descriptor(g, RING_DESC, 3, DATA, 3, 1, 1);
    put_descriptor(g, RING_DESC, 1, DATA + 4, 4, 1, 0);
    put_descriptor(g, RING_DESC, 0, DATA + 16, 4, 3, 6);
    put_descriptor(g, RING_DESC, 6, DATA + 20, 4, 3, 7); /* joins the one before */
    put_descriptor(g, RING_DESC, 7, DATA + 32, 4, 2, 0);
    driver_offer(g, 3);
    CHECK_EQ(virtqueue_pop(&queue, &chain), 1);
    CHECK_EQ(chain.head, 3);
    CHECK_EQ(chain.out_count, 2);
    CHECK_EQ(chain.in_count, 2);
    CHECK_EQ(chain.out_bytes, 7);
    CHECK_EQ(chain.in_bytes, 12);
    char text[16] = "";
    CHECK_EQ(virtq_chain_read(&chain, 0, text, 16), 7);
    CHECK(!memcmp(text, "abcefgh", 7));
    CHECK_EQ(virtq_chain_read(&chain, 2, text, 3), 3);
    CHECK(!memcmp(text, "cef", 3));
    CHECK_EQ(virtq_chain_read(&chain, 7, text, 3), 0);
    CHECK_EQ(virtq_chain_write(&g->mem, &chain, 6, "12345678", 8), 6);
    CHECK(!memcmp(ram(g, DATA + 22), "12", 2));
    CHECK(!memcmp(ram(g, DATA + 32), "3456\0", 5));
    CHECK_EQ(virtq_chain_zero(&g->mem, &chain, 7, 3), 3);
    CHECK(!memcmp(ram(g, DATA + 22), "1\0", 2));
    CHECK(!memcmp(ram(g, DATA + 32), "\0\0" "56", 4));
    virtqueue_push(&queue, chain.head, 12);
    CHECK_EQ(load_le32(ram(g, RING_USED + 4)), 3);
    CHECK_EQ(load_le32(ram(g, RING_USED + 8)), 12);
    CHECK_EQ(used_index(g), 1);

    /* A full indirect table, longer than the ring. */
    for (unsigned i = 0; i < 100; i++)
        put_descriptor(g, INDIRECT, i, DATA + 64 * i, 32, i < 99, (uint16_t)(i + 1));
    put_descriptor(g, RING_DESC, 0, INDIRECT, 1600, INDIRECT_FLAG, 0);
    driver_offer(g, 0);
    CHECK_EQ(virtqueue_pop(&queue, &chain), 1);
    CHECK_EQ(chain.out_count, 100);
    CHECK_EQ(chain.out_bytes, 3200);
    /* A ROM may be read, by a chain and by a table. */
    put_descriptor(g, RING_DESC, 0, ROM_BASE, 16, 0, 0);
    driver_offer(g, 0);
    CHECK_EQ(virtqueue_pop(&queue, &chain), 1);
}

static void test_lies(struct guest *g)
{
    queue_start(g, 8, false, true);
    put_descriptor(g, RING_DESC, 0, DATA, 4, 1, 1);
    put_descriptor(g, RING_DESC, 1, DATA, 4, 1, 0);
    CHECK(breaks(g, "loops"));
    queue_start(g, 8, false, true);
    put_descriptor(g, RING_DESC, 0, DATA, 4, 1, 8);
    CHECK(breaks(g, "out of range"));
    queue_start(g, 8, false, true);
    driver_offer(g, 8);
    CHECK_EQ(virtqueue_pop(&queue, &chain), -1);
    queue_start(g, 8, false, true);
    g->avail_index = 8;
    CHECK(breaks(g, "jumped"));
    queue_start(g, 8, false, true);
    put_descriptor(g, RING_DESC, 0, DATA, 4, 3, 1);
    put_descriptor(g, RING_DESC, 1, DATA, 4, 0, 0);
    CHECK(breaks(g, "follows"));
    const struct {
        uint64_t gpa;
        uint32_t bytes;
        uint16_t flags;
    } outside[] = {
        {RAM2_BASE + RAM2_BYTES, 1, 0}, {RAM2_BASE + RAM2_BYTES - 4, 5, 0}, {UINT64_MAX - 1, 4, 0}, {UINT64_MAX, 1, 2},
        {ROM_BASE, 1, 2}, {DATA, UINT32_MAX, 0}, {ROM_BASE + ROM_BYTES - 1, 2, 0},
    };
    for (unsigned i = 0; i < ARRAY_LEN(outside); i++) {
        queue_start(g, 8, false, true);
        put_descriptor(g, RING_DESC, 0, outside[i].gpa, outside[i].bytes, outside[i].flags, 0);
        CHECK(breaks(g, "outside RAM"));
    }
    /* A table of many overlapping large buffers: the sum must not wrap. */
    queue_start(g, 8, false, true);
    for (unsigned i = 0; i < 1100; i++)
        put_descriptor(g, INDIRECT, i, 0, RAM_BYTES, 1, (uint16_t)(i + 1));
    put_descriptor(g, RING_DESC, 0, INDIRECT, 1100 * 16, INDIRECT_FLAG, 0);
    CHECK(breaks(g, "4 GiB"));
    for (unsigned i = 0; i < 1100; i++)
        put_descriptor(g, INDIRECT, i, DATA + 8 * i, 4, 1, (uint16_t)(i + 1));
    queue_start(g, 8, false, true);
    put_descriptor(g, RING_DESC, 0, INDIRECT, 1100 * 16, INDIRECT_FLAG, 0);
    CHECK(breaks(g, "loops"));

    /* As many pieces as fit, and one more. */
    for (unsigned extra = 0; extra < 2; extra++) {
        for (unsigned i = 0; i < 1024; i++)
            put_descriptor(g, INDIRECT, i, DATA + 8 * i, 4, i < 1023, (uint16_t)(i + 1));
        queue_start(g, 8, false, true);
        put_descriptor(g, RING_DESC, 0, DATA + 0x8000, 4, 1, 1);
        put_descriptor(g, RING_DESC, 1, INDIRECT, 1024 * 16, INDIRECT_FLAG, 0);
        if (extra) {
            CHECK(breaks(g, "too many pieces"));
        } else {
            driver_offer(g, 1);
            CHECK_EQ(virtqueue_pop(&queue, &chain), 1);
            CHECK_EQ(chain.out_count, 1024);
        }
    }

    const struct {
        uint64_t gpa;
        uint32_t bytes;
        uint16_t flags;
        bool negotiated;
        const char *why;
    } tables[] = {
        {INDIRECT, 32, INDIRECT_FLAG, false, "bad indirect"}, {INDIRECT, 0, INDIRECT_FLAG, true, "bad indirect"},
        {INDIRECT, 24, INDIRECT_FLAG, true, "bad indirect"}, {INDIRECT, 32, INDIRECT_FLAG | 1, true, "bad indirect"},
        {UINT64_MAX - 15, 32, INDIRECT_FLAG, true, "not in RAM"}, {0xd00000, 32, INDIRECT_FLAG, true, "not in RAM"},
        {INDIRECT, 16, INDIRECT_FLAG, true, "bounds"}, {INDIRECT + 160, 32, INDIRECT_FLAG, true, "bounds"},
        {INDIRECT + 64, 32, INDIRECT_FLAG, true, "loops"},
        {INDIRECT + 128, 16, INDIRECT_FLAG, true, "inside an indirect"},
    };
    put_descriptor(g, INDIRECT, 0, DATA, 4, 1, 1);
    put_descriptor(g, INDIRECT, 4, DATA, 4, 1, 1);
    put_descriptor(g, INDIRECT, 5, DATA, 4, 1, 0);
    put_descriptor(g, INDIRECT, 10, DATA, 4, 1, 2); /* the first row behind the table is a good one */
    put_descriptor(g, INDIRECT, 12, DATA, 4, 0, 0);
    put_descriptor(g, INDIRECT, 8, INDIRECT, 16, INDIRECT_FLAG, 0);
    for (unsigned i = 0; i < ARRAY_LEN(tables); i++) {
        queue_start(g, 8, false, tables[i].negotiated);
        put_descriptor(g, RING_DESC, 0, tables[i].gpa, tables[i].bytes, tables[i].flags, 0);
        CHECK(breaks(g, tables[i].why));
    }

    const uint64_t rings[][3] = {
        {RING_DESC + 8, RING_AVAIL, RING_USED}, {RING_DESC, RING_AVAIL + 1, RING_USED},
        {RING_DESC, RING_AVAIL, RING_USED + 2}, {0xd00000, RING_AVAIL, RING_USED},
        {RING_DESC, 0xfffffffffffffffe, RING_USED}, {RING_DESC, RING_AVAIL, ROM_BASE},
        {RAM_BYTES - 16, RING_AVAIL, RING_USED},
    };
    for (unsigned i = 0; i < ARRAY_LEN(rings); i++) {
        virtqueue_init(&queue, &g->mem, 8);
        queue.desc_gpa = rings[i][0];
        queue.avail_gpa = rings[i][1];
        queue.used_gpa = rings[i][2];
        virtqueue_enable(&queue, true, true);
        CHECK(queue.broken);
        CHECK_EQ(virtqueue_pop(&queue, &chain), -1);
        virtqueue_push(&queue, 0, 0); /* harmless */
        virtqueue_busy(&queue);
        CHECK(!virtqueue_should_interrupt(&queue));
    }
}

/* When to interrupt with event idx, against a plain model: has used_event been passed? Around the wrap too. */
static void test_event_idx(struct guest *g)
{
    queue_start(g, 8, true, false);
    uint8_t *used_event = ram(g, RING_AVAIL + 4 + 2 * 8);
    unsigned wrong = 0;
    CHECK(virtqueue_should_interrupt(&queue)); /* nothing to compare with yet */
    for (uint32_t old = 65500, now; old < 65600; old = now) {
        uint32_t event = old - 1 + old % 5; /* the driver wants to hear when the index passes this one */
        queue.used_idx = queue.signalled = (uint16_t)old;
        store_le16(used_event, (uint16_t)event);
        now = old + 1 + old % 3;
        while (queue.used_idx != (uint16_t)now)
            virtqueue_push(&queue, 0, 0);
        wrong += virtqueue_should_interrupt(&queue) != (event >= old && event < now);
    }
    CHECK_EQ(wrong, 0);
}

/* Rings of random bytes, near enough to legal to get deep. Under ASan this shows that nothing is touched outside. */
static void test_random_rings(struct guest *g)
{
    uint64_t seed = 0x243f6a8885a308d3;
    unsigned popped = 0, broken = 0;
    for (unsigned round = 0; round < 20000; round++) {
        queue_start(g, 16, round & 1, round & 2);
        for (unsigned i = 0; i < 16; i++) {
            uint64_t r[2];
            for (unsigned k = 0; k < 2; k++) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                r[k] = seed;
            }
            uint64_t gpa = r[0] & 7 ? (r[0] >> 8) % (RAM2_BASE + RAM2_BYTES) : r[0];
            uint64_t table = r[0] & 0x1000 ? RING_DESC : INDIRECT;
            put_descriptor(g, r[1] & 8 ? RING_DESC : INDIRECT, i, r[1] & 0x70 ? gpa : table,
                           r[1] & 0x80 ? (uint32_t)(r[1] >> 32) : (uint32_t)(r[1] >> 32) % 0x1000 & ~15u,
                           (uint16_t)(r[1] >> 8 & (r[1] & 0x70 ? 3 : 7)),
                           (uint16_t)(r[1] >> 16 & 0x11 ? i + 1 : r[1] >> 20));
        }
        for (unsigned i = 0; i < 16; i++)
            driver_offer(g, (uint16_t)i);
        int got;
        while ((got = virtqueue_pop(&queue, &chain)) > 0) {
            uint32_t sum = 0;
            for (unsigned i = 0; i < chain.out_count + 0u + chain.in_count; i++) {
                sum += chain.spans[i].bytes;
                broken += !guest_mem_ptr(&g->mem, chain.spans[i].gpa, chain.spans[i].bytes, false);
            }
            broken += sum != chain.in_bytes + chain.out_bytes;
            virtqueue_push(&queue, chain.head, chain.in_bytes);
            popped++;
        }
    }
    CHECK_EQ(broken, 0);
    CHECK(popped > 10000);
}

/* ---- virtio-rng through the whole transport ---- */

static unsigned notify_moves, vector_changes;
static uint64_t notify_address;
static void notify_moved(void *opaque, struct virtio_pci *pci)
{
    (void)opaque;
    notify_moves++;
    notify_address = virtio_pci_notify_address(pci, 0);
}
static void vector_changed(void *opaque, struct virtio_pci *pci, unsigned vector)
{
    (void)opaque, (void)pci, (void)vector;
    vector_changes++;
}

static void test_rng(void)
{
    struct guest g;
    struct virtio_device *rng;
    struct virtio_pci *pci;
    imgvm_error err;
    guest_init(&g);
    CHECK_EQ(virtio_rng_create(&rng, &g.mem, &g.lock, &err), 0);
    CHECK_EQ(virtio_pci_create(&pci, rng, &err), 0);
    CHECK_EQ(virtio_pci_notify_address(pci, 0), 0);
    pci->hooks = (struct virtio_pci_hooks){notify_moved, vector_changed, NULL};
    CHECK_EQ(pci_host_add(&g.host, &pci->function, 7, &err), 7);
    g.device = rng;
    guest_assign(&g);
    CHECK_EQ(notify_moves, 1);
    driver_start(&g, 4, BIT(28) | BIT(29), 8);
    CHECK_EQ(g.slot, 7);
    CHECK_EQ(notify_address, g.notify);
    CHECK(vector_changes >= 2);
    CHECK_EQ(virtio_pci_notify_address(pci, 1), 0);

    memset(ram(&g, DATA), 0, 0x20000);
    put_descriptor(&g, RING_DESC, 0, DATA, 1000, 3, 1);
    put_descriptor(&g, RING_DESC, 1, DATA + 2000, 24, 2, 0);
    driver_offer(&g, 0);
    driver_kick(&g); /* synchronous */
    CHECK_EQ(used_index(&g), 1);
    g.used_seen = 1;
    CHECK_EQ(used_field(&g, 0, 1), 1024);
    CHECK_EQ(g.messages[1], 1);
    unsigned zeros = 0;
    for (unsigned i = 0; i < 1000; i++)
        zeros += !*(uint8_t *)ram(&g, DATA + i);
    CHECK(zeros < 40); /* about 4 are expected */
    CHECK(memcmp(ram(&g, DATA), ram(&g, DATA + 500), 500));
    CHECK_EQ(*(uint64_t *)ram(&g, DATA + 1000), 0);
    CHECK(*(uint64_t *)ram(&g, DATA + 2016) != 0);
    CHECK_EQ(*(uint64_t *)ram(&g, DATA + 2024), 0);
    /* A huge buffer gets a part; one for reading gets nothing; both come back. */
    put_descriptor(&g, RING_DESC, 0, DATA, 0x18000, 2, 0);
    put_descriptor(&g, RING_DESC, 1, DATA, 16, 0, 0);
    driver_offer(&g, 0);
    driver_offer(&g, 1);
    driver_kick(&g);
    CHECK_EQ(used_index(&g), 3);
    g.used_seen = 3;
    CHECK_EQ(used_field(&g, 1, 1), 65536);
    CHECK_EQ(*(uint64_t *)ram(&g, DATA + 65536), 0);
    CHECK_EQ(used_field(&g, 0, 1), 0);
    /* Moved elsewhere, the doorbell follows. */
    cfg_write(&g, 0x10, 4, 0xe8000000);
    CHECK_EQ(notify_address, 0xe8003000);
    bus_write(&g.mmio, 0xe8003000 + 4, 2, 1); /* a queue that is not there */
    driver_offer(&g, 0);
    bus_write(&g.mmio, 0xe8003000, 2, 0);
    CHECK_EQ(used_index(&g), 4);
    cfg_write(&g, 4, 2, 4);
    CHECK_EQ(notify_address, 0);
    cfg_write(&g, 4, 2, 6);
    CHECK(driver_find(&g, 4));
    /* Nonsense, then a reset cures it. */
    put_descriptor(&g, RING_DESC, 0, 0xd00000, 16, 2, 0);
    driver_offer(&g, 0);
    driver_kick(&g);
    CHECK_EQ(driver_status(&g), 0x4f);
    CHECK_EQ(g.messages[0], 1);
    driver_start(&g, 4, 0, 8);
    put_descriptor(&g, RING_DESC, 0, DATA, 16, 2, 0);
    driver_offer(&g, 0);
    driver_kick(&g);
    CHECK_EQ(used_index(&g), 1);
    guest_destroy(&g);
}

/* A queue enabled at an impossible place asks for a reset at once; buffers offered before DRIVER_OK are found. */
static void test_start_order(void)
{
    struct guest g;
    struct virtio_device *rng;
    imgvm_error err;
    guest_init(&g);
    CHECK_EQ(virtio_rng_create(&rng, &g.mem, &g.lock, &err), 0);
    guest_plug(&g, rng);
    CHECK(driver_find(&g, 4));
    CHECK(driver_reset(&g));
    CHECK(driver_negotiate(&g, 0));
    common_write(&g, 0x20, 8, 0xd00000);
    common_write(&g, 0x1c, 2, 1);
    CHECK_EQ(driver_status(&g), 0x4b);
    CHECK(driver_reset(&g));
    CHECK(driver_negotiate(&g, 0));
    driver_queue(&g, 8);
    put_descriptor(&g, RING_DESC, 0, DATA, 16, 2, 0);
    driver_offer(&g, 0);
    driver_kick(&g);
    CHECK_EQ(used_index(&g), 0);
    common_write(&g, 0x14, 1, 0xf);
    CHECK_EQ(used_index(&g), 1);
    CHECK(g.line); /* MSI-X was not enabled */
    /* The addresses of a live queue cannot be changed. */
    common_write(&g, 0x20, 8, 0xd00000);
    CHECK_EQ(common_read(&g, 0x20, 8), RING_DESC);
    guest_destroy(&g);
}

/* ---- a device of another kind: three queues, a writable configuration, changes of its own accord ---- */

struct toy {
    struct virtio_device device;
    unsigned notified[3], starts, destroys;
};

static void toy_notify(struct virtio_device *device, unsigned queue_index)
{
    struct toy *toy = container_of(device, struct toy, device);
    toy->notified[queue_index]++;
    while (virtqueue_pop(&device->queues[queue_index], &chain) > 0)
        virtio_push(device, queue_index, chain.head, 0);
    virtio_interrupt(device, queue_index);
}
static void toy_driver_ok(struct virtio_device *device) { container_of(device, struct toy, device)->starts++; }
static void toy_destroy(struct virtio_device *device) { container_of(device, struct toy, device)->destroys++; }
static void toy_config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
    if (offset == 4 && size == 4)
        memcpy(device->config + offset, &value, size);
}
static const struct virtio_device_ops toy_ops = {
    .notify = toy_notify, .driver_ok = toy_driver_ok, .destroy = toy_destroy, .config_write = toy_config_write};

static void test_another_device(void)
{
    struct guest g;
    struct toy toy = {0};
    guest_init(&g);
    const struct virtio_device_config config = {
        .name = "toy", .id = VIRTIO_ID_BALLOON, .class_code = 0x00ff00, .features = BIT(1), .config_bytes = 8,
        .queue_count = 3, .queue_size = 8, .mem = &g.mem, .lock = &g.lock};
    virtio_device_init(&toy.device, &config, &toy_ops);
    guest_plug(&g, &toy.device);
    CHECK(driver_find(&g, 5));
    driver_enable_msix(&g);
    CHECK(driver_negotiate(&g, BIT(1)));
    driver_queue(&g, 8);
    /* Queue 2: its own rings behind those of queue 0, vector 3. */
    common_write(&g, 0x16, 2, 2);
    common_write(&g, 0x1a, 2, 3);
    common_write(&g, 0x18, 2, 8);
    CHECK_EQ(common_read(&g, 0x1e, 2), 2);
    common_write(&g, 0x20, 8, RING_DESC + 0x1000);
    common_write(&g, 0x28, 8, RING_AVAIL + 0x1000);
    common_write(&g, 0x30, 8, RING_USED + 0x1000);
    common_write(&g, 0x1c, 2, 0); /* only 1 does anything */
    CHECK_EQ(common_read(&g, 0x1c, 2), 0);
    common_write(&g, 0x1c, 2, 1);
    common_write(&g, 0x14, 1, 0xf);
    CHECK_EQ(toy.starts, 1);
    CHECK_EQ(toy.notified[0] + toy.notified[2], 2); /* told to look at what was there before */
    CHECK_EQ(toy.notified[1], 0);
    memset(g.messages, 0, sizeof g.messages);
    put_descriptor(&g, RING_DESC + 0x1000, 5, DATA, 4, 0, 0);
    store_le16(ram(&g, RING_AVAIL + 0x1000 + 4), 5);
    store_le16(ram(&g, RING_AVAIL + 0x1000 + 2), 1);
    bus_write(&g.mmio, g.notify + 2 * g.notify_multiplier, 2, 2);
    CHECK_EQ(toy.notified[2], 2);
    CHECK_EQ(g.messages[3], 1);
    CHECK_EQ(load_le32(ram(&g, RING_USED + 0x1000 + 4)), 5);
    bus_write(&g.mmio, g.notify + 1 * g.notify_multiplier, 2, 1); /* not enabled */
    CHECK_EQ(toy.notified[1], 0);

    bus_write(&g.mmio, g.config + 4, 4, 0xabcd);
    bus_write(&g.mmio, g.config, 4, 0x1234);
    bus_write(&g.mmio, g.config + 6, 4, ~0u);
    CHECK_EQ(bus_read(&g.mmio, g.config, 8), 0xabcd00000000);
    CHECK_EQ(bus_read(&g.mmio, g.config + 6, 4), 0); /* the end is zero-filled */
    unsigned generation = (unsigned)common_read(&g, 0x15, 1);
    pthread_mutex_lock(&g.lock);
    toy.device.config[0] = 9;
    virtio_config_changed(&toy.device);
    pthread_mutex_unlock(&g.lock);
    CHECK_EQ(common_read(&g, 0x15, 1), (generation + 1) & 0xff);
    CHECK_EQ(bus_read(&g.mmio, g.config, 1), 9);
    CHECK_EQ(g.messages[0], 1);
    cfg_write(&g, g.msix_capability + 2, 2, 0); /* by pin: bit 1 of ISR */
    pthread_mutex_lock(&g.lock);
    virtio_config_changed(&toy.device);
    pthread_mutex_unlock(&g.lock);
    CHECK(g.line);
    CHECK_EQ(bus_read(&g.mmio, g.isr, 1), 2);
    CHECK(driver_reset(&g));
    pthread_mutex_lock(&g.lock);
    virtio_config_changed(&toy.device); /* nobody is listening */
    pthread_mutex_unlock(&g.lock);
    CHECK(!g.line);
    guest_destroy(&g);
    CHECK_EQ(toy.destroys, 1);
}

int main(void)
{
    struct guest g;
    guest_init(&g);
    test_chains(&g);
    test_lies(&g);
    test_event_idx(&g);
    test_random_rings(&g);
    guest_destroy(&g);
    test_rng();
    test_start_order();
    test_another_device();
    return check_report();
}
