/* SPDX-License-Identifier: MIT */
/* needs: dev/pic.c */
#include "check.h"
#include "dev/pic.h"

static struct pic pic;
static bool intr;
static unsigned intr_changes;

static void on_intr(void *opaque, bool level)
{
    (void)opaque;
    intr = level;
    intr_changes++;
}

static void out(unsigned port, uint8_t value)
{
    const struct bus_ops *ops = port >= 0x4d0 ? &pic_elcr_ops : port >= 0xa0 ? &pic_slave_ops : &pic_master_ops;
    ops->write(&pic, port & 1, 1, value);
}

static uint8_t in(unsigned port)
{
    const struct bus_ops *ops = port >= 0x4d0 ? &pic_elcr_ops : port >= 0xa0 ? &pic_slave_ops : &pic_master_ops;
    return (uint8_t)ops->read(&pic, port & 1, 1);
}

/* As Linux's init_8259A and most others do: vectors 30h and 38h, everything unmasked afterwards. */
static void start(uint8_t master_icw4, uint8_t slave_icw4)
{
    pic_init(&pic, on_intr, NULL);
    intr = false;
    out(0x21, 0xff);
    out(0x20, 0x11), out(0x21, 0x30), out(0x21, 0x04), out(0x21, master_icw4);
    out(0xa0, 0x11), out(0xa1, 0x38), out(0xa1, 0x02), out(0xa1, slave_icw4);
    CHECK_EQ(in(0x21), 0); /* ICW1 clears the mask */
    CHECK_EQ(in(0xa1), 0);
}

static void pulse(unsigned pin)
{
    pic_set_irq(&pic, pin, false);
    pic_set_irq(&pic, pin, true);
}

static void test_before_initialisation(void)
{
    pic_init(&pic, on_intr, NULL);
    pulse(0);
    CHECK(!intr);
    CHECK_EQ(in(0x21), 0xff);
    /* In the middle of the sequence nothing is delivered either. */
    out(0x20, 0x11), out(0x21, 0x30), out(0x21, 0x04);
    pulse(1);
    CHECK(!intr);
    out(0x21, 0x01);
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x31);
}

/* Linux's probe_8259A: is there a chip at all? */
static void test_probe(void)
{
    pic_init(&pic, on_intr, NULL);
    out(0xa1, 0xff);
    out(0x21, (uint8_t)~(1 << 2));
    CHECK_EQ(in(0x21), 0xfb);
}

/* A chip told that it is alone and that no ICW4 follows takes one word only. */
static void test_short_initialisation(void)
{
    start(0x03, 0x01);
    out(0x20, 0x12), out(0x21, 0x58), out(0x21, 0xfe);
    CHECK_EQ(in(0x21), 0xfe);
    pulse(0);
    CHECK_EQ(pic_acknowledge(&pic), 0x58);
    out(0x20, 0x0b);
    CHECK_EQ(in(0x20), 0x01); /* and automatic EOI is off */
}

/* The ends of the range, each alone; then both chips' registers through 16-bit accesses. */
static void test_every_line(void)
{
    for (unsigned pin = 0; pin < 16; pin++) {
        start(0x01, 0x11); /* SFNM means nothing to a slave */
        pulse(pin);
        CHECK_EQ(intr, pin != 2);
        if (pin == 2)
            continue;
        CHECK_EQ(pic_acknowledge(&pic), 0x30 + pin);
        CHECK(!intr);
        if (pin >= 8)
            out(0xa0, 0x20);
        out(0x20, 0x20);
        pulse(pin);
        CHECK_EQ(pic_acknowledge(&pic), 0x30 + pin);
    }
    start(0x01, 0x01);
    pulse(0);
    out(0x20, 0x0c);
    CHECK_EQ(in(0x20), 0x80);
    start(0x01, 0x01);
    pic_master_ops.write(&pic, 0, 2, 0xa50b);
    CHECK_EQ(pic_master_ops.read(&pic, 0, 2), 0xa500);
    pic_elcr_ops.write(&pic, 0, 2, 0x0c20);
    CHECK_EQ(pic_elcr_ops.read(&pic, 0, 2), 0x0c20);
    out(0x20, 0x12), out(0x21, 0x37); /* a vector's low bits are the pin's */
    pulse(0);
    CHECK_EQ(pic_acknowledge(&pic), 0x30);
    pulse(10); /* a slave inside the slave: masked pin 2 of a lone master stays silent */
    CHECK(!intr);
}

