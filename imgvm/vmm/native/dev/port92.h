/* SPDX-License-Identifier: MIT */
/* System control port A, 92h: fast A20 and fast reset. The board registers port92_ops (1 port) and combines the
 * A20 request with the keyboard controller's (either enables it). */
#ifndef IMGVM_DEV_PORT92_H
#define IMGVM_DEV_PORT92_H

#include <stdbool.h>
#include <stdint.h>

#include "../mem/bus.h"

struct port92 {
    struct {
        uint8_t value;
    } state;
    void (*a20)(void *opaque, bool enabled);
    void (*reset)(void *opaque);
    void *opaque;
};

extern const struct bus_ops port92_ops;

void port92_init(struct port92 *port92, void (*a20)(void *opaque, bool enabled), void (*reset)(void *opaque),
                 void *opaque);
void port92_reset(struct port92 *port92);

#endif
