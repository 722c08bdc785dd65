/* SPDX-License-Identifier: MIT */
/* The local APIC of Intel processors, SDM vol. 3 chapter "Advanced Programmable Interrupt Controller (APIC)":
 * version 15h with CMCI, TSC deadline, x2APIC and directed EOI.
 *
 * Not emulated: focus processor checking, the remote read command, a writable APIC ID, delivery that takes time
 * (ICR's and the LVTs' delivery status read idle). The timer is in lapic_timer.c. */
#include "lapic.h"
#include "lapic_internal.h"

#include <limits.h>
#include <string.h>

#define BASE_DEFAULT 0xfee00000u
#define BASE_ADDRESS UINT64_C(0x000ffffffffff000)

#define VERSION (0x15u | (LAPIC_LVTS - 1u) << 16 | 1u << 24) /* bit 24: SVR can suppress the EOI broadcast */

#define SVR_RESET 0xffu
#define SVR_NO_EOI_BROADCAST 0x1000u
#define SVR_WRITABLE (0xffu | SVR_ENABLE | SVR_NO_EOI_BROADCAST)

#define DFR_FLAT 0xf0000000u

#define ICR_STATUS BIT(12)
#define ICR_WRITABLE UINT64_C(0xccfff) /* with the destination above; bit 12 is read-only */
#define ICR_SHORTHAND_SELF (UINT64_C(1) << 18)

#define ESR_SEND_ILLEGAL 0x20u
#define ESR_RECEIVE_ILLEGAL 0x40u
#define ESR_ILLEGAL_REGISTER 0x80u

#define FIRST_LEGAL_VECTOR 16

static bool hardware_enabled(const struct lapic *lapic) { return lapic->state.apic_base & BASE_ENABLE; }
static bool software_enabled(const struct lapic *lapic) { return lapic->state.svr & SVR_ENABLE; }
static bool x2apic(const struct lapic *lapic) { return lapic->state.apic_base & BASE_X2APIC; }

/* ---- IRR, ISR and priorities ---- */

static int highest(const uint32_t bits[8])
{
    for (int i = 7; i >= 0; i--)
        if (bits[i])
            return i * 32 + 31 - __builtin_clz(bits[i]);
    return -1;
}

static void set_vector(uint32_t bits[8], unsigned vector, bool value)
{
    uint32_t bit = 1u << (vector & 31);
    bits[vector >> 5] = value ? bits[vector >> 5] | bit : bits[vector >> 5] & ~bit;
}

static bool has_vector(const uint32_t bits[8], unsigned vector)
{
    return bits[vector >> 5] >> (vector & 31) & 1;
}

/* SDM, "Task and Processor Priorities". */
static unsigned processor_priority(const struct lapic *lapic)
{
    int isrv = highest(lapic->state.isr);
    unsigned in_service = isrv < 0 ? 0 : (unsigned)isrv & 0xf0, tpr = lapic->state.tpr;
    return (tpr & 0xf0) >= in_service ? tpr : in_service;
}

static unsigned arbitration_priority(const struct lapic *lapic)
{
    int irrv = highest(lapic->state.irr), isrv = highest(lapic->state.isr);
    unsigned tpr = lapic->state.tpr & 0xf0, irr = irrv < 0 ? 0 : (unsigned)irrv & 0xf0;
    unsigned isr = isrv < 0 ? 0 : (unsigned)isrv & 0xf0;
    if (tpr >= irr && tpr > isr)
        return lapic->state.tpr;
    return (tpr & isr) > irr ? tpr & isr : irr;
}

int lapic_pending_vector(const struct lapic *lapic)
{
    if (!hardware_enabled(lapic))
        return -1;
    int vector = highest(lapic->state.irr);
    return vector >= 0 && ((unsigned)vector & 0xf0) > (processor_priority(lapic) & 0xf0) ? vector : -1;
}

static void notify(struct lapic *lapic, uint64_t what)
{
    lapic->host.signal(lapic->host.opaque, (unsigned)what);
}

static void signal_pending(struct lapic *lapic)
{
    if (lapic_pending_vector(lapic) >= 0)
        notify(lapic, LAPIC_SIGNAL_INTR);
}

