/* SPDX-License-Identifier: MIT */
/* The callbacks of a processor that has no board around it: every MSR of a board's is there and does nothing. Who includes
 * this defines those of the ports, of memory that is not there, of CR8, of the clock and of interrupts. */
#ifndef IMGVM_CALLBACKS_H
#define IMGVM_CALLBACKS_H

#include "../../native/quiet_world.h"

#define CALLBACKS                                                                                            \
    {                                                                                                        \
        .port_read = port_read, .port_write = port_write, .mmio_read = mmio_read, .mmio_write = mmio_write,  \
        .interrupt_acknowledge = acknowledge, .msr_read = quiet_msr_read, .msr_write = quiet_msr_write,      \
        .cr8_read = cr8_read, .cr8_write = cr8_write, .time_ns = time_ns                                     \
    }

#endif
