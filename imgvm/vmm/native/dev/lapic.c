/* SPDX-License-Identifier: MIT */
/* The local APIC of Intel processors, SDM vol. 3 chapter "Advanced Programmable Interrupt Controller (APIC)":
 * version 15h with CMCI, TSC deadline, x2APIC and directed EOI.
 *
 * Not emulated: focus processor checking, the remote read command, a writable APIC ID, delivery that takes time
 * (ICR's and the LVTs' delivery status read idle). The registers are in lapic_registers.c, the timer is in
 * lapic_timer.c. */
#include "lapic.h"
#include "lapic_internal.h"

#include <limits.h>
#include <string.h>

#define BASE_DEFAULT 0xfee00000u

#define SVR_RESET 0xffu

#define ESR_SEND_ILLEGAL 0x20u
#define ESR_RECEIVE_ILLEGAL 0x40u

#define FIRST_LEGAL_VECTOR 16

/* ---- IRR, ISR and priorities ---- */

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
unsigned lapic_processor_priority(const struct lapic *lapic)
{
    int isrv = lapic_highest(lapic->state.isr);
    unsigned in_service = isrv < 0 ? 0 : (unsigned)isrv & 0xf0, tpr = lapic->state.tpr;
    return (tpr & 0xf0) >= in_service ? tpr : in_service;
}

int lapic_pending_vector(const struct lapic *lapic)
{
    if (!lapic_hardware_enabled(lapic))
        return -1;
    int vector = lapic_highest(lapic->state.irr);
    return vector >= 0 && ((unsigned)vector & 0xf0) > (lapic_processor_priority(lapic) & 0xf0) ? vector : -1;
}

static void notify(struct lapic *lapic, uint64_t what)
{
    lapic->host.signal(lapic->host.opaque, (unsigned)what);
}

void lapic_signal_pending(struct lapic *lapic)
{
    if (lapic_pending_vector(lapic) >= 0)
        notify(lapic, LAPIC_SIGNAL_INTR);
}

int lapic_acknowledge(struct lapic *lapic)
{
    if (!lapic_hardware_enabled(lapic))
        return -1;
    int vector = lapic_pending_vector(lapic);
    if (vector < 0) /* "the processor issues INTA, and the TPR has been raised": no ISR bit, no EOI */
        return lapic->state.svr & 0xff;
    set_vector(lapic->state.irr, (unsigned)vector, false);
    set_vector(lapic->state.isr, (unsigned)vector, true);
    return vector;
}

void lapic_raise_error(struct lapic *lapic, uint32_t bit)
{
    if (lapic->state.esr_pending & bit)
        return;
    lapic->state.esr_pending |= bit;
    lapic_raise_lvt(lapic, LAPIC_LVT_ERROR);
}

void lapic_deliver(struct lapic *lapic, unsigned mode, uint8_t vector, bool level_triggered)
{
    if (!lapic_hardware_enabled(lapic))
        return;
    switch (mode) {
    case LAPIC_MODE_FIXED:
    case LAPIC_MODE_LOWEST:
        if (!lapic_software_enabled(lapic))
            return;
        if (vector < FIRST_LEGAL_VECTOR) {
            lapic_raise_error(lapic, ESR_RECEIVE_ILLEGAL);
            return;
        }
        set_vector(lapic->state.irr, vector, true);
        set_vector(lapic->state.tmr, vector, level_triggered);
        lapic_signal_pending(lapic);
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
    if (!lapic_hardware_enabled(lapic) || (*entry & LVT_MASKED))
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
    if (lapic_hardware_enabled(lapic))
        lapic_raise_lvt(lapic, pin & 1 ? LAPIC_LVT_LINT1 : LAPIC_LVT_LINT0);
    else /* the pins are the INTR and NMI of a processor without APIC */
        notify(lapic, pin & 1 ? LAPIC_SIGNAL_NMI : LAPIC_SIGNAL_INTR);
}

bool lapic_accepts_pic(const struct lapic *lapic)
{
    uint32_t lint0 = lapic->state.lvt[LAPIC_LVT_LINT0];
    return !lapic_hardware_enabled(lapic) || (!(lint0 & LVT_MASKED) && LVT_MODE(lint0) == LAPIC_MODE_EXTINT);
}

bool lapic_extint_pending(const struct lapic *lapic)
{
    return lapic->state.extint_latched || (lapic_accepts_pic(lapic) && (lapic->state.lint_levels & 1));
}

void lapic_extint_taken(struct lapic *lapic)
{
    lapic->state.extint_latched = 0;
}

void lapic_end_of_interrupt(struct lapic *lapic)
{
    struct lapic_state *s = &lapic->state;
    int vector = lapic_highest(s->isr);
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
    lapic_signal_pending(lapic);
}

/* ---- addressing ---- */

bool lapic_match_destination(const struct lapic *lapic, uint32_t destination, bool logical)
{
    const struct lapic_state *s = &lapic->state;
    if (!lapic_hardware_enabled(lapic))
        return false;
    if (destination == LAPIC_BROADCAST)
        return true;
    if (lapic_x2apic(lapic)) {
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
    return lapic_hardware_enabled(lapic) && lapic_software_enabled(lapic) ? lapic_processor_priority(lapic) : UINT_MAX;
}

/* SDM, "Interrupt Command Register". */
void lapic_send_ipi(struct lapic *lapic, uint64_t icr)
{
    unsigned mode = LAPIC_ICR_MODE(icr);
    if (!lapic_x2apic(lapic)) {
        uint64_t destination = icr >> 56;
        icr = (icr & UINT32_MAX) | (destination == 0xff ? LAPIC_BROADCAST : destination) << 32;
    }
    if (mode == LAPIC_MODE_INIT && LAPIC_ICR_LEVEL_TRIGGERED(icr) && !LAPIC_ICR_LEVEL(icr))
        return; /* the de-assert synchronised arbitration IDs on processors that had them */
    if (mode == 3 || mode == LAPIC_MODE_EXTINT) /* reserved in the ICR */
        return;
    if (mode <= LAPIC_MODE_LOWEST && LAPIC_ICR_VECTOR(icr) < FIRST_LEGAL_VECTOR) {
        lapic_raise_error(lapic, ESR_SEND_ILLEGAL);
        return;
    }
    lapic->host.send_ipi(lapic->host.opaque, icr);
}

/* ---- life ---- */

void lapic_set_virtual_wire(struct lapic *lapic)
{
    lapic_write_svr(lapic, lapic->state.svr | SVR_ENABLE);
    lapic_write_lvt(lapic, LAPIC_LVT_LINT0, LAPIC_MODE_EXTINT << 8);
    lapic_write_lvt(lapic, LAPIC_LVT_LINT1, LAPIC_MODE_NMI << 8);
}

void lapic_init_reset(struct lapic *lapic)
{
    struct lapic_state *s = &lapic->state;
    struct lapic_state fresh = {.apic_base = s->apic_base, .id = s->id, .lint_levels = s->lint_levels,
                                .svr = SVR_RESET, .dfr = UINT32_MAX};
    for (unsigned lvt = 0; lvt < LAPIC_LVTS; lvt++)
        fresh.lvt[lvt] = LVT_MASKED;
    if (lapic_x2apic(lapic))
        fresh.ldr = lapic_x2apic_ldr(s->id);
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
    lapic_signal_pending(lapic);
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
