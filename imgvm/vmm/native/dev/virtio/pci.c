/* SPDX-License-Identifier: MIT */
#include "pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define VENDOR_VIRTIO 0x1af4
#define DEVICE_MODERN 0x1040

/* struct virtio_pci_cap (4.1.4): what lies where. */
#define CAP_COMMON 1
#define CAP_NOTIFY 2
#define CAP_ISR 3
#define CAP_DEVICE 4
#define CAP_PCI_CFG 5
#define WINDOW_BAR 4     /* offsets in the pci-cfg capability (4.1.4.9) */
#define WINDOW_OFFSET 8
#define WINDOW_LENGTH 12
#define WINDOW_DATA 16

#define ISR_QUEUE 1
#define ISR_CONFIG 2

/* struct virtio_pci_common_cfg (4.1.4.3). */
#define COMMON_DEVICE_FEATURE_SELECT 0x00
#define COMMON_DEVICE_FEATURE 0x04
#define COMMON_DRIVER_FEATURE_SELECT 0x08
#define COMMON_DRIVER_FEATURE 0x0c
#define COMMON_CONFIG_VECTOR 0x10
#define COMMON_NUM_QUEUES 0x12
#define COMMON_STATUS 0x14
#define COMMON_GENERATION 0x15
#define COMMON_QUEUE_SELECT 0x16
#define COMMON_QUEUE_SIZE 0x18
#define COMMON_QUEUE_VECTOR 0x1a
#define COMMON_QUEUE_ENABLE 0x1c
#define COMMON_QUEUE_NOTIFY_OFF 0x1e
#define COMMON_QUEUE_DESC 0x20
#define COMMON_QUEUE_DRIVER 0x28
#define COMMON_QUEUE_DEVICE 0x30
#define COMMON_BYTES 0x38

/* ---- interrupts ---- */

static void raise_interrupt(struct virtio_pci *pci, uint16_t vector, uint8_t isr)
{
    if (pci_msix_enabled(&pci->function)) {
        pci_msix_notify(&pci->function, vector); /* VIRTIO_MSI_NO_VECTOR is out of range: nothing is sent */
        return;
    }
    pci->isr |= isr;
    pci_set_intx(&pci->function, true);
}

static void queue_interrupt(void *transport, unsigned queue)
{
    struct virtio_pci *pci = transport;
    raise_interrupt(pci, pci->queue_vector[queue], ISR_QUEUE);
}

static void config_interrupt(void *transport)
{
    struct virtio_pci *pci = transport;
    raise_interrupt(pci, pci->config_vector, ISR_CONFIG);
}

static void device_reset(void *transport)
{
    struct virtio_pci *pci = transport;
    pci->isr = 0;
    pci->config_vector = VIRTIO_MSI_NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        pci->queue_vector[i] = VIRTIO_MSI_NO_VECTOR;
    pci->device_feature_select = pci->driver_feature_select = 0;
    pci->queue_select = 0;
    pci_set_intx(&pci->function, false);
}

static const struct virtio_transport_ops transport_ops = {queue_interrupt, config_interrupt, device_reset};

/* ---- common configuration ---- */

static struct virtqueue *selected(struct virtio_pci *pci)
{
    return pci->queue_select < pci->device->queue_count ? &pci->device->queues[pci->queue_select] : NULL;
}

