/* SPDX-License-Identifier: MIT */
/* What every virtio device has, whatever carries it (VIRTIO 1.2, chapter 2): features, status, queues, device
 * configuration. A transport (pci.h) drives it from one side, a device (blk.h, rng.h) fills it in from the other.
 * All functions need the board lock, except where said otherwise. */
#ifndef IMGVM_DEV_VIRTIO_DEVICE_H
#define IMGVM_DEV_VIRTIO_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "../../mem/guest_mem.h"
#include "queue.h"

#define VIRTIO_ID_BLOCK 2
#define VIRTIO_ID_ENTROPY 4
#define VIRTIO_ID_BALLOON 5

#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_EVENT_IDX 29
#define VIRTIO_F_VERSION_1 32

/* Device status (2.1). */
#define VIRTIO_STATUS_ACKNOWLEDGE 1
#define VIRTIO_STATUS_DRIVER 2
#define VIRTIO_STATUS_DRIVER_OK 4
#define VIRTIO_STATUS_FEATURES_OK 8
#define VIRTIO_STATUS_NEEDS_RESET 64
#define VIRTIO_STATUS_FAILED 128

#define VIRTIO_STATUS_KNOWN 0xcf

#define VIRTIO_QUEUES_MAX 32
#define VIRTIO_CONFIG_MAX 128

struct virtio_device;

struct virtio_device_ops {
    void (*notify)(struct virtio_device *device, unsigned queue); /* only between DRIVER_OK and reset */
    void (*wake)(struct virtio_device *device); /* optional; after notify, the board lock being free or not */
    /* Stop: give up whatever is queued. Returns true when nothing is in flight any more; else the device calls
     * virtio_reset_done later, and until then the status does not read as zero (2.4.1). NULL: nothing to stop. */
    bool (*reset)(struct virtio_device *device);
    /* Wait until nothing is in flight, letting the board lock go meanwhile (pthread_cond_wait). NULL: nothing is. */
    void (*drain)(struct virtio_device *device);
    void (*driver_ok)(struct virtio_device *device); /* optional; features are final */
    /* Optional; the bytes are in device->config afterwards when the device accepts them. NULL: read-only. */
    void (*config_write)(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value);
    void (*destroy)(struct virtio_device *device); /* stops it, frees it */
};

/* The transport's side. */
struct virtio_transport_ops {
    void (*queue_interrupt)(void *transport, unsigned queue);
    void (*config_interrupt)(void *transport);
    void (*device_reset)(void *transport); /* the reset is complete: vectors, ISR and selectors start anew */
};

struct virtio_device {
    const char *name;
    const struct virtio_device_ops *ops;
    uint16_t id;
    uint32_t class_code; /* for PCI */
    struct guest_mem *mem;
    pthread_mutex_t *lock; /* the board's */
    const struct virtio_transport_ops *transport_ops;
    void *transport;
    uint64_t features;        /* offered */
    uint64_t driver_features; /* accepted */
    uint8_t status;
    uint8_t config_generation;
    bool resetting; /* a reset waits for requests in flight */
    bool master;    /* may access memory: the transport's bus master bit */
    bool paused;    /* takes no new requests (saving, stopping) */
    uint8_t config[VIRTIO_CONFIG_MAX];
    unsigned config_bytes;
    unsigned queue_count;
    struct virtqueue queues[VIRTIO_QUEUES_MAX];
};

struct virtio_device_config {
    const char *name;
    uint16_t id;
    uint32_t class_code;
    uint64_t features; /* of the device; VERSION_1, INDIRECT_DESC and EVENT_IDX are added */
    unsigned config_bytes;
    unsigned queue_count;
    uint16_t queue_size; /* a power of two */
    struct guest_mem *mem;
    pthread_mutex_t *lock;
};

void virtio_device_init(struct virtio_device *device, const struct virtio_device_config *config,
                        const struct virtio_device_ops *ops);
static inline bool virtio_has_feature(const struct virtio_device *device, unsigned feature)
{
    return device->driver_features >> feature & 1;
}
/* May the device take requests now? */
bool virtio_running(const struct virtio_device *device);

/* The driver's doorbell: MMIO write, or an ioeventfd's thread (which takes the board lock first). virtio_wake is due
 * then, best without the lock. */
void virtio_notify(struct virtio_device *device, unsigned queue);
void virtio_wake(struct virtio_device *device);
/* Both, for every queue that is live: after resume, or when bus mastering came on. */
void virtio_notify_all(struct virtio_device *device);

/* For transports. */
void virtio_set_status(struct virtio_device *device, uint8_t value); /* 0 resets */
void virtio_set_driver_features(struct virtio_device *device, unsigned select, uint32_t value);
uint32_t virtio_device_features(const struct virtio_device *device, unsigned select);
bool virtio_set_queue_size(struct virtio_device *device, unsigned queue, uint16_t size);
void virtio_enable_queue(struct virtio_device *device, unsigned queue);
uint64_t virtio_config_read(const struct virtio_device *device, unsigned offset, unsigned size);
void virtio_config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value);
/* Reset that has finished when it returns (bus reset, destroy): drains, letting the board lock go meanwhile. */
void virtio_reset_now(struct virtio_device *device);
/* Between these two the device takes no request and changes no guest memory. */
void virtio_pause(struct virtio_device *device);
void virtio_resume(struct virtio_device *device);

/* For devices. */
void virtio_push(struct virtio_device *device, unsigned queue, uint16_t head, uint32_t written);
void virtio_interrupt(struct virtio_device *device, unsigned queue); /* if the driver wants it */
void virtio_config_changed(struct virtio_device *device);
/* The driver spoke nonsense: DEVICE_NEEDS_RESET and a configuration interrupt (2.1.2). */
void virtio_needs_reset(struct virtio_device *device);
void virtio_reset_done(struct virtio_device *device);

#endif
