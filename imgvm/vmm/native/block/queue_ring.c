/* SPDX-License-Identifier: MIT */
/* The ring half of a queue. The pool's threads do what is in order themselves: what a transfer is in the image's files is
 * looked up in a shared turn, and one system call each moves it. A small read that would have to wait for the host's disk
 * goes to the ring, which can have all of them under way; its turn lasts until the kernel has moved all of it. As long as
 * some are, the ring's thread takes what is asked for, reads it likewise, and leaves the rest to the pool.
 *
 * Whatever is out of the ordinary (the map must change, compressed clusters, somebody has or wants the exclusive turn, an
 * error, the end of a file) is left to the owner's `run`, which does all of it again and says what is wrong. */
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
#define RING_BYTES_MAX 65535 /* of larger ones a few keep the host's disk busy, and a thread each copies them */
#define KICK_TAG UINT64_MAX

/* A read that the kernel is busy with. */
struct flight {
    struct block_job *job;
    struct flight *next_free;
    unsigned landing; /* extents under way */
    bool failed;
    struct iovec pieces[EXTENTS_MAX][VEC_PIECES_MAX];
    uint64_t bytes[EXTENTS_MAX];
};

struct job_list {
    struct block_job *first, **last;
};

struct ring {
    struct block_queue_config config;
    struct uring uring;
    struct flight *flights, *free;
    unsigned in_flight; /* others than the ring's thread may read it, and know no more than what was true lately */
    int kick_fd;
    uint64_t kicks;
    bool listening; /* the kernel watches kick_fd */
    bool kicked;    /* the owner may have jobs */
    pthread_t thread;

    struct pool pool;
    bool one_waits; /* a thread of the pool waits for the host's disk */
    pthread_mutex_t lock;
    struct job_list for_pool, for_ring;
    bool stop; /* nothing more goes to the ring */
};

static void append(struct job_list *list, struct block_job *job)
{
    job->next = NULL;
    *list->last = job;
    list->last = &job->next;
}

static struct block_job *take(struct job_list *list)
{
    struct block_job *job = list->first;
    if (job && !(list->first = job->next))
        list->last = &list->first;
    return job;
}

static struct block_job *next_of_owner(struct ring *ring, bool *more)
{
    struct block_job *job = ring->config.next(ring->config.opaque, more);
    if (job)
        job->tried = false;
    return job;
}

