/* SPDX-License-Identifier: MIT */
/* needs: dev/acpi_pm.c base/timer.c base/clock*.c base/host_tsc.c */
#include "check.h"
#include "dev/acpi_pm.h"
#include "virtual_time.h"

static struct acpi_pm pm;
static bool sci;
static unsigned sleeps, sleep_type;

static void on_sci(void *opaque, unsigned pin, bool level)
{
    (void)opaque, (void)pin;
    sci = level;
}

static void on_sleep(void *opaque, unsigned type)
{
    (void)opaque;
    sleeps++;
    sleep_type = type;
}

static void start(bool timer_32bit)
{
    static const struct acpi_pm_host host = {.sleep = on_sleep};
    begin_time();
    acpi_pm_init(&pm, &queue, (struct irq_line){.set = on_sci}, timer_32bit, &host);
    sci = false;
    sleeps = 0;
}

static uint32_t in(unsigned offset, unsigned size) { return (uint32_t)acpi_pm_ops.read(&pm, offset, size); }
static void out(unsigned offset, unsigned size, uint32_t value) { acpi_pm_ops.write(&pm, offset, size, value); }

static void enable_acpi(void)
{
    CHECK_EQ(in(ACPI_PM_CNT, 2) & 1, 0);
    acpi_pm_smi_ops.write(&pm, 0, 1, ACPI_PM_ENABLE);
    CHECK_EQ(in(ACPI_PM_CNT, 2) & 1, 1);
}

/* The path of a power button: enabled, pressed, cleared. */
static void test_power_button(void)
{
    start(true);
    enable_acpi();
    out(ACPI_PM_EVT + 2, 2, 0x0100);
    CHECK_EQ(in(ACPI_PM_EVT + 2, 2), 0x0100);
    acpi_pm_power_button(&pm);
    CHECK(sci);
    CHECK_EQ(in(ACPI_PM_EVT, 2), 0x0100);
    out(ACPI_PM_EVT, 2, 0x0001); /* clears nothing of it */
    CHECK(sci);
    out(ACPI_PM_EVT, 2, 0x0100);
    CHECK(!sci);
    CHECK_EQ(in(ACPI_PM_EVT, 4), 0x01000000);

    acpi_pm_sleep_button(&pm); /* not enabled: status only */
    CHECK(!sci);
    CHECK_EQ(in(ACPI_PM_EVT, 2), 0x0200);
    out(ACPI_PM_EVT + 3, 1, 0x03); /* by bytes */
    CHECK(sci);
    out(ACPI_PM_EVT + 1, 1, 0x02);
    CHECK(!sci);
    out(ACPI_PM_EVT + 2, 2, 0xffff);
    CHECK_EQ(in(ACPI_PM_EVT + 2, 2), 0x0721); /* the rest is reserved */

    acpi_pm_power_button(&pm); /* in legacy mode the SCI is off */
    CHECK(sci);
    acpi_pm_smi_ops.write(&pm, 0, 1, ACPI_PM_DISABLE);
    CHECK(!sci);
    CHECK_EQ(in(ACPI_PM_CNT, 2) & 1, 0);
    CHECK_EQ(acpi_pm_smi_ops.read(&pm, 0, 1), ACPI_PM_DISABLE);
    acpi_pm_smi_ops.write(&pm, 1, 1, 0x5a);
    CHECK_EQ(acpi_pm_smi_ops.read(&pm, 0, 2), 0x5a00 | ACPI_PM_DISABLE);
    CHECK_EQ(acpi_pm_smi_ops.read(&pm, 1, 1), 0x5a);
    CHECK_EQ(acpi_pm_smi_ops.read(&pm, 0, 1), ACPI_PM_DISABLE);
    acpi_pm_smi_ops.write(&pm, 0, 1, ACPI_PM_ENABLE); /* a byte leaves the status port alone */
    CHECK_EQ(acpi_pm_smi_ops.read(&pm, 0, 2), 0x5a00 | ACPI_PM_ENABLE);
    acpi_pm_smi_ops.write(&pm, 0, 2, 0xa500 | ACPI_PM_DISABLE);
    CHECK_EQ(acpi_pm_smi_ops.read(&pm, 0, 2), 0xa500 | ACPI_PM_DISABLE);
}

static void test_sleep(void)
{
    start(true);
    enable_acpi();
    uint16_t control = (uint16_t)in(ACPI_PM_CNT, 2);
    out(ACPI_PM_CNT, 2, control | 5 << 10); /* Linux writes SLP_TYP first */
    CHECK_EQ(sleeps, 0);
    CHECK_EQ(in(ACPI_PM_CNT, 2), 1 | 5 << 10);
    out(ACPI_PM_CNT, 2, control | 5 << 10 | 0x2000);
    CHECK_EQ(sleeps, 1);
    CHECK_EQ(sleep_type, 5);
    CHECK_EQ(in(ACPI_PM_CNT, 2) & 0x2000, 0);
    out(ACPI_PM_CNT + 1, 1, 0x20); /* a single byte does it too */
    CHECK_EQ(sleeps, 2);
    CHECK_EQ(sleep_type, 0);
    out(ACPI_PM_CNT, 2, 0); /* SCI_EN is not the OS's to clear */
    CHECK_EQ(in(ACPI_PM_CNT, 2), 1);
    acpi_pm_wake(&pm);
    CHECK_EQ(in(ACPI_PM_EVT, 2), 0x8000);
    CHECK(!sci);
    out(ACPI_PM_EVT, 2, 0x8000);
    CHECK_EQ(in(ACPI_PM_EVT, 2), 0);
}

