/* SPDX-License-Identifier: MIT */
/* ACPI fixed hardware, as in the ACPI specification 6.5, chapter 4.8 (the registers' layout is the PIIX4's).
 *
 * The PM timer is computed from the clock; a host timer runs only while its interrupt is enabled.
 * Not emulated: the BIOS's side of GBL_RLS, processor and bus master control, legacy-mode SMIs. */
#include "acpi_pm.h"

#include <string.h>

#define NS_PER_SEC 1000000000u

/* PM1 status and enable */
#define PM1_TMR 0x0001
#define PM1_GBL 0x0020
#define PM1_PWRBTN 0x0100
#define PM1_SLPBTN 0x0200
#define PM1_RTC 0x0400
#define PM1_WAK 0x8000 /* status only */
#define PM1_ENABLES (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)

/* PM1 control:  15..14 | SLP_EN 13 | SLP_TYP 12..10 | 9..3 | GBL_RLS 2 | BM_RLD 1 | SCI_EN 0 */
#define CNT_SCI_EN 0x0001
#define CNT_BM_RLD 0x0002
#define CNT_SLP_TYP(v) (((v) >> 10) & 7)
#define CNT_SLP_TYP_MASK 0x1c00
#define CNT_SLP_EN 0x2000

static uint64_t ticks_at(const struct acpi_pm *pm, uint64_t now_ns)
{
    return pm->state.timer_offset + (uint64_t)((unsigned __int128)now_ns * ACPI_PM_TIMER_HZ / NS_PER_SEC);
}

static unsigned top_bit(const struct acpi_pm *pm)
{
    return pm->timer_32bit ? 31 : 23;
}

static void update_sci(struct acpi_pm *pm)
{
    const struct acpi_pm_state *s = &pm->state;
    bool level = (s->pm1_status & s->pm1_enable & PM1_ENABLES) || (s->gpe_status & s->gpe_enable);
    irq_set(&pm->sci, level && (s->pm1_control & CNT_SCI_EN));
}

/* TMR_STS is set whenever the timer's most significant bit changes. */
static void settle(struct acpi_pm *pm, uint64_t now_ns)
{
    uint64_t toggles = ticks_at(pm, now_ns) >> top_bit(pm);
    if (toggles == pm->state.timer_toggles)
        return;
    pm->state.timer_toggles = toggles;
    pm->state.pm1_status |= PM1_TMR;
}

static void schedule(struct acpi_pm *pm, uint64_t now_ns)
{
    const struct acpi_pm_state *s = &pm->state;
    timer_cancel(pm->timers, &pm->timer);
    if (!(s->pm1_enable & PM1_TMR) || (s->pm1_status & PM1_TMR))
        return;
    uint64_t tick = ((ticks_at(pm, now_ns) >> top_bit(pm)) + 1) << top_bit(pm);
    unsigned __int128 ns = (unsigned __int128)(tick - s->timer_offset) * NS_PER_SEC;
    timer_arm(pm->timers, &pm->timer, (uint64_t)((ns + ACPI_PM_TIMER_HZ - 1) / ACPI_PM_TIMER_HZ));
}

static void timer_fired(void *opaque, uint64_t now_ns)
{
    struct acpi_pm *pm = opaque;
    settle(pm, now_ns);
    schedule(pm, now_ns);
    update_sci(pm);
}

/* ---- the blocks, byte by byte: the specification allows any width that fits ---- */

static void set_byte(uint16_t *reg, unsigned high, uint8_t value)
{
    *reg = (uint16_t)(high ? (*reg & 0x00ff) | value << 8 : (*reg & 0xff00) | value);
}

static void clear_byte(uint16_t *reg, unsigned high, uint8_t ones)
{
    *reg &= (uint16_t)~(high ? ones << 8 : ones);
}

static void write_control(struct acpi_pm *pm, unsigned high, uint8_t value)
{
    struct acpi_pm_state *s = &pm->state;
    uint16_t written = (uint16_t)(high ? value << 8 : value);
    if (!high) { /* SCI_EN is the SMI command port's to change: "OSPM always preserves this bit" */
        s->pm1_control = (uint16_t)((s->pm1_control & ~CNT_BM_RLD) | (written & CNT_BM_RLD));
        return;
    }
    s->pm1_control = (uint16_t)((s->pm1_control & ~CNT_SLP_TYP_MASK) | (written & CNT_SLP_TYP_MASK));
    if (written & CNT_SLP_EN) /* reads as zero */
        pm->host.sleep(pm->host.opaque, CNT_SLP_TYP(written));
}

static uint8_t read_byte(const struct acpi_pm *pm, uint64_t now_ns, unsigned offset)
{
    const struct acpi_pm_state *s = &pm->state;
    const uint16_t words[8] = {s->pm1_status, s->pm1_enable, s->pm1_control, 0, 0, 0, s->gpe_status, s->gpe_enable};
    if (offset >= ACPI_PM_TMR && offset < ACPI_PM_TMR + 4) {
        uint64_t ticks = ticks_at(pm, now_ns) & (pm->timer_32bit ? UINT32_MAX : 0xffffff);
        return (uint8_t)(ticks >> (8 * (offset - ACPI_PM_TMR)));
    }
    return (uint8_t)(words[offset / 2] >> (offset & 1 ? 8 : 0));
}

