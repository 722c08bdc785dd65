/* SPDX-License-Identifier: MIT */
/* A port that ends the run: what the guest writes becomes the exit status. The board registers debug_exit_ops (up to
 * 4 ports) where the machine description says. Any width is taken; reads are zero. */
#ifndef IMGVM_DEV_DEBUG_EXIT_H
#define IMGVM_DEV_DEBUG_EXIT_H

#include <stdint.h>

#include "../mem/bus.h"

struct debug_exit {
    uint32_t mapping; /* IMGVM_DEBUG_EXIT_RAW: the value; IMGVM_DEBUG_EXIT_QEMU: (value << 1) | 1 */
    void (*exit)(void *opaque, uint32_t status);
    void *opaque;
};

extern const struct bus_ops debug_exit_ops;

void debug_exit_init(struct debug_exit *debug_exit, uint32_t mapping, void (*exit)(void *opaque, uint32_t status),
                     void *opaque);

#endif
