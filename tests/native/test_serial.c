/* SPDX-License-Identifier: MIT */
/* needs: dev/serial.c base/timer.c base/clock*.c base/host_tsc.c */
#include "check.h"
#include "dev/serial.h"

#include <string.h>

enum { RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR };

static struct clock virtual_clock;
static struct timer_queue queue;
static struct serial serial;
static bool line;
static unsigned edges, ready;
static char sent[256];
static size_t sent_count;
static const char *refill; /* what the host sends from within receive_ready */

static void on_irq(void *opaque, unsigned pin, bool level)
{
    (void)opaque, (void)pin;
    edges += level && !line;
    line = level;
}

static void on_transmit(void *opaque, const uint8_t *data, size_t size)
{
    (void)opaque;
    memcpy(sent + sent_count, data, size);
    sent_count += size;
}

static void on_ready(void *opaque)
{
    (void)opaque;
    ready++;
    if (refill)
        refill += serial_receive(&serial, (const uint8_t *)refill, strlen(refill));
}

static void out(unsigned offset, uint8_t value) { serial_ops.write(&serial, offset, 1, value); }
static uint8_t in(unsigned offset) { return (uint8_t)serial_ops.read(&serial, offset, 1); }

static void start(void)
{
    static const struct serial_host host = {.transmit = on_transmit, .receive_ready = on_ready};
    clock_init_virtual(&virtual_clock);
    timer_queue_init(&queue, &virtual_clock);
    serial_init(&serial, &queue, (struct irq_line){.set = on_irq}, &host);
    line = false;
    edges = ready = 0;
    sent_count = 0;
    refill = NULL;
}

static void pass_us(uint64_t us)
{
    clock_advance(&virtual_clock, us * 1000);
    timer_queue_run(&queue);
}

static size_t receive(const char *text)
{
    return serial_receive(&serial, (const uint8_t *)text, strlen(text));
}

/* 115200 8N1, FIFOs with a trigger of 14, DTR RTS OUT2: what every serial console does. */
static void open_port(uint8_t ier)
{
    out(IER, 0);
    out(LCR, 0x80), out(RBR, 1), out(IER, 0), out(LCR, 0x03);
    out(IIR, 0xc7);
    out(MCR, 0x0b);
    out(IER, ier);
}

static void test_polled_output(void)
{
    start();
    open_port(0);
    CHECK_EQ(in(LCR), 0x03);
    for (const char *p = "ready\r\n"; *p; p++) {
        CHECK_EQ(in(LSR) & 0x60, 0x60);
        out(RBR, (uint8_t)*p);
    }
    CHECK(sent_count == 7 && !memcmp(sent, "ready\r\n", 7));
    CHECK_EQ(edges, 0);
    out(LCR, 0x83);
    CHECK_EQ(in(RBR) | in(IER) << 8, 1);
    out(IER, 0x12);
    CHECK_EQ(in(RBR) | in(IER) << 8, 0x1201);
    out(LCR, 0x03);
    CHECK_EQ(in(IER), 0); /* the divisor's latch was not IER */
}

/* Linux's autoconfig: scratch, IER's width, the loop-back of the modem lines, FIFOs in IIR, no 16650 registers. */
static void test_autoconfig(void)
{
    start();
    out(IER, 0);
    CHECK_EQ(in(IER), 0);
    out(IER, 0x0f);
    CHECK_EQ(in(IER), 0x0f);
    out(IER, 0x4f);
    CHECK_EQ(in(IER) & 0xf0, 0);
    out(IER, 0);
    out(MCR, 0x1a); /* LOOP OUT2 RTS */
    CHECK_EQ(in(MSR) & 0xf0, 0x90);
    out(MCR, 0x08);
    CHECK_EQ(in(MSR) & 0xf0, 0xb0);
    out(LCR, 0xbf);
    out(IIR, 0);
    out(LCR, 0);
    CHECK_EQ(in(IIR), 0x01);
    out(IIR, 0x01);
    CHECK_EQ(in(IIR), 0xc1); /* 16550A */
    out(SCR, 0x5a);
    CHECK_EQ(in(SCR), 0x5a);
    out(LSR, 0xff), out(MSR, 0xff);
    CHECK_EQ(in(LSR), 0x60);
}

