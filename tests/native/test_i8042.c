/* SPDX-License-Identifier: MIT */
/* needs: dev/i8042.c dev/port92.c dev/reset_control.c */
#include "check.h"
#include "dev/i8042.h"
#include "dev/port92.h"
#include "dev/reset_control.h"

static struct i8042 kbc;
static bool kbd_line, aux_line, a20;
static unsigned kbd_edges, resets, a20_calls;

static void on_irq(void *opaque, unsigned pin, bool level)
{
    (void)opaque;
    kbd_edges += pin == 1 && level && !kbd_line;
    *(pin == 1 ? &kbd_line : &aux_line) = level;
}

static void on_a20(void *opaque, bool enabled)
{
    (void)opaque;
    a20 = enabled;
    a20_calls++;
}

static void on_reset(void *opaque)
{
    (void)opaque;
    resets++;
}

static uint8_t status(void) { return (uint8_t)i8042_command_ops.read(&kbc, 0, 1); }
static uint8_t data(void) { return (uint8_t)i8042_data_ops.read(&kbc, 0, 1); }
static void command(uint8_t value) { i8042_command_ops.write(&kbc, 0, 1, value); }
static void write(uint8_t value) { i8042_data_ops.write(&kbc, 0, 1, value); }

static uint8_t ask(uint8_t value)
{
    command(value);
    CHECK_EQ(status() & 0x01, 0x01);
    return data();
}

static void start(void)
{
    static const struct i8042_host host = {.a20 = on_a20, .reset = on_reset};
    i8042_init(&kbc, (struct irq_line){.set = on_irq, .pin = 1}, (struct irq_line){.set = on_irq, .pin = 12}, &host);
    kbd_line = aux_line = false;
    a20 = true;
    kbd_edges = resets = a20_calls = 0;
}

/* What Linux's i8042 driver asks before it believes that there is a controller. */
static void test_linux_probe(void)
{
    start();
    CHECK_EQ(status() & 0x21, 0); /* nothing to flush */
    CHECK_EQ(ask(0x20), 0x65);
    command(0x60), write(0x74 & ~0x03 & ~0x40); /* both interfaces off, no interrupts */
    CHECK_EQ(ask(0x20), 0x34);
    CHECK_EQ(ask(0xaa), 0x55);
    CHECK_EQ(status() & 0x04, 0x04);
    CHECK_EQ(ask(0x20), 0x74);
    /* i8042_check_aux: a byte looped through the auxiliary port comes back with its mark */
    command(0xd3), write(0x5a);
    CHECK_EQ(status() & 0x21, 0x21);
    CHECK_EQ(data(), 0x5a);
    command(0xa8);
    CHECK_EQ(ask(0x20) & 0x20, 0);
    command(0xa7);
    CHECK_EQ(ask(0x20) & 0x20, 0x20);
    command(0xa8);
    CHECK_EQ(ask(0x20) & 0x20, 0);
    CHECK_EQ(ask(0xa9), 0x00);
    /* ... and raises IRQ 12 when that is enabled */
    command(0x60), write(0x46);
    CHECK(!aux_line);
    command(0xd3), write(0xa5);
    CHECK(aux_line && !kbd_line);
    CHECK_EQ(data(), 0xa5);
    CHECK(!aux_line);
    /* No mouse: the controller says so at once. */
    command(0xd4), write(0xf2);
    CHECK_EQ(status() & 0x61, 0x61);
    CHECK_EQ(data(), 0xfe);
    CHECK_EQ(status() & 0x61, 0);
    CHECK_EQ(ask(0xab), 0x00);
    CHECK_EQ(status() & 0x08, 0x08);
}

