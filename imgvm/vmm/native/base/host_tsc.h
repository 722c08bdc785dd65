/* SPDX-License-Identifier: MIT */
/* The host's time-stamp counter, where it is good for a clock. */
#ifndef IMGVM_BASE_HOST_TSC_H
#define IMGVM_BASE_HOST_TSC_H

#include <stdbool.h>
#include <stdint.h>

/* Not read before what comes before it has been done. */
static inline uint64_t host_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

/* Whether it runs at one rate, alike on all processors: the kernel has tried that, and reads time by it. */
bool host_tsc_is_clock(void);

#endif
