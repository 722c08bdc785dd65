/* SPDX-License-Identifier: MIT */
/* What is asked of an image, many things at a time and in any order. A few threads do it; where the host has io_uring, they
 * leave to it, and to one thread more, the reads of what the host does not have in memory, however many those are.
 *
 * The queue asks its source for jobs: a device takes them from its driver when there is somebody to do them. */
#ifndef IMGVM_BLOCK_QUEUE_H
#define IMGVM_BLOCK_QUEUE_H

#include "../base/error.h"
#include "vec.h"

struct block_job {
    /* READ, WRITE: `bytes` (not 0) of the disk at `offset` to or from `memory`; whoever can do better than `run` may.
     * The range is checked by then. CALL: what only `run` knows. */
    enum { JOB_CALL, JOB_READ, JOB_WRITE } kind;
    uint64_t offset, bytes;
    struct vec memory;
    struct block_job *next; /* the queue's, as is the next */
    bool tried;             /* only `run` can do it */
};

enum block_queue_kind { QUEUE_BEST, QUEUE_THREADS, QUEUE_RING };

struct block_queue_config {
    imgvm_image *image;
    enum block_queue_kind kind; /* BEST: RING where the host has it, else THREADS */
    unsigned jobs_max;          /* `next` gives no more at a time */
    /* Called by several threads at once, and not before the first kick. */
    struct block_job *(*next)(void *opaque, bool *more); /* NULL: none until the next kick */
    void (*run)(void *opaque, struct block_job *job);    /* does it and ends it; may wait for the host's disk */
    void (*moved)(void *opaque, struct block_job *job);  /* ends a READ or WRITE that was done without `run` */
    void *opaque;
};

struct block_queue;
int block_queue_create(struct block_queue **out, const struct block_queue_config *config, imgvm_error *err);
void block_queue_kick(struct block_queue *queue); /* there may be jobs */
enum block_queue_kind block_queue_kind(const struct block_queue *queue);
/* Waits until all jobs have ended that the source gave; it must give none any more. */
void block_queue_destroy(struct block_queue *queue);

#endif
