/* SPDX-License-Identifier: MIT */
/* The ring half of a queue. What a transfer is in the image's files is looked up in a shared turn, which lasts until the
 * kernel has moved all of it. Whatever is out of the ordinary (the map must change, compressed clusters, somebody has or
 * wants the exclusive turn, an error, the end of a file) is left to the pool, which does all of it again and says
 * what is wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "image_plan.h"
#include "queue_parts.h"
#include "uring.h"

#define EXTENTS_MAX 8 /* of one transfer */
#define ENTRIES 128
#define APART_BYTES 65536 /* copying this from the page cache takes longer than waking another thread for it */
#define KICK_TAG UINT64_MAX

/* A transfer that the kernel is busy with. */
struct flight {
    struct block_job *job;
    struct flight *next_free;
    unsigned landing; /* extents under way */
    bool failed;
    struct iovec pieces[EXTENTS_MAX][VEC_PIECES_MAX];
    uint64_t bytes[EXTENTS_MAX];
};

struct ring {
    struct block_queue_config config;
    struct uring uring;
    struct flight *flights, *free;
    unsigned in_flight;
    int kick_fd;
    uint64_t kicks;
    bool listening; /* the kernel watches kick_fd */
    bool stop;
    pthread_t thread;

    struct pool pool;
    pthread_mutex_t lock; /* what waits for the pool */
    struct block_job *first, **last;
};

/* ---- what is left to the pool ---- */

static void hand_over(struct ring *ring, struct block_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&ring->lock);
    *ring->last = job;
    ring->last = &job->next;
    pthread_mutex_unlock(&ring->lock);
    pool_kick(&ring->pool, true); /* whoever took the job before may have seen none behind it */
}

static struct block_job *next_for_pool(void *opaque, bool *more)
{
    struct ring *ring = opaque;
    pthread_mutex_lock(&ring->lock);
    struct block_job *job = ring->first;
    if (job && !(ring->first = job->next))
        ring->last = &ring->first;
    *more = ring->first;
    pthread_mutex_unlock(&ring->lock);
    return job;
}

static void run_for_pool(void *opaque, struct block_job *job)
{
    struct ring *ring = opaque;
    ring->config.run(ring->config.opaque, job);
}

/* ---- transfers ---- */

static void land(struct ring *ring, struct flight *flight)
{
    struct block_job *job = flight->job;
    image_plan_end(ring->config.image);
    flight->next_free = ring->free;
    ring->free = flight;
    ring->in_flight--;
    if (flight->failed)
        hand_over(ring, job);
    else
        ring->config.moved(ring->config.opaque, job);
}

static bool has_pieces(const struct vec *memory, uint64_t bytes, struct flight *flight, unsigned index, unsigned *count,
                       struct vec *after)
{
    *after = *memory;
    *count = (unsigned)vec_take(after, bytes, flight->pieces[index], &flight->bytes[index]);
    return flight->bytes[index] == bytes;
}

static void start(struct ring *ring, struct block_job *job)
{
    struct image_extent extents[EXTENTS_MAX];
    unsigned extent_count = 0, piece_counts[EXTENTS_MAX];
    struct flight *flight = ring->free;
    bool write = job->kind == JOB_WRITE;
    struct vec memory = job->memory, after;
    if (job->kind == JOB_CALL || !flight ||
        !image_plan_begin(ring->config.image, write, job->offset, job->bytes, extents, EXTENTS_MAX, &extent_count)) {
        hand_over(ring, job);
        return;
    }
    ring->free = flight->next_free;
    ring->in_flight++;
    flight->job = job;
    flight->landing = 0;
    flight->failed = false;
    for (unsigned i = 0; i < extent_count; i++) {
        if (!extents[i].file) {
            vec_zero(&memory, extents[i].bytes);
            continue;
        }
        flight->failed |= !has_pieces(&memory, extents[i].bytes, flight, i, &piece_counts[i], &after);
        memory = after;
    }
    for (unsigned i = 0; !flight->failed && i < extent_count; i++) {
        if (!extents[i].file)
            continue;
        uring_transfer(&ring->uring, write, extents[i].file->fd, flight->pieces[i], piece_counts[i], extents[i].offset,
                       flight->bytes[i] >= APART_BYTES, (uint64_t)(flight - ring->flights) * EXTENTS_MAX + i);
        flight->landing++;
    }
    if (!flight->landing)
        land(ring, flight);
}

static void reap(struct ring *ring)
{
    uint64_t tag;
    int result;
    while (uring_reap(&ring->uring, &tag, &result)) {
        if (tag == KICK_TAG) {
            ring->listening = false;
            continue;
        }
        struct flight *flight = &ring->flights[tag / EXTENTS_MAX];
        flight->failed |= result < 0 || (uint64_t)result != flight->bytes[tag % EXTENTS_MAX];
        if (!--flight->landing)
            land(ring, flight);
    }
}

static void *ring_work(void *opaque)
{
    struct ring *ring = opaque;
    for (;;) {
        if (!ring->listening) {
            uring_read_eventfd(&ring->uring, ring->kick_fd, &ring->kicks, KICK_TAG);
            ring->listening = true;
        }
        int result = uring_enter(&ring->uring, 1);
        if (result < 0 && result != -EINTR)
            usleep(1000); /* the kernel is short of memory; what it has done is there to be reaped */
        reap(ring);
        bool more = false;
        for (struct block_job *job; (job = ring->config.next(ring->config.opaque, &more));)
            start(ring, job);
        if (!ring->in_flight && __atomic_load_n(&ring->stop, __ATOMIC_ACQUIRE))
            return NULL;
    }
}

void ring_kick(struct ring *ring)
{
    uint64_t one = 1;
    if (pthread_equal(pthread_self(), ring->thread)) /* who ends a job asks for the next anyway */
        return;
    while (write(ring->kick_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void ring_free(struct ring *ring)
{
    if (ring->kick_fd >= 0)
        close(ring->kick_fd);
    pthread_mutex_destroy(&ring->lock);
    free(ring->flights);
    free(ring);
}

int ring_create(struct ring **out, const struct block_queue_config *config, imgvm_error *err)
{
    struct ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return -ENOMEM;
    ring->config = *config;
    ring->last = &ring->first;
    pthread_mutex_init(&ring->lock, NULL);
    ring->flights = calloc(config->jobs_max, sizeof *ring->flights);
    ring->kick_fd = eventfd(0, EFD_CLOEXEC);
    int result = ring->flights && ring->kick_fd >= 0 ? uring_open(&ring->uring, ENTRIES) : -ENOMEM;
    if (result) {
        ring_free(ring);
        return result;
    }
    for (unsigned i = 0; i < config->jobs_max; i++) {
        ring->flights[i].next_free = ring->free;
        ring->free = &ring->flights[i];
    }
    ring->pool = (struct pool){.next = next_for_pool, .run = run_for_pool, .opaque = ring};
    if (!(result = pool_start(&ring->pool, err))) {
        if (!(result = queue_thread(&ring->thread, ring_work, ring))) {
            *out = ring;
            return 0;
        }
        pool_stop(&ring->pool);
    }
    uring_close(&ring->uring);
    ring_free(ring);
    return result;
}

void ring_destroy(struct ring *ring)
{
    __atomic_store_n(&ring->stop, true, __ATOMIC_RELEASE);
    ring_kick(ring);
    pthread_join(ring->thread, NULL);
    pool_stop(&ring->pool);
    uring_close(&ring->uring);
    ring_free(ring);
}
