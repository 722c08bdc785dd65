/* SPDX-License-Identifier: MIT */
/* needs: dev/pit.c base/timer.c base/clock*.c base/host_tsc.c */
#include "check.h"
#include "dev/pit.h"
#include "virtual_time.h"

static struct pit pit;
static bool line;
static unsigned edges;

static void on_irq(void *opaque, unsigned pin, bool level)
{
    (void)opaque, (void)pin;
    edges += level && !line;
    line = level;
}

static void out(unsigned port, uint8_t value)
{
    if (port == 0x61)
        pit_port61_ops.write(&pit, 0, 1, value);
    else
        pit_ops.write(&pit, port - 0x40, 1, value);
}

static uint8_t in(unsigned port)
{
    return (uint8_t)(port == 0x61 ? pit_port61_ops.read(&pit, 0, 1) : pit_ops.read(&pit, port - 0x40, 1));
}

static void start(void)
{
    begin_time();
    pit_init(&pit, &queue, (struct irq_line){.set = on_irq});
    line = false;
    edges = 0;
}

/* To the first nanosecond of tick n, letting timers fire on time. */
static void go_to_tick(uint64_t tick)
{
    uint64_t target = (uint64_t)(((unsigned __int128)tick * 1000000000u + PIT_HZ - 1) / PIT_HZ);
    pass_until(target);
}

static uint16_t read_word(unsigned port)
{
    uint8_t low = in(port);
    return (uint16_t)(low | in(port) << 8);
}

static uint16_t latch(unsigned counter)
{
    out(0x43, (uint8_t)(counter << 6));
    return read_word(0x40 + counter);
}

static uint8_t status(unsigned counter)
{
    out(0x43, (uint8_t)(0xe0 | 2 << counter));
    return in(0x40 + counter);
}

/* Mode 2 at 1 kHz, as a kernel's periodic tick. */
static void test_rate_generator(void)
{
    start();
    out(0x43, 0x34);
    CHECK_EQ(status(0), 0xf4); /* OUT high, null count, word access, mode 2 */
    out(0x40, 0xa9), out(0x40, 0x04); /* 1193 */
    CHECK_EQ(status(0), 0xb4);
    CHECK(line); /* OUT went high with the control word */
    edges = 0;
    CHECK_EQ(latch(0), 1193);
    go_to_tick(1 + 100);
    CHECK_EQ(latch(0), 1093);
    go_to_tick(1 + 1192);
    CHECK_EQ(edges, 0);
    CHECK_EQ(latch(0), 1);
    CHECK_EQ(status(0) & 0x80, 0); /* OUT low for one tick */
    go_to_tick(1 + 1193);
    CHECK_EQ(edges, 1);
    CHECK_EQ(latch(0), 1193);
    CHECK_EQ(status(0) & 0x80, 0x80);
    go_to_tick(1 + 1193 * 1000);
    CHECK_EQ(edges, 1000);

    /* A new count takes over at the end of the period. */
    go_to_tick(1 + 1193 * 1000 + 500);
    out(0x40, 0xe8), out(0x40, 0x03); /* 1000 */
    CHECK_EQ(latch(0), 693);
    CHECK_EQ(status(0) & 0x40, 0x40);
    uint64_t base = 1 + 1193 * 1001;
    go_to_tick(base);
    CHECK_EQ(edges, 1001);
    CHECK_EQ(latch(0), 1000);
    go_to_tick(base + 999);
    CHECK_EQ(edges, 1001);
    go_to_tick(base + 1000);
    CHECK_EQ(edges, 1002);
}

/* Mode 3 with count 0, as a BIOS leaves it: 18.2 Hz. */
static void test_square_wave(void)
{
    start();
    out(0x43, 0x36), out(0x40, 0), out(0x40, 0);
    edges = 0;
    CHECK_EQ(latch(0), 0);
    go_to_tick(1 + 1);
    CHECK_EQ(latch(0), 0xfffe);
    go_to_tick(1 + 32767);
    CHECK_EQ(latch(0), 2);
    CHECK_EQ(status(0) & 0x80, 0x80);
    go_to_tick(1 + 32768);
    CHECK_EQ(status(0) & 0x80, 0);
    go_to_tick(1 + 65535);
    CHECK_EQ(edges, 0);
    go_to_tick(1 + 65536);
    CHECK_EQ(edges, 1);

    /* An odd count is high one tick longer; a count written in the high half takes over when that ends. */
    start();
    out(0x43, 0x36), out(0x40, 5), out(0x40, 0);
    static const uint8_t high[] = {1, 1, 1, 0, 0, 1, 1, 1, 0, 0};
    for (unsigned i = 0; i < sizeof(high); i++) {
        go_to_tick(1 + i);
        CHECK_EQ(status(0) >> 7, high[i]);
    }
    start();
    out(0x43, 0x36), out(0x40, 100), out(0x40, 0);
    go_to_tick(1 + 20);
    out(0x40, 40), out(0x40, 0);
    edges = 0;
    go_to_tick(1 + 49);
    CHECK_EQ(status(0) & 0x80, 0x80);
    go_to_tick(1 + 50 + 19);
    CHECK_EQ(status(0) & 0x80, 0);
    CHECK_EQ(edges, 0);
    go_to_tick(1 + 50 + 20);
    CHECK_EQ(edges, 1);
    go_to_tick(1 + 50 + 60);
    CHECK_EQ(edges, 2);
}

