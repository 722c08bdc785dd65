/* SPDX-License-Identifier: MIT */
/* needs: base/clock*.c base/host_tsc.c */
#include <pthread.h>
#include <time.h>

#include "base/bits.h"
#include "base/clock.h"
#include "check.h"

#define SECOND UINT64_C(1000000000)

/* ---- pieces, by a host whose TSC has `ticks_a_us` ---- */

static struct clock_sample at(uint64_t us, uint64_t ticks_a_us)
{
    return (struct clock_sample){1000000 + us * ticks_a_us, 7 * SECOND + us * 1000};
}

static void test_pieces_follow_the_host(void)
{
    struct clock_rate rate = {.since = at(0, 2400), .next = at(0, 2400)};
    uint64_t reached = 0, length_us;
    for (uint64_t us = 100; us < 5000000; us += length_us) {
        struct clock_sample now = at(us, 2400);
        CHECK(clock_rate_learn(&rate, now));
        struct clock_piece piece = clock_piece_next(&rate, now, 7 * SECOND, reached);
        CHECK(piece.ns >= reached);
        CHECK(piece.ns - us * 1000 <= 1);
        CHECK(piece.ticks && piece.ticks <= 1000 * 2400);
        reached = clock_piece_at(&piece, piece.ticks);
        length_us = piece.ticks / 2400 + 1;
    }
    CHECK(rate.since.ns > 7 * SECOND + 2 * SECOND); /* an old sample says little about now */
}

static void test_what_is_ahead_waits(void)
{
    struct clock_rate rate = {.since = at(0, 2400), .next = at(0, 2400)};
    CHECK(clock_rate_learn(&rate, at(10000, 2400)));
    struct clock_sample now = at(10000, 2400);
    uint64_t ahead = 10000 * 1000 + 300;
    struct clock_piece piece = clock_piece_next(&rate, now, 7 * SECOND, ahead);
    CHECK_EQ(piece.ns, ahead);
    uint64_t end = clock_piece_at(&piece, piece.ticks), true_end = 10000 * 1000 + piece.ticks * 10 / 24;
    CHECK(end + 2 >= true_end && end <= true_end + 2); /* made good within the piece */
    piece = clock_piece_next(&rate, now, 7 * SECOND, 10000 * 1000 + 50 * SECOND);
    CHECK(piece.slope >= rate.slope / 2 - 1 && clock_piece_at(&piece, piece.ticks) > piece.ns); /* never stands still */
}

static void test_samples_that_say_nothing(void)
{
    struct clock_rate rate = {.since = at(5000, 2400), .next = at(5000, 2400)};
    CHECK(clock_rate_learn(&rate, at(6000, 2400)));
    uint64_t slope = rate.slope;
    CHECK(!clock_rate_learn(&rate, (struct clock_sample){5, 8 * SECOND})); /* another host's TSC */
    CHECK_EQ(rate.slope, slope);
    CHECK(clock_rate_learn(&rate, (struct clock_sample){5 + 2400000, 8 * SECOND + 1000000}));
    CHECK(rate.slope / 1000 == slope / 1000);
    struct clock_rate slow = {.since = at(0, 900), .next = at(0, 900)};
    CHECK(!clock_rate_learn(&slow, at(1000, 900)));
}

/* ---- the real clock ---- */

static uint64_t monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static struct clock shared;
static _Atomic uint64_t newest;

/* No thread sees less than another has seen before. */
static void *look(void *failures)
{
    for (unsigned i = 0; i < 300000; i++) {
        uint64_t before = atomic_load(&newest), now = clock_now_ns(&shared);
        *(unsigned *)failures += now < before;
        while (now > before && !atomic_compare_exchange_weak(&newest, &before, now))
            ;
    }
    return NULL;
}

static void test_real_clock(void)
{
    uint64_t before = monotonic_ns();
    clock_init_real(&shared);
    uint64_t after = monotonic_ns(), zero = shared.base_ns;
    CHECK(zero >= before && zero <= after);
    pthread_t threads[3];
    unsigned failures[3] = {0};
    for (unsigned i = 0; i < 3; i++)
        CHECK(!pthread_create(&threads[i], NULL, look, &failures[i]));
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(failures[i], 0);
    }
    before = monotonic_ns();
    uint64_t now = clock_now_ns(&shared) + zero;
    after = monotonic_ns();
    CHECK(now + SECOND / 100 >= before && now <= after + SECOND / 100);
}

static void test_held_back(void)
{
    struct clock clock;
    clock_init_real(&clock);
    uint64_t stopped = clock_now_ns(&clock);
    clock_hold_back(&clock, clock_now_ns(&clock) - stopped);
    uint64_t on = clock_now_ns(&clock);
    CHECK(on >= stopped);
    clock_hold_back(&clock, on / 2);
    struct clock_piece piece;
    uint64_t now = clock_now_in_piece(&clock, &piece);
    CHECK(now >= on / 2);
    CHECK_EQ(piece.ticks != 0, clock.by_tsc);
}

int main(void)
{
    test_pieces_follow_the_host();
    test_what_is_ahead_waits();
    test_samples_that_say_nothing();
    test_real_clock();
    test_held_back();
    return check_report();
}
