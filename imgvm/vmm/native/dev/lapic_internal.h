/* SPDX-License-Identifier: MIT */
/* What lapic.c, lapic_registers.c and lapic_timer.c share. */
#ifndef IMGVM_DEV_LAPIC_INTERNAL_H
#define IMGVM_DEV_LAPIC_INTERNAL_H

#include "lapic.h"

#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC 0x800u

#define BASE_BSP BIT(8)
#define BASE_X2APIC BIT(10)
#define BASE_ENABLE BIT(11)

#define SVR_ENABLE 0x100u
#define SVR_NO_EOI_BROADCAST 0x1000u

/* Offsets in the MMIO page; the x2APIC MSRs are these shifted right by four. */
enum {
    REG_ID = 0x020, REG_VERSION = 0x030, REG_TPR = 0x080, REG_APR = 0x090, REG_PPR = 0x0a0, REG_EOI = 0x0b0,
    REG_REMOTE_READ = 0x0c0, REG_LDR = 0x0d0, REG_DFR = 0x0e0, REG_SVR = 0x0f0,
    REG_ISR = 0x100, REG_TMR = 0x180, REG_IRR = 0x200, REG_ESR = 0x280,
    REG_LVT_CMCI = 0x2f0, REG_ICR = 0x300, REG_ICR_HIGH = 0x310,
    REG_LVT_TIMER = 0x320, REG_LVT_THERMAL = 0x330, REG_LVT_PERF = 0x340, REG_LVT_LINT0 = 0x350,
    REG_LVT_LINT1 = 0x360, REG_LVT_ERROR = 0x370,
    REG_TIMER_INITIAL = 0x380, REG_TIMER_CURRENT = 0x390, REG_TIMER_DIVIDE = 0x3e0, REG_SELF_IPI = 0x3f0,
};

/*  An LVT:  18:17 timer mode | 16 mask | 15 level | 14 remote IRR | 13 polarity | 12 status | 10:8 mode | 7:0 vector */
#define LVT_MODE(v) (((v) >> 8) & 7u)
#define LVT_STATUS 0x1000u
#define LVT_POLARITY 0x2000u
#define LVT_REMOTE_IRR 0x4000u
#define LVT_LEVEL 0x8000u
#define LVT_MASKED 0x10000u
#define LVT_TIMER_MODE 0x60000u
#define LVT_TIMER_PERIODIC 0x20000u
#define LVT_TIMER_DEADLINE 0x40000u

static inline bool lapic_hardware_enabled(const struct lapic *lapic)
{
    return lapic->state.apic_base & BASE_ENABLE;
}

static inline bool lapic_software_enabled(const struct lapic *lapic)
{
    return lapic->state.svr & SVR_ENABLE;
}

static inline bool lapic_x2apic(const struct lapic *lapic)
{
    return lapic->state.apic_base & BASE_X2APIC;
}

/* The logical ID that x2APIC mode derives: cluster in 31:16, one bit of sixteen below. */
static inline uint32_t lapic_x2apic_ldr(uint32_t id)
{
    return (id >> 4) << 16 | 1u << (id & 15);
}

/* The highest vector in an IRR, ISR or TMR; -1: none. */
static inline int lapic_highest(const uint32_t bits[8])
{
    for (int i = 7; i >= 0; i--)
        if (bits[i])
            return i * 32 + 31 - __builtin_clz(bits[i]);
    return -1;
}

/* lapic.c */
unsigned lapic_processor_priority(const struct lapic *lapic);
void lapic_signal_pending(struct lapic *lapic); /* tells the processor when there is something to take */
void lapic_raise_error(struct lapic *lapic, uint32_t esr_bit);
void lapic_end_of_interrupt(struct lapic *lapic);
void lapic_send_ipi(struct lapic *lapic, uint64_t icr); /* as the ICR's layout is in the current mode */

/* lapic_registers.c */
void lapic_write_svr(struct lapic *lapic, uint32_t value);
void lapic_write_lvt(struct lapic *lapic, unsigned lvt, uint32_t value);

/* lapic_timer.c */
void lapic_timer_init(struct lapic *lapic);
void lapic_timer_schedule(struct lapic *lapic); /* arms the host timer for what the registers say */
uint32_t lapic_timer_current(const struct lapic *lapic);
void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value);
void lapic_timer_write_initial(struct lapic *lapic, uint32_t value);
void lapic_timer_write_divide(struct lapic *lapic, uint32_t value);
uint64_t lapic_timer_read_deadline(const struct lapic *lapic);
void lapic_timer_write_deadline(struct lapic *lapic, uint64_t value);

#endif