static void test_fully_nested(void)
{
    start(0x01, 0x01);
    pulse(4);
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x34);
    CHECK(!intr);
    pulse(6); /* lower: waits */
    CHECK(!intr);
    pulse(1); /* higher: nests */
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x31);
    out(0x20, 0x0b); /* read ISR */
    CHECK_EQ(in(0x20), 0x12);
    out(0x20, 0x0a); /* read IRR */
    CHECK_EQ(in(0x20), 0x40);
    out(0x20, 0x20); /* non-specific EOI ends 1, the highest */
    out(0x20, 0x0b);
    CHECK_EQ(in(0x20), 0x10);
    CHECK(!intr);
    out(0x20, 0x64); /* specific EOI for 4 */
    CHECK_EQ(in(0x20), 0x00);
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x36);
}

static void test_cascade(void)
{
    start(0x01, 0x01);
    pulse(14);
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x3e);
    out(0x20, 0x0b), out(0xa0, 0x0b);
    CHECK_EQ(in(0x20), 0x04);
    CHECK_EQ(in(0xa0), 0x40);
    pulse(8); /* more urgent, but the master still serves its pin 2 */
    CHECK(!intr);
    out(0xa0, 0x66), out(0x20, 0x62); /* as Linux ends it: slave, then pin 2 of the master */
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x38);
    out(0xa0, 0x20), out(0x20, 0x20);
    CHECK(!intr);

    /* Two wait in the slave: the second is seen although the slave's output had no reason to fall. */
    pic_set_irq(&pic, 9, true), pic_set_irq(&pic, 11, true);
    CHECK_EQ(pic_acknowledge(&pic), 0x39);
    out(0xa0, 0x20), out(0x20, 0x20);
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x3b);
    out(0xa0, 0x20), out(0x20, 0x20);
    CHECK(!intr);
    pulse(2); /* there is no such line in a PC */
    CHECK(!intr);
}

static void test_special_fully_nested(void)
{
    start(0x11, 0x01);
    pulse(14);
    CHECK_EQ(pic_acknowledge(&pic), 0x3e);
    pulse(9);
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x39);
}

static void test_spurious(void)
{
    start(0x01, 0x01);
    pic_set_irq(&pic, 5, true);
    CHECK(intr);
    pic_set_irq(&pic, 5, false); /* withdrawn before INTA */
    CHECK(!intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x37);
    out(0x20, 0x0b);
    CHECK_EQ(in(0x20), 0); /* which is how a handler tells it from a real IR7 */

    out(0xa1, 0xff), pic_set_irq(&pic, 10, true);
    CHECK(!intr);
    out(0xa1, 0x00);
    CHECK(intr);
}

static void test_mask(void)
{
    start(0x01, 0x01);
    out(0x21, 0xfe);
    pulse(3);
    CHECK(!intr);
    CHECK_EQ(in(0x21), 0xfe);
    out(0x21, 0xf6); /* the edge was remembered */
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x33);
}

static void test_edge_and_level(void)
{
    start(0x03, 0x03); /* automatic EOI: the ISR is out of the picture */
    pic_set_irq(&pic, 11, true);
    CHECK_EQ(pic_acknowledge(&pic), 0x3b);
    CHECK(!intr); /* edge: the level alone does not ask again */

    out(0x4d1, 0xff);
    CHECK_EQ(in(0x4d1), 0xde); /* IRQ 8 and 13 stay edges */
    out(0x4d0, 0xff);
    CHECK_EQ(in(0x4d0), 0xf8);
    out(0x4d1, 0x0c);
    CHECK(intr); /* the level stands */
    CHECK_EQ(pic_acknowledge(&pic), 0x3b);
    CHECK(intr);
    pic_set_irq(&pic, 10, true); /* 10 goes first: both are levels */
    CHECK_EQ(pic_acknowledge(&pic), 0x3a);
    pic_set_irq(&pic, 10, false);
    CHECK_EQ(pic_acknowledge(&pic), 0x3b);
    pic_set_irq(&pic, 11, false);
    CHECK(!intr);
}

