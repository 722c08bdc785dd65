/* SPDX-License-Identifier: MIT */
/* A guest in miniature for the virtio tests: RAM, the buses, a PCI host, and a driver that knows a device only through
 * its configuration space and BARs, as a kernel does. */
#ifndef IMGVM_TEST_VIRTIO_DRIVER_H
#define IMGVM_TEST_VIRTIO_DRIVER_H

#include "base/bits.h"
#include "check.h"
#include "dev/pci/host.h"
#include "dev/virtio/device.h"
#include "dev/virtio/pci.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RAM_BYTES 0x400000
#define RAM2_BASE 0x400000 /* the neighbour of the first region: a buffer may lie across */
#define RAM2_BYTES 0x100000
#define ROM_BASE 0xe00000
#define ROM_BYTES 0x1000

#define RING_DESC 0x10000
#define RING_AVAIL 0x18000
#define RING_USED 0x1c000
#define HEADERS 0x20000
#define INDIRECT 0x28000
#define DATA 0x100000

#define VECTORS 4

struct guest {
    pthread_mutex_t lock;
    pthread_cond_t interrupt;
    struct bus ports, mmio;
    struct guest_mem mem;
    struct pci_host host;
    bool line;
    unsigned line_rises;
    unsigned messages[VECTORS]; /* by vector: the test programs data 100h + vector */
    unsigned bad_messages;
    /* what the driver found */
    struct virtio_device *device;
    unsigned slot;
    uint64_t common, isr, config, notify;
    uint32_t notify_multiplier;
    unsigned msix_capability, window;
    uint64_t features;
    /* its queue */
    uint16_t size, avail_index, used_seen;
    bool event_idx;
};

static void guest_line(void *opaque, unsigned pin, bool level)
{
    struct guest *g = opaque;
    (void)pin;
    g->line_rises += level && !g->line;
    g->line = level;
    pthread_cond_broadcast(&g->interrupt);
}

static void guest_message(void *opaque, uint64_t address, uint32_t data)
{
    struct guest *g = opaque;
    g->bad_messages += address != 0xfee00000 || data < 0x100 || data >= 0x100 + VECTORS;
    g->messages[data & (VECTORS - 1)]++;
    pthread_cond_broadcast(&g->interrupt);
}

static inline void guest_init(struct guest *g)
{
    imgvm_error err;
    memset(g, 0, sizeof *g);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->interrupt, NULL);
    bus_init(&g->ports, &g->lock);
    bus_init(&g->mmio, &g->lock);
    CHECK_EQ(guest_mem_init(&g->mem, &err), 0);
    CHECK_EQ(guest_mem_add(&g->mem, 0, RAM_BYTES, false, &err), 0);
    CHECK_EQ(guest_mem_add(&g->mem, RAM2_BASE, RAM2_BYTES, false, &err), 0);
    CHECK_EQ(guest_mem_add(&g->mem, ROM_BASE, ROM_BYTES, true, &err), 0);
    struct pci_host_config config = {.ports = &g->ports, .mmio = &g->mmio, .msi = {guest_message, g}};
    for (unsigned i = 0; i < 4; i++)
        config.pirq[i] = (struct irq_line){guest_line, g, i};
    CHECK_EQ(pci_host_init(&g->host, &config, &err), 0);
}

static inline void guest_assign(struct guest *g)
{
    imgvm_error err;
    const struct pci_windows windows = {.mmio_base = 0xe0000000, .mmio_limit = 0xf0000000};
    pthread_mutex_lock(&g->lock);
    CHECK_EQ(pci_assign_resources(&g->host, &windows, &err), 0);
    pthread_mutex_unlock(&g->lock);
}

static inline void guest_plug(struct guest *g, struct virtio_device *device)
{
    imgvm_error err;
    struct virtio_pci *pci;
    CHECK_EQ(virtio_pci_create(&pci, device, &err), 0);
    CHECK(pci_host_add(&g->host, &pci->function, -1, &err) > 0);
    g->device = device;
    guest_assign(g);
}

static inline void guest_destroy(struct guest *g)
{
    pci_host_destroy(&g->host);
    CHECK_EQ(g->bad_messages, 0);
    bus_destroy(&g->ports);
    bus_destroy(&g->mmio);
    guest_mem_destroy(&g->mem);
}

static inline void *ram(struct guest *g, uint64_t gpa) { return guest_mem_ptr(&g->mem, gpa, 1, false); }

/* ---- configuration space ---- */

