/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256*.c */
/* libs: z zstd */
/* The queue, with threads and with io_uring: the same requests, many at a time, against a model of the disk; raw disks,
 * qcow2 of several cluster sizes, compressed clusters, chains. */
#define _GNU_SOURCE
#include "block/image.h"
#include "block/queue.h"
#include "block/uring.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define DISK_BYTES (3 * MIB + 512)
#define SLOTS 16
#define BYTES_MAX 200000
#define PIECES_MAX 70 /* more than go into one system call */

static char folder[] = "/tmp/imgvm-queue-XXXXXX";
static imgvm_image *image, *holder; /* holder: of a further disk's file */
static struct block_queue *queue;
static unsigned seed;
static bool waits; /* the host's file system knows no RWF_NOWAIT */
static unsigned refusals;

ssize_t preadv2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    if (!waits)
        return syscall(SYS_preadv2, fd, pieces, count, offset, 0, flags);
    __atomic_add_fetch(&refusals, 1, __ATOMIC_RELAXED);
    errno = EOPNOTSUPP;
    return -1;
}

struct slot {
    struct block_job job;
    bool flush, busy;
    struct iovec pieces[PIECES_MAX];
    uint8_t data[BYTES_MAX];
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    struct slot slots[SLOTS];
    uint8_t model[DISK_BYTES];
    unsigned left, busy, moved, by_ring, run, wrong, errors;
    bool read_only;
} world = {.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};

/* Requests in flight have no order: those of a test do not touch each other. */
static bool is_taken(uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        const struct block_job *job = &world.slots[i].job;
        if (world.slots[i].busy && offset < job->offset + job->bytes && job->offset < offset + bytes)
            return true;
    }
    return false;
}

static uint64_t chance(uint64_t below)
{
    return ((uint64_t)rand_r(&seed) << 20 ^ (uint64_t)rand_r(&seed)) % below;
}

static void cut_up(struct slot *slot, uint64_t bytes)
{
    unsigned count = chance(4) ? 1 + (unsigned)chance(3) : PIECES_MAX;
    uint64_t at = 0;
    for (unsigned i = 0; i < count; i++) {
        uint64_t part = i + 1 == count ? bytes - at : (bytes - at) / (count - i);
        slot->pieces[i] = (struct iovec){slot->data + at, part};
        at += part;
    }
    slot->job.memory = (struct vec){.piece = slot->pieces};
}

static void choose(struct slot *slot)
{
    static const uint64_t sizes[] = {512, 4096, 4096, 4096, 65536, BYTES_MAX};
    struct block_job *job = &slot->job;
    do {
        job->bytes = MAX(1, chance(4) ? sizes[chance(ARRAY_LEN(sizes))] : chance(BYTES_MAX));
        job->offset = chance(DISK_BYTES - job->bytes + 1);
    } while (is_taken(job->offset, job->bytes));
    slot->flush = !world.read_only && !chance(30);
    job->kind = slot->flush ? JOB_CALL : world.read_only || chance(2) ? JOB_READ : JOB_WRITE;
    cut_up(slot, job->bytes);
    if (job->kind != JOB_WRITE) {
        memset(slot->data, 0x77, job->bytes);
        return;
    }
    for (uint64_t i = 0; i < job->bytes; i++)
        slot->data[i] = (uint8_t)rand_r(&seed);
    memcpy(world.model + job->offset, slot->data, job->bytes);
}

static struct block_job *next(void *opaque, bool *more)
{
    (void)opaque;
    struct slot *slot = world.slots;
    pthread_mutex_lock(&world.lock);
    while (slot < world.slots + SLOTS && slot->busy)
        slot++;
    if (!world.left || slot == world.slots + SLOTS)
        slot = NULL;
    if (slot) {
        choose(slot);
        slot->busy = true;
        world.busy++;
        world.left--;
    }
    *more = world.left && world.busy < SLOTS;
    pthread_mutex_unlock(&world.lock);
    return slot ? &slot->job : NULL;
}

static void end(struct slot *slot, unsigned *count)
{
    const struct block_job *job = &slot->job;
    pthread_mutex_lock(&world.lock);
    if (job->kind == JOB_READ)
        world.wrong += memcmp(slot->data, world.model + job->offset, job->bytes) != 0;
    ++*count;
    slot->busy = false;
    world.busy--;
    pthread_cond_broadcast(&world.ended);
    pthread_mutex_unlock(&world.lock);
    block_queue_kick(queue);
}

static void moved(void *opaque, struct block_job *job)
{
    (void)opaque;
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    if (!strcmp(name, "imgvm-ring"))
        __atomic_add_fetch(&world.by_ring, 1, __ATOMIC_RELAXED);
    end(container_of(job, struct slot, job), &world.moved);
}

static void run(void *opaque, struct block_job *job)
{
    (void)opaque;
    struct slot *slot = container_of(job, struct slot, job);
    struct vec memory = job->memory;
    int result = slot->flush               ? imgvm_image_flush(image, NULL)
                 : job->kind == JOB_WRITE ? image_write(image, job->offset, &memory, job->bytes, NULL)
                                           : image_read(image, job->offset, &memory, job->bytes, NULL);
    if (result)
        __atomic_add_fetch(&world.errors, 1, __ATOMIC_RELAXED);
    end(slot, &world.run);
}

