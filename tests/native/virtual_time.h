/* SPDX-License-Identifier: MIT */
/* Time for a device's tests: it passes when they say so, and timers fire on the way, each on time. */
#ifndef IMGVM_TEST_VIRTUAL_TIME_H
#define IMGVM_TEST_VIRTUAL_TIME_H

#include "base/clock.h"
#include "base/timer.h"

static struct clock virtual_clock;
static struct timer_queue queue;

static inline void begin_time(void)
{
    clock_init_virtual(&virtual_clock);
    timer_queue_init(&queue, &virtual_clock);
}

static inline void pass_until(uint64_t target)
{
    for (uint64_t next; (next = timer_queue_next_ns(&queue)) <= target;) {
        uint64_t now = timer_queue_now_ns(&queue);
        clock_advance(&virtual_clock, next > now ? next - now : 0);
        timer_queue_run(&queue);
    }
    clock_advance(&virtual_clock, target - timer_queue_now_ns(&queue));
}

static inline void pass(uint64_t ns)
{
    pass_until(timer_queue_now_ns(&queue) + ns);
}

#endif