/* No read has an effect, so the whole structure is drawn and the piece asked for is taken from it. */
static uint64_t common_read(struct virtio_pci *pci, unsigned offset, unsigned size)
{
    const struct virtio_device *device = pci->device;
    const struct virtqueue *queue = selected(pci);
    uint8_t image[COMMON_BYTES] = {0};
    store_le32(image + COMMON_DEVICE_FEATURE_SELECT, pci->device_feature_select);
    store_le32(image + COMMON_DEVICE_FEATURE, virtio_device_features(device, pci->device_feature_select));
    store_le32(image + COMMON_DRIVER_FEATURE_SELECT, pci->driver_feature_select);
    if (pci->driver_feature_select < 2)
        store_le32(image + COMMON_DRIVER_FEATURE,
                   (uint32_t)(device->driver_features >> (32 * pci->driver_feature_select)));
    store_le16(image + COMMON_CONFIG_VECTOR, pci->config_vector);
    store_le16(image + COMMON_NUM_QUEUES, (uint16_t)device->queue_count);
    image[COMMON_STATUS] = device->status;
    image[COMMON_GENERATION] = device->config_generation;
    store_le16(image + COMMON_QUEUE_SELECT, pci->queue_select);
    if (queue) { /* else the size reads zero: there is no such queue */
        store_le16(image + COMMON_QUEUE_SIZE, queue->size);
        store_le16(image + COMMON_QUEUE_VECTOR, pci->queue_vector[pci->queue_select]);
        store_le16(image + COMMON_QUEUE_ENABLE, queue->enabled);
        store_le16(image + COMMON_QUEUE_NOTIFY_OFF, pci->queue_select);
        store_le64(image + COMMON_QUEUE_DESC, queue->desc_gpa);
        store_le64(image + COMMON_QUEUE_DRIVER, queue->avail_gpa);
        store_le64(image + COMMON_QUEUE_DEVICE, queue->used_gpa);
    }
    uint64_t value = 0;
    if (offset + size <= sizeof image)
        memcpy(&value, image + offset, size);
    return value;
}

/* An address field takes 64-bit accesses and 32-bit ones to either half (4.1.3.1). */
static bool write_address(uint64_t *address, unsigned field, unsigned offset, unsigned size, uint64_t value)
{
    if (offset < field || offset + size > field + 8 || size < 4 || offset % size)
        return false;
    memcpy((uint8_t *)address + (offset - field), &value, size);
    return true;
}

static void queue_write(struct virtio_pci *pci, unsigned offset, unsigned size, uint64_t value)
{
    struct virtqueue *queue = selected(pci);
    if (!queue)
        return;
    if (offset == COMMON_QUEUE_VECTOR && size == 2)
        pci->queue_vector[pci->queue_select] =
            value < pci->function.msix.count ? (uint16_t)value : VIRTIO_MSI_NO_VECTOR;
    if (queue->enabled || pci->device->resetting)
        return;
    if (offset == COMMON_QUEUE_SIZE && size == 2)
        virtio_set_queue_size(pci->device, pci->queue_select, (uint16_t)value);
    else if (offset == COMMON_QUEUE_ENABLE && size == 2 && value == 1)
        virtio_enable_queue(pci->device, pci->queue_select);
    else if (!write_address(&queue->desc_gpa, COMMON_QUEUE_DESC, offset, size, value) &&
             !write_address(&queue->avail_gpa, COMMON_QUEUE_DRIVER, offset, size, value))
        write_address(&queue->used_gpa, COMMON_QUEUE_DEVICE, offset, size, value);
}

/* A driver must use accesses of the field's own size (4.1.3.1); others are dropped. */
static void common_write(struct virtio_pci *pci, unsigned offset, unsigned size, uint64_t value)
{
    if (offset == COMMON_DEVICE_FEATURE_SELECT && size == 4)
        pci->device_feature_select = (uint32_t)value;
    else if (offset == COMMON_DRIVER_FEATURE_SELECT && size == 4)
        pci->driver_feature_select = (uint32_t)value;
    else if (offset == COMMON_DRIVER_FEATURE && size == 4)
        virtio_set_driver_features(pci->device, pci->driver_feature_select, (uint32_t)value);
    else if (offset == COMMON_CONFIG_VECTOR && size == 2)
        pci->config_vector = value < pci->function.msix.count ? (uint16_t)value : VIRTIO_MSI_NO_VECTOR;
    else if (offset == COMMON_STATUS && size == 1)
        virtio_set_status(pci->device, (uint8_t)value);
    else if (offset == COMMON_QUEUE_SELECT && size == 2)
        pci->queue_select = (uint16_t)value;
    else if (offset >= COMMON_QUEUE_SIZE)
        queue_write(pci, offset, size, value);
}

