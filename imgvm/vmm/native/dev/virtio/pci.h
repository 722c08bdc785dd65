/* SPDX-License-Identifier: MIT */
/* The PCI transport for virtio devices, modern only (VIRTIO 1.2, 4.1): PCI id 1AF4h:1040h+id.
 * BAR 0 (16 KiB): common configuration, ISR, device configuration, notifications. BAR 1: MSI-X. INTA# when the driver
 * leaves MSI-X off. Legacy (0.9.5) drivers are not served. */
#ifndef IMGVM_DEV_VIRTIO_PCI_H
#define IMGVM_DEV_VIRTIO_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "../pci/host.h"
#include "device.h"

#define VIRTIO_PCI_COMMON 0x0000
#define VIRTIO_PCI_ISR 0x1000
#define VIRTIO_PCI_DEVICE 0x2000
#define VIRTIO_PCI_NOTIFY 0x3000
#define VIRTIO_PCI_BAR_BYTES 0x4000
#define VIRTIO_PCI_NOTIFY_MULTIPLIER 4
#define VIRTIO_MSI_NO_VECTOR 0xffff

struct virtio_pci;

/* An engine that can do it better (KVM: ioeventfd, irqfd) is told where things are. Board lock held. */
struct virtio_pci_hooks {
    /* Notify addresses are valid, have moved or are gone: ask virtio_pci_notify_address for each queue. */
    void (*notify_moved)(void *opaque, struct virtio_pci *pci);
    /* A vector's message or mask changed: ask pci_msix_message(&pci->function, vector, ...). */
    void (*vector_changed)(void *opaque, struct virtio_pci *pci, unsigned vector);
    void *opaque;
};

struct virtio_pci {
    struct pci_function function;
    struct virtio_device *device;
    struct virtio_pci_hooks hooks;
    uint8_t isr;
    uint16_t config_vector;
    uint16_t queue_vector[VIRTIO_QUEUES_MAX];
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint8_t window; /* offset of the pci-cfg capability */
};

/* One for `device`, not yet on a bus: pci_host_add(host, &pci->function, slot, err). Owns the device from success on:
 * pci_host_destroy (or virtio_pci_destroy, when it was never added) destroys both and frees `*out`, the board lock
 * being free. On failure the device is still the caller's. */
int virtio_pci_create(struct virtio_pci **out, struct virtio_device *device, imgvm_error *err);
void virtio_pci_destroy(struct virtio_pci *pci);
/* Guest physical address that the driver of this queue writes to; 0 while BAR 0 is not mapped. */
uint64_t virtio_pci_notify_address(const struct virtio_pci *pci, unsigned queue);

#endif
