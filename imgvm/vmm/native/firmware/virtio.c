/* SPDX-License-Identifier: MIT */
/* A polled driver of virtio-blk over PCI (virtio 1.2, 4.1 and 5.2). Its registers lie in memory far above what real mode
 * reaches, so they are reached through the window that the device has in configuration space (4.1.4.9). */
#include "disk.h"

#define VENDOR_VIRTIO 0x1af4
#define DEVICE_BLK 0x1042
#define PCI_CAPABILITIES 0x34
#define CAPABILITY_VENDOR 0x09

#define CAP_TYPE 3
#define CAP_BAR 4
#define CAP_OFFSET 8
#define CAP_LENGTH 12
#define CAP_TAIL 16 /* of NOTIFY: the multiplier; of WINDOW: the data */
#define TYPE_COMMON 1
#define TYPE_NOTIFY 2
#define TYPE_DEVICE 4
#define TYPE_WINDOW 5

#define COMMON_FEATURE_SELECT 0x00
#define COMMON_FEATURE 0x04
#define COMMON_DRIVER_FEATURE_SELECT 0x08
#define COMMON_DRIVER_FEATURE 0x0c
#define COMMON_STATUS 0x14
#define COMMON_QUEUE_SELECT 0x16
#define COMMON_QUEUE_SIZE 0x18
#define COMMON_QUEUE_ENABLE 0x1c
#define COMMON_QUEUE_NOTIFY_OFF 0x1e
#define COMMON_QUEUE_DESC 0x20
#define COMMON_QUEUE_DRIVER 0x28
#define COMMON_QUEUE_DEVICE 0x30

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define STATUS_READY (STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK)
#define FEATURE_RO 0x20       /* bit 5 */
#define FEATURE_VERSION_1 1   /* bit 32: the first of the second word */

#define DESC_NEXT 1
#define DESC_WRITE 2 /* by the device */
#define AVAILABLE_NO_INTERRUPT 1
#define REQUEST_IN 0
#define REQUEST_OUT 1
#define SPINS_PER_LOOK 100000 /* some milliseconds */
#define RESULT_OK 0
#define RESULT_UNSUPPORTED 2

static void aim(const struct drive *d, struct virtio_region region, u32 offset, u32 bytes)
{
    pci_write8(d->devfn, d->window + CAP_BAR, region.bar);
    pci_write32(d->devfn, d->window + CAP_OFFSET, region.offset + offset);
    pci_write32(d->devfn, d->window + CAP_LENGTH, bytes);
}

static u32 get(const struct drive *d, struct virtio_region region, u32 offset, u32 bytes)
{
    aim(d, region, offset, bytes);
    u32 value = pci_read32(d->devfn, d->window + CAP_TAIL);
    return bytes == 4 ? value : value & ((1u << 8 * bytes) - 1);
}

static void set(const struct drive *d, struct virtio_region region, u32 offset, u32 bytes, u32 value)
{
    aim(d, region, offset, bytes);
    pci_write32(d->devfn, d->window + CAP_TAIL, value);
}

static u32 physical(const volatile void *pointer)
{
    return EBDA_ADDRESS + (u32)(uintptr_t)pointer;
}

static void set_address(const struct drive *d, struct virtio_region common, u32 offset, const volatile void *pointer)
{
    set(d, common, offset, 4, physical(pointer));
    set(d, common, offset + 4, 4, 0);
}

