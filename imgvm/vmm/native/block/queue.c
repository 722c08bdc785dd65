/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "queue_parts.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

struct block_queue {
    struct ring *ring; /* NULL: the pool does all */
    struct pool pool;
    struct block_queue_config config;
};

int queue_thread(pthread_t *thread, const char *name, void *(*work)(void *), void *opaque)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(thread, NULL, work, opaque);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!error)
        pthread_setname_np(*thread, name);
    return -error;
}

static void *pool_work(void *opaque);

/* Not enough memory or threads for another one is no error as long as there is one. */
static int add_thread(struct pool *pool)
{
    int result = queue_thread(&pool->threads[pool->thread_count], "imgvm-disk", pool_work, pool);
    pool->thread_count += !result;
    return result;
}

void pool_kick(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    bool wakes = pool->sleeping;
    pool->pending = true;
    if (!wakes && pool->thread_count < POOL_THREADS_MAX && !pool->stop)
        add_thread(pool);
    pthread_mutex_unlock(&pool->lock);
    if (wakes)
        pthread_cond_signal(&pool->work);
}

static void *pool_work(void *opaque)
{
    struct pool *pool = opaque;
    for (;;) {
        pthread_mutex_lock(&pool->lock);
        while (!pool->pending && !pool->stop) {
            pool->sleeping++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->sleeping--;
        }
        bool last = !pool->pending; /* nothing came since somebody found nothing */
        pool->pending = false;
        pthread_mutex_unlock(&pool->lock);
        if (last)
            return NULL;
        bool more = false;
        for (struct block_job *job; (job = pool->next(pool->opaque, &more));)
            pool->run(pool->opaque, job, more);
    }
}

int pool_start(struct pool *pool, imgvm_error *err)
{
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    int result = add_thread(pool);
    if (!result)
        return 0;
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->work);
    return error_set(err, -result, "cannot start a thread for a disk");
}

void pool_stop(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) /* none is added once stop is set */
        pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->work);
}

static struct block_job *next_job(void *opaque, bool *more)
{
    struct block_queue *queue = opaque;
    return queue->config.next(queue->config.opaque, more);
}

static void run_job(void *opaque, struct block_job *job, bool more)
{
    struct block_queue *queue = opaque;
    if (more) /* somebody else may take the next one meanwhile */
        pool_kick(&queue->pool);
    queue->config.run(queue->config.opaque, job);
}

int block_queue_create(struct block_queue **out, const struct block_queue_config *config, imgvm_error *err)
{
    struct block_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return error_set(err, ENOMEM, "out of memory");
    int result = config->kind == QUEUE_THREADS ? -ENOSYS : ring_create(&queue->ring, config, err);
    if (result && config->kind == QUEUE_RING) {
        free(queue);
        return error_set(err, -result, "this host has no io_uring");
    }
    if (result) { /* for whatever reason: the threads need nothing of it */
        queue->config = *config;
        queue->pool = (struct pool){.next = next_job, .run = run_job, .opaque = queue};
        result = pool_start(&queue->pool, err);
    }
    if (result)
        free(queue);
    else
        *out = queue;
    return result;
}

enum block_queue_kind block_queue_kind(const struct block_queue *queue)
{
    return queue->ring ? QUEUE_RING : QUEUE_THREADS;
}

void block_queue_kick(struct block_queue *queue)
{
    if (queue->ring)
        ring_kick(queue->ring);
    else
        pool_kick(&queue->pool);
}

void block_queue_destroy(struct block_queue *queue)
{
    if (queue->ring)
        ring_destroy(queue->ring);
    else
        pool_stop(&queue->pool);
    free(queue);
}
