/* SPDX-License-Identifier: MIT */
#include "clock.h"

#include <time.h>

static uint64_t monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void clock_init_real(struct clock *clock)
{
    clock->virtual_time = false;
    clock->base_ns = monotonic_ns();
}

void clock_init_virtual(struct clock *clock)
{
    clock->virtual_time = true;
    clock->base_ns = 0;
}

uint64_t clock_now_ns(const struct clock *clock)
{
    return clock->virtual_time ? clock->base_ns : monotonic_ns() - clock->base_ns;
}

void clock_hold_back(struct clock *clock, uint64_t ns)
{
    if (!clock->virtual_time)
        clock->base_ns += ns;
}

void clock_advance(struct clock *clock, uint64_t ns)
{
    clock->base_ns += ns;
}
