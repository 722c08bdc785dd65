/* SPDX-License-Identifier: MIT */
/* needs: dev/lapic*.c base/timer.c base/clock*.c base/host_tsc.c */
#include "lapic_world.h"

static void test_reset_state(void)
{
    uint64_t value;
    start(0, false);
    CHECK(lapic_msr_read(&lapic, 0x1b, &value));
    CHECK_EQ(value, 0xfee00900);
    CHECK_EQ(lapic_mmio_base(&lapic), 0xfee00000);
    CHECK(lapic_mmio_enabled(&lapic));
    CHECK_EQ(in(ID), 0);
    CHECK_EQ(in(VERSION), 0x01060015);
    CHECK_EQ(in(SVR), 0xff);
    CHECK_EQ(in(DFR), 0xffffffff);
    for (unsigned lvt = LVTT; lvt <= LVTERR; lvt += 0x10)
        CHECK_EQ(in(lvt), MASKED);
    CHECK_EQ(in(CMCI), MASKED);
    start(3, false);
    CHECK_EQ(in(ID), 0x03000000);
    CHECK_EQ(msr(0x1b), 0xfee00800);
    out(LVT0, 0x700);
    CHECK_EQ(in(LVT0), 0x10700); /* software-disabled: the masks stick */
    out(SVR, 0x1ff), out(LVT0, 0x700), out(LVTT, 0xec);
    out(SVR, 0x0ff);
    CHECK_EQ(in(LVTT), MASKED | 0xec);
    CHECK_EQ(in(LVT0), 0x10700);
}

static void test_priorities(void)
{
    start(0, true);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x31, false);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x52, false);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x5f, true);
    CHECK_EQ(in(IRR + 0x10), 0x00020000);
    CHECK_EQ(in(IRR + 0x20), 0x80040000);
    CHECK_EQ(in(TMR + 0x20), 0x80000000);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x5f);
    CHECK_EQ(in(ISR + 0x20), 0x80000000);
    CHECK_EQ(in(PPR), 0x50);
    CHECK_EQ(lapic_pending_vector(&lapic), -1); /* 52h is of the same class */
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x60, false);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x60);
    take_signals();
    out(EOI, 0);
    CHECK_EQ(eois, 0);
    CHECK_EQ(take_signals(), 0);
    out(EOI, 0); /* 5Fh came from a level: the I/O APIC hears of it */
    CHECK_EQ(eois, 1);
    CHECK_EQ(last_eoi, 0x5f);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR); /* 52h may come now */
    CHECK_EQ(lapic_pending_vector(&lapic), 0x52);
    CHECK_EQ(in(APR), 0x50);
    out(TPR, 0x68);
    CHECK_EQ(in(APR), 0x68);
    out(TPR, 0x50);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xff); /* too late: spurious */
    CHECK_EQ(in(ISR + 0x20), 0);
    CHECK_EQ(lapic_get_cr8(&lapic), 5);
    lapic_set_cr8(&lapic, 4);
    CHECK_EQ(in(TPR), 0x40);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x52);
    CHECK_EQ(in(PPR), 0x50);
    out(TPR, 0x57);
    CHECK_EQ(in(PPR), 0x57);
    out(EOI, 0);
    lapic_set_cr8(&lapic, 0);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x31);
    out(EOI, 0), out(EOI, 0); /* one too many does no harm */
    CHECK_EQ(in(PPR), 0);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x5f, false); /* now an edge: TMR follows */
    CHECK_EQ(in(TMR + 0x20), 0);
}

static void test_directed_eoi(void)
{
    start(0, true);
    out(SVR, 0x11ff);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x41, true);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x41);
    out(EOI, 0);
    CHECK_EQ(eois, 0);
}

