/* SPDX-License-Identifier: MIT */
/* One processor's local APIC: xAPIC (MMIO) and x2APIC (MSRs), SDM vol. 3 chapter "Advanced Programmable Interrupt
 * Controller". The time base is 1 GHz: the timer's bus clock and the TSC both count nanoseconds.
 *
 * It is no bus device, since each processor sees its own: the vCPU sends accesses to lapic_mmio_base() here, and the
 * MSRs 1Bh, 6E0h and 800h..8FFh. The board carries interrupts between local APICs (send_ipi) and to the I/O APIC
 * (eoi). Everything runs under one lock of whoever owns it, the vCPU's own timer queue included. */
#ifndef IMGVM_DEV_LAPIC_H
#define IMGVM_DEV_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/bits.h"
#include "../base/timer.h"

/* Delivery modes, as in the ICR, an LVT, an MSI or a redirection entry. */
#define LAPIC_MODE_FIXED 0
#define LAPIC_MODE_LOWEST 1
#define LAPIC_MODE_SMI 2
#define LAPIC_MODE_NMI 4
#define LAPIC_MODE_INIT 5
#define LAPIC_MODE_SIPI 6
#define LAPIC_MODE_EXTINT 7

/* What a processor is told; several bits may be set. */
#define LAPIC_SIGNAL_INTR BIT(0) /* lapic_pending_vector or lapic_extint_pending may have changed: look again */
#define LAPIC_SIGNAL_NMI BIT(1)
#define LAPIC_SIGNAL_SMI BIT(2)
#define LAPIC_SIGNAL_INIT BIT(3)
#define LAPIC_SIGNAL_SIPI BIT(4) /* bits 15:8 hold the vector */
#define LAPIC_SIGNAL_SIPI_VECTOR(what) ((uint8_t)((what) >> 8))

#define LAPIC_BROADCAST 0xffffffffu

/* The ICR as send_ipi gets it (the x2APIC layout in both modes): destination in 63:32, LAPIC_BROADCAST for all. */
#define LAPIC_ICR_VECTOR(icr) ((uint8_t)(icr))
#define LAPIC_ICR_MODE(icr) ((unsigned)((icr) >> 8) & 7)
#define LAPIC_ICR_LOGICAL(icr) (((icr) >> 11) & 1)
#define LAPIC_ICR_LEVEL(icr) (((icr) >> 14) & 1) /* assert; an INIT's level-triggered de-assert is never sent */
#define LAPIC_ICR_LEVEL_TRIGGERED(icr) (((icr) >> 15) & 1)
#define LAPIC_ICR_SHORTHAND(icr) ((unsigned)((icr) >> 18) & 3) /* 0 none, 1 self, 2 all, 3 all but self */
#define LAPIC_ICR_DESTINATION(icr) ((uint32_t)((icr) >> 32))

enum lapic_lvt { LAPIC_LVT_CMCI, LAPIC_LVT_TIMER, LAPIC_LVT_THERMAL, LAPIC_LVT_PERF, LAPIC_LVT_LINT0,
                 LAPIC_LVT_LINT1, LAPIC_LVT_ERROR, LAPIC_LVTS };

struct lapic_state { /* saved as it is */
    uint64_t apic_base;
    uint64_t icr;
    uint64_t tsc_deadline;
    uint64_t timer_start_ns; /* when the current count began */
    uint32_t id;             /* the full APIC ID; xAPIC shows its low byte in bits 31:24 */
    uint32_t irr[8], isr[8], tmr[8];
    uint32_t tpr, svr, esr, esr_pending, ldr, dfr;
    uint32_t lvt[LAPIC_LVTS];
    uint32_t timer_initial, timer_divide;
    uint32_t lint_levels;     /* LINT0 and LINT1 as they stand */
    uint32_t extint_latched;  /* an ExtINT message came: the processor owes an INTA to the 8259A */
};