static void test_keyboard(void)
{
    start();
    command(0x60), write(0x61); /* interrupt, translation, no aux */
    write(0xff);
    CHECK_EQ(status() & 0x08, 0);
    CHECK(kbd_line);
    CHECK_EQ(data(), 0xfa);
    CHECK(kbd_line);
    CHECK_EQ(kbd_edges, 2); /* each byte is an edge */
    CHECK_EQ(data(), 0xaa);
    CHECK(!kbd_line);
    write(0xf5);
    CHECK_EQ(data(), 0xfa);
    write(0xff); /* a reset turns scanning on again */
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0xaa);
    CHECK(i8042_press(&kbc, (const uint8_t[]){0x29}, 1));
    CHECK_EQ(data(), 0x39);
    command(0x60), write(0x60); /* no interrupt: the byte is polled */
    CHECK(i8042_press(&kbc, (const uint8_t[]){0x29}, 1));
    CHECK(!kbd_line);
    CHECK_EQ(data(), 0x39);
    command(0x60), write(0x61);
    write(0xf2);
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0xab);
    CHECK_EQ(data(), 0x41); /* 83h, translated */
    write(0xed), write(0x07);
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(kbc.state.kbd_leds, 7);
    write(0xed), write(0x02);
    CHECK_EQ(data() & data(), 0xfa);
    CHECK_EQ(kbc.state.kbd_leds, 2);
    write(0xee);
    CHECK_EQ(data(), 0xee);
    write(0xfe);
    CHECK_EQ(data(), 0xee);
    write(0xf0), write(0x00);
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0x41);
    write(0xf0), write(0x04); /* no such set */
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0xfe);
    write(0xf0), write(0x01), write(0xf3), write(0x00), write(0xf7);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(data(), 0xfa);
    CHECK_EQ(kbc.state.kbd_set, 1);
    write(0xf6); /* defaults */
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(kbc.state.kbd_set, 2);
    write(0xed), write(0xf4); /* a command where a parameter was due */
    CHECK_EQ(data(), 0xfa);
    CHECK_EQ(data(), 0xfa);
    write(0x10); /* no command */
    CHECK_EQ(data(), 0xfe);
    CHECK_EQ(status() & 1, 0);
}

static void test_keys(void)
{
    static const uint8_t enter_and_up[] = {0x5a, 0xf0, 0x5a, 0xe0, 0x75, 0xe0, 0xf0, 0x75};
    static const uint8_t set1[] = {0x1c, 0x9c, 0xe0, 0x48, 0xe0, 0xc8};
    start();
    CHECK(i8042_press(&kbc, enter_and_up, sizeof(enter_and_up)));
    for (unsigned i = 0; i < sizeof(set1); i++) {
        CHECK(kbd_line);
        CHECK_EQ(data(), set1[i]);
    }
    CHECK(!kbd_line);
    command(0x60), write(0x05); /* without translation */
    CHECK(i8042_press(&kbc, enter_and_up, 3));
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(data(), enter_and_up[i]);
    command(0xad); /* interface off: the keyboard holds its bytes */
    CHECK(i8042_press(&kbc, enter_and_up, 1));
    CHECK_EQ(status() & 1, 0);
    CHECK_EQ(ask(0x20), 0x15); /* replies of the controller still come */
    command(0xae);
    CHECK_EQ(data(), 0x5a);
    write(0xf5);
    CHECK_EQ(data(), 0xfa);
    CHECK(!i8042_press(&kbc, enter_and_up, 1)); /* scanning is off */
    write(0xf4);
    CHECK_EQ(data(), 0xfa);
    unsigned presses = 0;
    while (i8042_press(&kbc, enter_and_up, 3))
        presses++;
    CHECK(presses >= 10 && presses <= 11);
    for (unsigned i = 0; i < 3 * presses; i++)
        CHECK_EQ(data(), enter_and_up[i % 3]);
    CHECK_EQ(status() & 1, 0);
}

/* Set 2 codes in the order of set 1's: 01h Esc ... 58h F12. */
static void test_translation(void)
{
    static const uint8_t set2[0x59] = {
        0,    0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d, 0x15, 0x1d,
        0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b, 0x23, 0x2b, 0x34, 0x33,
        0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a, 0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a,
        0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03, 0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c,
        0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69, 0x72, 0x7a, 0x70, 0x71, 0x84, 0x60, 0x61, 0x78, 0x07};
    start();
    for (uint8_t set1 = 1; set1 < sizeof(set2); set1++) {
        const uint8_t release[] = {0xf0, set2[set1]};
        CHECK(i8042_press(&kbc, &set2[set1], 1));
        CHECK_EQ(data(), set1);
        CHECK(i8042_press(&kbc, release, 2));
        CHECK_EQ(data(), set1 | 0x80);
    }
    bool seen[256] = {false}; /* no two codes of a key below 80h become the same */
    for (uint8_t code = 0; code < 0x80; code++) {
        CHECK(i8042_press(&kbc, &code, 1));
        uint8_t translated = data();
        CHECK(!seen[translated]);
        seen[translated] = true;
    }
}