/* Linux's one-shot clock event: mode 4 in the i8253 driver; mode 0 elsewhere. */
static void test_one_shot(void)
{
    start();
    out(0x43, 0x38), out(0x40, 0x10), out(0x40, 0x27); /* mode 4, 10000 */
    edges = 0;
    go_to_tick(1 + 10000);
    CHECK_EQ(edges, 0);
    CHECK_EQ(status(0) & 0x80, 0); /* the strobe */
    go_to_tick(1 + 10001);
    CHECK_EQ(edges, 1);
    go_to_tick(200000);
    CHECK_EQ(edges, 1);

    start();
    out(0x43, 0x30);
    CHECK(!line);
    out(0x40, 100);
    go_to_tick(50);
    out(0x40, 0); /* only now it counts */
    go_to_tick(50 + 100);
    CHECK_EQ(edges, 0);
    CHECK_EQ(latch(0), 1);
    go_to_tick(50 + 101);
    CHECK_EQ(edges, 1);
    CHECK_EQ(latch(0), 0);
    go_to_tick(50 + 102);
    CHECK_EQ(latch(0), 0xffff); /* it counts on */
    out(0x40, 100); /* the first byte drops OUT and stops the count */
    CHECK(!line);
    go_to_tick(10000);
    CHECK_EQ(edges, 1);
    out(0x43, 0x30), out(0x40, 0), out(0x40, 0); /* pit_shutdown */
    CHECK_EQ(edges, 1);
    CHECK(!line);
}

/* Linux's pit_calibrate_tsc: counter 2 in mode 0, gate on, speaker off; OUT2 in port 61h says when it is over. */
static void test_calibration(void)
{
    start();
    out(0x61, (uint8_t)((in(0x61) & ~2) | 1));
    out(0x43, 0xb0);
    out(0x42, 0x9c), out(0x42, 0x2e); /* 11932: 10 ms */
    CHECK_EQ(in(0x61) & 0x23, 0x01);
    go_to_tick(1 + 11931);
    CHECK_EQ(in(0x61) & 0x20, 0);
    go_to_tick(1 + 11932);
    CHECK_EQ(in(0x61) & 0x20, 0x20);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER); /* nobody waits for counter 2 */

    /* quick_pit_calibrate reads low and high byte in turn and compares the high ones. */
    out(0x43, 0xb0), out(0x42, 0xff), out(0x42, 0xff);
    go_to_tick(1 + 11932 + 1 + 300);
    CHECK_EQ(read_word(0x42), 0xffff - 300);
}

static void test_gate(void)
{
    start();
    out(0x61, 0);
    out(0x43, 0xb0), out(0x42, 100), out(0x42, 0); /* mode 0, gate low: holds its breath */
    go_to_tick(50);
    CHECK_EQ(latch(2), 100);
    out(0x61, 1);
    go_to_tick(50 + 40);
    CHECK_EQ(latch(2), 60);
    out(0x61, 0);
    go_to_tick(1000);
    CHECK_EQ(latch(2), 60);
    out(0x61, 1);
    go_to_tick(1000 + 60);
    CHECK_EQ(in(0x61) & 0x20, 0x20);

    out(0x61, 0);
    out(0x43, 0xb2), out(0x42, 10), out(0x42, 0); /* mode 1: waits for the trigger, each one starts anew */
    CHECK_EQ(in(0x61) & 0x20, 0x20);
    out(0x61, 1);
    CHECK_EQ(in(0x61) & 0x20, 0);
    go_to_tick(1060 + 8);
    out(0x61, 0), out(0x61, 1);
    go_to_tick(1068 + 10);
    CHECK_EQ(in(0x61) & 0x20, 0);
    go_to_tick(1068 + 11);
    CHECK_EQ(in(0x61) & 0x20, 0x20);

    out(0x61, 0);
    out(0x43, 0xba), out(0x42, 10), out(0x42, 0); /* mode 5: a strobe after the trigger */
    out(0x61, 1);
    go_to_tick(1079 + 1 + 9);
    CHECK_EQ(in(0x61) & 0x20, 0x20);
    go_to_tick(1079 + 1 + 10);
    CHECK_EQ(in(0x61) & 0x20, 0);
    go_to_tick(1079 + 1 + 11);
    CHECK_EQ(in(0x61) & 0x20, 0x20);

    out(0x43, 0xb6), out(0x42, 100), out(0x42, 0); /* mode 3: gate low forces OUT high, the rising edge reloads */
    go_to_tick(1091 + 80);
    CHECK_EQ(in(0x61) & 0x20, 0);
    out(0x61, 0);
    CHECK_EQ(in(0x61) & 0x20, 0x20);
    out(0x61, 1);
    CHECK_EQ(latch(2), 100);
    go_to_tick(1171 + 1 + 50);
    CHECK_EQ(in(0x61) & 0x20, 0);
}