static void write_byte(struct acpi_pm *pm, unsigned offset, uint8_t value)
{
    struct acpi_pm_state *s = &pm->state;
    unsigned high = offset & 1;
    switch (offset & ~1u) {
    case ACPI_PM_EVT: /* status bits are cleared by writing ones */
        clear_byte(&s->pm1_status, high, value);
        break;
    case ACPI_PM_EVT + 2:
        set_byte(&s->pm1_enable, high, value);
        s->pm1_enable &= PM1_ENABLES;
        break;
    case ACPI_PM_CNT:
        write_control(pm, high, value);
        break;
    case ACPI_PM_GPE:
        clear_byte(&s->gpe_status, high, value);
        s->gpe_status |= s->gpe_levels;
        break;
    case ACPI_PM_GPE + 2:
        set_byte(&s->gpe_enable, high, value);
        break;
    }
}

static uint64_t acpi_pm_read(void *device, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = device;
    uint64_t now_ns = timer_queue_now_ns(pm->timers), value = 0;
    settle(pm, now_ns);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_byte(pm, now_ns, (unsigned)(offset + i)) << (8 * i);
    return value;
}

static void acpi_pm_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = device;
    uint64_t now_ns = timer_queue_now_ns(pm->timers);
    settle(pm, now_ns);
    for (unsigned i = 0; i < size; i++)
        write_byte(pm, (unsigned)(offset + i), (uint8_t)(value >> (8 * i)));
    schedule(pm, now_ns);
    update_sci(pm);
}

/* SMI_CMD (FADT): no SMI handler runs behind it, the register does what ours would do. */
static void smi_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = device;
    struct acpi_pm_state *s = &pm->state;
    if (size > 1 && offset == 0)
        s->smi_status = (uint8_t)(value >> 8);
    if (offset == 1) {
        s->smi_status = (uint8_t)value;
        return;
    }
    s->smi_command = (uint8_t)value;
    if (s->smi_command == ACPI_PM_ENABLE)
        s->pm1_control |= CNT_SCI_EN;
    else if (s->smi_command == ACPI_PM_DISABLE)
        s->pm1_control &= (uint16_t)~CNT_SCI_EN;
    update_sci(pm);
}

static uint64_t smi_read(void *device, uint64_t offset, unsigned size)
{
    const struct acpi_pm *pm = device;
    uint64_t value = pm->state.smi_command | (uint64_t)pm->state.smi_status << 8;
    return value >> (8 * offset) & (size > 1 ? 0xffff : 0xff);
}

/* ---- events ---- */

static void raise_pm1(struct acpi_pm *pm, uint16_t status)
{
    pm->state.pm1_status |= status;
    update_sci(pm);
}

void acpi_pm_power_button(struct acpi_pm *pm)
{
    raise_pm1(pm, PM1_PWRBTN);
}

void acpi_pm_sleep_button(struct acpi_pm *pm)
{
    raise_pm1(pm, PM1_SLPBTN);
}

void acpi_pm_wake(struct acpi_pm *pm)
{
    raise_pm1(pm, PM1_WAK);
}

void acpi_pm_raise_gpe(struct acpi_pm *pm, unsigned event)
{
    pm->state.gpe_status |= (uint16_t)(1u << (event & 15));
    update_sci(pm);
}

void acpi_pm_set_gpe(struct acpi_pm *pm, unsigned event, bool level)
{
    uint16_t bit = (uint16_t)(1u << (event & 15));
    pm->state.gpe_levels = (uint16_t)(level ? pm->state.gpe_levels | bit : pm->state.gpe_levels & ~bit);
    pm->state.gpe_status |= pm->state.gpe_levels;
    update_sci(pm);
}

void acpi_pm_reset(struct acpi_pm *pm)
{
    struct acpi_pm_state *s = &pm->state;
    uint64_t ticks = ticks_at(pm, timer_queue_now_ns(pm->timers)) - s->timer_offset;
    memset(s, 0, sizeof(*s));
    s->timer_offset = 0 - ticks; /* the timer begins at zero again */
    timer_cancel(pm->timers, &pm->timer);
    update_sci(pm);
}

void acpi_pm_loaded(struct acpi_pm *pm)
{
    schedule(pm, timer_queue_now_ns(pm->timers));
}

void acpi_pm_init(struct acpi_pm *pm, struct timer_queue *timers, struct irq_line sci, bool timer_32bit,
                  const struct acpi_pm_host *host)
{
    memset(pm, 0, sizeof(*pm));
    pm->timers = timers;
    pm->sci = sci;
    pm->host = *host;
    pm->timer_32bit = timer_32bit;
    timer_init(&pm->timer, timer_fired, pm);
}

const struct bus_ops acpi_pm_ops = {acpi_pm_read, acpi_pm_write};
const struct bus_ops acpi_pm_smi_ops = {smi_read, smi_write};