static inline uint32_t cfg_read(struct guest *g, unsigned reg, unsigned size)
{
    bus_write(&g->ports, 0xcf8, 4, 0x80000000u | g->slot << 11 | (reg & 0xfc));
    return (uint32_t)bus_read(&g->ports, 0xcfc + (reg & 3), size);
}

static inline void cfg_write(struct guest *g, unsigned reg, unsigned size, uint32_t value)
{
    bus_write(&g->ports, 0xcf8, 4, 0x80000000u | g->slot << 11 | (reg & 0xfc));
    bus_write(&g->ports, 0xcfc + (reg & 3), size, value);
}

/* Finds the device and its structures (4.1.4). */
static inline bool driver_find(struct guest *g, uint16_t id)
{
    for (g->slot = 0; g->slot < 32; g->slot++)
        if (cfg_read(g, 0, 4) == (0x1af4u | (0x1040u + id) << 16))
            break;
    if (g->slot == 32)
        return false;
    g->common = g->isr = g->config = g->notify = 0;
    for (unsigned at = cfg_read(g, 0x34, 1); at; at = cfg_read(g, at + 1, 1)) {
        if (cfg_read(g, at, 1) == 0x11)
            g->msix_capability = at;
        if (cfg_read(g, at, 1) != 9)
            continue;
        uint64_t base = (cfg_read(g, 0x10 + 4 * cfg_read(g, at + 4, 1), 4) & ~15u) + cfg_read(g, at + 8, 4);
        switch (cfg_read(g, at + 3, 1)) {
        case 1: g->common = base; break;
        case 2: g->notify = base; g->notify_multiplier = cfg_read(g, at + 16, 4); break;
        case 3: g->isr = base; break;
        case 4: g->config = base; break;
        case 5: g->window = at; break;
        }
    }
    return g->common && g->isr && g->config && g->notify && g->window && g->msix_capability;
}

/* Vector i sends data 100h + i. */
static inline void driver_enable_msix(struct guest *g)
{
    unsigned count = (cfg_read(g, g->msix_capability + 2, 2) & 0x7ff) + 1;
    uint32_t where = cfg_read(g, g->msix_capability + 4, 4);
    uint64_t table = (cfg_read(g, 0x10 + 4 * (where & 7), 4) & ~15u) + (where & ~7u);
    for (unsigned i = 0; i < count; i++) {
        bus_write(&g->mmio, table + 16 * i, 4, 0xfee00000);
        bus_write(&g->mmio, table + 16 * i + 4, 4, 0);
        bus_write(&g->mmio, table + 16 * i + 8, 4, 0x100 + i);
        bus_write(&g->mmio, table + 16 * i + 12, 4, 0);
    }
    cfg_write(g, g->msix_capability + 2, 2, 0x8000);
}

/* ---- common configuration ---- */

static inline uint64_t common_read(struct guest *g, unsigned at, unsigned size)
{
    return bus_read(&g->mmio, g->common + at, size);
}
static inline void common_write(struct guest *g, unsigned at, unsigned size, uint64_t value)
{
    bus_write(&g->mmio, g->common + at, size, value);
}
static inline uint8_t driver_status(struct guest *g) { return (uint8_t)common_read(g, 0x14, 1); }

static inline uint64_t driver_offered(struct guest *g)
{
    common_write(g, 0, 4, 0);
    uint64_t features = common_read(g, 4, 4);
    common_write(g, 0, 4, 1);
    return features | common_read(g, 4, 4) << 32;
}

static inline bool deadline_passed(const struct timespec *start)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec - start->tv_sec > 20;
}

static inline bool driver_reset(struct guest *g)
{
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    common_write(g, 0x14, 1, 0);
    while (driver_status(g)) {
        if (deadline_passed(&start))
            return false;
        sched_yield();
    }
    return true;
}

/* Steps 2 to 6 of 3.1.1; the features taken are `wanted` plus VERSION_1. */
static inline bool driver_negotiate(struct guest *g, uint64_t wanted)
{
    common_write(g, 0x14, 1, 1);
    common_write(g, 0x14, 1, 3);
    g->features = wanted | BIT(32);
    g->event_idx = wanted >> 29 & 1;
    for (unsigned half = 0; half < 2; half++) {
        common_write(g, 8, 4, half);
        common_write(g, 0xc, 4, (uint32_t)(g->features >> (32 * half)));
    }
    common_write(g, 0x14, 1, 0xb);
    return driver_status(g) & 8;
}