static void test_rotation(void)
{
    start(0x01, 0x01);
    out(0x20, 0xc3); /* set priority: 3 is the lowest, 4 the highest */
    pulse(3), pulse(4), pulse(0);
    CHECK_EQ(pic_acknowledge(&pic), 0x34);
    out(0x20, 0xa0); /* rotate on non-specific EOI: 4 becomes the lowest */
    CHECK_EQ(pic_acknowledge(&pic), 0x30);
    pulse(4);
    CHECK(!intr);
    out(0x20, 0xe0); /* rotate on specific EOI of 0: 1, 2, 3 ... come first */
    CHECK_EQ(pic_acknowledge(&pic), 0x33);
    out(0x20, 0x20);
    CHECK_EQ(pic_acknowledge(&pic), 0x34);

    start(0x03, 0x01);
    out(0x20, 0x80); /* rotate in automatic EOI mode */
    pulse(2 + 3);
    CHECK_EQ(pic_acknowledge(&pic), 0x35);
    pulse(5), pulse(6);
    CHECK_EQ(pic_acknowledge(&pic), 0x36);
    out(0x20, 0x00); /* and no more */
    CHECK_EQ(pic_acknowledge(&pic), 0x35);
    pulse(6), pulse(7);
    CHECK_EQ(pic_acknowledge(&pic), 0x37); /* 6 is still the lowest */
}

static void test_special_mask(void)
{
    start(0x01, 0x01);
    pulse(1);
    CHECK_EQ(pic_acknowledge(&pic), 0x31);
    pulse(5);
    CHECK(!intr);
    out(0x21, 0x02); /* mask what is in service ... */
    CHECK(!intr);
    out(0x20, 0x68); /* ... and let everybody else in */
    CHECK(intr);
    CHECK_EQ(pic_acknowledge(&pic), 0x35);
    out(0x20, 0x20); /* ends 5: the masked bit is not touched */
    out(0x20, 0x0b);
    CHECK_EQ(in(0x20), 0x02);
    out(0x20, 0x48);
    out(0x20, 0x20);
    CHECK_EQ(in(0x20), 0x00);
}

static void test_poll(void)
{
    start(0x01, 0x01);
    out(0x20, 0x0c);
    CHECK_EQ(in(0x20), 0x00);
    pulse(3);
    out(0x20, 0x0c);
    CHECK_EQ(in(0x20), 0x83);
    CHECK(!intr);
    out(0x20, 0x0b);
    CHECK_EQ(in(0x20), 0x08);
    out(0x20, 0x20);
    pulse(12);
    out(0x20, 0x0c);
    CHECK_EQ(in(0x20), 0x82);
    out(0xa0, 0x0c);
    CHECK_EQ(in(0xa0), 0x84);
    out(0xa0, 0x20), out(0x20, 0x20);
    CHECK(!intr);
}

static void test_saved_state(void)
{
    start(0x01, 0x01);
    pic_set_irq(&pic, 9, true);
    struct pic_state saved = pic.state;
    pic_init(&pic, on_intr, NULL);
    intr = false;
    pic.state = saved;
    pic_loaded(&pic);
    CHECK(intr && pic_pending(&pic));
    CHECK_EQ(pic_acknowledge(&pic), 0x39);
    unsigned changes = intr_changes;
    pic_set_irq(&pic, 9, true); /* no change, no call */
    CHECK_EQ(intr_changes, changes);
}

int main(void)
{
    test_before_initialisation();
    test_probe();
    test_short_initialisation();
    test_every_line();
    test_fully_nested();
    test_cascade();
    test_special_fully_nested();
    test_spurious();
    test_mask();
    test_edge_and_level();
    test_rotation();
    test_special_mask();
    test_poll();
    test_saved_state();
    return check_report();
}
