/* SPDX-License-Identifier: MIT */
/* A local APIC whose processor, bus and clock are the test's. */
#ifndef IMGVM_TEST_LAPIC_WORLD_H
#define IMGVM_TEST_LAPIC_WORLD_H

#include "check.h"
#include "dev/lapic.h"
#include "virtual_time.h"

#include <limits.h>

enum { ID = 0x20, VERSION = 0x30, TPR = 0x80, APR = 0x90, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0,
       ISR = 0x100, TMR = 0x180, IRR = 0x200, ESR = 0x280, CMCI = 0x2f0, ICR = 0x300, ICR2 = 0x310, LVTT = 0x320,
       LVTTHMR = 0x330, LVTPC = 0x340, LVT0 = 0x350, LVT1 = 0x360, LVTERR = 0x370, TMICT = 0x380, TMCCT = 0x390,
       TDCR = 0x3e0 };

#define MASKED 0x10000u

static struct lapic lapic;
static uint64_t tsc_offset;
static unsigned signals, signal_count, ipis, eois;
static uint64_t last_ipi;
static uint8_t last_eoi;

static inline void on_signal(void *opaque, unsigned what)
{
    (void)opaque;
    signals |= what;
    signal_count++;
}

static inline void on_ipi(void *opaque, uint64_t icr)
{
    (void)opaque;
    ipis++;
    last_ipi = icr;
}

static inline void on_eoi(void *opaque, uint8_t vector)
{
    (void)opaque;
    eois++;
    last_eoi = vector;
}

static inline uint32_t in(unsigned offset) { return (uint32_t)lapic_mmio_read(&lapic, offset, 4); }
static inline void out(unsigned offset, uint32_t value) { lapic_mmio_write(&lapic, offset, 4, value); }

static inline unsigned take_signals(void)
{
    unsigned was = signals;
    signals = 0;
    return was;
}

static inline void start(uint32_t id, bool enable)
{
    static const struct lapic_host host = {.signal = on_signal, .send_ipi = on_ipi, .eoi = on_eoi};
    begin_time();
    tsc_offset = 0;
    lapic_init(&lapic, id, id == 0, &queue, &tsc_offset, &host);
    signals = signal_count = ipis = eois = 0;
    if (enable)
        out(SVR, 0x1ff);
}

static inline bool msr_write(uint32_t index, uint64_t value) { return lapic_msr_write(&lapic, index, value); }

static inline uint64_t msr(uint32_t index)
{
    uint64_t value = ~UINT64_C(0);
    CHECK(lapic_msr_read(&lapic, index, &value));
    return value;
}

static inline void to_x2apic(void)
{
    CHECK(msr_write(0x1b, 0xfee00c00));
}

#endif