/* serial8250_do_startup looks whether enabling the interrupt raises it, twice. */
static void test_transmitter_interrupt(void)
{
    start();
    open_port(0);
    out(IER, 0x02);
    CHECK(line);
    CHECK_EQ(in(IIR), 0xc2);
    CHECK(!line); /* reading IIR is the answer */
    CHECK_EQ(in(IIR), 0xc1);
    out(IER, 0);
    out(IER, 0x02);
    CHECK_EQ(in(IIR), 0xc2);
    edges = 0;
    for (int i = 0; i < 16; i++)
        out(RBR, 'x'); /* a handler fills the FIFO */
    CHECK(line);
    CHECK_EQ(sent_count, 16);
    CHECK_EQ(in(IIR), 0xc2);
    CHECK(!line);
    out(RBR, 'y');
    CHECK(line);
    out(RBR, 'z'); /* withdrawn and raised again: an edge for controllers that need one */
    CHECK_EQ(edges, 18);
    CHECK_EQ(in(IIR), 0xc2);
    out(IER, 0x03); /* the interrupt was enabled already: no new one */
    CHECK(!line);
    out(IER, 0);
    CHECK(!line);
    out(MCR, 0x03), out(IER, 0x02); /* without OUT2 the line is cut off, the chip is not */
    CHECK(!line);
    CHECK_EQ(in(IIR), 0xc2);
}

static void test_receiver(void)
{
    start();
    open_port(0x01);
    CHECK_EQ(receive("0123456789abc"), 13);
    CHECK(!line); /* below the trigger */
    CHECK_EQ(in(IIR), 0xc1);
    CHECK_EQ(receive("d"), 1);
    CHECK(line);
    CHECK_EQ(in(IIR), 0xc4);
    CHECK_EQ(in(LSR), 0x61);
    for (const char *p = "0123456789abcd"; *p; p++)
        CHECK_EQ(in(RBR), *p);
    CHECK(!line);
    CHECK_EQ(in(LSR), 0x60);
    in(RBR); /* nothing there: no harm */
    CHECK_EQ(in(LSR), 0x60);

    CHECK_EQ(receive("k"), 1); /* a key: four characters later it is announced all the same */
    pass_us(340);
    CHECK(!line);
    pass_us(10);
    CHECK(line);
    CHECK_EQ(in(IIR), 0xcc);
    CHECK_EQ(in(RBR), 'k');
    CHECK(!line);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    pass_us(10000);
    CHECK_EQ(in(IIR), 0xc1);

    out(LCR, 0x0e); /* 7 bits, parity, two stop bits: 11 on the line; 57600 baud */
    out(LCR, 0x8e), out(RBR, 2), out(LCR, 0x0e);
    receive("k");
    pass_us(4 * 11 * 1000000 / 57600 - 1);
    CHECK(!line);
    pass_us(2);
    CHECK(line);
    in(RBR);
    out(LCR, 0x80), out(RBR, 0), out(IER, 0x30), out(LCR, 0); /* 9 baud: nobody waits that long */
    receive("k");
    pass_us(2000);
    CHECK(line);
    in(RBR);
    open_port(0x01);

    receive("ab");
    pass_us(300);
    receive("c"); /* starts the time-out anew */
    pass_us(300);
    CHECK(!line);
    pass_us(60);
    CHECK(line);
    in(RBR);
    CHECK(!line); /* reading answers it, and it comes back for the rest */
    pass_us(350);
    CHECK(line);
}

