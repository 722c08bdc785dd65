/* SPDX-License-Identifier: MIT */
/* CLI STI PUSHF POPF, as the mode and IOPL let them act on IF, or on VIF in its stead (SDM vol. 3, 20.3.2 and 20.4). */
#include "exec.h"
#include "segment.h"

static unsigned iopl_of(const struct cpu *cpu)
{
    return (unsigned)(cpu->eflags & EFLAGS_IOPL) >> 12;
}

/* Is IF this program's own? Otherwise VIF may stand in for it, by `with` (CR4.VME or CR4.PVI), or the instruction
 * faults. */
static bool owns_if(struct cpu *cpu, const struct uop *u, uint64_t with)
{
    if (cpu->cpl <= iopl_of(cpu))
        return true;
    if (cpu->cpl != 3 || !(cpu->s.cr4 & with))
        raise_gp(cpu, u, 0);
    return false;
}

static void cli(struct cpu *cpu, const struct uop *u)
{
    bool real = owns_if(cpu, u, cpu->eflags & EFLAGS_VM ? CR4_VME : CR4_PVI);
    cpu->eflags &= ~(uint64_t)(real ? EFLAGS_IF : EFLAGS_VIF);
    cpu_update_requests(cpu);
    NEXT;
}

static void sti(struct cpu *cpu, const struct uop *u)
{
    if (owns_if(cpu, u, cpu->eflags & EFLAGS_VM ? CR4_VME : CR4_PVI)) {
        if (!(cpu->eflags & EFLAGS_IF))
            cpu->s.interrupt_shadow = true;
        cpu->eflags |= EFLAGS_IF;
    } else {
        if (cpu->eflags & EFLAGS_VIP)
            raise_gp(cpu, u, 0);
        cpu->eflags |= EFLAGS_VIF;
    }
    cpu_update_requests(cpu);
    /* the block goes on, for a translator; here the next instruction is one that nothing may come before */
    cpu_cut_block(cpu, u);
    END_BLOCK;
}

/* A virtual-8086 task below IOPL 3: true when VME lets its 16-bit PUSHF and POPF see VIF as IF. */
static bool sees_vif(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->eflags & EFLAGS_VM) || iopl_of(cpu) == 3)
        return false;
    if (u->in.osize != 2 || !(cpu->s.cr4 & CR4_VME))
        raise_gp(cpu, u, 0);
    return true;
}

static void pushf(struct cpu *cpu, const struct uop *u)
{
    uint32_t value = cpu_get_eflags(cpu) & ~(EFLAGS_VM | EFLAGS_RF);
    if (sees_vif(cpu, u))
        value = (value & ~EFLAGS_IF) | EFLAGS_IOPL | (value & EFLAGS_VIF ? EFLAGS_IF : 0);
    stack_push(cpu, u, u->in.osize, value);
    NEXT;
}

static void popf(struct cpu *cpu, const struct uop *u)
{
    bool virtual_flag = sees_vif(cpu, u);
    uint64_t rsp = cpu->gpr[RSP];
    uint32_t value = (uint32_t)stack_pop(cpu, u, u->in.osize);
    uint32_t mask = EFLAGS_STATUS | EFLAGS_TF | EFLAGS_DF | EFLAGS_NT;
    if (virtual_flag) {
        if ((value & EFLAGS_TF) || ((value & EFLAGS_IF) && (cpu->eflags & EFLAGS_VIP))) {
            cpu->gpr[RSP] = rsp;
            raise_gp(cpu, u, 0);
        }
        value = (value & ~EFLAGS_VIF) | (value & EFLAGS_IF ? EFLAGS_VIF : 0);
        mask |= EFLAGS_VIF;
    } else if (cpu->cpl <= iopl_of(cpu)) {
        mask |= EFLAGS_IF;
    }
    if (u->in.osize != 2)
        mask |= EFLAGS_AC | EFLAGS_ID;
    if (cpu->cpl == 0)
        mask |= EFLAGS_IOPL;
    cpu_set_eflags(cpu, value, mask);
    END_BLOCK;
}

const struct exec_def exec_flags[] = {
    {OP_CLI, EXEC_ANY_FORM, NULL, cli},
    {OP_STI, EXEC_ANY_FORM, NULL, sti},
    {OP_PUSHF, EXEC_ANY_FORM, NULL, pushf},
    {OP_POPF, EXEC_ANY_FORM, NULL, popf},
    {0, 0, NULL, NULL},
};
