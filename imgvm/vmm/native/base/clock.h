/* SPDX-License-Identifier: MIT */
/* The guest's time: nanoseconds since the machine was made. A real clock follows
 * CLOCK_MONOTONIC; a virtual one stands still until somebody advances it, so that
 * tests of devices never sleep. */
#ifndef IMGVM_BASE_CLOCK_H
#define IMGVM_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

struct clock {
    bool virtual_time;
    uint64_t base_ns; /* real: CLOCK_MONOTONIC at time zero; virtual: the time itself */
};

void clock_init_real(struct clock *clock);
void clock_init_virtual(struct clock *clock);
uint64_t clock_now_ns(const struct clock *clock);
/* Time did not pass: the clock goes on from `ns` ago. Only while nobody else looks at it. */
void clock_hold_back(struct clock *clock, uint64_t ns);
void clock_advance(struct clock *clock, uint64_t ns); /* virtual clocks only */

#endif