static bool negotiate(struct drive *d, struct virtio_region common)
{
    set(d, common, COMMON_STATUS, 1, 0);
    while (get(d, common, COMMON_STATUS, 1))
        pause();
    set(d, common, COMMON_STATUS, 1, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    set(d, common, COMMON_FEATURE_SELECT, 4, 0);
    u32 features = get(d, common, COMMON_FEATURE, 4) & FEATURE_RO; /* without FLUSH a write is safe once it is done */
    d->read_only = features != 0;
    set(d, common, COMMON_DRIVER_FEATURE_SELECT, 4, 0);
    set(d, common, COMMON_DRIVER_FEATURE, 4, features);
    set(d, common, COMMON_DRIVER_FEATURE_SELECT, 4, 1);
    set(d, common, COMMON_DRIVER_FEATURE, 4, FEATURE_VERSION_1);
    set(d, common, COMMON_STATUS, 1, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    return get(d, common, COMMON_STATUS, 1) & STATUS_FEATURES_OK;
}

bool virtio_blk_init(struct drive *d, u8 devfn)
{
    if (pci_read32(devfn, 0) != ((u32)DEVICE_BLK << 16 | VENDOR_VIRTIO))
        return false;
    struct virtio_region common = {0xff, 0}, device = {0xff, 0}, notify = {0xff, 0};
    u32 multiplier = 0;
    d->devfn = devfn;
    d->window = 0;
    memset(&d->ring, 0, sizeof d->ring);
    unsigned left = 48; /* capabilities that fit, should they form a ring */
    for (u8 at = pci_read8(devfn, PCI_CAPABILITIES) & 0xfc; at && left; at = pci_read8(devfn, at + 1) & 0xfc, left--) {
        if (pci_read8(devfn, at) != CAPABILITY_VENDOR)
            continue;
        const struct virtio_region region = {pci_read8(devfn, at + CAP_BAR), pci_read32(devfn, at + CAP_OFFSET)};
        switch (pci_read8(devfn, at + CAP_TYPE)) {
        case TYPE_COMMON: common = region; break;
        case TYPE_DEVICE: device = region; break;
        case TYPE_NOTIFY:
            notify = region;
            multiplier = pci_read32(devfn, at + CAP_TAIL);
            break;
        case TYPE_WINDOW: d->window = at; break;
        }
    }
    if (!d->window || common.bar == 0xff || device.bar == 0xff || notify.bar == 0xff || !negotiate(d, common))
        return false;
    d->sectors = get(d, device, 0, 4) | (u64)get(d, device, 4, 4) << 32;
    set(d, common, COMMON_QUEUE_SELECT, 2, 0);
    if (get(d, common, COMMON_QUEUE_SIZE, 2) < QUEUE_SIZE)
        return false;
    set(d, common, COMMON_QUEUE_SIZE, 2, QUEUE_SIZE);
    set_address(d, common, COMMON_QUEUE_DESC, d->ring.descriptor);
    set_address(d, common, COMMON_QUEUE_DRIVER, &d->ring.available);
    set_address(d, common, COMMON_QUEUE_DEVICE, &d->ring.used);
    u32 doorbell = get(d, common, COMMON_QUEUE_NOTIFY_OFF, 2) * multiplier;
    set(d, common, COMMON_QUEUE_ENABLE, 2, 1);
    set(d, common, COMMON_STATUS, 1, STATUS_READY);
    d->ring.available.flags = AVAILABLE_NO_INTERRUPT;
    d->common = common;
    d->doorbell = (struct virtio_region){notify.bar, notify.offset + doorbell};
    aim(d, d->doorbell, 0, 2); /* and there it stays: a request is one write */
    return true;
}

static void describe(struct drive *d, unsigned index, u64 address, u32 bytes, u16 flags)
{
    d->ring.descriptor[index].address = address;
    d->ring.descriptor[index].bytes = bytes;
    d->ring.descriptor[index].flags = flags;
    d->ring.descriptor[index].next = (u16)(index + 1);
}

/* A request that makes no sense, such as for memory that is not there, stops the device for good (virtio 1.2, 2.1); and a
 * system that had it for itself may have left it. */
static bool is_ready(const struct drive *d)
{
    bool ready = get(d, d->common, COMMON_STATUS, 1) == STATUS_READY;
    aim(d, d->doorbell, 0, 2);
    return ready;
}

u8 virtio_blk_request(struct drive *d, u64 sector, u32 count, u64 address, bool write)
{
    struct virtio_ring *ring = &d->ring;
    ring->request.type = write ? REQUEST_OUT : REQUEST_IN;
    ring->request.sector = sector;
    ring->status = 0xff;
    describe(d, 0, physical(&ring->request), sizeof ring->request, DESC_NEXT);
    describe(d, 1, address, count * SECTOR, DESC_NEXT | (write ? 0 : DESC_WRITE));
    describe(d, 2, physical(&ring->status), 1, DESC_WRITE);
    u16 index = ring->available.index;
    ring->available.ring[index % QUEUE_SIZE] = 0;
    __asm__ volatile("" : : : "memory"); /* x86 keeps the order of writes */
    ring->available.index = (u16)(index + 1);
    __asm__ volatile("" : : : "memory");
    pci_write16(d->devfn, d->window + CAP_TAIL, 0);
    for (u32 spins = 1; ring->used.index != (u16)(index + 1); spins++) {
        pause();
        if (spins % SPINS_PER_LOOK == 0 && !is_ready(d)) {
            virtio_blk_init(d, d->devfn);
            return DISK_CONTROLLER_FAILED;
        }
    }
    return ring->status == RESULT_OK ? DISK_OK : ring->status == RESULT_UNSUPPORTED ? DISK_BAD_COMMAND : DISK_CONTROLLER_FAILED;
}
