/* SPDX-License-Identifier: MIT */
/* needs: block/[a-z]*.c base/error.c base/sha256*.c */
/* libs: z zstd */
/* New clusters while others read and write: what takes no exclusive turn and what does, clusters that somebody is busy
 * with, the space taken ahead in the host's file, and what a flush writes and waits for. */
#define _GNU_SOURCE
#include "block/qcow2.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define DISK_BYTES (64 * MIB)
#define CLUSTER (64 * KIB)

static char folder[] = "/tmp/imgvm-claim-XXXXXX";
static uint8_t model[DISK_BYTES], disk[DISK_BYTES];

static uint64_t written; /* to all files */
static imgvm_image *flushed;
static unsigned waits;
static bool fails;

/* While the host's disk is waited for. */
int sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags)
{
    CHECK(fd == flushed->file.fd && !offset && !bytes && flags & SYNC_FILE_RANGE_WAIT_AFTER);
    CHECK_EQ(pthread_rwlock_tryrdlock(&flushed->turn), 0);
    pthread_rwlock_unlock(&flushed->turn);
    waits++;
    errno = EIO;
    return -fails;
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    ssize_t put = syscall(SYS_pwritev, fd, pieces, count, offset, 0);
    written += put > 0 ? (uint64_t)put : 0;
    return put;
}

static const char *path_of(unsigned which, const char *name)
{
    static char room[2][80];
    snprintf(room[which], sizeof room[which], "%s/%s", folder, name);
    return room[which];
}

static imgvm_image *make(const char *path, const char *backing_file)
{
    imgvm_image *image = NULL;
    const imgvm_image_options options = {.disk_bytes = DISK_BYTES, .backing_file = backing_file,
                                         .backing_format = backing_file ? "qcow2" : NULL};
    CHECK_EQ(imgvm_image_create_with(path, &options, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_WRITE, &image, NULL), 0);
    return flushed = image;
}

static void put(imgvm_image *image, uint64_t offset, uint64_t bytes, uint8_t value)
{
    memset(model + offset, value, bytes);
    CHECK_EQ(imgvm_image_write(image, offset, model + offset, bytes, NULL), 0);
}

/* As far as it goes while somebody else has a shared turn. */
static uint64_t put_shared(imgvm_image *image, uint64_t offset, uint64_t bytes, uint8_t value)
{
    uint8_t *data = malloc(bytes);
    const struct iovec piece = {data, bytes};
    struct vec vec = {.piece = &piece};
    uint64_t done = 0;
    memset(data, value, bytes);
    pthread_rwlock_rdlock(&image->turn);
    CHECK_EQ(image->ops->write_shared(image, offset, &vec, bytes, &done, NULL), 0);
    pthread_rwlock_unlock(&image->turn);
    memcpy(model + offset, data, done);
    free(data);
    return done;
}

static void check_and_close(imgvm_image *image, const char *path)
{
    uint64_t leaks, corruptions;
    CHECK_EQ(imgvm_image_read(image, 0, disk, DISK_BYTES, NULL), 0);
    CHECK(!memcmp(disk, model, DISK_BYTES));
    CHECK_EQ(imgvm_image_check(image, &leaks, &corruptions, NULL), 0);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    CHECK_EQ(imgvm_image_open(path, IMGVM_IMAGE_READ_ONLY, &image, NULL), 0);
    memset(disk, 0xee, sizeof disk);
    CHECK_EQ(imgvm_image_read(image, 0, disk, DISK_BYTES, NULL), 0);
    CHECK(!memcmp(disk, model, DISK_BYTES));
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
}