static void test_timer(void)
{
    start(true);
    pass(1000000000);
    CHECK_EQ(in(ACPI_PM_TMR, 4), 3579545);
    CHECK_EQ(in(ACPI_PM_TMR + 1, 1), 3579545 >> 8 & 0xff);
    out(ACPI_PM_TMR, 4, 0); /* read-only */
    CHECK_EQ(in(ACPI_PM_TMR, 4), 3579545);
    acpi_pm_reset(&pm);
    CHECK_EQ(in(ACPI_PM_TMR, 4), 0);
    pass(1000000000);
    CHECK_EQ(in(ACPI_PM_TMR, 4), 3579545);
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);

    acpi_pm_reset(&pm); /* a second time: from an offset that is not zero */
    pass(1000000000);
    CHECK_EQ(in(ACPI_PM_TMR, 4), 3579545);

    out(ACPI_PM_EVT + 2, 2, 0x0100); /* other events need no timer */
    CHECK_EQ(timer_queue_next_ns(&queue), TIMER_NEVER);
    out(ACPI_PM_EVT + 2, 2, 1);
    CHECK(timer_queue_next_ns(&queue) > timer_queue_now_ns(&queue) + UINT64_C(590000000000)); /* half of 2^32 ticks */
    CHECK(timer_queue_next_ns(&queue) < timer_queue_now_ns(&queue) + UINT64_C(600000000000));

    start(false);
    pass(UINT64_C(5) * 1000000000);
    CHECK_EQ(in(ACPI_PM_TMR, 4), 5 * 3579545 & 0xffffff);
    CHECK_EQ(in(ACPI_PM_EVT, 2), 1); /* bit 23 has changed, seen by whoever looks */
    out(ACPI_PM_EVT, 2, 1);
    CHECK_EQ(in(ACPI_PM_EVT, 2), 0);
    enable_acpi();
    out(ACPI_PM_EVT + 2, 2, 1);
    unsigned interrupts = 0;
    for (unsigned i = 0; i < 235; i++) { /* every 2.343 s */
        pass(100000000);
        if (sci) {
            interrupts++;
            out(ACPI_PM_EVT, 2, 1);
            CHECK(!sci);
        }
    }
    CHECK_EQ(interrupts, (285 * 357954 >> 23) - (50 * 357954 >> 23));
}

static void test_general_purpose_events(void)
{
    start(true);
    enable_acpi();
    out(ACPI_PM_GPE + 2, 2, 0x8002);
    CHECK_EQ(in(ACPI_PM_GPE + 2, 2), 0x8002);
    acpi_pm_raise_gpe(&pm, 1);
    CHECK(sci);
    CHECK_EQ(in(ACPI_PM_GPE, 2), 0x0002);
    out(ACPI_PM_GPE, 1, 0x02);
    CHECK(!sci);
    acpi_pm_set_gpe(&pm, 3, true);
    CHECK_EQ(in(ACPI_PM_GPE, 2), 0x0008);
    acpi_pm_set_gpe(&pm, 3, false);
    out(ACPI_PM_GPE, 2, 0x0008);
    acpi_pm_set_gpe(&pm, 15, true);
    CHECK(sci);
    out(ACPI_PM_GPE + 1, 1, 0x80); /* the level stands */
    CHECK(sci);
    acpi_pm_set_gpe(&pm, 15, false);
    CHECK(sci); /* latched */
    out(ACPI_PM_GPE + 1, 1, 0x80);
    CHECK(!sci);
    acpi_pm_raise_gpe(&pm, 2);
    CHECK(!sci);
    out(ACPI_PM_GPE + 2, 2, 0x0004);
    CHECK(sci);
    acpi_pm_reset(&pm);
    CHECK(!sci);
    CHECK_EQ(in(ACPI_PM_GPE, 4), 0);
}

static void test_saved_state(void)
{
    start(false);
    enable_acpi();
    out(ACPI_PM_EVT + 2, 2, 1);
    struct acpi_pm_state saved = pm.state;
    acpi_pm_reset(&pm);
    pm.state = saved;
    acpi_pm_loaded(&pm);
    pass(UINT64_C(2344) * 1000000);
    CHECK(sci);
}

int main(void)
{
    test_power_button();
    test_sleep();
    test_timer();
    test_general_purpose_events();
    test_saved_state();
    return check_report();
}
