/* SPDX-License-Identifier: MIT */
/* The two halves of a queue (queue.h): threads that run jobs, and a ring that hands them what it cannot do. */
#ifndef IMGVM_BLOCK_QUEUE_PARTS_H
#define IMGVM_BLOCK_QUEUE_PARTS_H

#include <pthread.h>

#include "queue.h"

#define POOL_THREADS_MAX 8 /* each waits for the host's disk by itself */

/* A few threads, made as jobs wait. */
struct pool {
    struct block_job *(*next)(void *opaque, bool *more);
    void (*run)(void *opaque, struct block_job *job, bool more); /* kicks the pool when there is more and this takes time */
    void *opaque;
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_t threads[POOL_THREADS_MAX];
    unsigned thread_count, sleeping;
    bool pending, stop;
};

/* next, run and opaque are set. */
int pool_start(struct pool *pool, imgvm_error *err);
void pool_kick(struct pool *pool); /* there may be jobs */
void pool_stop(struct pool *pool);
/* A thread that takes no signals: they are for the process's owner and for the vCPU threads. */
int queue_thread(pthread_t *thread, const char *name, void *(*work)(void *), void *opaque);

struct ring;
/* -errno without a message when the host has no io_uring. */
int ring_create(struct ring **out, const struct block_queue_config *config, imgvm_error *err);
void ring_kick(struct ring *ring);
void ring_destroy(struct ring *ring);

#endif
