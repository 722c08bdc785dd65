/* SPDX-License-Identifier: MIT */
/* How a guest tells of itself beyond debug_exit: three small devices of the board.
 *  - pvpanic (1 port): reading gives the events understood, bit 0 (panicked) alone;
 *    writing bit 0 reports a panic. The interface is the one that Linux's pvpanic driver knows.
 *  - exec status (1 to 4 bytes at one port): the packed init's command ended with this status.
 *  - panic watch: reads along on the serial console for the kernel's own words, for guests without the driver. */
#ifndef IMGVM_MACHINE_REPORT_H
#define IMGVM_MACHINE_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../mem/bus.h"

struct report_host {
    void (*panic)(void *opaque);                       /* the guest says so, or is about to stop for ever */
    void (*exec_status)(void *opaque, uint32_t status);
    void *opaque;
};

struct report {
    struct report_host host;
    char line[256]; /* the console's current line, without its end */
    size_t line_bytes;
    char panic_line[256]; /* what the kernel said; empty: nothing */
};

extern const struct bus_ops report_panic_ops, report_exec_ops;

void report_init(struct report *report, const struct report_host *host);
void report_reset(struct report *report);
void report_watch(struct report *report, const uint8_t *data, size_t size);

#endif