static void test_modes(void)
{
    start(0, true);
    lapic_deliver(&lapic, LAPIC_MODE_NMI, 0, false);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_NMI);
    lapic_deliver(&lapic, LAPIC_MODE_SMI, 0, false);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_SMI);
    lapic_deliver(&lapic, LAPIC_MODE_INIT, 0, false);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INIT);
    lapic_deliver(&lapic, LAPIC_MODE_SIPI, 0x9a, false);
    CHECK_EQ(LAPIC_SIGNAL_SIPI_VECTOR(signals), 0x9a);
    CHECK_EQ(take_signals() & 0xff, LAPIC_SIGNAL_SIPI);
    CHECK(!lapic_extint_pending(&lapic));
    lapic_deliver(&lapic, LAPIC_MODE_EXTINT, 0, false);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR);
    CHECK(lapic_extint_pending(&lapic));
    lapic_extint_taken(&lapic);
    CHECK(!lapic_extint_pending(&lapic));

    out(SVR, 0xff); /* software-disabled: fixed interrupts are not accepted, the others are */
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x40, false);
    CHECK_EQ(in(IRR + 0x20), 0);
    lapic_deliver(&lapic, LAPIC_MODE_NMI, 0, false);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_NMI);
    CHECK(msr_write(0x1b, 0xfee00000)); /* off: deaf */
    lapic_deliver(&lapic, LAPIC_MODE_NMI, 0, false);
    CHECK_EQ(take_signals(), 0);
    CHECK(!lapic_match_destination(&lapic, LAPIC_BROADCAST, false));
}

static void test_errors(void)
{
    start(0, true);
    out(LVTERR, 0xfe);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x0f, false);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xfe);
    CHECK_EQ(in(ESR), 0);
    out(ESR, 0);
    CHECK_EQ(in(ESR), 0x40);
    out(ESR, 0);
    CHECK_EQ(in(ESR), 0);
    out(EOI, 0);
    out(ICR, 0x0000c); /* an IPI with vector 0Ch */
    CHECK_EQ(ipis, 0);
    in(0x040);
    out(ESR, 0);
    CHECK_EQ(in(ESR), 0xa0);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xfe);
    CHECK_EQ(lapic_mmio_read(&lapic, SVR + 1, 1), 0x01);
    CHECK_EQ(lapic_mmio_read(&lapic, SVR + 4, 4), 0);
    lapic_mmio_write(&lapic, SVR, 1, 0);
    CHECK_EQ(in(SVR), 0x1ff);
}

/* Linux wakes a processor: INIT asserted, de-asserted, two start-ups; then calls it with fixed IPIs. */
static void test_ipis(void)
{
    start(0, true);
    out(ICR2, 0x02000000), out(ICR, 0xc500);
    CHECK_EQ(last_ipi, UINT64_C(0x000000020000c500));
    out(ICR2, 0x02000000), out(ICR, 0x8500);
    CHECK_EQ(ipis, 1);
    out(ICR2, 0x02000000), out(ICR, 0x0699);
    CHECK_EQ(ipis, 2);
    CHECK_EQ(LAPIC_ICR_MODE(last_ipi), LAPIC_MODE_SIPI);
    CHECK_EQ(LAPIC_ICR_VECTOR(last_ipi), 0x99);
    CHECK_EQ(LAPIC_ICR_DESTINATION(last_ipi), 2);
    CHECK_EQ(in(ICR), 0x0699); /* idle again at once */
    CHECK_EQ(in(ICR2), 0x02000000);
    out(ICR2, 0x0c000000), out(ICR, 0x8fd);
    CHECK(LAPIC_ICR_LOGICAL(last_ipi));
    CHECK_EQ(LAPIC_ICR_DESTINATION(last_ipi), 0x0c);
    out(ICR2, 0xff000000), out(ICR, 0x400);
    CHECK_EQ(LAPIC_ICR_DESTINATION(last_ipi), LAPIC_BROADCAST);
    out(ICR, 0xc08fc);
    CHECK_EQ(LAPIC_ICR_SHORTHAND(last_ipi), 3);
    CHECK_EQ(ipis, 5);
    out(ICR, 0x700); /* ExtINT cannot be sent */
    CHECK_EQ(ipis, 5);
}

