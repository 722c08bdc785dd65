/* SPDX-License-Identifier: MIT */
/* PUSH POP PUSHA POPA ENTER LEAVE, and the stack outside 64-bit mode. */
#include "exec.h"
#include "segment.h"

void stack_push_slow(struct cpu *cpu, const struct uop *u, unsigned size, uint64_t value)
{
    uint64_t rsp = (cpu->gpr[RSP] - size) & stack_mask(cpu);
    mem_write(cpu, u, access_segment(cpu, u, SS, rsp, size, true), size, value);
    stack_set(cpu, rsp);
}

uint64_t stack_pop_slow(struct cpu *cpu, const struct uop *u, unsigned size)
{
    uint64_t rsp = cpu->gpr[RSP] & stack_mask(cpu);
    uint64_t value = mem_read(cpu, u, access_segment(cpu, u, SS, rsp, size, false), size);
    stack_set(cpu, rsp + size);
    return value;
}

/* Address of stack bytes at `rsp + offset`, checked, for instructions that push or pop several values. */
static uint64_t stack_linear(struct cpu *cpu, const struct uop *u, uint64_t rsp, unsigned size, bool write)
{
    if (cpu->code64)
        return rsp;
    return access_segment(cpu, u, SS, rsp & stack_mask(cpu), size, write);
}

#define PUSH_POP(size, bits)                                                                          \
    static void push_reg_##bits(struct cpu *cpu, const struct uop *u)                                 \
    {                                                                                                 \
        stack_push(cpu, u, size, reg_read(cpu, u->in.rm, size));                                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void push_mem_##bits(struct cpu *cpu, const struct uop *u)                                 \
    {                                                                                                 \
        stack_push(cpu, u, size, mem_read(cpu, u, operand_linear(cpu, u, size, false), size));        \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void pop_reg_##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        uint64_t value = stack_pop(cpu, u, size);                                                     \
        reg_write(cpu, u->in.rm, size, value);                                                        \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void push_imm_##bits(struct cpu *cpu, const struct uop *u)                                 \
    {                                                                                                 \
        stack_push(cpu, u, size, u->in.imm);                                                          \
        NEXT;                                                                                         \
    }
PUSH_POP(2, 16)
PUSH_POP(4, 32)
PUSH_POP(8, 64)

/* POP into memory: an rSP-based address is computed after the increment (SDM vol. 2, POP). */
static void pop_mem(struct cpu *cpu, const struct uop *u)
{
    uint64_t rsp = cpu->gpr[RSP];
    uint64_t value = stack_pop(cpu, u, u->in.osize);
    uint64_t popped = cpu->gpr[RSP];
    cpu->gpr[RSP] = rsp; /* what follows may fault */
    struct uop after = *u;
    if (u->in.base == RSP)
        after.in.disp += (int32_t)u->in.osize;
    uint64_t linear = operand_linear(cpu, &after, u->in.osize, true);
    mem_write(cpu, u, linear, u->in.osize, value);
    cpu->gpr[RSP] = popped;
    NEXT;
}

static const exec_set push_rm = {{NULL, push_reg_16, push_reg_32, push_reg_64}, {NULL, push_mem_16, push_mem_32, push_mem_64}};
static const exec_set pop_rm = {{NULL, pop_reg_16, pop_reg_32, pop_reg_64}, {NULL, pop_mem, pop_mem, pop_mem}};
static const exec_set push_imm = {{NULL, push_imm_16, push_imm_32, push_imm_64}, {NULL, NULL, NULL, NULL}};

static void pusha(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t rsp = cpu->gpr[RSP], top = rsp & stack_mask(cpu);
    if (real_or_v86(cpu) && top >= 7 && top <= 15 && top & 1)
        raise_gp(cpu, u, 0); /* by the manual not #SS, as with other pushes of those modes */
    stack_linear(cpu, u, rsp - 8 * size, size, true);
    for (unsigned r = 0; r < 8; r++)
        mem_write(cpu, u, stack_linear(cpu, u, rsp - (r + 1) * size, size, true), size, cpu->gpr[r]);
    stack_set(cpu, rsp - 8 * size);
    NEXT;
}

static void popa(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t rsp = cpu->gpr[RSP], value[8];
    for (unsigned r = 8; r-- > 0;)
        value[r] = mem_read(cpu, u, stack_linear(cpu, u, rsp + (7 - r) * size, size, false), size);
    for (unsigned r = 0; r < 8; r++)
        if (r != RSP)
            reg_write(cpu, r, size, value[r]);
    stack_set(cpu, rsp + 8 * size);
    NEXT;
}

/* SDM vol. 2, ENTER. Levels above zero copy the display. */
static void enter(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize, level = (unsigned)(u->in.imm >> 16) & 31;
    /* a 16-bit stack pointer leaves the upper half of ESP alone, in EBP's copy of it too */
    uint64_t rsp = (cpu->gpr[RSP] & ~stack_mask(cpu)) | ((cpu->gpr[RSP] - size) & stack_mask(cpu));
    uint64_t new_rsp = rsp, frame = rsp, rbp = cpu->gpr[RBP];
    mem_write(cpu, u, stack_linear(cpu, u, rsp, size, true), size, rbp);
    for (unsigned i = 1; i < level; i++) {
        rbp -= size;
        uint64_t link = mem_read(cpu, u, stack_linear(cpu, u, rbp, size, false), size);
        new_rsp -= size;
        mem_write(cpu, u, stack_linear(cpu, u, new_rsp, size, true), size, link);
    }
    if (level) {
        new_rsp -= size;
        mem_write(cpu, u, stack_linear(cpu, u, new_rsp, size, true), size, frame);
    }
    new_rsp -= (uint16_t)u->in.imm;
    /* a write to the new top must be possible, and aligned where that is asked; a device there is left alone */
    uint64_t top = stack_linear(cpu, u, new_rsp, size, true);
    access_probe_write(cpu, u, top, size);
    if (unlikely(cpu->alignment_checked))
        mem_read(cpu, u, top, size);
    reg_write(cpu, RBP, size, frame);
    stack_set(cpu, new_rsp);
    NEXT;
}

static void leave(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t rsp = cpu->gpr[RBP] & stack_mask(cpu);
    uint64_t value = mem_read(cpu, u, stack_linear(cpu, u, rsp, size, false), size);
    stack_set(cpu, rsp + size);
    reg_write(cpu, RBP, size, value);
    NEXT;
}

const struct exec_def exec_stack[] = {
    {OP_PUSH, FORM_RM, &push_rm, NULL},
    {OP_PUSH, FORM_IMM, &push_imm, NULL},
    {OP_POP, FORM_RM, &pop_rm, NULL},
    {OP_PUSHA, EXEC_ANY_FORM, NULL, pusha},
    {OP_POPA, EXEC_ANY_FORM, NULL, popa},
    {OP_ENTER, EXEC_ANY_FORM, NULL, enter},
    {OP_LEAVE, EXEC_ANY_FORM, NULL, leave},
    {0, 0, NULL, NULL},
};