int lapic_acknowledge(struct lapic *lapic)
{
    if (!hardware_enabled(lapic))
        return -1;
    int vector = lapic_pending_vector(lapic);
    if (vector < 0) /* "the processor issues INTA, and the TPR has been raised": no ISR bit, no EOI */
        return lapic->state.svr & 0xff;
    set_vector(lapic->state.irr, (unsigned)vector, false);
    set_vector(lapic->state.isr, (unsigned)vector, true);
    return vector;
}

static void raise_error(struct lapic *lapic, uint32_t bit)
{
    if (lapic->state.esr_pending & bit)
        return;
    lapic->state.esr_pending |= bit;
    lapic_raise_lvt(lapic, LAPIC_LVT_ERROR);
}

void lapic_deliver(struct lapic *lapic, unsigned mode, uint8_t vector, bool level_triggered)
{
    if (!hardware_enabled(lapic))
        return;
    switch (mode) {
    case LAPIC_MODE_FIXED:
    case LAPIC_MODE_LOWEST:
        if (!software_enabled(lapic))
            return;
        if (vector < FIRST_LEGAL_VECTOR) {
            raise_error(lapic, ESR_RECEIVE_ILLEGAL);
            return;
        }
        set_vector(lapic->state.irr, vector, true);
        set_vector(lapic->state.tmr, vector, level_triggered);
        signal_pending(lapic);
        break;
    case LAPIC_MODE_SMI:
        notify(lapic, LAPIC_SIGNAL_SMI);
        break;
    case LAPIC_MODE_NMI:
        notify(lapic, LAPIC_SIGNAL_NMI);
        break;
    case LAPIC_MODE_INIT:
        notify(lapic, LAPIC_SIGNAL_INIT);
        break;
    case LAPIC_MODE_SIPI:
        notify(lapic, LAPIC_SIGNAL_SIPI | (uint64_t)vector << 8);
        break;
    case LAPIC_MODE_EXTINT:
        lapic->state.extint_latched = 1;
        notify(lapic, LAPIC_SIGNAL_INTR);
        break;
    }
}

/* ---- local sources ---- */

void lapic_raise_lvt(struct lapic *lapic, enum lapic_lvt lvt)
{
    uint32_t *entry = &lapic->state.lvt[lvt];
    if (!hardware_enabled(lapic) || (*entry & LVT_MASKED))
        return;
    unsigned mode = LVT_MODE(*entry);
    bool level = false;
    if (lvt == LAPIC_LVT_LINT0 && mode == LAPIC_MODE_FIXED && (*entry & LVT_LEVEL)) {
        if (*entry & LVT_REMOTE_IRR)
            return;
        *entry |= LVT_REMOTE_IRR;
        level = true;
    }
    if (lvt == LAPIC_LVT_PERF) /* set by the processor when it delivers a PMI */
        *entry |= LVT_MASKED;
    if (mode == LAPIC_MODE_EXTINT)
        notify(lapic, LAPIC_SIGNAL_INTR);
    else
        lapic_deliver(lapic, mode, (uint8_t)*entry, level);
}

void lapic_set_lint(void *opaque, unsigned pin, bool level)
{
    struct lapic *lapic = opaque;
    uint32_t bit = 1u << (pin & 1);
    bool was = lapic->state.lint_levels & bit;
    lapic->state.lint_levels = level ? lapic->state.lint_levels | bit : lapic->state.lint_levels & ~bit;
    if (was || !level)
        return;
    if (hardware_enabled(lapic))
        lapic_raise_lvt(lapic, pin & 1 ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0);
    else /* the pins are the INTR and NMI of a processor without APIC */
        notify(lapic, pin & 1 ? LAPIC_SIGNAL_NMI : LAPIC_SIGNAL_INTR);
}

bool lapic_accepts_pic(const struct lapic *lapic)
{
    uint32_t lint0 = lapic->state.lvt[LAPIC_LVT_LINT0];
    return !hardware_enabled(lapic) || (!(lint0 & LVT_MASKED) && LVT_MODE(lint0) == LAPIC_MODE_EXTINT);
}

bool lapic_extint_pending(const struct lapic *lapic)
{
    return lapic->state.extint_latched || (lapic_accepts_pic(lapic) && (lapic->state.lint_levels & 1));
}

