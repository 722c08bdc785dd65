/* SPDX-License-Identifier: MIT */
// needs: block/[a-z]*.c base/error.c base/sha256*.c
/* Reads or writes a disk as `qemu-img bench` does: `count` transfers of `bytes`, `depth` at a time, each `step` further
 * than the one before, around the disk's end; a flush after every `interval` transfers but the last (0: none), with
 * nothing else under way. The clock begins when the file is open and ends with the last transfer.
 *
 *     disk_loop ring|threads|plain read|write FILE COUNT BYTES STEP DEPTH INTERVAL
 *
 * `ring` and `threads` (without io_uring) go through the queue that a machine's disk uses. `plain` is pread and pwrite on
 * the file itself, one at a time. Prints nanoseconds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/image.h"
#include "block/queue.h"

#define DEPTH_MAX 256

struct transfer {
    struct block_job job;
    struct iovec piece;
    struct transfer *next_free;
};

static struct {
    bool write;
    uint64_t count, bytes, step, depth, interval;
} run;
static imgvm_image *image;
static int fd = -1;
static imgvm_error err;
static struct block_queue *queue;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
static struct transfer transfers[DEPTH_MAX], *idle;
static uint64_t size, offset, begun, ended, barrier;

static void give_up(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, err.message);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static uint64_t next_offset(void)
{
    uint64_t at = offset;
    offset = (offset + run.step) % size;
    return at;
}

static struct block_job *next(void *opaque, bool *more)
{
    struct transfer *transfer = NULL;
    (void)opaque;
    pthread_mutex_lock(&lock);
    if (idle && begun < barrier) {
        transfer = idle;
        idle = transfer->next_free;
        begun++;
        transfer->job.kind = run.write ? JOB_WRITE : JOB_READ;
        transfer->job.offset = next_offset();
        transfer->job.bytes = run.bytes;
        transfer->job.memory = (struct vec){.piece = &transfer->piece};
    }
    *more = idle && begun < barrier;
    pthread_mutex_unlock(&lock);
    return transfer ? &transfer->job : NULL;
}

static void moved(void *opaque, struct block_job *job)
{
    struct transfer *transfer = container_of(job, struct transfer, job);
    (void)opaque;
    pthread_mutex_lock(&lock);
    bool starved = !idle && begun < barrier;
    transfer->next_free = idle;
    idle = transfer;
    if (++ended == barrier)
        pthread_cond_signal(&finished);
    pthread_mutex_unlock(&lock);
    if (starved)
        block_queue_kick(queue);
}

static void serve(void *opaque, struct block_job *job)
{
    struct vec memory = job->memory;
    if (job->kind == JOB_WRITE ? image_write(image, job->offset, &memory, job->bytes, &err)
                               : image_read(image, job->offset, &memory, job->bytes, &err))
        give_up("transfer");
    moved(opaque, job);
}

static void transfer_all(void)
{
    while (ended < run.count) {
        pthread_mutex_lock(&lock);
        barrier = run.interval ? MIN(run.count, ended + run.interval) : run.count;
        pthread_mutex_unlock(&lock);
        block_queue_kick(queue);
        pthread_mutex_lock(&lock);
        while (ended < barrier)
            pthread_cond_wait(&finished, &lock);
        pthread_mutex_unlock(&lock);
        if (run.interval && ended < run.count && imgvm_image_flush(image, &err))
            give_up("flush");
    }
}

static void transfer_plainly(void)
{
    uint8_t *data = transfers[0].piece.iov_base;
    for (uint64_t i = 1; i <= run.count; i++) {
        off_t at = (off_t)next_offset();
        ssize_t result = run.write ? pwrite(fd, data, run.bytes, at) : pread(fd, data, run.bytes, at);
        if (result != (ssize_t)run.bytes || (run.interval && i < run.count && i % run.interval == 0 && fdatasync(fd)))
            give_up("transfer");
    }
}

static void open_disk(const char *how, const char *path)
{
    if (!strcmp(how, "plain")) {
        struct stat st;
        fd = open(path, run.write ? O_RDWR : O_RDONLY);
        if (fd < 0 || fstat(fd, &st))
            give_up(path);
        size = (uint64_t)st.st_size;
        return;
    }
    if (imgvm_image_open(path, run.write ? IMGVM_IMAGE_READ_WRITE : IMGVM_IMAGE_READ_ONLY, &image, &err))
        give_up(path);
    const struct block_queue_config config = {.image = image, .kind = strcmp(how, "ring") ? QUEUE_THREADS : QUEUE_RING,
                                              .jobs_max = (unsigned)run.depth, .next = next, .run = serve, .moved = moved};
    if (block_queue_create(&queue, &config, &err))
        give_up(how);
    imgvm_image_info info;
    imgvm_image_get_info(image, &info);
    size = info.disk_bytes;
}

int main(int argc, char **argv)
{
    if (argc != 9)
        return 2;
    uint64_t numbers[5];
    for (unsigned i = 0; i < 5; i++)
        numbers[i] = strtoull(argv[4 + i], NULL, 10);
    run.write = !strcmp(argv[2], "write");
    run.count = numbers[0];
    run.bytes = numbers[1];
    run.step = numbers[2];
    run.depth = MIN(numbers[3], DEPTH_MAX);
    run.interval = numbers[4];
    for (unsigned i = 0; i < run.depth; i++) {
        transfers[i].piece = (struct iovec){aligned_alloc(4096, run.bytes), run.bytes};
        memset(transfers[i].piece.iov_base, 0x5a, run.bytes);
        transfers[i].next_free = idle;
        idle = &transfers[i];
    }
    open_disk(argv[1], argv[3]);
    uint64_t begin = now();
    if (image)
        transfer_all();
    else
        transfer_plainly();
    printf("%llu\n", (unsigned long long)(now() - begin));
    if (!image)
        return 0;
    fflush(stdout);
    _exit(0); /* what was written is not wanted: no time is spent on bringing it to the disk */
    if (imgvm_image_close(image, &err))
        give_up("close");
    return 0;
}