static inline void driver_queue(struct guest *g, uint16_t size)
{
    memset(ram(g, RING_DESC), 0, HEADERS - RING_DESC);
    common_write(g, 0x10, 2, 0);
    CHECK_EQ(common_read(g, 0x10, 2), 0);
    common_write(g, 0x16, 2, 0);
    common_write(g, 0x18, 2, size);
    CHECK_EQ(common_read(g, 0x18, 2), size);
    common_write(g, 0x1a, 2, 1);
    CHECK_EQ(common_read(g, 0x1a, 2), 1);
    common_write(g, 0x20, 8, RING_DESC);
    common_write(g, 0x28, 4, RING_AVAIL);
    common_write(g, 0x2c, 4, 0);
    common_write(g, 0x30, 4, RING_USED);
    common_write(g, 0x34, 4, 0);
    CHECK_EQ(common_read(g, 0x20, 8), RING_DESC);
    common_write(g, 0x1c, 2, 1);
    CHECK_EQ(common_read(g, 0x1c, 2), 1);
    g->size = size;
    g->avail_index = g->used_seen = 0;
}

/* Everything from reset to DRIVER_OK, with MSI-X. */
static inline void driver_start(struct guest *g, uint16_t id, uint64_t features, uint16_t size)
{
    CHECK(driver_find(g, id));
    CHECK(driver_reset(g));
    driver_enable_msix(g);
    CHECK(driver_negotiate(g, features));
    driver_queue(g, size);
    common_write(g, 0x14, 1, 0xf);
    CHECK_EQ(driver_status(g), 0xf);
    memset(g->messages, 0, sizeof g->messages);
}

/* ---- the queue ---- */

static inline void put_descriptor(struct guest *g, uint64_t table, unsigned i, uint64_t gpa, uint32_t bytes,
                                  uint16_t flags, uint16_t next)
{
    uint8_t *d = ram(g, table + 16 * i);
    store_le64(d, gpa);
    store_le32(d + 8, bytes);
    store_le16(d + 12, flags);
    store_le16(d + 14, next);
}

static inline void driver_offer(struct guest *g, uint16_t head)
{
    store_le16(ram(g, RING_AVAIL + 4 + 2 * (g->avail_index % g->size)), head);
    g->avail_index++;
    __atomic_store_n((uint16_t *)ram(g, RING_AVAIL + 2), g->avail_index, __ATOMIC_RELEASE);
}

static inline void driver_kick(struct guest *g) { bus_write(&g->mmio, g->notify + 0 * g->notify_multiplier, 2, 0); }

/* As a good driver: only when the device wants it (2.7.10, "Driver Requirements: Available Buffer Notification
 * Suppression"). `count` entries were offered since the last time. */
static inline void driver_kick_if_wanted(struct guest *g, uint16_t count)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t flags = __atomic_load_n((uint16_t *)ram(g, RING_USED), __ATOMIC_ACQUIRE);
    uint16_t event = __atomic_load_n((uint16_t *)ram(g, RING_USED + 4 + 8u * g->size), __ATOMIC_ACQUIRE);
    if (g->event_idx ? (uint16_t)(g->avail_index - event - 1) < count : !(flags & 1))
        driver_kick(g);
}

static inline uint16_t used_index(struct guest *g)
{
    return __atomic_load_n((uint16_t *)ram(g, RING_USED + 2), __ATOMIC_ACQUIRE);
}

/* Waits until the device has returned `count` more chains, and until it is done with the interrupt of the last. */
static inline bool driver_wait(struct guest *g, unsigned count)
{
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while ((uint16_t)(used_index(g) - g->used_seen) < count) {
        if (deadline_passed(&start))
            return false;
        sched_yield();
    }
    g->used_seen = (uint16_t)(g->used_seen + count);
    pthread_mutex_lock(&g->lock);
    pthread_mutex_unlock(&g->lock);
    return true;
}

/* The i-th used entry from the last seen backwards (0: the last). */
static inline uint32_t used_field(struct guest *g, unsigned back, unsigned field)
{
    uint16_t i = (uint16_t)(g->used_seen - 1 - back);
    return load_le32(ram(g, RING_USED + 4 + 8 * (i % g->size) + 4 * field));
}

static inline bool driver_wait_status(struct guest *g, uint8_t bit)
{
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (!(driver_status(g) & bit)) {
        if (deadline_passed(&start))
            return false;
        sched_yield();
    }
    return true;
}

#endif