static void test_destinations(void)
{
    start(5, true);
    CHECK(lapic_match_destination(&lapic, 5, false));
    CHECK(!lapic_match_destination(&lapic, 4, false));
    CHECK(!lapic_match_destination(&lapic, 0x105, false));
    CHECK(lapic_match_destination(&lapic, LAPIC_BROADCAST, false));
    CHECK(lapic_match_destination(&lapic, LAPIC_BROADCAST, true));
    CHECK_EQ(lapic_msi_destination(0xfeeff00c), LAPIC_BROADCAST);
    CHECK_EQ(lapic_msi_destination(0xfee05000), 5);
    CHECK(!lapic_match_destination(&lapic, 0x20, true)); /* LDR is zero */
    out(DFR, 0xffffffff), out(LDR, 0x20000000); /* flat */
    CHECK_EQ(in(LDR), 0x20000000);
    CHECK(lapic_match_destination(&lapic, 0x21, true));
    CHECK(!lapic_match_destination(&lapic, 0xdf, true));
    out(DFR, 0x0fffffff), out(LDR, 0x12000000); /* cluster 1, member 2 */
    CHECK(lapic_match_destination(&lapic, 0x12, true));
    CHECK(lapic_match_destination(&lapic, 0xf3, true));
    CHECK(!lapic_match_destination(&lapic, 0x22, true));
    CHECK(!lapic_match_destination(&lapic, 0x1d, true));

    start(0x123, true);
    CHECK_EQ(in(ID), 0x23000000);
    to_x2apic();
    CHECK(lapic_match_destination(&lapic, 0x123, false));
    CHECK(!lapic_match_destination(&lapic, 0x23, false));
    CHECK_EQ(msr(0x80d), 0x00120008);
    CHECK(lapic_match_destination(&lapic, 0x0012000f, true));
    CHECK(!lapic_match_destination(&lapic, 0x0012fff7, true));
    CHECK(!lapic_match_destination(&lapic, 0x00130008, true));

    CHECK_EQ(lapic_arbitration(&lapic), 0);
    lapic_set_cr8(&lapic, 3);
    CHECK_EQ(lapic_arbitration(&lapic), 0x30);
    CHECK(msr_write(0x80f, 0xff));
    CHECK_EQ(lapic_arbitration(&lapic), UINT_MAX);
}

/* What stands in a register comes back from it, in xAPIC mode. */
static void test_read_back(void)
{
    static const struct { uint16_t offset; uint32_t written, read; } rows[] = {
        {TPR, 0xffffffff, 0xff}, {LDR, 0xffffffff, 0xff000000}, {DFR, 0, 0x0fffffff}, {CMCI, 0xffffffff, 0x107ff},
        {LVTT, 0xffffffff, 0x700ff}, {LVTTHMR, 0xffffffff, 0x107ff}, {LVTPC, 0xffffffff, 0x107ff},
        {LVT0, 0xffffffff, 0x1a7ff}, {LVT1, 0xffffffff, 0x1a7ff}, {LVTERR, 0xffffffff, 0x100ff},
        {SVR, 0xffffffff, 0x11ff}, {TDCR, 0xffffffff, 0xb}, {ICR2, 0xffffffff, 0xff000000},
    };
    start(0, true);
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        out(rows[i].offset, rows[i].written);
        CHECK_EQ(in(rows[i].offset), rows[i].read);
    }
    out(LVTT, 0x100ec), out(TMICT, 12345);
    CHECK_EQ(in(TMICT), 12345);
    out(ID, 0x05000000); /* read-only, and no error either */
    CHECK_EQ(in(ID), 0);
    CHECK_EQ(in(0xc0), 0);
    CHECK_EQ(in(EOI), 0);
    out(ESR, 0);
    CHECK_EQ(in(ESR), 0);
    out(VERSION, 0); /* this one is an error */
    out(ESR, 0);
    CHECK_EQ(in(ESR), 0x80);
    start(0, true); /* software-disabled: all are masked, CMCI too */
    for (unsigned offset = CMCI; offset <= LVTERR; offset += offset == CMCI ? 0x30 : 0x10)
        out(offset, 0xf0);
    out(SVR, 0xff);
    for (unsigned offset = CMCI; offset <= LVTERR; offset += offset == CMCI ? 0x30 : 0x10)
        CHECK_EQ(in(offset), MASKED | 0xf0);
}

