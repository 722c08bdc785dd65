/* SPDX-License-Identifier: MIT */
#include "debug_exit.h"

static uint64_t debug_exit_read(void *device, uint64_t offset, unsigned size)
{
    (void)device, (void)offset, (void)size;
    return 0;
}

static void debug_exit_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_exit *debug_exit = device;
    (void)offset;
    uint32_t status = (uint32_t)(size >= 4 ? value : value & ((1u << (8 * size)) - 1));
    if (debug_exit->mapping == IMGVM_DEBUG_EXIT_QEMU)
        status = status << 1 | 1;
    debug_exit->exit(debug_exit->opaque, status);
}

void debug_exit_init(struct debug_exit *debug_exit, uint32_t mapping, void (*exit)(void *opaque, uint32_t status),
                     void *opaque)
{
    debug_exit->mapping = mapping;
    debug_exit->exit = exit;
    debug_exit->opaque = opaque;
}

const struct bus_ops debug_exit_ops = {debug_exit_read, debug_exit_write};
