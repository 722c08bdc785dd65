/* SPDX-License-Identifier: MIT */
/* virtio-rng (VIRTIO 1.2, 5.4): fills the guest's buffers from getrandom(2). */
#ifndef IMGVM_DEV_VIRTIO_RNG_H
#define IMGVM_DEV_VIRTIO_RNG_H

#include "device.h"

int virtio_rng_create(struct virtio_device **out, struct guest_mem *mem, pthread_mutex_t *lock, imgvm_error *err);

#endif
