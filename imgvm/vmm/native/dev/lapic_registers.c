/* SPDX-License-Identifier: MIT */
/* The local APIC's registers, as MMIO and as MSRs: SDM vol. 3, "The Local APIC Block Diagram" (register address map)
 * and "Extended xAPIC (x2APIC)". What the registers do stands in lapic.c and lapic_timer.c. */
#include "lapic_internal.h"

#define BASE_ADDRESS UINT64_C(0x000ffffffffff000)

#define VERSION (0x15u | (LAPIC_LVTS - 1u) << 16 | 1u << 24) /* bit 24: SVR can suppress the EOI broadcast */

#define SVR_WRITABLE (0xffu | SVR_ENABLE | SVR_NO_EOI_BROADCAST)
#define DFR_FLAT 0xf0000000u

#define ICR_STATUS BIT(12)
#define ICR_WRITABLE UINT64_C(0xccfff) /* with the destination above; bit 12 is read-only */
#define ICR_SHORTHAND_SELF (UINT64_C(1) << 18)

#define ESR_ILLEGAL_REGISTER 0x80u

static unsigned arbitration_priority(const struct lapic *lapic)
{
    int irrv = lapic_highest(lapic->state.irr), isrv = lapic_highest(lapic->state.isr);
    unsigned tpr = lapic->state.tpr & 0xf0, irr = irrv < 0 ? 0 : (unsigned)irrv & 0xf0;
    unsigned isr = isrv < 0 ? 0 : (unsigned)isrv & 0xf0;
    if (tpr >= irr && tpr > isr)
        return lapic->state.tpr;
    return (tpr & isr) > irr ? tpr & isr : irr;
}

static int lvt_at(unsigned offset)
{
    static const uint16_t offsets[LAPIC_LVTS] = {REG_LVT_CMCI,  REG_LVT_TIMER, REG_LVT_THERMAL, REG_LVT_PERF,
                                                 REG_LVT_LINT0, REG_LVT_LINT1, REG_LVT_ERROR};
    for (unsigned i = 0; i < LAPIC_LVTS; i++)
        if (offsets[i] == offset)
            return (int)i;
    return -1;
}

static uint32_t lvt_writable(unsigned lvt)
{
    switch (lvt) {
    case LAPIC_LVT_TIMER:
        return 0xffu | LVT_MASKED | LVT_TIMER_MODE;
    case LAPIC_LVT_LINT0:
    case LAPIC_LVT_LINT1:
        return 0x7ffu | LVT_POLARITY | LVT_LEVEL | LVT_MASKED;
    case LAPIC_LVT_ERROR:
        return 0xffu | LVT_MASKED;
    default:
        return 0x7ffu | LVT_MASKED;
    }
}

/* False: there is no such register. */
static bool read_register(struct lapic *lapic, unsigned offset, uint32_t *value)
{
    const struct lapic_state *s = &lapic->state;
    int lvt = lvt_at(offset);
    if (lvt >= 0) {
        *value = s->lvt[lvt];
        return true;
    }
    if (offset >= REG_ISR && offset < REG_ESR) { /* ISR, TMR, IRR: eight words each */
        const uint32_t *set = offset < REG_TMR ? s->isr : offset < REG_IRR ? s->tmr : s->irr;
        *value = set[(offset >> 4) & 7];
        return true;
    }
    switch (offset) {
    case REG_ID:
        *value = lapic_x2apic(lapic) ? s->id : s->id << 24;
        return true;
    case REG_VERSION:
        *value = VERSION;
        return true;
    case REG_TPR:
        *value = s->tpr;
        return true;
    case REG_APR:
        *value = arbitration_priority(lapic);
        return true;
    case REG_PPR:
        *value = lapic_processor_priority(lapic);
        return true;
    case REG_EOI:
    case REG_REMOTE_READ:
        *value = 0;
        return true;
    case REG_LDR:
        *value = s->ldr;
        return true;
    case REG_DFR:
        *value = s->dfr;
        return true;
    case REG_SVR:
        *value = s->svr;
        return true;
    case REG_ESR:
        *value = s->esr;
        return true;
    case REG_ICR:
        *value = (uint32_t)s->icr;
        return true;
    case REG_ICR_HIGH:
        *value = (uint32_t)(s->icr >> 32);
        return true;
    case REG_TIMER_INITIAL:
        *value = s->timer_initial;
        return true;
    case REG_TIMER_CURRENT:
        *value = lapic_timer_current(lapic);
        return true;
    case REG_TIMER_DIVIDE:
        *value = s->timer_divide;
        return true;
    }
    return false;
}

