/* SPDX-License-Identifier: MIT */
/* System control port A of the PS/2 and its successors: bit 0 resets the processor on a 0 to 1 change, bit 1 is the
 * alternate A20 gate. Not emulated: the security lock and the disk lights. */
#include "port92.h"

#include <string.h>

#define FAST_RESET 0x01
#define FAST_A20 0x02
#define WRITABLE 0x03

static uint64_t port92_read(void *device, uint64_t offset, unsigned size)
{
    const struct port92 *port92 = device;
    (void)offset, (void)size;
    return port92->state.value;
}

static void port92_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct port92 *port92 = device;
    (void)offset, (void)size;
    uint8_t before = port92->state.value, now = value & WRITABLE;
    port92->state.value = now;
    if ((before ^ now) & FAST_A20)
        port92->a20(port92->opaque, now & FAST_A20);
    if (~before & now & FAST_RESET)
        port92->reset(port92->opaque);
}

void port92_reset(struct port92 *port92)
{
    if (port92->state.value & FAST_A20)
        port92->a20(port92->opaque, false);
    port92->state.value = 0;
}

void port92_init(struct port92 *port92, void (*a20)(void *opaque, bool enabled), void (*reset)(void *opaque),
                 void *opaque)
{
    memset(port92, 0, sizeof(*port92));
    port92->a20 = a20;
    port92->reset = reset;
    port92->opaque = opaque;
}

const struct bus_ops port92_ops = {port92_read, port92_write};