static void test_access(void)
{
    start();
    out(0x43, 0x14), out(0x40, 200); /* low byte only */
    go_to_tick(1 + 50);
    CHECK_EQ(in(0x40), 150);
    CHECK_EQ(in(0x40), 150);
    out(0x43, 0x24), out(0x40, 2); /* high byte only: 512 */
    CHECK_EQ(in(0x40), 2);
    go_to_tick(51 + 1 + 300);
    CHECK_EQ(in(0x40), 0);
    out(0x43, 0x35), out(0x40, 0x34), out(0x40, 0x12); /* BCD */
    CHECK_EQ(latch(0), 0x1234);
    go_to_tick(352 + 35);
    CHECK_EQ(latch(0), 0x1200);
    out(0x43, 0x31), out(0x40, 0), out(0x40, 0); /* 10000 */
    CHECK_EQ(latch(0), 0x0000);
    go_to_tick(387 + 2);
    CHECK_EQ(latch(0), 0x9999);

    /* A latch holds until it is read; a second one before that is ignored. Status comes first in a read-back. */
    out(0x43, 0x34), out(0x40, 0), out(0x40, 0x10);
    uint64_t at = 389;
    go_to_tick(at + 1 + 16);
    out(0x43, 0xc2);
    go_to_tick(at + 1 + 100);
    out(0x43, 0x00);
    CHECK_EQ(in(0x40), 0xb4);
    CHECK_EQ(read_word(0x40), 0x0ff0);
    CHECK_EQ(read_word(0x40), 0x1000 - 100);
    CHECK_EQ(in(0x43), 0xff);

    pit_ops.write(&pit, 2, 2, 0xb400 | 7); /* 16 bits at once: counter 2, then the control word that voids it */
    pit_ops.write(&pit, 2, 1, 8), pit_ops.write(&pit, 2, 1, 0);
    CHECK_EQ(pit_ops.read(&pit, 2, 2), 0xff08);
    CHECK_EQ(in(0x42), 0);
}

static void test_refresh_toggle(void)
{
    start();
    unsigned changes = 0;
    for (unsigned i = 0, last = in(0x61) & 0x10; i < 1000; i++) {
        clock_advance(&virtual_clock, 1000);
        unsigned now = in(0x61) & 0x10;
        changes += now != last;
        last = now;
    }
    CHECK_EQ(changes, 66); /* 1 ms / 15.085 us */
    out(0x61, 0xff);
    CHECK_EQ(in(0x61) & 0xcf, 0x0f); /* the upper bits are not the guest's */
}

/* The host was away for ten periods: nothing is lost, and nothing comes in a burst. */
static void test_late_host(void)
{
    start();
    out(0x43, 0x34), out(0x40, 0xa9), out(0x40, 0x04);
    edges = 0;
    clock_advance(&virtual_clock, 10050000);
    timer_queue_run(&queue);
    CHECK_EQ(edges, 1);
    timer_queue_run(&queue);
    CHECK_EQ(edges, 1);
    uint64_t first_ns = timer_queue_now_ns(&queue);
    CHECK(timer_queue_next_ns(&queue) >= first_ns + 249000);
    go_to_tick(1 + 1193 * 20);
    CHECK_EQ(edges, 20);
    uint64_t now = timer_queue_now_ns(&queue);
    CHECK(timer_queue_next_ns(&queue) > now + 990000); /* back to normal */

    edges = 0; /* an edge that is due is not lost when the guest programs the counter first */
    clock_advance(&virtual_clock, 1000000);
    out(0x40, 0xa9), out(0x40, 0x04);
    CHECK_EQ(edges, 1);

    clock_advance(&virtual_clock, UINT64_C(3600) * 1000000000); /* suspended for an hour: one second is made up for */
    edges = 0;
    timer_queue_run(&queue);
    uint64_t tick = (uint64_t)((unsigned __int128)timer_queue_now_ns(&queue) * PIT_HZ / 1000000000u);
    go_to_tick(tick + 5 * PIT_HZ);
    CHECK(edges >= 6000 && edges <= 6002);
}

static void test_saved_state(void)
{
    start();
    out(0x43, 0x34), out(0x40, 0xa9), out(0x40, 0x04);
    go_to_tick(500);
    struct pit_state saved = pit.state;
    pit_reset(&pit);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    CHECK(!line);
    pit.state = saved;
    pit_loaded(&pit);
    edges = 0;
    go_to_tick(1 + 1193);
    CHECK_EQ(edges, 1);
}

int main(void)
{
    test_rate_generator();
    test_square_wave();
    test_one_shot();
    test_calibration();
    test_gate();
    test_access();
    test_refresh_toggle();
    test_late_host();
    test_saved_state();
    return check_report();
}
