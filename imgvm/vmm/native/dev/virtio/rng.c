/* SPDX-License-Identifier: MIT */
#include "rng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "../../base/bits.h"

#define QUEUE_SIZE 64
/* The most that one buffer gets: the board lock is held meanwhile. The driver reads the length and asks again. */
#define BUFFER_BYTES_MAX 65536u
/* Below this getrandom(2) neither blocks (once the pool is ready) nor returns short. */
#define GETRANDOM_BYTES 256u

struct virtio_rng {
    struct virtio_device device;
    struct virtq_chain chain;
};

static uint32_t fill(struct virtio_rng *rng)
{
    const struct virtq_chain *chain = &rng->chain;
    uint32_t wanted = MIN(chain->in_bytes, BUFFER_BYTES_MAX), done = 0;
    while (done < wanted) {
        uint8_t bytes[GETRANDOM_BYTES];
        ssize_t n = getrandom(bytes, MIN(wanted - done, sizeof bytes), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += virtq_chain_write(rng->device.mem, chain, done, bytes, (uint32_t)n);
    }
    return done;
}

static void notify(struct virtio_device *device, unsigned queue)
{
    struct virtio_rng *rng = container_of(device, struct virtio_rng, device);
    int got;
    while ((got = virtqueue_pop(&device->queues[queue], &rng->chain)) > 0) {
        virtio_push(device, queue, rng->chain.head, fill(rng));
        virtio_interrupt(device, queue);
    }
    if (got < 0)
        virtio_needs_reset(device);
}

static void destroy(struct virtio_device *device)
{
    free(container_of(device, struct virtio_rng, device));
}

static const struct virtio_device_ops rng_ops = {.notify = notify, .destroy = destroy};

int virtio_rng_create(struct virtio_device **out, struct guest_mem *mem, pthread_mutex_t *lock, imgvm_error *err)
{
    struct virtio_rng *rng = calloc(1, sizeof *rng);
    if (!rng)
        return error_set(err, ENOMEM, "virtio-rng: out of memory");
    const struct virtio_device_config config = {
        .name = "virtio-rng", .id = VIRTIO_ID_ENTROPY, .class_code = 0x00ff00,
        .queue_count = 1, .queue_size = QUEUE_SIZE, .mem = mem, .lock = lock,
    };
    virtio_device_init(&rng->device, &config, &rng_ops);
    *out = &rng->device;
    return 0;
}
