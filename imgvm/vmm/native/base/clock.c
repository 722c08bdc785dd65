/* SPDX-License-Identifier: MIT */
#include "clock.h"

#include <sched.h>
#include <time.h>

#include "bits.h"
#include "host_tsc.h"

#define FIRST_BASELINE_NS 50000u /* known to 1000 ppm */
#define SAMPLES 3u
#define YIELD_TURNS 64u

static uint64_t monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The closest pair of several: the host may take the processor away in between. */
static struct clock_sample sample(void)
{
    struct clock_sample best = {0};
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < SAMPLES; i++) {
        struct clock_sample one = {host_tsc(), monotonic_ns()};
        uint64_t distance = host_tsc() - one.tsc;
        if (distance < least) {
            least = distance;
            best = one;
        }
    }
    return best;
}

static void publish(struct clock *clock, struct clock_piece piece)
{
    unsigned next = atomic_load_explicit(&clock->generation, memory_order_relaxed) + 1;
    clock->pieces[next % 2] = piece;
    atomic_store_explicit(&clock->generation, next, memory_order_release);
}

static void extend(struct clock *clock)
{
    const struct clock_piece *last = &clock->pieces[atomic_load(&clock->generation) % 2];
    struct clock_sample now = sample();
    clock_rate_learn(&clock->rate, now);
    publish(clock, clock_piece_next(&clock->rate, now, clock->base_ns, clock_piece_at(last, last->ticks)));
}

static bool learn_first_rate(struct clock *clock)
{
    clock->rate.since = clock->rate.next = sample();
    struct clock_sample now = clock->rate.since;
    while (now.ns - clock->rate.since.ns < FIRST_BASELINE_NS)
        now = sample();
    return clock_rate_learn(&clock->rate, now);
}

void clock_init_real(struct clock *clock)
{
    *clock = (struct clock){.base_ns = monotonic_ns()};
    clock->by_tsc = host_tsc_is_clock() && learn_first_rate(clock);
}

void clock_init_virtual(struct clock *clock)
{
    *clock = (struct clock){.virtual_time = true};
}

uint64_t clock_now_in_piece(struct clock *clock, struct clock_piece *out)
{
    if (unlikely(!clock->by_tsc)) {
        *out = (struct clock_piece){0};
        return clock->virtual_time ? clock->base_ns : monotonic_ns() - clock->base_ns;
    }
    for (unsigned turn = 1;; turn++) {
        unsigned generation = atomic_load_explicit(&clock->generation, memory_order_acquire);
        *out = clock->pieces[generation % 2];
        atomic_thread_fence(memory_order_acquire);
        if (generation != atomic_load_explicit(&clock->generation, memory_order_relaxed))
            continue; /* perhaps half of each */
        uint64_t ticks = host_tsc() - out->tsc;
        if (likely(ticks < out->ticks))
            return clock_piece_at(out, ticks);
        if (!atomic_exchange(&clock->extending, true)) {
            if (generation == atomic_load(&clock->generation))
                extend(clock);
            atomic_store(&clock->extending, false);
        } else if (turn % YIELD_TURNS) {
            __builtin_ia32_pause();
        } else {
            sched_yield();
        }
    }
}

uint64_t clock_now_ns(struct clock *clock)
{
    struct clock_piece piece;
    return clock_now_in_piece(clock, &piece);
}

void clock_hold_back(struct clock *clock, uint64_t ns)
{
    if (clock->virtual_time)
        return;
    uint64_t now_ns = clock_now_ns(clock);
    clock->base_ns += ns;
    if (clock->by_tsc)
        publish(clock, (struct clock_piece){.ns = now_ns - ns}); /* of no ticks: what comes next goes on from there */
}

void clock_advance(struct clock *clock, uint64_t ns)
{
    clock->base_ns += ns;
}