/* ---- BAR 0 ---- */

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_pci *pci = opaque;
    unsigned within = offset & 0xfff;
    switch (offset & ~UINT64_C(0xfff)) {
    case VIRTIO_PCI_COMMON:
        return common_read(pci, within, size);
    case VIRTIO_PCI_ISR: {
        uint8_t isr = within == 0 ? pci->isr : 0; /* reading acknowledges (4.1.4.5) */
        if (isr) {
            pci->isr = 0;
            pci_set_intx(&pci->function, false);
        }
        return isr;
    }
    case VIRTIO_PCI_DEVICE:
        return virtio_config_read(pci->device, within, size);
    default:
        return 0;
    }
}

/* Is it a doorbell? */
static bool write_structure(struct virtio_pci *pci, uint64_t offset, unsigned size, uint64_t value)
{
    unsigned within = offset & 0xfff;
    switch (offset & ~UINT64_C(0xfff)) {
    case VIRTIO_PCI_COMMON:
        common_write(pci, within, size, value);
        break;
    case VIRTIO_PCI_DEVICE:
        virtio_config_write(pci->device, within, size, value);
        break;
    case VIRTIO_PCI_NOTIFY:
        virtio_notify(pci->device, within / VIRTIO_PCI_NOTIFY_MULTIPLIER);
        return true;
    }
    return false;
}

static void wake(void *opaque)
{
    struct virtio_pci *pci = opaque;
    virtio_wake(pci->device);
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *pci = opaque;
    if (write_structure(pci, offset, size, value))
        bus_after(pci->function.host->mmio, wake, pci);
}

static const struct bus_ops bar_ops = {bar_read, bar_write};

/* ---- configuration space: the window onto BAR 0, and bus mastering ---- */

/* Where the window points; 0 bytes when the driver's numbers are not valid. */
static unsigned window_target(const struct virtio_pci *pci, uint32_t *offset)
{
    const uint8_t *window = pci->function.config + pci->window;
    uint32_t length = load_le32(window + WINDOW_LENGTH);
    *offset = load_le32(window + WINDOW_OFFSET);
    bool valid = window[WINDOW_BAR] == 0 && (length == 1 || length == 2 || length == 4) && *offset % length == 0 &&
                 *offset < VIRTIO_PCI_BAR_BYTES;
    return valid ? length : 0;
}

static bool touches_window(const struct virtio_pci *pci, unsigned offset, unsigned size)
{
    unsigned data = pci->window + WINDOW_DATA;
    return offset < data + 4 && offset + size > data;
}

static void config_read(struct pci_function *function, unsigned offset, unsigned size)
{
    struct virtio_pci *pci = function->opaque;
    uint32_t target;
    unsigned length = touches_window(pci, offset, size) ? window_target(pci, &target) : 0;
    if (length)
        store_le32(function->config + pci->window + WINDOW_DATA, (uint32_t)bar_read(pci, target, length));
}

static void config_write(struct pci_function *function, unsigned offset, unsigned size)
{
    struct virtio_pci *pci = function->opaque;
    uint32_t target;
    unsigned length = touches_window(pci, offset, size) ? window_target(pci, &target) : 0;
    if (length) {
        uint64_t value = load_le32(function->config + pci->window + WINDOW_DATA);
        if (write_structure(pci, target, length, value & bits_mask_bytes(length)))
            virtio_wake(pci->device);
    }
    bool master = pci_bus_master(function), came = master && !pci->device->master;
    pci->device->master = master;
    if (came)
        virtio_notify_all(pci->device);
}

static void bar_moved(struct pci_function *function, unsigned bar)
{
    struct virtio_pci *pci = function->opaque;
    if (bar == 0 && pci->hooks.notify_moved)
        pci->hooks.notify_moved(pci->hooks.opaque, pci);
}

static void msix_changed(struct pci_function *function, unsigned vector)
{
    struct virtio_pci *pci = function->opaque;
    if (pci->hooks.vector_changed)
        pci->hooks.vector_changed(pci->hooks.opaque, pci, vector);
}

static void function_reset(struct pci_function *function)
{
    struct virtio_pci *pci = function->opaque;
    pci->device->master = false;
    virtio_reset_now(pci->device);
}

static void function_destroy(struct pci_function *function)
{
    virtio_pci_destroy(function->opaque);
}

