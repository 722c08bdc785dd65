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
    uint64_t ticks; /* of the host's TSC: a segment that lasts longer costs less than a tenth of the time to fill */
};

struct cache_growth {
    unsigned count, most;  /* segments there are, and may be */
    unsigned begun;        /* were ever begun: the first of them */
    /* in this round, of as many segments as there are: segments begun, blocks, those of them that were evicted before */
    unsigned segments, made, again;
    uint64_t began, ticks; /* by the host's TSC; cache_room.ticks */
};

static inline struct cache_growth cache_growth_of(const struct cache_room *room, unsigned processors)
{
    unsigned n = MAX(processors, 1u);
    return (struct cache_growth){.count = MAX(MIN(room->first_machine / n, room->first), room->first_least),
                                 .most = MAX(MIN(room->most_machine / n, room->most), MIN(room->most_least, room->most)),
                                 .ticks = room->ticks};
}

static inline void cache_growth_note(struct cache_growth *growth, bool again)
{
    growth->made++;
    growth->again += again;
}

static inline void cache_growth_new_round(struct cache_growth *growth, uint64_t now)
{
    growth->segments = growth->made = growth->again = 0;
    growth->began = now;
}

/* All are empty again. */
static inline void cache_growth_restart(struct cache_growth *growth)
{
    growth->begun = 1;
    cache_growth_new_round(growth, __builtin_ia32_rdtsc());
}

/* Another segment is wanted: is it to be one that was never begun? Then it is number `begun` - 1. */
static inline bool cache_growth_next(struct cache_growth *growth)
{
    if (++growth->segments >= growth->count) {
        uint64_t now = __builtin_ia32_rdtsc();
        if (growth->begun == growth->count && growth->again > growth->made / 4 && now - growth->began < growth->ticks * growth->segments)
            growth->count = MIN(2 * growth->count, growth->most);
        cache_growth_new_round(growth, now);
    }
    bool fresh = growth->begun < growth->count;
    growth->begun += fresh;
    return fresh;
}

#endif
