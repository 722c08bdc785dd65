/* SPDX-License-Identifier: MIT */
/* Reset control register of the PIIX and ICH south bridges (82371AB datasheet, 4.1.5 "RC"): bit 1 chooses a hard
 * reset, bit 2 triggers on its 0 to 1 change. Soft and hard resets are the same thing here. */
#include "reset_control.h"

#define SYSTEM_RESET 0x02
#define RESET_CPU 0x04
#define FULL_RESET 0x08 /* ICH: with a power cycle */

static uint64_t reset_control_read(void *device, uint64_t offset, unsigned size)
{
    const struct reset_control *control = device;
    (void)offset, (void)size;
    return control->state.value;
}

static void reset_control_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct reset_control *control = device;
    (void)offset, (void)size;
    uint8_t before = control->state.value;
    control->state.value = value & (SYSTEM_RESET | RESET_CPU | FULL_RESET);
    if (~before & value & RESET_CPU)
        control->reset(control->opaque);
}

void reset_control_reset(struct reset_control *control)
{
    control->state.value = 0;
}

void reset_control_init(struct reset_control *control, void (*reset)(void *opaque), void *opaque)
{
    control->reset = reset;
    control->opaque = opaque;
    reset_control_reset(control);
}

const struct bus_ops reset_control_ops = {reset_control_read, reset_control_write};
