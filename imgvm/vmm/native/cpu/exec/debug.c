/* SPDX-License-Identifier: MIT */
#include "debug.h"

#define BREAKPOINTS 4u

/* DR7: L0 G0 .. L3 G3 in bits 7:0, LE GE 9:8, GD 13, then R/W and LEN, two bits each (SDM vol. 3, 17.2.4). */
enum watch_kind { WATCH_CODE, WATCH_WRITE, WATCH_PORT, WATCH_ACCESS };

static bool enabled(const struct cpu *cpu, unsigned i)
{
    return cpu->s.dr[7] >> (2 * i) & 3;
}

static enum watch_kind kind_of(const struct cpu *cpu, unsigned i)
{
    return (enum watch_kind)(cpu->s.dr[7] >> (16 + 4 * i) & 3);
}

static unsigned length_of(const struct cpu *cpu, unsigned i)
{
    static const uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[cpu->s.dr[7] >> (18 + 4 * i) & 3];
}

/* Low address bits that LEN covers are ignored (17.2.5). */
static bool overlaps(const struct cpu *cpu, unsigned i, uint64_t address, unsigned size)
{
    unsigned length = length_of(cpu, i);
    uint64_t begin = cpu->s.dr[i] & ~(uint64_t)(length - 1);
    return address <= begin + length - 1 && begin <= address + size - 1;
}

void debug_update(struct cpu *cpu)
{
    uint64_t old[BREAKPOINTS];
    unsigned old_count = cpu->mmu.watch_count, count = 0;
    for (unsigned i = 0; i < old_count; i++)
        old[i] = cpu->mmu.watch_page[i];
    cpu->debug_single = false;
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        if (!enabled(cpu, i))
            continue;
        enum watch_kind kind = kind_of(cpu, i);
        if (kind == WATCH_WRITE || kind == WATCH_ACCESS)
            cpu->mmu.watch_page[count++] = align_down(cpu->s.dr[i], GUEST_PAGE_SIZE);
        else if (kind == WATCH_CODE || (cpu->s.cr4 & CR4_DE))
            cpu->debug_single = true;
    }
    cpu->mmu.watch_count = count;
    bool same = count == old_count;
    for (unsigned i = 0; same && i < count; i++)
        same = old[i] == cpu->mmu.watch_page[i];
    if (!same)
        mmu_flush_rights(&cpu->mmu);
    cpu_update_boundary(cpu);
}

/* B3:0 tell of this exception only; the other bits stay until the guest clears them (17.2.3). */
static void note(struct cpu *cpu, uint64_t bits)
{
    cpu->s.dr[6] = (cpu->s.dr[6] & ~UINT64_C(15)) | bits;
}

void debug_raise_fault(struct cpu *cpu, const struct uop *u, uint64_t bits)
{
    note(cpu, bits);
    if (bits & DR6_BD)
        cpu->eflags |= EFLAGS_RF; /* pushed as with any fault but an instruction breakpoint (17.3.1.1) */
    raise_exception(cpu, u, EXC_DB);
}

void debug_check_code(struct cpu *cpu)
{
    if (cpu->eflags & EFLAGS_RF || cpu->ss_shadow)
        return;
    uint64_t linear = cpu->code64 ? cpu->rip : (uint32_t)(cpu->seg_base[CS] + cpu->rip), bits = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++)
        if (enabled(cpu, i) && kind_of(cpu, i) == WATCH_CODE && cpu->s.dr[i] == linear)
            bits |= BIT(i);
    if (bits)
        debug_raise_fault(cpu, NULL, bits);
}

void debug_take_trap(struct cpu *cpu)
{
    if (cpu->ss_shadow) {
        /* data breakpoints wait for the end of the next instruction, a single step is lost (6.8.3) */
        cpu->trap &= ~(uint32_t)DR6_BS;
        return;
    }
    uint32_t bits = cpu->trap;
    cpu->trap = 0;
    if (!bits)
        return;
    note(cpu, bits);
    raise_exception(cpu, NULL, EXC_DB);
}

void debug_meet_data(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    uint32_t bits = 0;
    for (unsigned i = 0; i < BREAKPOINTS; i++) {
        enum watch_kind kind = kind_of(cpu, i);
        bool concerned = kind == WATCH_ACCESS || (kind == WATCH_WRITE && write);
        if (enabled(cpu, i) && concerned && overlaps(cpu, i, linear, size))
            bits |= 1u << i;
    }
    if (!bits)
        return;
    if (u && !(cpu->block->mode & MODE_SINGLE)) {
        cpu->rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
        cpu->event = EVENT_SINGLE;
        leave_block(cpu, u, false);
    }
    cpu->trap |= bits;
    cpu_update_boundary(cpu);
}

void debug_meet_port(struct cpu *cpu, uint16_t port, unsigned size)
{
    if (!(cpu->s.cr4 & CR4_DE))
        return;
    for (unsigned i = 0; i < BREAKPOINTS; i++)
        if (enabled(cpu, i) && kind_of(cpu, i) == WATCH_PORT && overlaps(cpu, i, port, size))
            cpu->trap |= 1u << i;
}