/* The host forgets what the files hold. Not every file system has its files elsewhere, too. */
static bool forget(const char *const *paths)
{
    bool gone = false;
    for (; *paths; paths++) {
        int fd = open(*paths, O_RDWR);
        uint8_t byte;
        struct iovec piece = {&byte, 1};
        if (fd < 0)
            continue;
        CHECK_EQ(fdatasync(fd), 0);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        gone |= preadv2(fd, &piece, 1, 0, RWF_NOWAIT) < 0 && errno == EAGAIN;
        close(fd);
    }
    return gone;
}

/* Another user of the same handle: its turns come in between. */
static void interfere(void)
{
    static uint64_t turn;
    imgvm_image_info info;
    uint64_t at = DISK_BYTES - 512, run_bytes;
    imgvm_image_get_info(image, &info);
    CHECK_EQ(info.disk_bytes, DISK_BYTES);
    CHECK(imgvm_image_extent(image, at, 512, &run_bytes, NULL) >= 0);
    if (holder)
        CHECK_EQ(imgvm_image_write(holder, ++turn * 4096 % (DISK_BYTES / 2), &info, sizeof info, NULL), 0);
}

static void serve(enum block_queue_kind kind, unsigned requests)
{
    const struct block_queue_config config = {.image = image, .kind = kind, .jobs_max = SLOTS, .next = next, .run = run,
                                              .moved = moved};
    imgvm_error err = {0};
    world.left = requests;
    world.moved = world.by_ring = world.run = world.wrong = world.errors = 0;
    CHECK_EQ(block_queue_create(&queue, &config, &err), 0);
    CHECK_EQ(block_queue_kind(queue), kind);
    block_queue_kick(queue);
    pthread_mutex_lock(&world.lock);
    while (world.left || world.busy) {
        pthread_mutex_unlock(&world.lock);
        interfere();
        pthread_mutex_lock(&world.lock);
        if (world.busy)
            pthread_cond_wait(&world.ended, &world.lock);
    }
    pthread_mutex_unlock(&world.lock);
    block_queue_destroy(queue);
    CHECK_EQ(world.moved + world.run, requests);
    CHECK_EQ(world.wrong, 0);
    CHECK_EQ(world.errors, 0);
}

/* What the disk holds before: data, compressed data, and zeros, in stretches that are no whole clusters. */
static void fill(imgvm_image *target, bool compress)
{
    for (uint64_t at = 0; at < DISK_BYTES / 2; at++)
        world.model[at] = (uint8_t)(at / 300 * 7 + (at >> 16));
    CHECK_EQ(imgvm_image_write(target, 0, world.model, DISK_BYTES / 2, NULL), 0);
    if (!compress)
        return;
    CHECK_EQ(imgvm_image_write_compressed(target, MIB / 2, world.model + MIB / 2, MIB / 2, 1, NULL), 0);
    CHECK_EQ(imgvm_image_zero(target, MIB / 4, 100000, true, NULL), 0);
    memset(world.model + MIB / 4, 0, 100000);
}

static const char *path_of(char *room, const char *name)
{
    snprintf(room, 80, "%s/%s", folder, name);
    return room;
}

static void make(const char *path, const imgvm_image_options *options)
{
    imgvm_error err = {0};
    CHECK_EQ(imgvm_image_create_with(path, options, &err), 0);
    if (err.code)
        printf("%s\n", err.message);
}

static void check_disk(const char *path)
{
    static uint8_t disk[DISK_BYTES];
    uint64_t leaks, corruptions;
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_ONLY, &image, NULL), 0);
    CHECK_EQ(imgvm_image_read(image, 0, disk, DISK_BYTES, NULL), 0);
    CHECK(!memcmp(disk, world.model, DISK_BYTES));
    CHECK_EQ(imgvm_image_check(image, &leaks, &corruptions, NULL), 0);
}

