/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE /* O_TMPFILE */
#include "keep.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool write_all(int fd, const uint8_t *data, uint64_t size)
{
    while (size) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        data += written;
        size -= (uint64_t)written;
    }
    return true;
}

static void *in_a_file(const void *data, uint64_t size)
{
    int fd = open(P_tmpdir, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return MAP_FAILED;
    void *kept = write_all(fd, data, size) ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    close(fd);
    return kept;
}

const void *keep_bytes(const void *data, uint64_t size)
{
    if (!size)
        return NULL;
    void *kept = in_a_file(data, size);
    if (kept != MAP_FAILED)
        return kept;
    kept = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (kept == MAP_FAILED)
        return NULL;
    return memcpy(kept, data, size);
}

void keep_forget(const void *kept, uint64_t size)
{
    if (kept)
        munmap((void *)kept, size);
}
