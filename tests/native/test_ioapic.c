/* SPDX-License-Identifier: MIT */
/* needs: dev/ioapic.c */
#include "check.h"
#include "dev/ioapic.h"

static struct ioapic ioapic;
static unsigned sent;
static uint64_t address;
static uint32_t data;

static void on_send(void *opaque, uint64_t to, uint32_t what)
{
    (void)opaque;
    sent++;
    address = to;
    data = what;
}

static uint32_t in(unsigned reg)
{
    ioapic_ops.write(&ioapic, 0x00, 4, reg);
    return (uint32_t)ioapic_ops.read(&ioapic, 0x10, 4);
}

static void out(unsigned reg, uint32_t value)
{
    ioapic_ops.write(&ioapic, 0x00, 4, reg);
    ioapic_ops.write(&ioapic, 0x10, 4, value);
}

static void start(void)
{
    ioapic_init(&ioapic, 2, (struct msi_sink){.send = on_send});
    sent = 0;
}

static void test_identification(void)
{
    start();
    CHECK_EQ(in(0), 0x02000000);
    CHECK_EQ(in(1), 0x00170020);
    CHECK_EQ(in(2), 0x02000000);
    out(0, 0x05000000);
    CHECK_EQ(in(0), 0x05000000);
    out(1, 0xffffffff);
    CHECK_EQ(in(1), 0x00170020);
    for (unsigned pin = 0; pin < 24; pin++)
        CHECK_EQ(in(0x10 + 2 * pin), 0x00010000);
    CHECK_EQ(in(0x40), 0);
    out(0x40, 0xffffffff);
    CHECK_EQ(in(0xff), 0);
    out(0x11, 0xffffffff), out(0x10, 0xffffffff); /* reserved and read-only bits stay zero */
    CHECK_EQ(in(0x11), 0xff000000);
    CHECK_EQ(in(0x10), 0x0001afff);
    CHECK_EQ(ioapic_ops.read(&ioapic, 0x00, 1), 0x10);
    CHECK_EQ(ioapic_ops.read(&ioapic, 0x20, 4), 0);
    ioapic_reset(&ioapic);
    CHECK_EQ(in(0), 0x02000000);
    CHECK_EQ(in(0x10), 0x00010000);
}

static void test_edge(void)
{
    start();
    out(0x10 + 2 * 4 + 1, 0x03000000), out(0x10 + 2 * 4, 0x00000034); /* physical, APIC 3 */
    ioapic_set_irq(&ioapic, 4, true);
    CHECK_EQ(sent, 1);
    CHECK_EQ(address, 0xfee03000);
    CHECK_EQ(data, 0x4034);
    ioapic_set_irq(&ioapic, 4, true);
    CHECK_EQ(sent, 1);
    ioapic_set_irq(&ioapic, 4, false);
    ioapic_set_irq(&ioapic, 4, true);
    CHECK_EQ(sent, 2);
    CHECK_EQ(in(0x18), 0x34);
    out(0x18, 0x10034); /* masked: the edge is gone for good */
    ioapic_set_irq(&ioapic, 4, false);
    ioapic_set_irq(&ioapic, 4, true);
    out(0x18, 0x34);
    CHECK_EQ(sent, 2);
    ioapic_set_irq(&ioapic, 24, true); /* no such pin */
    CHECK_EQ(sent, 2);
}

static void test_messages(void)
{
    start();
    out(0x13, 0xff000000), out(0x12, 0x0931); /* lowest priority, logical, everybody: Linux's flat mode */
    ioapic_set_irq(&ioapic, 1, true);
    CHECK_EQ(address, 0xfeeff00c);
    CHECK_EQ(data, 0x4131);
    out(0x15, 0x01000000), out(0x14, 0x0400); /* NMI */
    ioapic_set_irq(&ioapic, 2, true);
    CHECK_EQ(address, 0xfee01000);
    CHECK_EQ(data, 0x4400);
    out(0x11, 0), out(0x10, 0x0700); /* ExtINT: the 8259A behind pin 0 */
    ioapic_set_irq(&ioapic, 0, true);
    CHECK_EQ(data, 0x4700);
}

