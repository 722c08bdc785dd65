/* SPDX-License-Identifier: MIT */
/* The local APIC's timer: one-shot, periodic, and by TSC deadline. */
// needs: dev/lapic*.c base/timer.c base/clock*.c base/host_tsc.c
#include "lapic_world.h"

/* Linux's calibration: one-shot from FFFFFFFFh, divided by 16; then a periodic tick. */
static void test_timer(void)
{
    start(0, true);
    out(TDCR, 0x3), out(LVTT, MASKED | 0xec), out(TMICT, 0xffffffff);
    pass(100000000);
    CHECK_EQ(0xffffffff - in(TMCCT), 6250000);
    out(LVTT, 0x20000 | 0xec), out(TMICT, 62500); /* 1 kHz */
    pass(999999);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    pass(1);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xec);
    CHECK_EQ(in(TMCCT), 62500);
    out(EOI, 0);
    unsigned ticks = 0;
    for (unsigned i = 0; i < 10000; i++) {
        pass(100000);
        if (lapic_pending_vector(&lapic) == 0xec) {
            lapic_acknowledge(&lapic);
            out(EOI, 0);
            ticks++;
        }
    }
    CHECK_EQ(ticks, 1000);
    pass(250000);
    CHECK_EQ(in(TMCCT), 62500 - 15625);
    clock_advance(&virtual_clock, 10000000); /* late by ten periods: one interrupt, the phase is kept */
    timer_queue_run(&queue);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xec);
    out(EOI, 0);
    timer_queue_run(&queue);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    CHECK_EQ(timer_queue_next_ns(&queue) % 1000000, 100000000 % 1000000);
    out(LVTT, 0x20000 | MASKED | 0xec); /* counts on, silently */
    pass(2000000);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    CHECK(in(TMCCT) > 0);

    out(LVTT, 0xed), out(TDCR, 0xb), out(TMICT, 5000); /* one-shot, divided by 1 */
    pass(2000);
    CHECK_EQ(in(TMCCT), 3000);
    out(TDCR, 0x8); /* by 32, in the middle */
    CHECK_EQ(in(TMCCT), 3000);
    pass(3000 * 32 - 1);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    pass(1);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xed);
    CHECK_EQ(in(TMCCT), 0);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    out(TMICT, 5000), out(TMICT, 0);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);

    /* What was due before the guest reprogrammed it is not lost. */
    out(EOI, 0), out(TDCR, 0xb), out(TMICT, 1000);
    clock_advance(&virtual_clock, 1000);
    out(LVTT, MASKED | 0xed);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xed);
}

static void test_divisors(void)
{
    static const struct { uint8_t dcr, divisor; } rows[] = {{0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64},
                                                            {10, 128}, {11, 1}};
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        start(0, true);
        out(TDCR, rows[i].dcr), out(TMICT, 1000000);
        pass(1280);
        CHECK_EQ(1000000 - in(TMCCT), 1280 / rows[i].divisor);
        CHECK_EQ(in(TDCR), rows[i].dcr);
    }
}

static void test_tsc_deadline(void)
{
    start(0, true);
    CHECK(msr_write(0x6e0, 1000)); /* ignored in the other modes */
    CHECK_EQ(msr(0x6e0), 0);
    out(LVTT, 0x40000 | 0xec);
    tsc_offset = 1000000;
    CHECK(msr_write(0x6e0, 1005000));
    CHECK_EQ(msr(0x6e0), 1005000);
    out(TMICT, 100); /* ignored */
    CHECK_EQ(in(TMICT), 0);
    pass(4999);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    pass(1);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xec);
    CHECK_EQ(msr(0x6e0), 0);
    out(EOI, 0);
    CHECK(msr_write(0x6e0, 5)); /* in the past: at once */
    CHECK_EQ(lapic_acknowledge(&lapic), 0xec);
    out(EOI, 0);
    CHECK(msr_write(0x6e0, ~UINT64_C(0))); /* in the year 2554 */
    pass(1000000000);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    CHECK(msr_write(0x6e0, 0)); /* disarmed */
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    CHECK(msr_write(0x6e0, timer_queue_now_ns(&queue) + tsc_offset + 1000));
    tsc_offset += 600; /* the guest wrote the TSC */
    lapic_tsc_moved(&lapic);
    pass(400);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xec);
    out(EOI, 0);
    tsc_offset = (uint64_t)0 - 5000000000; /* a TSC that was set back below zero nanoseconds of ours */
    CHECK(msr_write(0x6e0, 10));
    CHECK(timer_queue_next_ns(&queue) != TIMER_NEVER || lapic_pending_vector(&lapic) == 0xec);
    out(LVTT, 0xec); /* leaving the mode disarms */
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
}

int main(void)
{
    test_timer();
    test_divisors();
    test_tsc_deadline();
    return check_report();
}