static void test_requests(enum block_queue_kind kind, const imgvm_image_options *options, bool compress, bool chain)
{
    char base[80], middle[80], top[80];
    memset(world.model, 0, sizeof world.model);
    make(path_of(base, "base.img"), options);
    CHECK_EQ(imgvm_image_open(base, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    fill(image, compress);
    const char *path = base;
    if (chain) { /* two more on top, one of them shorter */
        CHECK_EQ(imgvm_image_close(image, NULL), 0);
        imgvm_image_options over = *options;
        over.backing_file = "base.img";
        over.backing_format = "qcow2";
        over.disk_bytes = 2 * MIB;
        make(path_of(middle, "middle.img"), &over);
        over.backing_file = "middle.img";
        over.disk_bytes = DISK_BYTES;
        make(path = path_of(top, "top.img"), &over);
        CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    }
    world.read_only = false;
    serve(kind, 600);
    if (kind == QUEUE_RING)
        CHECK(world.moved > 60);
    else
        CHECK_EQ(world.moved, 0);
    check_disk(path);
    world.read_only = true;
    serve(kind, 300);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(base);
    unlink(path_of(middle, "middle.img"));
    unlink(path_of(top, "top.img"));
}

static void test_raw(enum block_queue_kind kind)
{
    char path[80];
    FILE *file = fopen(path_of(path, "raw.img"), "w");
    CHECK_EQ(ftruncate(fileno(file), DISK_BYTES), 0);
    fclose(file);
    memset(world.model, 0, sizeof world.model);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    world.read_only = false;
    serve(kind, 600);
    check_disk(path);
    /* Somebody cuts the file: what is gone reads as zeros, whoever reads it. */
    CHECK_EQ(truncate(path, MIB), 0);
    memset(world.model + MIB, 0, DISK_BYTES - MIB);
    world.read_only = true;
    serve(kind, 200);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
}

/* Reads that have to wait for the host's disk are the ring's, all at once; a single one is not. */
static void test_cold(enum block_queue_kind kind)
{
    char path[80];
    const char *const paths[] = {path_of(path, "cold.img"), NULL};
    unsigned by_ring = 0;
    bool gone = true;
    memset(world.model, 0, sizeof world.model);
    make(path, &(imgvm_image_options){.disk_bytes = DISK_BYTES, .cluster_bytes = 4096});
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    fill(image, false);
    world.read_only = true;
    for (unsigned i = 0; gone && i < 20; i++) {
        gone = forget(paths);
        serve(kind, 40);
        by_ring += world.by_ring;
    }
    if (!gone)
        printf("the host keeps files in memory here: reads of the disk are not tested\n");
    else if (kind == QUEUE_RING)
        CHECK(by_ring > 20);
    else
        CHECK_EQ(by_ring, 0);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
}

/* Where the host does not say what it has in memory, threads read all. */
static void test_reads_that_wait(enum block_queue_kind kind)
{
    char path[80];
    memset(world.model, 0, sizeof world.model);
    make(path_of(path, "waits.img"), &(imgvm_image_options){.disk_bytes = DISK_BYTES, .cluster_bytes = 4096});
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    fill(image, false);
    world.read_only = waits = true;
    refusals = 0;
    serve(kind, 300);
    waits = false;
    CHECK_EQ(world.by_ring, 0);
    CHECK(world.run > 100);
    CHECK(kind == QUEUE_THREADS ? !refusals : refusals && refusals < 20); /* it is not asked again and again */
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    unlink(path);
}

/* A disk beside another one in the same file, which is written meanwhile. */
static void test_further_disk(enum block_queue_kind kind)
{
    static uint8_t other[DISK_BYTES];
    char path[80];
    imgvm_image *first = NULL;
    make(path_of(path, "two.img"), &(imgvm_image_options){.disk_bytes = DISK_BYTES, .cluster_bytes = 4096});
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &first, NULL), 0);
    CHECK_EQ(imgvm_image_add_disk(first, "more", DISK_BYTES, 0, NULL), 0);
    CHECK_EQ(imgvm_image_open_disk(first, "more", &image, NULL), 0);
    memset(world.model, 0, sizeof world.model);
    fill(image, false);
    holder = first;
    world.read_only = false;
    serve(kind, 600);
    holder = NULL;
    CHECK(kind == QUEUE_THREADS || world.moved > 60);
    CHECK_EQ(imgvm_image_read(image, 0, other, DISK_BYTES, NULL), 0);
    CHECK(!memcmp(other, world.model, DISK_BYTES));
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    uint64_t leaks, corruptions;
    CHECK_EQ(imgvm_image_check(first, &leaks, &corruptions, NULL), 0);
    CHECK_EQ(imgvm_image_close(first, NULL), 0);
    unlink(path);
}

int main(void)
{
    static const enum block_queue_kind kinds[] = {QUEUE_THREADS, QUEUE_RING};
    struct uring ring;
    bool has_ring = !uring_open(&ring, 4);
    if (has_ring)
        uring_close(&ring);
    else
        printf("no io_uring here: threads alone are tested\n");
    if (!mkdtemp(folder))
        return 2;
    for (unsigned i = 0; i < (has_ring ? 2 : 1); i++) {
        seed = 1 + i;
        test_raw(kinds[i]);
        test_further_disk(kinds[i]);
        test_cold(kinds[i]);
        test_reads_that_wait(kinds[i]);
        test_requests(kinds[i], &(imgvm_image_options){.disk_bytes = DISK_BYTES, .cluster_bytes = 512}, false, false);
        test_requests(kinds[i], &(imgvm_image_options){.disk_bytes = DISK_BYTES}, true, false);
        test_requests(kinds[i], &(imgvm_image_options){.disk_bytes = DISK_BYTES, .zstd = true}, true, true);
        test_requests(kinds[i], &(imgvm_image_options){.disk_bytes = DISK_BYTES, .cluster_bytes = 16384, .extended_l2 = true},
                      true, true);
    }
    rmdir(folder);
    return check_report();
}
