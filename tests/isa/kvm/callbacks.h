/* SPDX-License-Identifier: MIT */
/* The callbacks of a processor that has no board around it: every MSR of a board's is there and does nothing. Who includes
 * this defines those of the ports, of memory that is not there, of CR8, of the clock and of interrupts. */
#ifndef IMGVM_CALLBACKS_H
#define IMGVM_CALLBACKS_H

#include "cpu/cpu.h"

static bool msr_read(void *opaque, uint32_t index, uint64_t *value)
{
    (void)opaque, (void)index;
    *value = 0;
    return true;
}

static bool msr_write(void *opaque, uint32_t index, uint64_t value)
{
    (void)opaque, (void)index, (void)value;
    return true;
}

#define CALLBACKS                                                                                             \
    {                                                                                                         \
        .port_read = port_read, .port_write = port_write, .mmio_read = mmio_read, .mmio_write = mmio_write,   \
        .interrupt_acknowledge = acknowledge, .msr_read = msr_read, .msr_write = msr_write,                   \
        .cr8_read = cr8_read, .cr8_write = cr8_write, .time_ns = time_ns                                      \
    }

#endif