static void write_tpr(struct lapic *lapic, uint32_t value)
{
    lapic->state.tpr = value & 0xff;
    lapic_signal_pending(lapic);
}

void lapic_write_lvt(struct lapic *lapic, unsigned lvt, uint32_t value)
{
    uint32_t *entry = &lapic->state.lvt[lvt], before = *entry;
    value &= lvt_writable(lvt);
    if (!lapic_software_enabled(lapic)) /* "the mask bits are set; attempts to clear them are ignored" */
        value |= LVT_MASKED;
    if (lvt == LAPIC_LVT_TIMER) {
        lapic_timer_write_lvt(lapic, value);
        return;
    }
    if (lvt == LAPIC_LVT_LINT0 && (value & LVT_LEVEL))
        value |= before & LVT_REMOTE_IRR;
    *entry = value;
    /* A level that stood while LINT0 was masked (an ExtINT is a level by nature) is seen now. */
    if (lvt == LAPIC_LVT_LINT0 && (before & ~value & LVT_MASKED) && (lapic->state.lint_levels & 1) &&
        ((value & LVT_LEVEL) || LVT_MODE(value) == LAPIC_MODE_EXTINT))
        lapic_raise_lvt(lapic, LAPIC_LVT_LINT0);
}

void lapic_write_svr(struct lapic *lapic, uint32_t value)
{
    lapic->state.svr = value & SVR_WRITABLE;
    if (lapic_software_enabled(lapic))
        return;
    for (unsigned lvt = 0; lvt < LAPIC_LVTS; lvt++)
        lapic_write_lvt(lapic, lvt, lapic->state.lvt[lvt] | LVT_MASKED);
}

/* False: there is no such register, or it cannot be written. */
static bool write_register(struct lapic *lapic, unsigned offset, uint32_t value)
{
    struct lapic_state *s = &lapic->state;
    int lvt = lvt_at(offset);
    if (lvt >= 0) {
        lapic_write_lvt(lapic, (unsigned)lvt, value);
        return true;
    }
    switch (offset) {
    case REG_TPR:
        write_tpr(lapic, value);
        return true;
    case REG_EOI:
        lapic_end_of_interrupt(lapic);
        return true;
    case REG_LDR:
        s->ldr = value & 0xff000000;
        return true;
    case REG_DFR:
        s->dfr = value | ~DFR_FLAT;
        return true;
    case REG_SVR:
        lapic_write_svr(lapic, value);
        return true;
    case REG_ESR: /* "a write updates the register": the errors since the last one become visible */
        s->esr = s->esr_pending;
        s->esr_pending = 0;
        return true;
    case REG_ICR:
        s->icr = (s->icr & ~(uint64_t)UINT32_MAX) | (value & ICR_WRITABLE & ~ICR_STATUS);
        lapic_send_ipi(lapic, s->icr);
        return true;
    case REG_ICR_HIGH:
        s->icr = (s->icr & UINT32_MAX) | (uint64_t)(value & 0xff000000) << 32;
        return true;
    case REG_TIMER_INITIAL:
        lapic_timer_write_initial(lapic, value);
        return true;
    case REG_TIMER_DIVIDE:
        lapic_timer_write_divide(lapic, value);
        return true;
    case REG_ID: /* read-only on the processors that we resemble; writes are dropped without an error */
        return true;
    }
    return false;
}

/* ---- MMIO ---- */

uint64_t lapic_mmio_base(const struct lapic *lapic)
{
    return lapic->state.apic_base & BASE_ADDRESS;
}

bool lapic_mmio_enabled(const struct lapic *lapic)
{
    return lapic_hardware_enabled(lapic) && !lapic_x2apic(lapic);
}

uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size)
{
    uint32_t value = 0;
    if ((offset & 15) > 3) /* the rest of each 16 bytes is reserved */
        return 0;
    if (!read_register(lapic, offset & 0xff0, &value))
        lapic_raise_error(lapic, ESR_ILLEGAL_REGISTER);
    return value >> (8 * (offset & 3)) & bits_mask_bytes(size);
}