void lapic_extint_taken(struct lapic *lapic)
{
    lapic->state.extint_latched = 0;
}

static void end_of_interrupt(struct lapic *lapic)
{
    struct lapic_state *s = &lapic->state;
    int vector = highest(s->isr);
    if (vector < 0)
        return;
    set_vector(s->isr, (unsigned)vector, false);
    if (has_vector(s->tmr, (unsigned)vector)) {
        uint32_t *lint0 = &s->lvt[LAPIC_LVT_LINT0];
        if ((*lint0 & LVT_REMOTE_IRR) && (uint8_t)*lint0 == vector) {
            *lint0 &= ~LVT_REMOTE_IRR;
            if (s->lint_levels & 1)
                lapic_raise_lvt(lapic, LAPIC_LVT_LINT0);
        } else if (!(s->svr & SVR_NO_EOI_BROADCAST)) {
            lapic->host.eoi(lapic->host.opaque, (uint8_t)vector);
        }
    }
    signal_pending(lapic);
}

/* ---- addressing ---- */

bool lapic_match_destination(const struct lapic *lapic, uint32_t destination, bool logical)
{
    const struct lapic_state *s = &lapic->state;
    if (!hardware_enabled(lapic))
        return false;
    if (destination == LAPIC_BROADCAST)
        return true;
    if (x2apic(lapic)) {
        if (!logical)
            return destination == s->id;
        return destination >> 16 == s->ldr >> 16 && (destination & s->ldr & 0xffff);
    }
    if (destination > 0xff)
        return false;
    if (!logical)
        return destination == (s->id & 0xff);
    uint32_t ldr = s->ldr >> 24;
    if (s->dfr >> 28 == 0xf)
        return destination & ldr;
    return (destination >> 4 == 0xf || destination >> 4 == ldr >> 4) && (destination & ldr & 0xf);
}

unsigned lapic_arbitration(const struct lapic *lapic)
{
    return hardware_enabled(lapic) && software_enabled(lapic) ? processor_priority(lapic) : UINT_MAX;
}

/* SDM, "Interrupt Command Register". */
static void send_ipi(struct lapic *lapic, uint64_t icr)
{
    unsigned mode = LAPIC_ICR_MODE(icr);
    if (!x2apic(lapic)) {
        uint64_t destination = icr >> 56;
        icr = (icr & UINT32_MAX) | (destination == 0xff ? LAPIC_BROADCAST : destination) << 32;
    }
    if (mode == LAPIC_MODE_INIT && LAPIC_ICR_LEVEL_TRIGGERED(icr) && !LAPIC_ICR_LEVEL(icr))
        return; /* the de-assert synchronised arbitration IDs on processors that had them */
    if (mode == 3 || mode == LAPIC_MODE_EXTINT) /* reserved in the ICR */
        return;
    if (mode <= LAPIC_MODE_LOWEST && LAPIC_ICR_VECTOR(icr) < FIRST_LEGAL_VECTOR) {
        raise_error(lapic, ESR_SEND_ILLEGAL);
        return;
    }
    lapic->host.send_ipi(lapic->host.opaque, icr);
}

/* ---- registers ---- */

static uint32_t x2apic_ldr(uint32_t id)
{
    return (id >> 4) << 16 | 1u << (id & 15);
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
        *value = x2apic(lapic) ? s->id : s->id << 24;
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
        *value = processor_priority(lapic);
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
    signal_pending(lapic);
}

