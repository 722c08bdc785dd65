/* SPDX-License-Identifier: MIT */
/* Random numbers that follow from a seed (SplitMix64). */
#ifndef IMGVM_TEST_RNG_H
#define IMGVM_TEST_RNG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"

struct rng {
    uint64_t state;
};
static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
static inline unsigned rng_below(struct rng *rng, unsigned bound)
{
    return (unsigned)((rng_next(rng) >> 32) * bound >> 32);
}
static inline bool rng_percent(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}
#define PICK(rng, array) ((array)[rng_below(rng, ARRAY_LEN(array))])

#endif
