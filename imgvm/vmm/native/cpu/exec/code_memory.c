/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "code_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A place for the executable mapping within 2 GiB of `near`, as far as one is free; MAP_FAILED: no memory. */
static void *reserve(const void *near, size_t bytes)
{
    const int64_t step = INT64_C(128) << 20;
    for (int64_t k = near ? 1 : 16; k < 16; k++)
        for (int64_t side = -1; side <= 1; side += 2) {
            int64_t hint = ((int64_t)near + side * k * step) & -(int64_t)4096;
            void *place = mmap((void *)hint, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (place == MAP_FAILED || place == (void *)hint)
                return place;
            munmap(place, bytes);
        }
    return mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* A file without a name has no other users. */
static void map_file(void *writable[1], void *executable[1], void *place, size_t bytes)
{
    int fd = memfd_create("imgvm-code", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0) {
        *writable = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        *executable = mmap(place, bytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
    }
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
}

/* Shared memory without a file is anonymous to perf; moved from a size of 0, it is mapped a second time (mremap(2)). */
static void map_anonymous(void *writable[1], void *executable[1], void *place, size_t bytes)
{
    *writable = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (*writable == MAP_FAILED)
        return;
    *executable = mremap(*writable, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    if (*executable != MAP_FAILED && mprotect(*executable, bytes, PROT_READ | PROT_EXEC) < 0)
        *executable = MAP_FAILED; /* `place` goes with it */
}

int code_memory_map(struct code_memory *memory, size_t bytes, const void *near, bool profiled, imgvm_error *err)
{
    void *writable = MAP_FAILED, *executable = MAP_FAILED, *place = reserve(near, bytes);
    *memory = (struct code_memory){0};
    if (place != MAP_FAILED)
        (profiled ? map_anonymous : map_file)(&writable, &executable, place, bytes);
    if (writable == MAP_FAILED || executable == MAP_FAILED) {
        if (place != MAP_FAILED && executable == MAP_FAILED)
            munmap(place, bytes);
        error_set(err, errno, "cannot map executable memory for generated code: %s", strerror(errno));
        if (writable != MAP_FAILED)
            munmap(writable, bytes);
        return error_hint(err, "the host must allow executable memfd mappings (sysctl vm.memfd_noexec below 2; no SELinux "
                               "execmem denial)");
    }
    *memory = (struct code_memory){writable, executable, bytes};
    return 0;
}

void code_memory_unmap(struct code_memory *memory)
{
    if (!memory->writable)
        return;
    munmap(memory->writable, memory->bytes);
    munmap((void *)memory->executable, memory->bytes);
    *memory = (struct code_memory){0};
}