static void test_local_pins(void)
{
    start(0, false);
    CHECK(!lapic_accepts_pic(&lapic));
    lapic_set_virtual_wire(&lapic);
    CHECK_EQ(in(SVR), 0x1ff);
    CHECK(lapic_accepts_pic(&lapic));
    CHECK(!lapic_extint_pending(&lapic));
    lapic_set_lint(&lapic, 0, true);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR);
    CHECK(lapic_extint_pending(&lapic));
    lapic_set_lint(&lapic, 0, false);
    CHECK(!lapic_extint_pending(&lapic));
    lapic_set_lint(&lapic, 1, true);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_NMI);
    lapic_set_lint(&lapic, 1, true);
    CHECK_EQ(take_signals(), 0); /* an edge */
    out(LVT0, 0x10700);
    lapic_set_lint(&lapic, 0, true);
    CHECK_EQ(take_signals(), 0);
    CHECK(!lapic_extint_pending(&lapic));
    out(LVT0, 0x700); /* it still stands */
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR);
    lapic_set_lint(&lapic, 0, false);

    out(LVT0, 0x8033); /* fixed and level-triggered */
    lapic_set_lint(&lapic, 0, true);
    CHECK_EQ(in(LVT0), 0xc033);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x33);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    out(EOI, 0);
    CHECK_EQ(lapic_acknowledge(&lapic), 0x33); /* again */
    lapic_set_lint(&lapic, 0, false);
    out(EOI, 0);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    CHECK_EQ(in(LVT0), 0x8033);
    CHECK_EQ(eois, 0);
    out(LVT0, 0x400); /* Linux's old NMI watchdog */
    lapic_set_lint(&lapic, 0, true);
    CHECK_EQ(take_signals() & LAPIC_SIGNAL_NMI, LAPIC_SIGNAL_NMI);

    CHECK(msr_write(0x1b, 0xfee00000)); /* without APIC: INTR and NMI */
    CHECK(lapic_accepts_pic(&lapic));
    CHECK(lapic_extint_pending(&lapic));
    take_signals();
    lapic_set_lint(&lapic, 1, false), lapic_set_lint(&lapic, 1, true);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_NMI);
    lapic_set_lint(&lapic, 0, false), lapic_set_lint(&lapic, 0, true);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_INTR);
    CHECK_EQ(lapic_acknowledge(&lapic), -1);

    start(0, true);
    out(LVTPC, 0x400);
    lapic_raise_lvt(&lapic, LAPIC_LVT_PERF);
    CHECK_EQ(take_signals(), LAPIC_SIGNAL_NMI);
    CHECK_EQ(in(LVTPC), MASKED | 0x400); /* masks itself */
    lapic_raise_lvt(&lapic, LAPIC_LVT_PERF);
    CHECK_EQ(take_signals(), 0);
    out(LVTTHMR, 0xfa);
    lapic_raise_lvt(&lapic, LAPIC_LVT_THERMAL);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xfa);
}

