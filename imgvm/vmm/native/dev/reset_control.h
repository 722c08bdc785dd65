/* SPDX-License-Identifier: MIT */
/* The chipset's reset control register, port CF9h (the FADT's RESET_REG; write 06h for a hard reset). It lies inside
 * the PCI configuration mechanism's four address ports: the board, which owns CF8h..CFFh's decoding, forwards byte
 * accesses to CF9h here, or registers reset_control_ops (1 port) where nothing else decodes it. */
#ifndef IMGVM_DEV_RESET_CONTROL_H
#define IMGVM_DEV_RESET_CONTROL_H

#include <stdint.h>

#include "../mem/bus.h"

#define RESET_CONTROL_PORT 0xcf9
#define RESET_CONTROL_VALUE 0x06 /* system reset, reset processor */

struct reset_control {
    struct {
        uint8_t value;
    } state;
    void (*reset)(void *opaque);
    void *opaque;
};

extern const struct bus_ops reset_control_ops;

void reset_control_init(struct reset_control *control, void (*reset)(void *opaque), void *opaque);
void reset_control_reset(struct reset_control *control);

#endif