static void ring_wake(struct ring *ring)
{
    uint64_t one = 1;
    while (write(ring->kick_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

/* ---- the pool ---- */

static void hand_to_pool(struct ring *ring, struct block_job *job)
{
    pthread_mutex_lock(&ring->lock);
    append(&ring->for_pool, job);
    pthread_mutex_unlock(&ring->lock);
    pool_kick(&ring->pool);
}

static bool hand_to_ring(struct ring *ring, struct block_job *job)
{
    pthread_mutex_lock(&ring->lock);
    bool goes = !ring->stop, wakes = !ring->for_ring.first;
    if (goes)
        append(&ring->for_ring, job);
    pthread_mutex_unlock(&ring->lock);
    if (goes && wakes)
        ring_wake(ring);
    return goes;
}

static struct block_job *next_for_pool(void *opaque, bool *more)
{
    struct ring *ring = opaque;
    pthread_mutex_lock(&ring->lock);
    struct block_job *job = take(&ring->for_pool);
    *more = ring->for_pool.first;
    pthread_mutex_unlock(&ring->lock);
    return job ? job : next_of_owner(ring, more);
}

enum outcome { MOVED, WOULD_WAIT, UNKNOWN };

static enum outcome move(const struct image_extent *extent, bool write, struct vec *memory)
{
    struct block_file *file = extent->file;
    if (!write && __atomic_load_n(&file->waits, __ATOMIC_RELAXED))
        return UNKNOWN;
    for (uint64_t done = 0, taken; done < extent->bytes; done += taken) {
        struct iovec pieces[VEC_PIECES_MAX];
        int count = vec_take(memory, extent->bytes - done, pieces, &taken);
        off_t at = (off_t)(extent->offset + done);
        ssize_t moved = write ? pwritev(file->fd, pieces, count, at) : preadv2(file->fd, pieces, count, at, RWF_NOWAIT);
        if (moved >= 0 && (uint64_t)moved == taken)
            continue;
        if (write)
            return UNKNOWN;
        if (moved >= 0 || errno != EOPNOTSUPP)
            return WOULD_WAIT;
        __atomic_store_n(&file->waits, true, __ATOMIC_RELAXED);
        return UNKNOWN;
    }
    return MOVED;
}

static enum outcome move_now(struct ring *ring, struct block_job *job, bool *more)
{
    struct image_extent extents[EXTENTS_MAX];
    unsigned count = 0;
    bool write = job->kind == JOB_WRITE;
    enum outcome outcome = MOVED;
    struct vec memory = job->memory;
    if (!image_plan_begin(ring->config.image, write, job->offset, job->bytes, extents, EXTENTS_MAX, &count))
        return UNKNOWN;
    for (unsigned i = 0; outcome == MOVED && i < count; i++) {
        if (!extents[i].file) {
            vec_zero(&memory, extents[i].bytes);
            continue;
        }
        if (*more) /* somebody else may take the next one meanwhile */
            pool_kick(&ring->pool);
        *more = false;
        outcome = move(&extents[i], write, &memory);
    }
    image_plan_end(ring->config.image);
    if (outcome == MOVED)
        ring->config.moved(ring->config.opaque, job);
    return outcome;
}

/* What may take long is begun when somebody else looks for more, or the owner knows that it must kick: it has been told
 * that there is none. */
static bool is_last(struct ring *ring)
{
    bool more;
    struct block_job *other = next_of_owner(ring, &more);
    if (other)
        hand_to_pool(ring, other);
    return !other;
}

static void run_for_pool(void *opaque, struct block_job *job, bool more)
{
    struct ring *ring = opaque;
    bool alone = !more, waits = false;
    enum outcome outcome = job->kind == JOB_CALL || job->tried ? UNKNOWN : move_now(ring, job, &more);
    if (outcome == MOVED)
        return;
    if (more)
        pool_kick(&ring->pool);
    alone = alone && is_last(ring);
    if (outcome == WOULD_WAIT && job->bytes <= RING_BYTES_MAX) { /* a single one comes sooner if it need not go through another thread */
        waits = alone && !__atomic_exchange_n(&ring->one_waits, true, __ATOMIC_ACQUIRE);
        if (!waits && hand_to_ring(ring, job))
            return;
    }
    ring->config.run(ring->config.opaque, job);
    if (waits)
        __atomic_store_n(&ring->one_waits, false, __ATOMIC_RELEASE);
}

/* ---- the ring ---- */

static void set_in_flight(struct ring *ring, unsigned count)
{
    __atomic_store_n(&ring->in_flight, count, __ATOMIC_RELAXED);
}

static void land(struct ring *ring, struct flight *flight)
{
    struct block_job *job = flight->job;
    image_plan_end(ring->config.image);
    flight->next_free = ring->free;
    ring->free = flight;
    set_in_flight(ring, ring->in_flight - 1);
    if (!flight->failed) {
        ring->config.moved(ring->config.opaque, job);
        return;
    }
    job->tried = true;
    hand_to_pool(ring, job);
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
    struct vec memory = job->memory, after;
    if (job->kind != JOB_READ || job->bytes > RING_BYTES_MAX || !flight ||
        !image_plan_begin(ring->config.image, false, job->offset, job->bytes, extents, EXTENTS_MAX, &extent_count)) {
        job->tried = job->kind == JOB_READ;
        hand_to_pool(ring, job);
        return;
    }
    ring->free = flight->next_free;
    set_in_flight(ring, ring->in_flight + 1);
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
        uring_read(&ring->uring, extents[i].file->fd, flight->pieces[i], piece_counts[i], extents[i].offset,
                   (uint64_t)(flight - ring->flights) * EXTENTS_MAX + i);
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
            ring->kicked = true;
            continue;
        }
        struct flight *flight = &ring->flights[tag / EXTENTS_MAX];
        flight->failed |= result < 0 || (uint64_t)result != flight->bytes[tag % EXTENTS_MAX];
        if (!--flight->landing)
            land(ring, flight);
    }
}

/* What the pool has handed over; is there to be no more of it? */
static bool start_handed_over(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    struct block_job *job = ring->for_ring.first;
    ring->for_ring.first = NULL;
    ring->for_ring.last = &ring->for_ring.first;
    bool stop = ring->stop;
    pthread_mutex_unlock(&ring->lock);
    for (struct block_job *after; job; job = after) {
        after = job->next;
        start(ring, job);
    }
    return stop;
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
        bool stop = start_handed_over(ring), more;
        if (ring->in_flight)
            for (struct block_job *job; (job = next_of_owner(ring, &more));)
                start(ring, job);
        else if (ring->kicked)
            pool_kick(&ring->pool);
        ring->kicked = false;
        if (stop && !ring->in_flight)
            return NULL;
    }
}

void ring_kick(struct ring *ring)
{
    if (pthread_equal(pthread_self(), ring->thread))
        ring->kicked = true;
    else if (__atomic_load_n(&ring->in_flight, __ATOMIC_RELAXED))
        ring_wake(ring);
    else
        pool_kick(&ring->pool);
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
    ring->for_pool.last = &ring->for_pool.first;
    ring->for_ring.last = &ring->for_ring.first;
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
        if (!(result = queue_thread(&ring->thread, "imgvm-ring", ring_work, ring))) {
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
    pthread_mutex_lock(&ring->lock);
    ring->stop = true;
    pthread_mutex_unlock(&ring->lock);
    ring_wake(ring);
    pthread_join(ring->thread, NULL);
    pool_stop(&ring->pool);
    uring_close(&ring->uring);
    ring_free(ring);
}
