/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "perf_map.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static FILE *map; /* until the process ends: perf reads it later */
static int begin_error;

/* The name is perf's, in a folder that everybody writes: whatever is there, perhaps of an older process, is not followed. */
static void begin(void)
{
    char path[40];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    map = fd < 0 ? NULL : fdopen(fd, "w");
    begin_error = errno;
    if (map)
        setvbuf(map, NULL, _IOLBF, 0);
}

int perf_map_begin(imgvm_error *err)
{
    pthread_once(&once, begin);
    if (map)
        return 0;
    return error_set(err, begin_error, "cannot write /tmp/perf-%d.map: %s", getpid(), strerror(begin_error));
}

static void add(const void *start, size_t bytes, const char *name)
{
    fprintf(map, "%llx %zx %s\n", (unsigned long long)(uintptr_t)start, bytes, name);
}

void perf_map_stubs(const struct translator *jit)
{
    const struct {
        const void *start;
        const char *name;
    } stubs[] = {
        {jit->leave_by_exit, "jit:leave"}, {jit->enter, "jit:enter"}, {jit->dispatch, "jit:dispatch"},
        {jit->callout, "jit:callout"}, {jit->enter_unit, "jit:enter_unit"}, {jit->refill[0], "jit:refill_read"},
        {jit->refill[1], "jit:refill_write"}, {jit->executable + jit->first_free, NULL},
    };
    for (unsigned i = 0; stubs[i].name; i++)
        add(stubs[i].start, (size_t)((const uint8_t *)stubs[i + 1].start - (const uint8_t *)stubs[i].start), stubs[i].name);
}

void perf_map_block(const struct cpu *cpu, const struct block *block, size_t bytes)
{
    static const uint8_t bits[] = {[INSN_MODE_16] = 16, [INSN_MODE_32] = 32, [INSN_MODE_64] = 64};
    char name[40];
    snprintf(name, sizeof name, "ring%u-%u:%llx", cpu->cpl, bits[block->mode & 3], (unsigned long long)block->translated_rip);
    add(block->translated, bytes, name);
}