static void test_others_go_on(void)
{
    const char *path = path_of(0, "top.img"), *base = path_of(1, "base.img");
    memset(model, 0, sizeof model);
    imgvm_image *image = make(base, NULL);
    put(image, 0, 4 * MIB, 1);
    CHECK_EQ(imgvm_image_close(image, NULL), 0);
    image = make(path, "base.img");
    CHECK_EQ(put_shared(image, 8 * MIB, CLUSTER, 2), 0); /* there is no L2 table */
    put(image, 8 * MIB, 100, 3);
    CHECK_EQ(put_shared(image, 9 * MIB, 10 * CLUSTER, 4), 10 * CLUSTER);
    CHECK_EQ(put_shared(image, 10 * MIB + 5000, 3 * CLUSTER, 5), 3 * CLUSTER); /* in pieces */
    CHECK_EQ(put_shared(image, 3 * CLUSTER + 5000, 4096, 6), 4096);            /* the rest comes from below */
    CHECK_EQ(put_shared(image, 5 * CLUSTER + 512, 60 * KIB, 7), 60 * KIB);
    CHECK_EQ(imgvm_image_zero(image, 9 * MIB, 4 * CLUSTER, false, NULL), 0); /* they keep their places */
    memset(model + 9 * MIB, 0, 4 * CLUSTER);
    CHECK_EQ(put_shared(image, 9 * MIB + CLUSTER + 10, 2 * CLUSTER, 8), 2 * CLUSTER);
    CHECK_EQ(imgvm_image_write_compressed(image, 20 * MIB, model + 8 * MIB, 2 * CLUSTER, 1, NULL), 0);
    memcpy(model + 20 * MIB, model + 8 * MIB, 2 * CLUSTER);
    CHECK_EQ(put_shared(image, 20 * MIB + 50, 700, 9), 700);
    CHECK_EQ(imgvm_image_snapshot_create(image, "s", &(imgvm_snapshot_state){0}, NULL), 0);
    CHECK_EQ(put_shared(image, 9 * MIB, 4096, 10), 0); /* the L2 table is the snapshot's, too */
    put(image, 9 * MIB, 4096, 11);
    CHECK_EQ(put_shared(image, 9 * MIB + 5 * CLUSTER, 4096, 12), 4096);
    check_and_close(image, path);
    unlink(path);
    unlink(base);
}

static void test_busy_clusters(void)
{
    const char *path = path_of(0, "busy.img");
    uint64_t leaks, corruptions;
    memset(model, 0, sizeof model);
    imgvm_image *image = make(path, NULL);
    put(image, 0, CLUSTER, 1);
    struct claim claim;
    struct table *table;
    struct qcow2 *q = image->qcow2;
    pthread_mutex_lock(&image->lock);
    CHECK_EQ(map_l2(q, 0, &table, NULL), 0);
    CHECK_EQ(claim_make(image, table, 4 * CLUSTER, 2 * CLUSTER, &claim, NULL), 0);
    pthread_mutex_unlock(&image->lock);
    CHECK_EQ(claim.count, 2);
    CHECK_EQ(put_shared(image, 4 * CLUSTER, 4096, 2), 0);
    CHECK_EQ(put_shared(image, 5 * CLUSTER + 512, 4096, 2), 0);
    CHECK_EQ(put_shared(image, 2 * CLUSTER, 4 * CLUSTER, 3), 2 * CLUSTER); /* up to it */
    CHECK_EQ(put_shared(image, 6 * CLUSTER, 4096, 4), 4096);
    CHECK_EQ(imgvm_image_read(image, 4 * CLUSTER, disk, 2 * CLUSTER, NULL), 0); /* nothing of it shows yet */
    CHECK(!memcmp(disk, model + 4 * CLUSTER, 2 * CLUSTER));
    memset(model + 4 * CLUSTER, 5, 2 * CLUSTER);
    const struct iovec piece = {model + 4 * CLUSTER, 2 * CLUSTER};
    struct vec vec = {.piece = &piece};
    CHECK_EQ(claim_fulfil(&claim, &vec, NULL), 0);
    CHECK(!q->claims);
    CHECK_EQ(put_shared(image, 4 * CLUSTER, 4096, 6), 4096);
    /* One that cannot be fulfilled leaves nothing behind. */
    pthread_mutex_lock(&image->lock);
    CHECK_EQ(claim_make(image, table, 9 * CLUSTER, CLUSTER, &claim, NULL), 0);
    pthread_mutex_unlock(&image->lock);
    int fd = q->file->fd;
    q->file->fd = -1;
    vec = (struct vec){.piece = &piece};
    CHECK(claim_fulfil(&claim, &vec, NULL) < 0);
    q->file->fd = fd;
    CHECK(!q->claims);
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    CHECK_EQ(imgvm_image_check(image, &leaks, &corruptions, NULL), 0);
    CHECK_EQ(leaks, 0);
    check_and_close(image, path);
    unlink(path);
}

