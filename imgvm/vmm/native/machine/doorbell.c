/* SPDX-License-Identifier: MIT */
/* Doorbells of virtio devices as eventfds (KVM_IOEVENTFD): the driver's notification no longer stops the processor;
 * the event loop passes it on. One eventfd a device: which queue was meant is found by looking at all, which costs
 * nothing when they are empty. */
#include <sys/eventfd.h>
#include <unistd.h>

#include "board.h"

static void move_queue(struct board_doorbell *doorbell, unsigned queue, uint64_t address)
{
    struct engine *engine = doorbell->board->engine;
    uint64_t old = doorbell->address[queue];
    if (old == address)
        return;
    if (old)
        engine->ops->remove_doorbell(engine, old, doorbell->fd, NULL);
    doorbell->address[queue] = 0;
    /* Refused: the write then arrives as plain MMIO, which is as good. */
    if (address && engine->ops->add_doorbell(engine, address, doorbell->fd, NULL) == 0)
        doorbell->address[queue] = address;
}

static void notify_moved(void *opaque, struct virtio_pci *pci)
{
    struct board_doorbell *doorbell = opaque;
    for (unsigned queue = 0; queue < pci->device->queue_count; queue++)
        move_queue(doorbell, queue, virtio_pci_notify_address(pci, queue));
}

void doorbell_attach(struct board *board, struct virtio_pci *pci)
{
    if (!board->engine->ops->add_doorbell)
        return;
    struct board_doorbell *doorbell = &board->doorbells[board->doorbell_count];
    *doorbell = (struct board_doorbell){.board = board, .pci = pci, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    if (doorbell->fd < 0)
        return; /* too many open files: as good without */
    board->doorbell_count++;
    pci->hooks.notify_moved = notify_moved;
    pci->hooks.opaque = doorbell;
}

void doorbell_ring(struct board_doorbell *doorbell)
{
    uint64_t count;
    if (read(doorbell->fd, &count, sizeof count) != sizeof count)
        return;
    struct virtio_device *device = doorbell->pci->device;
    pthread_mutex_lock(&doorbell->board->lock);
    for (unsigned queue = 0; queue < device->queue_count; queue++)
        virtio_notify(device, queue);
    pthread_mutex_unlock(&doorbell->board->lock);
    virtio_wake(device);
}

void doorbell_detach_all(struct board *board)
{
    for (unsigned i = 0; i < board->doorbell_count; i++) {
        struct board_doorbell *doorbell = &board->doorbells[i];
        for (unsigned queue = 0; queue < VIRTIO_QUEUES_MAX; queue++)
            move_queue(doorbell, queue, 0);
        close(doorbell->fd);
    }
    board->doorbell_count = 0;
}