static void test_flow(void)
{
    start();
    open_port(0x01);
    refill = "the quick brown fox jumps over the lazy dog";
    char got[64] = "";
    size_t count = 0;
    refill += receive(refill);
    CHECK(!strncmp(refill, "fox", 3)); /* sixteen taken */
    while (in(LSR) & 1)
        got[count++] = (char)in(RBR);
    CHECK(!strcmp(got, "the quick brown fox jumps over the lazy dog"));
    CHECK_EQ(ready, 2);

    start(); /* a 16450 has room for one */
    out(MCR, 0x08), out(IER, 0x01);
    CHECK_EQ(receive("ab"), 1);
    CHECK(line);
    CHECK_EQ(in(IIR), 0x04);
    CHECK_EQ(in(RBR), 'a');
    CHECK_EQ(ready, 1);
    CHECK_EQ(receive("b"), 1);
    CHECK_EQ(in(RBR), 'b');

    start(); /* what a reset throws away makes room too */
    open_port(0);
    receive("0123456789abcdefXX");
    out(IIR, 0xc3);
    CHECK_EQ(ready, 1);
    CHECK_EQ(in(LSR), 0x60);
    receive("0123456789abcdefXX");
    serial_reset(&serial);
    CHECK_EQ(ready, 2);
    CHECK_EQ(in(LSR), 0x60);
}

static void test_loop_back(void)
{
    start();
    open_port(0x01);
    out(MCR, 0x1b);
    in(MSR);
    CHECK_EQ(receive("no"), 0); /* the line is cut off */
    out(RBR, 0xae);
    CHECK_EQ(sent_count, 0);
    CHECK_EQ(in(RBR), 0xae);
    CHECK_EQ(ready, 0);
    for (int i = 0; i < 17; i++)
        out(RBR, (uint8_t)i);
    CHECK_EQ(in(LSR), 0x63); /* overrun: the newest is lost */
    CHECK_EQ(in(LSR), 0x61);
    for (int i = 0; i < 16; i++)
        CHECK_EQ(in(RBR), i);
    out(MCR, 0x0b);
    CHECK_EQ(ready, 1);
}

static void test_line_and_modem_status(void)
{
    start();
    open_port(0x01);
    serial_receive_break(&serial); /* without the line status interrupt: the byte only */
    CHECK_EQ(in(IIR), 0xc1);
    CHECK_EQ(in(LSR), 0xf1);
    in(RBR);
    out(MCR, 0x1b), out(MCR, 0x18);
    CHECK(!line); /* nor the modem's */
    CHECK_EQ(in(MSR), 0x83);
    out(MCR, 0x0b), in(MSR);
    receive("xy");
    out(IIR, 0xc1); /* a new trigger level throws nothing away */
    CHECK_EQ(in(RBR), 'x');
    CHECK_EQ(in(RBR), 'y');

    start();
    open_port(0x0d);
    receive("a");
    serial_receive_break(&serial);
    CHECK(!line); /* the error belongs to the second byte */
    CHECK_EQ(in(LSR), 0xe1);
    CHECK_EQ(in(RBR), 'a');
    CHECK(line);
    CHECK_EQ(in(IIR), 0xc6);
    CHECK_EQ(in(LSR) & 0x11, 0x11);
    CHECK_EQ(in(IIR), 0xc1);
    CHECK_EQ(in(RBR), 0);

    receive("0123456789abcdef");
    serial_receive_break(&serial); /* no room: an overrun */
    CHECK_EQ(in(LSR), 0x63);
    out(IIR, 0xc3);

    CHECK_EQ(in(MCR), 0x0b);
    out(MCR, 0x1b); /* into loop-back: CTS and DSR stay on, DCD stays on, nothing changes but ... */
    CHECK_EQ(in(MSR), 0xb0);
    out(MCR, 0x1f);
    CHECK_EQ(in(MSR), 0xf0); /* RI's leading edge is no event */
    out(MCR, 0x18);
    CHECK(line);
    CHECK_EQ(in(IIR), 0xc0);
    CHECK_EQ(in(MSR), 0x87);
    CHECK(!line);
    CHECK_EQ(in(MSR), 0x80);
}