static const struct pci_function_ops function_ops = {
    .config_read = config_read,
    .config_write = config_write,
    .bar_moved = bar_moved,
    .msix_changed = msix_changed,
    .reset = function_reset,
    .destroy = function_destroy,
};

/* ---- assembly ---- */

static int add_structure(struct virtio_pci *pci, uint8_t type, uint32_t offset, uint32_t length, uint32_t tail,
                         imgvm_error *err)
{
    bool long_form = type == CAP_NOTIFY || type == CAP_PCI_CFG;
    uint8_t body[18] = {long_form ? 20 : 16, type};
    store_le32(body + 6, offset);
    store_le32(body + 10, length);
    store_le32(body + 14, tail);
    return pci_add_capability(&pci->function, PCI_CAP_ID_VENDOR, body, long_form ? 20 : 16, err);
}

static int build(struct virtio_pci *pci, imgvm_error *err)
{
    struct virtio_device *device = pci->device;
    int rc = pci_add_bar(&pci->function, 0, PCI_BAR_MEM32, false, VIRTIO_PCI_BAR_BYTES, &bar_ops, pci, err);
    if (rc < 0)
        return rc;
    const struct {
        uint8_t type;
        uint32_t offset, length, tail;
    } structures[] = {
        {CAP_COMMON, VIRTIO_PCI_COMMON, COMMON_BYTES, 0},
        {CAP_ISR, VIRTIO_PCI_ISR, 4, 0},
        {CAP_DEVICE, VIRTIO_PCI_DEVICE, 0x1000, 0},
        {CAP_NOTIFY, VIRTIO_PCI_NOTIFY, device->queue_count * VIRTIO_PCI_NOTIFY_MULTIPLIER,
         VIRTIO_PCI_NOTIFY_MULTIPLIER},
        {CAP_PCI_CFG, 0, 0, 0},
    };
    for (unsigned i = 0; i < ARRAY_LEN(structures); i++) {
        const uint32_t tail = structures[i].tail;
        rc = add_structure(pci, structures[i].type, structures[i].offset, structures[i].length, tail, err);
        if (rc < 0)
            return rc;
    }
    pci->window = (uint8_t)rc; /* of the last, CAP_PCI_CFG */
    uint8_t *writable = pci->function.writable + rc;
    writable[WINDOW_BAR] = 0xff;
    store_le32(writable + WINDOW_OFFSET, UINT32_MAX);
    store_le32(writable + WINDOW_LENGTH, UINT32_MAX);
    store_le32(writable + WINDOW_DATA, UINT32_MAX);
    return pci_add_msix(&pci->function, 1, device->queue_count + 1, err);
}

int virtio_pci_create(struct virtio_pci **out, struct virtio_device *device, imgvm_error *err)
{
    struct virtio_pci *pci = calloc(1, sizeof *pci);
    if (!pci)
        return error_set(err, ENOMEM, "%s: out of memory", device->name);
    const struct pci_identity identity = {
        .vendor = VENDOR_VIRTIO, .device = (uint16_t)(DEVICE_MODERN + device->id),
        .subsystem_vendor = VENDOR_VIRTIO, .subsystem = (uint16_t)(DEVICE_MODERN + device->id),
        .class_code = device->class_code, .revision = 1, .intx = true, /* revision 1: not transitional (4.1.2.1) */
    };
    pci->device = device;
    pci_function_init(&pci->function, device->name, &identity, &function_ops, pci);
    int rc = build(pci, err);
    if (rc < 0) {
        free(pci);
        return rc;
    }
    device->transport_ops = &transport_ops;
    device->transport = pci;
    device->master = false;
    device_reset(pci);
    *out = pci;
    return 0;
}

void virtio_pci_destroy(struct virtio_pci *pci)
{
    if (pci->device)
        pci->device->ops->destroy(pci->device);
    free(pci);
}

uint64_t virtio_pci_notify_address(const struct virtio_pci *pci, unsigned queue)
{
    const struct pci_bar *bar = &pci->function.bars[0];
    if (!bar->mapped || queue >= pci->device->queue_count)
        return 0;
    return bar->address + VIRTIO_PCI_NOTIFY + queue * VIRTIO_PCI_NOTIFY_MULTIPLIER;
}