static void test_x2apic(void)
{
    uint64_t value;
    start(0, true);
    CHECK(!lapic_msr_read(&lapic, 0x802, &value)); /* not yet */
    CHECK(!msr_write(0x1b, 0xfee00400));           /* EXTD without EN */
    CHECK(!msr_write(0x1b, 0xfee00801));           /* a reserved bit */
    to_x2apic();
    CHECK_EQ(msr(0x1b), 0xfee00d00);
    CHECK(!lapic_mmio_enabled(&lapic));
    CHECK_EQ(msr(0x802), 0);
    CHECK_EQ(msr(0x803), 0x01060015);
    CHECK_EQ(msr(0x80d), 1);
    CHECK_EQ(msr(0x80f), 0x1ff);
    CHECK(!msr_write(0x802, 0));
    CHECK(!msr_write(0x80d, 0));
    CHECK(!lapic_msr_read(&lapic, 0x80e, &value));
    CHECK(!lapic_msr_read(&lapic, 0x831, &value));
    CHECK(!lapic_msr_read(&lapic, 0x80b, &value));
    CHECK(!lapic_msr_read(&lapic, 0x840, &value));
    CHECK(!lapic_msr_read(&lapic, 0x900, &value));
    CHECK(!lapic_msr_read(&lapic, 0x7ff, &value));
    CHECK(!lapic_msr_read(&lapic, 0x809, &value));
    CHECK(!lapic_msr_read(&lapic, 0x80c, &value));
    CHECK(!lapic_msr_read(&lapic, 0x7fffffff, &value));
    CHECK(!msr_write(0x7ff, 0));
    CHECK(!msr_write(0x900, 0));
    CHECK(!msr_write(0x80a, 0));
    CHECK(!msr_write(0x839, 0));
    CHECK_EQ(msr(0x80a), 0);
    CHECK_EQ(msr(0x828), 0);
    CHECK_EQ(msr(0x838), 0);
    CHECK_EQ(msr(0x839), 0);
    CHECK_EQ(msr(0x83e), 0);
    CHECK_EQ(msr(0x82f), MASKED);
    CHECK(!msr_write(0x808, 0x100));
    CHECK(msr_write(0x808, 0x20));
    CHECK_EQ(lapic_get_cr8(&lapic), 2);
    CHECK(!msr_write(0x80b, 1));
    CHECK(!msr_write(0x828, 1));
    CHECK(!msr_write(0x832, 0x80000));
    CHECK(!msr_write(0x838, UINT64_C(1) << 32));
    CHECK(!msr_write(0x83e, 4));
    CHECK(msr_write(0x83e, 0xb));
    CHECK(msr_write(0x832, 0x400ec));
    CHECK_EQ(msr(0x832), 0x400ec);

    CHECK(msr_write(0x830, UINT64_C(0x00000123000008fd)));
    CHECK_EQ(last_ipi, UINT64_C(0x00000123000008fd));
    CHECK_EQ(msr(0x830), UINT64_C(0x00000123000008fd));
    CHECK(!msr_write(0x830, 0x100000));
    CHECK_EQ(ipis, 1);
    CHECK(msr_write(0x83f, 0x77));
    CHECK_EQ(LAPIC_ICR_SHORTHAND(last_ipi), 1);
    CHECK_EQ(LAPIC_ICR_VECTOR(last_ipi), 0x77);
    CHECK(!msr_write(0x83f, 0x177));

    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0xe1, true);
    CHECK_EQ(msr(0x827), 2);
    CHECK_EQ(msr(0x81f), 2);
    CHECK_EQ(lapic_acknowledge(&lapic), 0xe1);
    CHECK_EQ(msr(0x817), 2);
    CHECK(msr_write(0x80b, 0));
    CHECK_EQ(eois, 1);
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x10, false); /* the lowest legal vector and the highest */
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0xff, true);
    CHECK_EQ(msr(0x820), 0x00010000);
    CHECK_EQ(msr(0x81f), 0x80000000 | 2); /* TMR keeps what it learned of E1h */
    CHECK_EQ(lapic_acknowledge(&lapic), 0xff);
    CHECK_EQ(msr(0x817), 0x80000000);
    CHECK(msr_write(0x80b, 0));
    CHECK_EQ(lapic_pending_vector(&lapic), -1); /* the TPR holds class 1 back */
    CHECK(msr_write(0x808, 0));
    CHECK_EQ(lapic_acknowledge(&lapic), 0x10);
    CHECK(msr_write(0x80b, 0));

    CHECK(!msr_write(0x1b, 0xfee00800)); /* back to xAPIC only by way of off */
    CHECK(msr_write(0x1b, 0xfee00000));
    CHECK(!msr_write(0x1b, 0xfee00c00));
    CHECK(msr_write(0x1b, 0xfee00800));
    CHECK_EQ(in(SVR), 0xff); /* as after a reset */
    CHECK_EQ(msr(0x1b), 0xfee00900); /* BSP is not for software to change */
    CHECK(msr_write(0x1b, 0xfed00900));
    CHECK_EQ(lapic_mmio_base(&lapic), 0xfed00000);
}

static void test_init(void)
{
    start(7, true);
    to_x2apic();
    CHECK(msr_write(0x832, 0x200ec));
    CHECK(msr_write(0x838, 1000));
    lapic_deliver(&lapic, LAPIC_MODE_FIXED, 0x40, false);
    lapic_init_reset(&lapic);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    CHECK_EQ(msr(0x1b), 0xfee00c00); /* the mode and the ID stay */
    CHECK_EQ(msr(0x802), 7);
    CHECK_EQ(msr(0x80d), 0x80);
    CHECK_EQ(msr(0x80f), 0xff);
    lapic_reset(&lapic);
    CHECK_EQ(msr(0x1b), 0xfee00800);
}

static void test_saved_state(void)
{
    start(0, true);
    out(TDCR, 0xb), out(LVTT, 0xec), out(TMICT, 5000);
    pass(2000);
    struct lapic_state saved = lapic.state;
    lapic_reset(&lapic);
    pass(1000);
    lapic.state = saved;
    lapic_loaded(&lapic);
    pass(1999);
    CHECK_EQ(lapic_pending_vector(&lapic), -1);
    pass(1);
    CHECK_EQ(lapic_pending_vector(&lapic), 0xec);
}

int main(void)
{
    test_reset_state();
    test_priorities();
    test_directed_eoi();
    test_modes();
    test_errors();
    test_ipis();
    test_destinations();
    test_read_back();
    test_local_pins();
    test_x2apic();
    test_init();
    test_saved_state();
    return check_report();
}
