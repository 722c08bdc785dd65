/* SPDX-License-Identifier: MIT */
/* How many segments a cache of code has: few at first, and more as long as what it lost is wanted again soon, which costs more
 * than memory does. */
#ifndef IMGVM_CPU_EXEC_CACHE_GROWTH_H
#define IMGVM_CPU_EXEC_CACHE_GROWTH_H

#include <stdbool.h>
#include <stdint.h>

#include "../../base/bits.h"

/* Segments of one processor's cache, at first and at most: so many, or a part of the machine's, but not less than that. */
struct cache_room {
    unsigned first, first_machine, first_least;
    unsigned most, most_machine, most_least;
};

struct cache_growth {
    unsigned count, most;  /* segments there are, and may be */
    unsigned begun;        /* were ever begun: the first of them */
    unsigned made, again;  /* blocks since the last segment was begun; those that had been there before and were evicted */
    uint64_t began;        /* by the host's TSC */
};

#define GROWTH_TICKS 300000000u /* a segment that lasts longer costs less than some percent of the time to fill */

static inline struct cache_growth cache_growth_of(const struct cache_room *room, unsigned processors)
{
    unsigned n = MAX(processors, 1u);
    return (struct cache_growth){.count = MAX(MIN(room->first_machine / n, room->first), room->first_least),
                                 .most = MAX(MIN(room->most_machine / n, room->most), MIN(room->most_least, room->most))};
}

static inline void cache_growth_note(struct cache_growth *growth, bool again)
{
    growth->made++;
    growth->again += again;
}

/* All are empty again. */
static inline void cache_growth_restart(struct cache_growth *growth)
{
    growth->begun = 1;
    growth->made = growth->again = 0;
    growth->began = __builtin_ia32_rdtsc();
}

/* Another segment is wanted: is it to be one that was never begun? Then it is number `begun` - 1. */
static inline bool cache_growth_next(struct cache_growth *growth)
{
    uint64_t now = __builtin_ia32_rdtsc();
    if (growth->begun == growth->count && growth->again > growth->made / 4 && now - growth->began < GROWTH_TICKS)
        growth->count = MIN(growth->count + growth->count / 4 + 1, growth->most);
    bool fresh = growth->begun < growth->count;
    growth->begun += fresh;
    growth->made = growth->again = 0;
    growth->began = now;
    return fresh;
}

#endif