static void test_level(void)
{
    start();
    out(0x31, 0x01000000), out(0x30, 0xa041); /* level, active low */
    ioapic_set_irq(&ioapic, 16, true);
    CHECK_EQ(sent, 1);
    CHECK_EQ(data, 0xc041);
    CHECK_EQ(in(0x30), 0xe041); /* remote IRR */
    ioapic_set_irq(&ioapic, 16, false);
    ioapic_set_irq(&ioapic, 16, true);
    CHECK_EQ(sent, 1); /* one at a time */
    ioapic_eoi(&ioapic, 0x42);
    CHECK_EQ(sent, 1);
    ioapic_eoi(&ioapic, 0x41); /* it still stands */
    CHECK_EQ(sent, 2);
    ioapic_set_irq(&ioapic, 16, false);
    ioapic_eoi(&ioapic, 0x41);
    CHECK_EQ(sent, 2);
    CHECK_EQ(in(0x30), 0xa041);

    out(0x30, 0x1a041); /* a level waits behind the mask */
    ioapic_set_irq(&ioapic, 16, true);
    CHECK_EQ(sent, 2);
    out(0x30, 0x0a041);
    CHECK_EQ(sent, 3);
    ioapic_set_irq(&ioapic, 16, false);

    ioapic_ops.write(&ioapic, 0x40, 4, 0x41); /* the EOI register */
    CHECK_EQ(in(0x30), 0xa041);
    ioapic_set_irq(&ioapic, 16, true);
    CHECK_EQ(sent, 4);
    ioapic_set_irq(&ioapic, 16, false);
    out(0x30, 0xb041); /* a rewrite keeps what is not its own */
    CHECK_EQ(in(0x30), 0xe041);
    out(0x30, 0x12041); /* __eoi_ioapic_pin without it: masked edge, and back */
    CHECK_EQ(in(0x30), 0x12041);
    out(0x30, 0xa041);
    CHECK_EQ(in(0x30), 0xa041);
    out(0x34, 0xa143); /* lowest priority is answered with an EOI too; an NMI is not */
    ioapic_set_irq(&ioapic, 18, true);
    CHECK_EQ(in(0x34), 0xe143);
    ioapic_set_irq(&ioapic, 18, false);
    out(0x34, 0x10000), out(0x34, 0xa400);
    ioapic_set_irq(&ioapic, 18, true);
    CHECK_EQ(in(0x34), 0xa400);
    out(0x34, 0x10000);
    CHECK_EQ(sent, 6);
    sent = 4;

    out(0x3e, 0xa042), out(0x10, 0xa042); /* the first and the last pin */
    ioapic_set_irq(&ioapic, 23, true), ioapic_set_irq(&ioapic, 0, true);
    CHECK_EQ(sent, 6);
    ioapic_eoi(&ioapic, 0x42);
    CHECK_EQ(sent, 8);
    ioapic_set_irq(&ioapic, 23, false), ioapic_set_irq(&ioapic, 0, false);
    ioapic_eoi(&ioapic, 0x42);
    sent -= 4;

    out(0x32, 0xa041); /* two pins, one vector */
    ioapic_set_irq(&ioapic, 16, true), ioapic_set_irq(&ioapic, 17, true);
    CHECK_EQ(sent, 6);
    ioapic_set_irq(&ioapic, 16, false);
    ioapic_eoi(&ioapic, 0x41);
    CHECK_EQ(sent, 7);
    CHECK_EQ(in(0x30), 0xa041);
    CHECK_EQ(in(0x32), 0xe041);
}

int main(void)
{
    test_identification();
    test_edge();
    test_messages();
    test_level();
    return check_report();
}
