/* SPDX-License-Identifier: MIT */
/* A disk as a Linux guest sees it, past the guest's page cache: transfers of one size, `depth` at a time (io_submit(2)),
 * one behind the other or steps of the golden section apart, around the disk's end; a flush after every `interval`
 * transfers (0: none), with nothing else under way.
 *
 *     guest_disk DEVICE
 *
 * The first kind of work is the first to write to the disk; the rest find all of it written. Prints "a disk of N bytes",
 * and for each kind "kernel NAME NANOSECONDS 0". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 32
#define BYTES_MAX 262144

struct work {
    const char *name;
    bool write, far;
    uint64_t bytes;
    unsigned count, depth, interval;
};

static int fd;
static uint64_t size;
static uint8_t *data[DEPTH_MAX];

static void give_up(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static uint64_t next_offset(const struct work *work, uint64_t *offset)
{
    uint64_t at = *offset;
    *offset = (at + (work->far ? ((uint64_t)((double)size / 4096 * 0.618) | 1) * 4096 : work->bytes)) % size;
    return at;
}

static void transfer(const struct work *work)
{
    aio_context_t context = 0;
    struct iocb blocks[DEPTH_MAX], *fresh[DEPTH_MAX];
    struct io_event events[DEPTH_MAX];
    unsigned idle[DEPTH_MAX], idle_count = 0, begun = 0, ended = 0;
    uint64_t offset = 0;
    if (syscall(SYS_io_setup, DEPTH_MAX, &context))
        give_up("io_setup");
    while (idle_count < work->depth) {
        idle[idle_count] = idle_count;
        idle_count++;
    }
    uint64_t begin = now();
    while (ended < work->count) {
        unsigned barrier = work->interval ? ended - ended % work->interval + work->interval : work->count;
        long fresh_count = 0;
        for (; idle_count && begun < barrier && begun < work->count; begun++) {
            unsigned i = idle[--idle_count];
            blocks[i] = (struct iocb){.aio_data = i, .aio_lio_opcode = work->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                                      .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)data[i],
                                      .aio_nbytes = work->bytes, .aio_offset = (int64_t)next_offset(work, &offset)};
            fresh[fresh_count++] = &blocks[i];
        }
        if (fresh_count && syscall(SYS_io_submit, context, fresh_count, fresh) != fresh_count)
            give_up("io_submit");
        long got = syscall(SYS_io_getevents, context, 1, DEPTH_MAX, events, NULL);
        for (long i = 0; i < got; i++) {
            if (events[i].res != (int64_t)work->bytes)
                give_up(work->name);
            idle[idle_count++] = (unsigned)events[i].data;
        }
        ended += got > 0 ? (unsigned)got : 0;
        if (ended == barrier && work->interval && fdatasync(fd))
            give_up("fdatasync");
    }
    printf("kernel %s %llu 0\n", work->name, (unsigned long long)(now() - begin));
    fflush(stdout);
    syscall(SYS_io_destroy, context);
}

int main(int argc, char **argv)
{
    static const struct work works[] = {
        {"sequential_write_of_new_clusters", true, false, BYTES_MAX, 512, 4, 0},
        {"sequential_write", true, false, BYTES_MAX, 512, 1, 0},
        {"sequential_write,_8_at_a_time", true, false, BYTES_MAX, 512, 8, 0},
        {"sequential_read", false, false, BYTES_MAX, 1024, 1, 0},
        {"sequential_read,_8_at_a_time", false, false, BYTES_MAX, 1024, 8, 0},
        {"random_4k_read", false, true, 4096, 4000, 1, 0},
        {"random_4k_read,_32_at_a_time", false, true, 4096, 20000, 32, 0},
        {"random_4k_write", true, true, 4096, 4000, 1, 0},
        {"random_4k_write,_32_at_a_time", true, true, 4096, 20000, 32, 0},
        {"random_4k_write,_a_flush_after_each", true, true, 4096, 300, 1, 1},
        {"random_4k_write,_32_at_a_time,_a_flush_after_each_64", true, true, 4096, 3200, 32, 64},
    };
    if (argc != 2)
        return 2;
    fd = open(argv[1], O_RDWR | O_DIRECT);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size))
        give_up(argv[1]);
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        if (posix_memalign((void **)&data[i], 4096, BYTES_MAX))
            give_up("memory");
        memset(data[i], 0x5a + (int)i, BYTES_MAX);
    }
    printf("a disk of %llu bytes\n", (unsigned long long)size);
    fflush(stdout);
    for (unsigned i = 0; i < sizeof works / sizeof *works; i++)
        transfer(&works[i]);
    return 0;
}
