/* SPDX-License-Identifier: MIT */
/* A clock made of straight pieces over the host's TSC, each of which aims at where CLOCK_MONOTONIC will be at its end. A
 * read is then two loads and a multiplication, which translated code does itself. All of it is arithmetic. */
#ifndef IMGVM_BASE_CLOCK_PIECE_H
#define IMGVM_BASE_CLOCK_PIECE_H

#include <stdbool.h>
#include <stdint.h>

/* From `tsc` on, for `ticks` of it. The next piece begins neither before this one's end nor below its last value, so a copy
 * of it may be used to the end: all who read see one clock that never goes back. */
struct clock_piece {
    uint64_t tsc, ticks;
    uint64_t slope; /* ns a tick, of 2^64 */
    uint64_t ns;
};

/* The TSC, and CLOCK_MONOTONIC at most a moment later. */
struct clock_sample {
    uint64_t tsc, ns;
};

/* How fast the TSC is, by the distance of two samples: of one or two seconds, once there are such. */
struct clock_rate {
    struct clock_sample since, next;
    uint64_t slope;
};

static inline uint64_t clock_piece_at(const struct clock_piece *piece, uint64_t ticks)
{
    return piece->ns + (uint64_t)((unsigned __int128)ticks * piece->slope >> 64);
}

/* false: these samples say nothing, or the TSC has less than 1 GHz. */
bool clock_rate_learn(struct clock_rate *rate, struct clock_sample now);
/* The piece that begins now, on the clock whose zero is base_ns and that has come to `reached_ns`. */
struct clock_piece clock_piece_next(const struct clock_rate *rate, struct clock_sample now, uint64_t base_ns,
                                    uint64_t reached_ns);

#endif