/* Input waits for a driver: one that enables the interrupt and has set the port up, or one that polls. */
static void test_listening(void)
{
    start();
    CHECK(!serial_is_heard(&serial));
    out(IER, 0x0f); /* a probe of IER: no OUT2 */
    CHECK(!serial_is_heard(&serial));
    out(IER, 0);
    for (unsigned i = 0; i < 100; i++) { /* early output: one look a byte */
        in(LSR);
        out(RBR, 'x');
    }
    CHECK(!serial_is_heard(&serial));
    pass_us(100000);
    CHECK_EQ(ready, 0);
    open_port(0x01);
    CHECK(!serial_is_heard(&serial)); /* may still clear the FIFO */
    out(IIR, 0x07);
    pass_us(19000);
    CHECK_EQ(ready, 0);
    pass_us(2000);
    CHECK_EQ(ready, 1);
    CHECK(serial_is_heard(&serial));

    out(MCR, 0x09); /* RTS off: the guest's hand is up */
    CHECK(!serial_is_heard(&serial));
    pass_us(100000);
    CHECK_EQ(ready, 1);
    out(MCR, 0x0b);
    pass_us(21000);
    CHECK_EQ(ready, 2);
    CHECK(serial_is_heard(&serial));

    start(); /* a driver that polls: no interrupt, no OUT2 */
    out(LCR, 0x03);
    CHECK(!serial_is_heard(&serial));
    pass_us(21000);
    for (unsigned i = 0; i < 64; i++)
        CHECK(!(in(LSR) & 0x01));
    CHECK_EQ(ready, 1);
    CHECK(serial_is_heard(&serial));
    serial_reset(&serial);
    CHECK(!serial_is_heard(&serial));
}

/* The host learns which of its bytes were read, which wait, and so which were thrown away. */
static void test_thrown_away(void)
{
    start();
    open_port(0x01);
    receive("abcdef");
    CHECK_EQ(in(RBR), 'a');
    CHECK_EQ(in(RBR), 'b');
    CHECK_EQ(serial_waiting(&serial), 4);
    CHECK_EQ(serial_take_read(&serial), 2);
    CHECK_EQ(serial_take_read(&serial), 0);
    CHECK_EQ(ready, 0);
    out(IIR, 0xc3);
    CHECK_EQ(ready, 1);
    CHECK_EQ(serial_waiting(&serial), 0);
    CHECK_EQ(serial_take_read(&serial), 0);
    out(IIR, 0xc3); /* nothing there: nothing to tell */
    CHECK_EQ(ready, 1);

    receive("gh"); /* a break and what the guest sends itself are not the host's */
    serial_receive_break(&serial);
    out(MCR, 0x1b), out(RBR, 'i'), out(MCR, 0x0b);
    CHECK_EQ(serial_waiting(&serial), 2);
    for (const char *p = "gh\0i"; p[0] || p[1]; p++)
        CHECK_EQ(in(RBR), *p);
    CHECK_EQ(serial_take_read(&serial), 2);
    in(RBR);
    CHECK_EQ(serial_take_read(&serial), 0);

    receive("jk");
    serial_reset(&serial);
    CHECK_EQ(ready, 2);
    CHECK_EQ(serial_waiting(&serial) + serial_take_read(&serial), 0);
}

static void test_saved_state(void)
{
    start();
    open_port(0x01);
    receive("k");
    struct serial_state saved = serial.state;
    serial_reset(&serial);
    pass_us(100);
    serial.state = saved;
    serial_loaded(&serial);
    pass_us(250);
    CHECK(line);
    CHECK_EQ(in(RBR), 'k');
}

int main(void)
{
    test_polled_output();
    test_autoconfig();
    test_transmitter_interrupt();
    test_receiver();
    test_flow();
    test_loop_back();
    test_line_and_modem_status();
    test_listening();
    test_thrown_away();
    test_saved_state();
    return check_report();
}
