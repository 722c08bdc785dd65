/* SPDX-License-Identifier: MIT */
// needs: block/[a-z]*.c base/error.c base/sha256.c
/* Reads or writes a disk as `qemu-img bench` does: `count` transfers of `bytes`, each `step` further than the last one,
 * around the disk's end. The clock begins when the file is open and ends after the last transfer.
 *
 *     disk_loop imgvm|plain read|write FILE COUNT BYTES STEP
 *
 * `plain` is pread and pwrite on the file itself. Prints the nanoseconds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "include/imgvm_api.h"

static imgvm_image *image;
static int fd = -1;
static imgvm_error err;

static int give_up(const char *what)
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

static uint64_t open_disk(const char *path, bool write)
{
    imgvm_image_info info;
    struct stat st;
    if (fd >= 0)
        return fstat(fd, &st) ? 0 : (uint64_t)st.st_size;
    if (imgvm_image_open(path, write ? IMGVM_IMAGE_READ_WRITE : IMGVM_IMAGE_READ_ONLY, &image, &err))
        give_up(path);
    imgvm_image_get_info(image, &info);
    return info.disk_bytes;
}

static void transfer(bool write, uint64_t offset, void *data, uint64_t bytes)
{
    ssize_t moved;
    if (image) {
        if (write ? imgvm_image_write(image, offset, data, bytes, &err) : imgvm_image_read(image, offset, data, bytes, &err))
            give_up("transfer");
        return;
    }
    moved = write ? pwrite(fd, data, bytes, (off_t)offset) : pread(fd, data, bytes, (off_t)offset);
    if (moved != (ssize_t)bytes)
        give_up("transfer");
}

int main(int argc, char **argv)
{
    if (argc != 7)
        return 2;
    bool write = !strcmp(argv[2], "write");
    uint64_t count = strtoull(argv[4], NULL, 10), bytes = strtoull(argv[5], NULL, 10), step = strtoull(argv[6], NULL, 10);
    if (!strcmp(argv[1], "plain"))
        fd = open(argv[3], write ? O_RDWR : O_RDONLY);
    uint64_t size = open_disk(argv[3], write), offset = 0;
    uint8_t *data = aligned_alloc(4096, bytes);
    memset(data, 0x5a, bytes);
    uint64_t begin = now();
    for (uint64_t i = 0; i < count; i++) {
        transfer(write, offset, data, bytes);
        offset = (offset + step) % size;
    }
    printf("%llu\n", (unsigned long long)(now() - begin));
    if (image)
        imgvm_image_close(image, &err);
    return 0;
}
