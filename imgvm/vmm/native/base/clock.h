/* SPDX-License-Identifier: MIT */
/* The guest's time: nanoseconds since the machine was made. A real clock follows
 * CLOCK_MONOTONIC; a virtual one stands still until somebody advances it, so that
 * tests of devices never sleep. */
#ifndef IMGVM_BASE_CLOCK_H
#define IMGVM_BASE_CLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "clock_piece.h"

struct clock {
    bool virtual_time;
    bool by_tsc;
    uint64_t base_ns; /* real: CLOCK_MONOTONIC at time zero; virtual: the time itself */
    /* by_tsc: the newest piece is the one that `generation` says. Whoever finds it ended makes the next one. */
    struct clock_piece pieces[2];
    atomic_uint generation;
    atomic_bool extending;
    struct clock_rate rate;
};

void clock_init_real(struct clock *clock);
void clock_init_virtual(struct clock *clock);
uint64_t clock_now_ns(struct clock *clock);
/* The time, and the piece of the clock in which it lies; a piece of no ticks if it is not read by the TSC. */
uint64_t clock_now_in_piece(struct clock *clock, struct clock_piece *out);
/* Time did not pass: the clock goes on from `ns` ago. Only while nobody else looks at it, or keeps a piece of it. */
void clock_hold_back(struct clock *clock, uint64_t ns);
void clock_advance(struct clock *clock, uint64_t ns); /* virtual clocks only */

#endif