/* The classic way to open and shut A20, then the other ways. */
static void test_a20(void)
{
    start();
    command(0xad);
    uint8_t port = ask(0xd0);
    CHECK_EQ(port & 0x03, 0x03);
    command(0xd1), write(port & (uint8_t)~0x02);
    CHECK(!a20);
    CHECK_EQ(ask(0xd0) & 0x03, 0x01);
    command(0xd1), write(port | 0x02);
    CHECK(a20);
    command(0xdd);
    CHECK(!a20);
    command(0xdf);
    CHECK(a20);
    command(0xdf);
    CHECK_EQ(a20_calls, 4); /* only changes are reported */
    CHECK_EQ(resets, 0);
    command(0xdd);
    i8042_reset(&kbc);
    CHECK(a20);
}

static void test_reset_line(void)
{
    start();
    command(0xf1); /* pulses others */
    CHECK_EQ(resets, 0);
    command(0xfe);
    CHECK_EQ(resets, 1);
    command(0xd1), write(0xfe);
    CHECK_EQ(resets, 2);
    command(0xff);
    CHECK_EQ(resets, 2);
}

static void test_ram(void)
{
    start();
    command(0x7f), write(0x42);
    CHECK_EQ(ask(0x3f), 0x42);
    CHECK_EQ(ask(0xa4), 0xf1);
    CHECK_EQ(ask(0xc0) & 0x80, 0x80); /* not locked */
    CHECK_EQ(ask(0xe0), 0x00);
    command(0xd2), write(0x77); /* as if typed, but not translated */
    CHECK_EQ(status() & 0x21, 0x01);
    CHECK(kbd_line);
    CHECK_EQ(data(), 0x77);
    command(0xd2), write(0x11);
    struct i8042_state saved = kbc.state;
    i8042_reset(&kbc);
    CHECK(!kbd_line);
    kbc.state = saved;
    i8042_loaded(&kbc);
    CHECK(kbd_line);
    CHECK_EQ(data(), 0x11);
}

static void test_port92(void)
{
    struct port92 port92;
    a20 = false;
    resets = 0;
    port92_init(&port92, on_a20, on_reset, NULL);
    CHECK_EQ(port92_ops.read(&port92, 0, 1), 0);
    port92_ops.write(&port92, 0, 1, 0x02);
    CHECK(a20);
    CHECK_EQ(port92_ops.read(&port92, 0, 1), 0x02);
    CHECK_EQ(resets, 0);
    port92_ops.write(&port92, 0, 1, 0x03);
    port92_ops.write(&port92, 0, 1, 0x03);
    CHECK_EQ(resets, 1); /* the change counts */
    port92_reset(&port92);
    CHECK(!a20);
    port92_ops.write(&port92, 0, 1, 0xff);
    CHECK_EQ(port92_ops.read(&port92, 0, 1), 0x03);
}

/* Linux's reboot=pci: 02h, then 06h; a plain 06h must do as well (the FADT's way). */
static void test_reset_control(void)
{
    struct reset_control control;
    resets = 0;
    reset_control_init(&control, on_reset, NULL);
    reset_control_ops.write(&control, 0, 1, 0x02);
    CHECK_EQ(resets, 0);
    CHECK_EQ(reset_control_ops.read(&control, 0, 1), 0x02);
    reset_control_ops.write(&control, 0, 1, 0x06);
    CHECK_EQ(resets, 1);
    reset_control_ops.write(&control, 0, 1, 0x06);
    CHECK_EQ(resets, 1);
    reset_control_reset(&control);
    reset_control_ops.write(&control, 0, 1, RESET_CONTROL_VALUE);
    CHECK_EQ(resets, 2);
}

int main(void)
{
    test_linux_probe();
    test_keyboard();
    test_keys();
    test_translation();
    test_a20();
    test_reset_line();
    test_ram();
    test_port92();
    test_reset_control();
    return check_report();
}