static void test_space_ahead(void)
{
    const char *path = path_of(0, "ahead.img");
    struct stat st;
    memset(model, 0, sizeof model);
    imgvm_image *image = make(path, NULL);
    put(image, 0, 256 * KIB, 1);
    CHECK(!image->file.reserved); /* not for a few clusters */
    for (uint64_t at = 256 * KIB; at < 20 * MIB; at += 256 * KIB)
        put(image, at, 256 * KIB, (uint8_t)(at >> 18));
    CHECK(image->qcow2->reserved_end > file_bytes(&image->file));
    CHECK(image->qcow2->reserved_end <= file_bytes(&image->file) + 9 * MIB);
    CHECK_EQ(put_shared(image, 30 * MIB + 70, 4096, 3), 4096); /* into it: the rest of the cluster is zero */
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    check_and_close(image, path);
    CHECK_EQ(stat(path, &st), 0);
    CHECK((uint64_t)st.st_blocks * 512 <= 21 * MIB);
    unlink(path);
}

/* Pages of the tables, not whole clusters. */
static void test_flush_of_few_entries(void)
{
    const char *path = path_of(0, "few.img");
    memset(model, 0, sizeof model);
    imgvm_image *image = make(path, NULL);
    put(image, 0, CLUSTER, 1);
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    put(image, 3 * CLUSTER, CLUSTER, 2);
    put(image, 5 * CLUSTER, CLUSTER, 3);
    put(image, 1000 * CLUSTER, 4096, 4); /* its entry is on the table's second page */
    written = 0;
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    CHECK_EQ(written, (2 + 1) * 4096); /* of the L2 table and of the refcounts */
    written = 0;
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    CHECK_EQ(written, 0);
    check_and_close(image, path);
    unlink(path);
}

/* Others read and write while a flush has data written, whose loss it tells. */
static void test_flush_and_others(void)
{
    const char *path = path_of(0, "flush.img");
    imgvm_error err = {0};
    memset(model, 0, sizeof model);
    imgvm_image *image = make(path, NULL);
    waits = 0;
    put(image, 0, 3 * CLUSTER, 1);
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    CHECK_EQ(waits, 0); /* for so little */
    put(image, 0, 16 * CLUSTER, 1);
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    CHECK_EQ(waits, 1);
    put(image, 0, CLUSTER, 2); /* no metadata follows */
    CHECK_EQ(imgvm_image_flush(image, NULL), 0);
    CHECK_EQ(waits, 1);
    put(image, 16 * CLUSTER, 16 * CLUSTER, 3);
    fails = true;
    CHECK_EQ(imgvm_image_flush(image, &err), -EIO);
    fails = false;
    CHECK(strstr(err.message, "cannot flush"));
    CHECK_EQ(imgvm_image_write(image, 0, model, CLUSTER, &err), -EIO); /* nothing builds on it */
    CHECK_EQ(imgvm_image_flush(image, NULL), -EIO);
    CHECK_EQ(waits, 2);
    CHECK_EQ(imgvm_image_close(image, NULL), -EIO);
    unlink(path);
}

int main(void)
{
    if (!mkdtemp(folder))
        return 2;
    test_others_go_on();
    test_busy_clusters();
    test_space_ahead();
    test_flush_of_few_entries();
    test_flush_and_others();
    rmdir(folder);
    return check_report();
}