static void write_lvt(struct lapic *lapic, unsigned lvt, uint32_t value)
{
    uint32_t *entry = &lapic->state.lvt[lvt], before = *entry;
    value &= lvt_writable(lvt);
    if (!software_enabled(lapic)) /* "the mask bits are set; attempts to clear them are ignored" */
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

static void write_svr(struct lapic *lapic, uint32_t value)
{
    lapic->state.svr = value & SVR_WRITABLE;
    if (software_enabled(lapic))
        return;
    for (unsigned lvt = 0; lvt < LAPIC_LVTS; lvt++)
        write_lvt(lapic, lvt, lapic->state.lvt[lvt] | LVT_MASKED);
}

/* False: there is no such register, or it cannot be written. */
static bool write_register(struct lapic *lapic, unsigned offset, uint32_t value)
{
    struct lapic_state *s = &lapic->state;
    int lvt = lvt_at(offset);
    if (lvt >= 0) {
        write_lvt(lapic, (unsigned)lvt, value);
        return true;
    }
    switch (offset) {
    case REG_TPR:
        write_tpr(lapic, value);
        return true;
    case REG_EOI:
        end_of_interrupt(lapic);
        return true;
    case REG_LDR:
        s->ldr = value & 0xff000000;
        return true;
    case REG_DFR:
        s->dfr = value | ~DFR_FLAT;
        return true;
    case REG_SVR:
        write_svr(lapic, value);
        return true;
    case REG_ESR: /* "a write updates the register": the errors since the last one become visible */
        s->esr = s->esr_pending;
        s->esr_pending = 0;
        return true;
    case REG_ICR:
        s->icr = (s->icr & ~(uint64_t)UINT32_MAX) | (value & ICR_WRITABLE & ~ICR_STATUS);
        send_ipi(lapic, s->icr);
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
    return hardware_enabled(lapic) && !x2apic(lapic);
}

uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size)
{
    uint32_t value = 0;
    if ((offset & 15) > 3) /* the rest of each 16 bytes is reserved */
        return 0;
    if (!read_register(lapic, offset & 0xff0, &value))
        raise_error(lapic, ESR_ILLEGAL_REGISTER);
    return value >> (8 * (offset & 3)) & bits_mask_bytes(size);
}

void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint64_t value)
{
    if ((offset & 15) || size < 4)
        return;
    if (!write_register(lapic, offset & 0xff0, (uint32_t)value))
        raise_error(lapic, ESR_ILLEGAL_REGISTER);
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
    if (!x2apic(lapic) || index < MSR_X2APIC || index > MSR_X2APIC + 0xff)
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
        send_ipi(lapic, lapic->state.icr);
        return true;
    case REG_SELF_IPI:
        if (value & ~UINT64_C(0xff))
            return false;
        send_ipi(lapic, ICR_SHORTHAND_SELF | value);
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
        s->ldr = x2apic_ldr(s->id);
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
    if (!x2apic(lapic) || index < MSR_X2APIC || index > MSR_X2APIC + 0xff)
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

/* ---- life ---- */

void lapic_set_virtual_wire(struct lapic *lapic)
{
    write_svr(lapic, lapic->state.svr | SVR_ENABLE);
    write_lvt(lapic, LAPIC_LVT_LINT0, LAPIC_MODE_EXTINT << 8);
    write_lvt(lapic, LAPIC_LVT_LINT1, LAPIC_MODE_NMI << 8);
}

void lapic_init_reset(struct lapic *lapic)
{
    struct lapic_state *s = &lapic->state;
    struct lapic_state fresh = {.apic_base = s->apic_base, .id = s->id, .lint_levels = s->lint_levels,
                                .svr = SVR_RESET, .dfr = UINT32_MAX};
    for (unsigned lvt = 0; lvt < LAPIC_LVTS; lvt++)
        fresh.lvt[lvt] = LVT_MASKED;
    if (x2apic(lapic))
        fresh.ldr = x2apic_ldr(s->id);
    *s = fresh;
    timer_cancel(lapic->timers, &lapic->timer);
}

void lapic_reset(struct lapic *lapic)
{
    lapic->state.apic_base = BASE_DEFAULT | BASE_ENABLE | (lapic->bootstrap ? BASE_BSP : 0);
    lapic->state.id = lapic->reset_id;
    lapic_init_reset(lapic);
}

void lapic_loaded(struct lapic *lapic)
{
    lapic_timer_schedule(lapic);
    signal_pending(lapic);
}

void lapic_init(struct lapic *lapic, uint32_t id, bool bootstrap, struct timer_queue *timers,
                const uint64_t *tsc_offset, const struct lapic_host *host)
{
    memset(lapic, 0, sizeof(*lapic));
    lapic->timers = timers;
    lapic->tsc_offset = tsc_offset;
    lapic->host = *host;
    lapic->reset_id = id;
    lapic->bootstrap = bootstrap;
    lapic_timer_init(lapic);
    lapic_reset(lapic);
}
