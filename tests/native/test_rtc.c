/* SPDX-License-Identifier: MIT */
/* needs: dev/rtc.c base/timer.c base/clock*.c base/host_tsc.c */
#include "check.h"
#include "dev/rtc.h"
#include "virtual_time.h"

#define SECOND UINT64_C(1000000000)
/* Friday, 31 December 1999, 23:59:58.25 */
#define EVE_NS (INT64_C(946684798) * 1000000000 + 250000000)

static struct rtc rtc;
static bool line;
static unsigned edges;

static void on_irq(void *opaque, unsigned pin, bool level)
{
    (void)opaque, (void)pin;
    edges += level && !line;
    line = level;
}

static uint8_t in(uint8_t index)
{
    rtc_ops.write(&rtc, 0, 1, index);
    return (uint8_t)rtc_ops.read(&rtc, 1, 1);
}

static void out(uint8_t index, uint8_t value)
{
    rtc_ops.write(&rtc, 0, 1, index);
    rtc_ops.write(&rtc, 1, 1, value);
}

static void start(int64_t utc_ns)
{
    begin_time();
    rtc_init(&rtc, &queue, utc_ns, (struct irq_line){.set = on_irq});
    line = false;
    edges = 0;
}

/* century, year, month, day, hour, minute, second as one decimal-looking number: BCD reads as it looks */
static uint64_t date(void)
{
    uint64_t value = 0;
    static const uint8_t indices[] = {0x32, 9, 8, 7, 4, 2, 0};
    for (unsigned i = 0; i < sizeof(indices); i++)
        value = value << 8 | in(indices[i]);
    return value;
}

static void test_reading(void)
{
    start(EVE_NS);
    CHECK_EQ(date(), 0x19991231235958);
    CHECK_EQ(in(6), 6); /* Friday */
    CHECK_EQ(in(0xa), 0x26);
    CHECK_EQ(in(0xb), 0x02);
    CHECK_EQ(in(0xd), 0x80);
    pass(SECOND * 7 / 4);
    CHECK_EQ(date(), 0x20000101000000);
    CHECK_EQ(in(6), 7);
    pass(SECOND * 86400 * 59);
    CHECK_EQ(date(), 0x20000229000000);
    pass(SECOND * 86400 * 366);
    CHECK_EQ(date(), 0x20010301000000);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER); /* an idle clock costs nothing */

    start(-SECOND);
    CHECK_EQ(date(), 0x19691231235959);
}

static void test_formats(void)
{
    start(EVE_NS);
    out(0xb, 0x06); /* binary, 24 hours */
    CHECK_EQ(date(), 0x13630c1f173b3a);
    out(0xb, 0x00); /* BCD, 12 hours */
    CHECK_EQ(date(), 0x19991231915958);
    out(0xb, 0x04); /* binary, 12 hours */
    CHECK_EQ(in(4), 0x8b);
    pass(2 * SECOND);
    CHECK_EQ(in(4), 12); /* midnight is 12 AM */
    pass(12 * 3600 * SECOND);
    CHECK_EQ(in(4), 0x8c);
    out(0xb, 0x02);
    CHECK_EQ(in(4), 0x12);
}

/* mach_get_cmos_time: never while an update is in progress. */
static void test_update_in_progress(void)
{
    start(EVE_NS);
    CHECK_EQ(in(0xa) & 0x80, 0);
    pass(SECOND * 3 / 4 - 2300000);
    CHECK_EQ(in(0xa) & 0x80, 0);
    pass(1000000);
    CHECK_EQ(in(0xa) & 0x80, 0x80);
    pass(1300000);
    CHECK_EQ(in(0xa) & 0x80, 0);
    CHECK_EQ(in(0), 0x59);
}

/* As mc146818_set_time: SET, divider in reset, registers, and back. */
static void test_setting(void)
{
    start(EVE_NS);
    uint8_t control = in(0xb), select = in(0xa);
    out(0xb, control | 0x80);
    out(0xa, select | 0x70);
    out(9, 0x24), out(8, 0x02), out(7, 0x29), out(4, 0x12), out(2, 0x34), out(0, 0x56), out(0x32, 0x20);
    pass(3 * SECOND);
    CHECK_EQ(date(), 0x20240229123456); /* held */
    CHECK_EQ(in(0xa) & 0x80, 0);
    out(0xb, control);
    pass(SECOND); /* the divider still holds it */
    CHECK_EQ(date(), 0x20240229123456);
    out(0xa, select);
    pass(SECOND / 2 - 1);
    CHECK_EQ(date(), 0x20240229123456);
    pass(1); /* "one half second later" */
    CHECK_EQ(date(), 0x20240229123457);
    CHECK_EQ(in(6), 5); /* Thursday */
    CHECK_EQ(rtc_utc_ns(&rtc) / 1000000000, 1709210097);

    out(4, 0x08); /* one register, on the run: the rest goes on */
    CHECK_EQ(date(), 0x20240229083457);
    out(8, 0xff), out(7, 0x00); /* nonsense does no harm */
    CHECK_EQ(in(8), 0x12);
    out(0x32, 0x99), out(9, 0x99); /* a year that our clock cannot hold */
    pass(SECOND);
    CHECK_EQ(in(0x32) << 8 | in(9), 0x2250);
    out(0x32, 0x19), out(9, 0x80);
    CHECK_EQ(in(0x32) << 8 | in(9), 0x1980);

    start(EVE_NS); /* noon and midnight of a 12-hour clock */
    out(0xb, 0x80), out(4, 0x92), out(0xb, 0x00);
    CHECK_EQ(in(4), 0x92);
    out(0xb, 0x02);
    CHECK_EQ(in(4), 0x12);
    out(0xb, 0x80), out(4, 0x12), out(0xb, 0x00), out(0xb, 0x02);
    CHECK_EQ(in(4), 0x00);
    out(0xc, 0xff), out(0xd, 0); /* read-only */
    CHECK_EQ(in(0xd), 0x80);
}