struct lapic_host {
    void (*signal)(void *opaque, unsigned what);
    void (*send_ipi)(void *opaque, uint64_t icr); /* the board delivers to all that match, the sender included */
    void (*eoi)(void *opaque, uint8_t vector);    /* a level-triggered vector was ended: for ioapic_eoi */
    void *opaque;
};

struct lapic {
    struct lapic_state state;
    struct timer_queue *timers;
    struct timer timer;
    const uint64_t *tsc_offset; /* guest TSC = clock in ns + *tsc_offset, modulo 2^64 */
    struct lapic_host host;
    uint32_t reset_id;
    bool bootstrap;
};

void lapic_init(struct lapic *lapic, uint32_t id, bool bootstrap, struct timer_queue *timers,
                const uint64_t *tsc_offset, const struct lapic_host *host);
void lapic_reset(struct lapic *lapic);      /* power-up */
void lapic_init_reset(struct lapic *lapic); /* an INIT: all but the ID and IA32_APIC_BASE */
void lapic_loaded(struct lapic *lapic);
void lapic_tsc_moved(struct lapic *lapic);  /* *tsc_offset changed: the deadline is computed anew */

/* Registers. MMIO offsets within the page; the result of an access that is not 4 bytes wide at a 16-byte boundary is
 * model specific: narrower parts of a register read, and nothing but whole registers writes. */
uint64_t lapic_mmio_base(const struct lapic *lapic);
bool lapic_mmio_enabled(const struct lapic *lapic); /* hardware-enabled and not in x2APIC mode */
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset, unsigned size);
void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint64_t value);
/* MSRs 1Bh, 6E0h, 800h..8FFh; false: the processor raises #GP(0). */
bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value);
bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);
unsigned lapic_get_cr8(const struct lapic *lapic);
void lapic_set_cr8(struct lapic *lapic, unsigned cr8);

/* What arrives. */
bool lapic_match_destination(const struct lapic *lapic, uint32_t destination, bool logical);
/* An MSI's destination field as lapic_match_destination wants it (FFh is everybody, in either mode). */
static inline uint32_t lapic_msi_destination(uint64_t address)
{
    uint32_t destination = (uint32_t)(address >> 12) & 0xff;
    return destination == 0xff ? LAPIC_BROADCAST : destination;
}
/* For the choice among the candidates of lowest-priority delivery: the smallest wins; UINT_MAX cannot accept. */
unsigned lapic_arbitration(const struct lapic *lapic);
void lapic_deliver(struct lapic *lapic, unsigned mode, uint8_t vector, bool level_triggered);
/* The local interrupt pins, fits irq_line.set: LINT0 (8259A's INT), LINT1 (NMI). */
void lapic_set_lint(void *opaque, unsigned pin, bool level);
/* Performance counter overflow, thermal and corrected-machine-check events raise their LVT. */
void lapic_raise_lvt(struct lapic *lapic, enum lapic_lvt lvt);

/* What the processor takes. */
int lapic_pending_vector(const struct lapic *lapic); /* highest in IRR above PPR, or -1 */
/* Moves it from IRR to ISR and returns it; the spurious vector when it has gone; -1 when the APIC is disabled. */
int lapic_acknowledge(struct lapic *lapic);
/* LINT0 passes ExtINT, or the APIC is disabled (the pins are INTR and NMI then). */
bool lapic_accepts_pic(const struct lapic *lapic);
/* That, and LINT0 stands; or an I/O APIC's or another processor's ExtINT message waits. The vector is the 8259A's. */
bool lapic_extint_pending(const struct lapic *lapic);
void lapic_extint_taken(struct lapic *lapic); /* the processor got that vector */

/* What firmware does before it starts an operating system on the bootstrap processor: the APIC is software-enabled,
 * LINT0 passes the 8259A's interrupts ("virtual wire mode"), LINT1 is NMI. For boots without firmware. */
void lapic_set_virtual_wire(struct lapic *lapic);

#endif