void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint64_t value)
{
    if ((offset & 15) || size < 4)
        return;
    if (!write_register(lapic, offset & 0xff0, (uint32_t)value))
        lapic_raise_error(lapic, ESR_ILLEGAL_REGISTER);
}

/* ---- MSRs: SDM, "x2APIC Register Address Space" ---- */

bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value)
{
    uint32_t low = 0;
    if (index == MSR_APIC_BASE) {
        *value = lapic->state.apic_base;
        return true;
    }
    if (index == MSR_TSC_DEADLINE) {
        *value = lapic_timer_read_deadline(lapic);
        return true;
    }
    if (!lapic_x2apic(lapic) || index < MSR_X2APIC || index > MSR_X2APIC + 0xff)
        return false;
    unsigned offset = (index - MSR_X2APIC) << 4;
    switch (offset) {
    case REG_ICR:
        *value = lapic->state.icr;
        return true;
    case REG_APR: /* these are not in x2APIC mode, or write-only */
    case REG_REMOTE_READ:
    case REG_DFR:
    case REG_EOI:
    case REG_ICR_HIGH:
        return false;
    }
    if (!read_register(lapic, offset, &low))
        return false;
    *value = low;
    return true;
}

static bool x2apic_write(struct lapic *lapic, unsigned offset, uint64_t value)
{
    int lvt = lvt_at(offset);
    uint64_t writable;
    switch (offset) {
    case REG_ICR:
        if (value & UINT32_MAX & ~(ICR_WRITABLE | ICR_STATUS))
            return false;
        lapic->state.icr = value & ~ICR_STATUS;
        lapic_send_ipi(lapic, lapic->state.icr);
        return true;
    case REG_SELF_IPI:
        if (value & ~UINT64_C(0xff))
            return false;
        lapic_send_ipi(lapic, ICR_SHORTHAND_SELF | value);
        return true;
    case REG_TPR:
        writable = 0xff;
        break;
    case REG_EOI:
    case REG_ESR:
        writable = 0;
        break;
    case REG_SVR:
        writable = SVR_WRITABLE;
        break;
    case REG_TIMER_INITIAL:
        writable = UINT32_MAX;
        break;
    case REG_TIMER_DIVIDE:
        writable = 0xb;
        break;
    default: /* the LVTs; their read-only bits may be written back */
        if (lvt < 0)
            return false;
        writable = lvt_writable((unsigned)lvt) | LVT_STATUS | LVT_REMOTE_IRR;
        break;
    }
    return !(value & ~writable) && write_register(lapic, offset, (uint32_t)value);
}

/* SDM, "x2APIC State Transitions": off -> xAPIC -> x2APIC -> off, and back to off from xAPIC. */
static bool write_apic_base(struct lapic *lapic, uint64_t value)
{
    struct lapic_state *s = &lapic->state;
    uint64_t mode = value & (BASE_ENABLE | BASE_X2APIC), before = s->apic_base & (BASE_ENABLE | BASE_X2APIC);
    if (value & ~(BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | BASE_BSP))
        return false;
    if (mode == BASE_X2APIC || (mode == BASE_ENABLE && before == (BASE_ENABLE | BASE_X2APIC)) ||
        (mode == (BASE_ENABLE | BASE_X2APIC) && before == 0))
        return false;
    s->apic_base = (value & ~BASE_BSP) | (s->apic_base & BASE_BSP);
    if (before && !mode)
        lapic_init_reset(lapic); /* "when it is enabled again the APIC is in its state after reset" */
    if (mode & ~before & BASE_X2APIC) {
        s->ldr = lapic_x2apic_ldr(s->id);
        s->icr &= UINT32_MAX;
    }
    return true;
}

bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value)
{
    if (index == MSR_APIC_BASE)
        return write_apic_base(lapic, value);
    if (index == MSR_TSC_DEADLINE) {
        lapic_timer_write_deadline(lapic, value);
        return true;
    }
    if (!lapic_x2apic(lapic) || index < MSR_X2APIC || index > MSR_X2APIC + 0xff)
        return false;
    return x2apic_write(lapic, (index - MSR_X2APIC) << 4, value);
}

unsigned lapic_get_cr8(const struct lapic *lapic)
{
    return lapic->state.tpr >> 4;
}

void lapic_set_cr8(struct lapic *lapic, unsigned cr8)
{
    write_tpr(lapic, (cr8 & 15) << 4);
}
