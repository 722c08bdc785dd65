/* SPDX-License-Identifier: MIT */
/* needs: base/error.c mem/bus.c mem/guest_mem.c dev/pci/host.c dev/pci/msix.c dev/pci/assign.c dev/virtio/queue.c */
/* needs: dev/virtio/device.c dev/virtio/pci.c dev/virtio/blk.c block/queue.c block/queue_ring.c block/uring.c */
/* Requests in flight: resets and pauses while the host's disk is slow. */
#include "block/queue_parts.h"
#include "virtio_disk.h"

/* A reset while the disk is at work: status stays until the request is over, and nothing of it is ever returned. */
static void test_reset_in_flight(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    gate(&d.image, true);
    put_request(g, 0, 0, 0, DATA, 512);
    put_request(g, 3, 0, 0, DATA + 512, 512);
    driver_offer(g, 0);
    driver_offer(g, 3);
    driver_kick(g);
    await_waiting(&d.image);
    common_write(g, 0x14, 1, 0);
    CHECK_EQ(driver_status(g), 0xf);
    common_write(g, 0x14, 1, 0); /* again, and other nonsense meanwhile */
    common_write(g, 0x14, 1, 0x80);
    driver_kick(g);
    CHECK_EQ(driver_status(g), 0xf);
    gate(&d.image, false);
    CHECK(driver_reset(g));
    CHECK_EQ(used_index(g), 0);
    CHECK_EQ(g->messages[1], 0);
    CHECK(d.image.reads == 1 || d.image.reads == 2); /* the other one may have been on its way, too */
    common_write(g, 0x16, 2, 0);
    CHECK_EQ(common_read(g, 0x1c, 2), 0);
    CHECK_EQ(common_read(g, 0x1a, 2), 0xffff);
    driver_start(g, 2, 0, 16);
    CHECK_EQ(request(g, 0, 1, DATA, 512), 0);
    CHECK_EQ(g->messages[1], 1);
    disk_destroy(&d);
}

/* Opens it once it gets the board lock. */
static void *open_gate(void *opaque)
{
    struct disk *d = opaque;
    pthread_mutex_lock(&d->g.lock);
    pthread_mutex_unlock(&d->g.lock);
    gate(&d->image, false);
    return NULL;
}

/* The board's reset is over when it returns; and destroying waits for the worker too. */
static void test_bus_reset_in_flight(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    gate(&d.image, true);
    put_request(g, 0, 1, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    await_waiting(&d.image);
    pthread_t helper;
    pthread_mutex_lock(&g->lock);
    pthread_create(&helper, NULL, open_gate, &d); /* gets the lock while the reset waits for the worker */
    pci_host_reset(&g->host);
    CHECK_EQ(g->device->status, 0);
    CHECK_EQ(d.image.waiting, 0);
    pthread_mutex_unlock(&g->lock);
    pthread_join(helper, NULL);
    CHECK_EQ(used_index(g), 0);
    CHECK_EQ(bus_read(&g->mmio, g->common, 4), 0xffffffff);
    guest_assign(g);
    driver_start(g, 2, 0, 16);
    CHECK_EQ(request(g, 0, 1, DATA, 512), 0);

    gate(&d.image, true);
    put_request(g, 0, 1, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    await_waiting(&d.image);
    pthread_create(&helper, NULL, open_gate, &d);
    disk_destroy(&d);
    pthread_join(helper, NULL);
    CHECK_EQ(d.image.writes, 2);
}

/* Gives the worker every chance to do what it must not. */
static void stay_idle(struct guest *g, uint16_t used)
{
    for (unsigned i = 0; i < 2000; i++) {
        bus_read(&g->mmio, g->config, 4);
        sched_yield();
    }
    CHECK_EQ(used_index(g), used);
}

/* Paused, nothing is served and nothing is lost; without bus mastering neither. */
static void test_pause_and_master(void)
{
    static struct disk d;
    disk_init(&d, false, 0, 16);
    struct guest *g = &d.g;
    pthread_mutex_lock(&g->lock);
    virtio_pause(g->device);
    pthread_mutex_unlock(&g->lock);
    put_request(g, 0, 0, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    stay_idle(g, 0);
    pthread_mutex_lock(&g->lock);
    virtio_resume(g->device);
    pthread_mutex_unlock(&g->lock);
    CHECK(driver_wait(g, 1));
    cfg_write(g, 4, 2, 2);
    put_request(g, 0, 0, 0, DATA, 512);
    driver_offer(g, 0);
    driver_kick(g);
    stay_idle(g, 1);
    cfg_write(g, 4, 2, 6);
    CHECK(driver_wait(g, 1));
    CHECK_EQ(d.image.reads, 2);
    disk_destroy(&d);
}

/* Requests wait for the host's disk side by side; a pause waits for them all. */
static void test_in_flight(void)
{
    static struct disk d;
    disk_init(&d, false, FLUSH, 32);
    struct guest *g = &d.g;
    gate(&d.image, true);
    for (uint16_t i = 0; i < POOL_THREADS_MAX + 1; i++) {
        put_request(g, (uint16_t)(3 * i), 0, i, DATA + 512u * i, 512);
        driver_offer(g, (uint16_t)(3 * i));
    }
    driver_kick(g);
    pthread_mutex_lock(&d.image.lock);
    while (d.image.waiting < POOL_THREADS_MAX)
        pthread_cond_wait(&d.image.changed, &d.image.lock);
    pthread_mutex_unlock(&d.image.lock);
    CHECK_EQ(used_index(g), 0);
    pthread_t helper;
    pthread_mutex_lock(&g->lock);
    pthread_create(&helper, NULL, open_gate, &d);
    virtio_pause(g->device);
    CHECK_EQ(d.image.waiting, 0);
    CHECK(used_index(g) >= POOL_THREADS_MAX);
    virtio_resume(g->device);
    pthread_mutex_unlock(&g->lock);
    pthread_join(helper, NULL);
    CHECK(driver_wait(g, POOL_THREADS_MAX + 1));
    for (uint16_t i = 0; i < POOL_THREADS_MAX + 1; i++) {
        CHECK_EQ(status_byte(g, (uint16_t)(3 * i)), 0);
        CHECK(!memcmp(ram(g, DATA + 512u * i), d.image.data + 512u * i, 512));
    }
    CHECK_EQ(d.image.most_waiting, POOL_THREADS_MAX);
    disk_destroy(&d);
}

static void test_all(void)
{
    test_reset_in_flight();
    test_bus_reset_in_flight();
    test_pause_and_master();
    test_in_flight();
}

int main(void) { return disk_main(test_all); }
