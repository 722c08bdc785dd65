/* SPDX-License-Identifier: MIT */
#include "device.h"

#include <string.h>

#include "../../base/bits.h"

void virtio_device_init(struct virtio_device *device, const struct virtio_device_config *config,
                        const struct virtio_device_ops *ops)
{
    *device = (struct virtio_device){
        .name = config->name, .ops = ops, .id = config->id, .class_code = config->class_code,
        .mem = config->mem, .lock = config->lock,
        .features = config->features | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX),
        .master = true,
        .config_bytes = MIN(config->config_bytes, VIRTIO_CONFIG_MAX),
        .queue_count = MIN(config->queue_count, VIRTIO_QUEUES_MAX),
    };
    for (unsigned i = 0; i < device->queue_count; i++)
        virtqueue_init(&device->queues[i], config->mem, MIN(config->queue_size, VIRTQ_SIZE_MAX));
}

bool virtio_running(const struct virtio_device *device)
{
    return (device->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) == VIRTIO_STATUS_DRIVER_OK &&
           !device->resetting && !device->paused && device->master;
}

void virtio_notify(struct virtio_device *device, unsigned queue)
{
    if (queue < device->queue_count && device->queues[queue].enabled && virtio_running(device))
        device->ops->notify(device, queue);
}

void virtio_wake(struct virtio_device *device)
{
    if (device->ops->wake)
        device->ops->wake(device);
}

void virtio_notify_all(struct virtio_device *device)
{
    for (unsigned i = 0; i < device->queue_count; i++)
        virtio_notify(device, i);
    virtio_wake(device);
}

/* ---- the driver's side ---- */

void virtio_reset_done(struct virtio_device *device)
{
    for (unsigned i = 0; i < device->queue_count; i++)
        virtqueue_reset(&device->queues[i]);
    device->driver_features = 0;
    device->status = 0;
    device->resetting = false;
    if (device->transport_ops)
        device->transport_ops->device_reset(device->transport);
}

static void begin_reset(struct virtio_device *device)
{
    if (device->resetting)
        return;
    device->resetting = true;
    if (!device->ops->reset || device->ops->reset(device))
        virtio_reset_done(device);
}

void virtio_reset_now(struct virtio_device *device)
{
    begin_reset(device);
    while (device->resetting)
        device->ops->drain(device);
}

void virtio_set_status(struct virtio_device *device, uint8_t value)
{
    if (!value) {
        begin_reset(device);
        return;
    }
    if (device->resetting)
        return;
    uint8_t fresh = value & VIRTIO_STATUS_KNOWN & ~VIRTIO_STATUS_NEEDS_RESET & ~device->status;
    /* 3.1.1: the device refuses by leaving FEATURES_OK clear. Without VERSION_1 the driver is a legacy one. */
    bool acceptable = virtio_has_feature(device, VIRTIO_F_VERSION_1) && !(device->driver_features & ~device->features);
    if (!acceptable)
        fresh &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    if (!((device->status | fresh) & VIRTIO_STATUS_FEATURES_OK))
        fresh &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
    device->status |= fresh; /* only a reset clears bits (2.1.1) */
    if (fresh & VIRTIO_STATUS_DRIVER_OK) {
        if (device->ops->driver_ok)
            device->ops->driver_ok(device);
        virtio_notify_all(device); /* buffers may be there already */
    }
}

void virtio_set_driver_features(struct virtio_device *device, unsigned select, uint32_t value)
{
    if (select > 1 || device->resetting || device->status & VIRTIO_STATUS_FEATURES_OK)
        return;
    uint64_t mask = (uint64_t)UINT32_MAX << (32 * select);
    device->driver_features = (device->driver_features & ~mask) | (uint64_t)value << (32 * select);
}

uint32_t virtio_device_features(const struct virtio_device *device, unsigned select)
{
    return select > 1 ? 0 : (uint32_t)(device->features >> (32 * select));
}

bool virtio_set_queue_size(struct virtio_device *device, unsigned queue, uint16_t size)
{
    if (queue >= device->queue_count || device->resetting)
        return false;
    struct virtqueue *vq = &device->queues[queue];
    if (vq->enabled || !size || size & (size - 1) || size > vq->size_max)
        return false;
    vq->size = size;
    return true;
}

void virtio_enable_queue(struct virtio_device *device, unsigned queue)
{
    if (queue >= device->queue_count || device->queues[queue].enabled || device->resetting)
        return;
    struct virtqueue *vq = &device->queues[queue];
    virtqueue_enable(vq, virtio_has_feature(device, VIRTIO_F_EVENT_IDX),
                     virtio_has_feature(device, VIRTIO_F_INDIRECT_DESC));
    if (vq->broken)
        virtio_needs_reset(device);
}

uint64_t virtio_config_read(const struct virtio_device *device, unsigned offset, unsigned size)
{
    uint64_t value = 0;
    if (offset < device->config_bytes)
        memcpy(&value, device->config + offset, MIN(size, device->config_bytes - offset));
    return value;
}

void virtio_config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
    if (device->ops->config_write && offset + size <= device->config_bytes && !device->resetting)
        device->ops->config_write(device, offset, size, value);
}

void virtio_pause(struct virtio_device *device)
{
    device->paused = true;
    if (device->ops->drain)
        device->ops->drain(device);
}

void virtio_resume(struct virtio_device *device)
{
    device->paused = false;
    virtio_notify_all(device);
}

/* ---- the device's side ---- */

void virtio_push(struct virtio_device *device, unsigned queue, uint16_t head, uint32_t written)
{
    if (!device->resetting)
        virtqueue_push(&device->queues[queue], head, written);
}

void virtio_interrupt(struct virtio_device *device, unsigned queue)
{
    if (!device->resetting && device->transport_ops && virtqueue_should_interrupt(&device->queues[queue]))
        device->transport_ops->queue_interrupt(device->transport, queue);
}

void virtio_config_changed(struct virtio_device *device)
{
    device->config_generation++;
    if (device->status & VIRTIO_STATUS_DRIVER_OK && !device->resetting && device->transport_ops)
        device->transport_ops->config_interrupt(device->transport);
}

void virtio_needs_reset(struct virtio_device *device)
{
    if (device->resetting || device->status & VIRTIO_STATUS_NEEDS_RESET)
        return;
    device->status |= VIRTIO_STATUS_NEEDS_RESET;
    if (device->status & VIRTIO_STATUS_DRIVER_OK && device->transport_ops)
        device->transport_ops->config_interrupt(device->transport);
}
