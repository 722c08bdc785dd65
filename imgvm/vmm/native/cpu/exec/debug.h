/* SPDX-License-Identifier: MIT */
/* Debug registers at work: breakpoints on code, data and ports, single steps (SDM vol. 3, chapter 17).
 *
 * Without an enabled breakpoint nothing is looked at. Breakpoints on code and ports make the processor run one
 * instruction at a time; breakpoints on data keep their pages out of the TLB, so that accesses to them come through
 * the slow path, which asks here. What an instruction met is gathered in cpu->trap, in the layout of DR6, and becomes
 * #DB at the instruction's end. */
#ifndef IMGVM_CPU_EXEC_DEBUG_H
#define IMGVM_CPU_EXEC_DEBUG_H

#include "exec.h"

/* After a change of DR0-DR3, DR7 or CR4.DE. */
void debug_update(struct cpu *cpu);

/* At an instruction boundary: raises #DB if a code breakpoint is at cpu->rip and RF does not hide it. */
void debug_check_code(struct cpu *cpu);
/* The trap that the instruction just finished has earned, if any: raises #DB. */
void debug_take_trap(struct cpu *cpu);

/* A data access, before anything of the instruction has happened that cannot be repeated. In a block of several
 * instructions a hit starts this one over in a block of its own. */
void debug_meet_data(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write);
void debug_meet_port(struct cpu *cpu, uint16_t port, unsigned size); /* after the access */

static inline void debug_check_data(struct cpu *cpu, const struct uop *u, uint64_t linear, unsigned size, bool write)
{
    if (unlikely(cpu->mmu.watch_count))
        debug_meet_data(cpu, u, linear, size, write);
}

static inline void debug_check_port(struct cpu *cpu, uint16_t port, unsigned size)
{
    if (unlikely(cpu->debug_single))
        debug_meet_port(cpu, port, size);
}

/* A #DB that is a fault: `bits` for DR6. */
_Noreturn void debug_raise_fault(struct cpu *cpu, const struct uop *u, uint64_t bits);

#endif
