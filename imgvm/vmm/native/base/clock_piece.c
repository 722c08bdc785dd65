/* SPDX-License-Identifier: MIT */
#include "clock_piece.h"

#include "bits.h"

#define PIECE_NS UINT64_C(1000000)
#define PIECES_A_BASELINE 4u /* a rate that is known to 1000 ppm makes 250 ppm of its baseline */
#define BASELINE_NS UINT64_C(1000000000)

bool clock_rate_learn(struct clock_rate *rate, struct clock_sample now)
{
    uint64_t ticks = now.tsc - rate->since.tsc, ns = now.ns - rate->since.ns;
    if ((int64_t)ticks <= 0 || ticks <= ns || !ns) { /* the host slept, or was copied */
        rate->since = rate->next = now;
        return false;
    }
    rate->slope = (uint64_t)(((unsigned __int128)ns << 64) / ticks);
    if (now.ns - rate->next.ns > BASELINE_NS) {
        rate->since = rate->next;
        rate->next = now;
    }
    return true;
}

struct clock_piece clock_piece_next(const struct clock_rate *rate, struct clock_sample now, uint64_t base_ns,
                                    uint64_t reached_ns)
{
    uint64_t baseline = now.ns - rate->since.ns, length = MIN(baseline / PIECES_A_BASELINE, PIECE_NS);
    uint64_t true_ns = now.ns - base_ns;
    struct clock_piece piece = {.tsc = now.tsc, .slope = rate->slope, .ns = MAX(true_ns, reached_ns)};
    length = MAX(length, 1000u);
    uint64_t lead = MIN(piece.ns - true_ns, length / 2); /* what the time is ahead is made up for by going slower */
    piece.slope -= (uint64_t)((unsigned __int128)piece.slope * lead / length);
    piece.ticks = (uint64_t)(((unsigned __int128)length << 64) / rate->slope);
    return piece;
}
