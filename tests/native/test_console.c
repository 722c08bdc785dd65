/* SPDX-License-Identifier: MIT */
/* needs: machine/console.c dev/serial.c base/timer.c base/clock*.c base/host_tsc.c */
/* Piped input reaches the guest whole and in order, whenever its driver clears the FIFO. */
#include "check.h"
#include "machine/console.h"

#include <string.h>
#include <unistd.h>

enum { RBR, IER, FCR, LCR, MCR, LSR };

#define CLEAR 0xc7
#define KEEP 0xc1
#define RTS_OUT2 0x0a

static struct clock virtual_clock;
static struct timer_queue queue;
static struct serial serial;
static struct console console;
static int to_console = -1;
static bool woken;
static char got[4096];
static size_t got_bytes;

static void on_irq(void *opaque, unsigned pin, bool level) { (void)opaque, (void)pin, (void)level; }
static void on_ready(void *opaque) { (void)opaque, woken = true; }

static void out(unsigned offset, uint8_t value) { serial_ops.write(&serial, offset, 1, value); }
static uint8_t in(unsigned offset) { return (uint8_t)serial_ops.read(&serial, offset, 1); }

static void start(const char *text, uint8_t escape)
{
    static const struct serial_host host = {.receive_ready = on_ready};
    int ends[2];
    clock_init_virtual(&virtual_clock);
    timer_queue_init(&queue, &virtual_clock);
    serial_init(&serial, &queue, (struct irq_line){.set = on_irq}, &host);
    console_init(&console);
    CHECK_EQ(pipe(ends), 0);
    console.input_fd = ends[0];
    console.escape = escape;
    to_console = ends[1];
    CHECK_EQ(write(to_console, text, strlen(text)), strlen(text));
    got_bytes = 0;
    woken = false;
}

static void end(void)
{
    close(console.input_fd);
    close(to_console);
    console_destroy(&console);
}

/* As the event loop: reads only when there is something, so that the pipe does not block. */
static void serve(bool more)
{
    if (more && console_wants_input(&console))
        console_read_some(&console);
    woken = false;
    console_feed(&console, &serial);
}

static void pass_ms(uint64_t ms)
{
    clock_advance(&virtual_clock, ms * 1000000);
    timer_queue_run(&queue);
}

static void read_fifo(size_t most)
{
    while (most-- && (in(LSR) & 1))
        got[got_bytes++] = (char)in(RBR);
}

static bool got_is(const char *text) { return got_bytes == strlen(text) && !memcmp(got, text, got_bytes); }

/* Linux enables the interrupt, and the FIFO ten accesses later. A processor thread may lose its turn in between for
 * longer than the port is watched for a driver still at work: the byte handed over then must come again. */
static void test_driver_held_up(void)
{
    static const char text[] = "echo one\necho two\n";
    start(text, 0);
    serve(true);
    out(MCR, 0x08), out(IER, 0x05);
    serve(false);
    CHECK_EQ(serial_waiting(&serial), 0);
    pass_ms(500);
    CHECK(woken);
    serve(false);
    CHECK_EQ(serial_waiting(&serial), 1); /* no FIFO yet */
    out(FCR, 0x01), out(FCR, 0x81);
    CHECK_EQ(serial_waiting(&serial), 0);
    CHECK(woken);
    out(MCR, RTS_OUT2);
    serve(false);
    while (pass_ms(30), woken) {
        serve(false);
        read_fifo(16);
    }
    CHECK(got_is(text));
    end();
}

/* A program closes the port while input waits in it, and another opens it; then the machine is reset. */
static void test_closed_and_reset(void)
{
    static const char text[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    start(text, 0);
    serve(true);
    for (unsigned round = 0; round < 4; round++) {
        out(FCR, CLEAR), out(FCR, 0), in(RBR);
        out(MCR, RTS_OUT2), out(IER, 0x01), out(FCR, CLEAR);
        serve(false);
        pass_ms(30);
        serve(false);
        CHECK_EQ(serial_waiting(&serial), 16);
        read_fifo(round); /* fewer than there are */
        if (round == 1)
            serial_reset(&serial);
        else if (round == 2)
            out(FCR, KEEP); /* a new trigger level throws nothing away */
        else
            out(IER, 0), out(FCR, CLEAR);
        CHECK_EQ(woken, round != 2);
        serve(false);
    }
    out(MCR, RTS_OUT2), out(IER, 0x01), out(FCR, CLEAR);
    pass_ms(30);
    do {
        serve(false);
        read_fifo(16);
    } while (woken);
    CHECK(got_is(text));
    end();
}

/* More than the console's buffer and the pipe's pieces; now and then the guest throws away what waits. */
static void test_long_input(void)
{
    char text[4000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i * 7 % 26);
    text[sizeof text - 1] = 0;
    start(text, 0);
    close(to_console);
    out(FCR, CLEAR), out(MCR, RTS_OUT2), out(IER, 0x01);
    pass_ms(30);
    for (unsigned i = 0; got_bytes < sizeof text - 1 && i < 10000; i++) {
        serve(true);
        read_fifo(i % 17);
        if (i % 5 == 0) {
            out(FCR, CLEAR);
            pass_ms(30);
        }
    }
    CHECK(got_is(text));
    serve(true);
    CHECK(console.input_ended);
    end();
}

/* Input is read from a pipe when the port has taken what there is, from a terminal always. */
static void test_when_input_is_read(void)
{
    start("0123456789abcdefgh", 0);
    serve(true);
    CHECK(!console_wants_input(&console));
    out(FCR, CLEAR), out(MCR, RTS_OUT2), out(IER, 0x01);
    pass_ms(30);
    serve(false);
    CHECK(!console_wants_input(&console));
    read_fifo(16);
    CHECK(woken);
    serve(false);
    CHECK(console_wants_input(&console)); /* two wait in the port, none here */
    out(FCR, CLEAR);
    serve(false);
    CHECK(!console_wants_input(&console));
    end();
    start("k", 1);
    serve(true);
    CHECK(console_wants_input(&console));
    end();
}

int main(void)
{
    test_driver_held_up();
    test_closed_and_reset();
    test_long_input();
    test_when_input_is_read();
    return check_report();
}