static void test_update_interrupt(void)
{
    start(EVE_NS);
    out(5, 0x12); /* else the alarm's flag comes at midnight, as well */
    in(0xc);
    out(0xb, 0x12);
    pass(SECOND * 3 / 4 - 1);
    CHECK(!line);
    pass(1);
    CHECK(line);
    pass(5 * SECOND); /* unread: no more edges, no timer */
    CHECK_EQ(edges, 1);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    CHECK_EQ(in(0xc) & 0xb0, 0x90);
    CHECK(!line);
    CHECK_EQ(in(0xc) & 0x90, 0);
    for (int i = 0; i < 10; i++) {
        pass(SECOND);
        in(0xc);
    }
    CHECK_EQ(edges, 11);
    out(0xb, 0x92); /* SET clears UIE */
    CHECK_EQ(in(0xb), 0x82);
}

static void test_alarm(void)
{
    start(EVE_NS);
    in(0xc);
    out(1, 0x00), out(3, 0x01), out(5, 0x00); /* 00:01:00 */
    out(0xb, 0x22);
    pass(SECOND * 61);
    CHECK(!line);
    pass(SECOND);
    CHECK(line);
    CHECK_EQ(in(0xc) & 0xb0, 0xb0);
    pass(SECOND * 86399);
    CHECK(!line);
    pass(SECOND);
    CHECK_EQ(edges, 2);
    in(0xc);
    out(1, 0x30), out(3, 0xff), out(5, 0xc0); /* every minute at :30 */
    for (int i = 0; i < 600; i++) {
        pass(SECOND);
        in(0xc);
    }
    CHECK_EQ(edges, 12);

    start(EVE_NS); /* without the interrupt the flag can be polled, even long after */
    out(1, 0x10), out(3, 0x00), out(5, 0x00);
    in(0xc);
    pass(SECOND * 3600);
    CHECK_EQ(in(0xc) & 0xa0, 0x20);
}

static void test_periodic(void)
{
    start(EVE_NS);
    in(0xc);
    out(0xb, 0x42);
    for (int i = 0; i < 4096; i++) { /* 1024 Hz for a second, looked at four times as often */
        pass(SECOND / 4096);
        if (line)
            CHECK_EQ(in(0xc) & 0xc0, 0xc0);
    }
    CHECK_EQ(edges, 1023);
    out(0xa, 0x2f); /* 2 Hz */
    in(0xc);
    edges = 0;
    for (int i = 0; i < 400; i++) {
        pass(SECOND / 100);
        in(0xc);
    }
    CHECK_EQ(edges, 8);
    out(0xa, 0x22); /* 128 Hz, as with 9 */
    in(0xc);
    edges = 0;
    for (int i = 0; i < 1000; i++) {
        pass(SECOND / 1000);
        in(0xc);
    }
    CHECK_EQ(edges, 128);
    out(0xa, 0x20); /* off */
    pass(SECOND);
    CHECK_EQ(in(0xc) & 0x40, 0);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
}

static void test_cmos_and_reset(void)
{
    start(EVE_NS);
    rtc_set_cmos(&rtc, 0x34, 0x12);
    rtc_set_cmos(&rtc, 0x0b, 0xff); /* not the board's */
    CHECK_EQ(in(0x34), 0x12);
    CHECK_EQ(in(0xb), 0x02);
    out(0x0f, 0x0a); /* shutdown status, as before an INIT to real mode */
    CHECK_EQ(in(0x8f), 0x0a);
    CHECK(rtc_nmi_masked(&rtc));
    CHECK_EQ(rtc_ops.read(&rtc, 0, 1), 0xff);
    rtc_ops.write(&rtc, 0, 2, 0x5534); /* index and data in one */
    CHECK_EQ(rtc_ops.read(&rtc, 0, 2), 0x55ff);
    CHECK_EQ(rtc_get_cmos(&rtc, 0x34), 0x55);
    CHECK(!rtc_nmi_masked(&rtc));
    out(0xb, 0x72);
    pass(SECOND);
    CHECK(line);
    rtc_ops.write(&rtc, 0, 1, 0x80);
    rtc_reset(&rtc);
    CHECK(!line && !rtc_nmi_masked(&rtc));
    CHECK_EQ(in(0xc), 0);
    CHECK_EQ(in(0xb), 0x02);
    CHECK_EQ(in(0x0f), 0x0a);
    CHECK_EQ(date(), 0x19991231235959);
}

static void test_saved_state(void)
{
    start(EVE_NS);
    out(0xb, 0x12);
    in(0xc);
    struct rtc_state saved = rtc.state;
    rtc_init(&rtc, &queue, 0, (struct irq_line){.set = on_irq});
    timer_queue_init(&queue, &virtual_clock);
    rtc.state = saved;
    rtc_loaded(&rtc);
    pass(SECOND);
    CHECK(line);
    CHECK_EQ(date(), 0x19991231235959);
}

int main(void)
{
    test_reading();
    test_formats();
    test_update_in_progress();
    test_setting();
    test_update_interrupt();
    test_alarm();
    test_periodic();
    test_cmos_and_reset();
    test_saved_state();
    return check_report();
}
