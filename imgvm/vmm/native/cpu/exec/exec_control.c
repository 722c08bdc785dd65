/* SPDX-License-Identifier: MIT */
/* Near branches, calls and returns. Far ones are in segment.c and far.c. A target outside the code segment's
 * limit, or not canonical, faults before anything changes (SDM vol. 2, JMP, CALL, RET). */
#include "exec.h"
#include "exec_select.h"

/* The target as the operand size truncates it. In 64-bit mode near branches are always 64 bits wide. */
static inline uint64_t branch_target(const struct cpu *cpu, const struct uop *u, uint64_t target)
{
    if (likely(cpu->code64))
        return target;
    return u->in.osize == 2 ? target & 0xffff : target & 0xffffffff;
}

static inline void check_target(struct cpu *cpu, const struct uop *u, uint64_t target)
{
    if (likely(cpu->code64)) {
        if (unlikely(!canonical(cpu, target)))
            raise_gp(cpu, u, 0);
    } else if (target > cpu->s.segment[CS].limit) {
        raise_gp(cpu, u, 0);
    }
}

static inline uint64_t relative_target(struct cpu *cpu, const struct uop *u)
{
    uint64_t target = branch_target(cpu, u, cpu->gpr[GPR_BLOCK_RIP] + u->next + u->in.imm);
    check_target(cpu, u, target);
    return target;
}

#define JCC(cond)                                                                                     \
    static void jcc64_##cond(struct cpu *cpu, const struct uop *u)                                    \
    {                                                                                                 \
        if (!cc_test(cpu->cc, cond))                                                                  \
            NEXT;                                                                                     \
        uint64_t target = cpu->gpr[GPR_BLOCK_RIP] + u->next + u->in.imm;                              \
        check_target(cpu, u, target);                                                                 \
        cpu_cut_block(cpu, u);                                                                        \
        cpu->rip = target;                                                                            \
    }
JCC(0) JCC(1) JCC(2) JCC(3) JCC(4) JCC(5) JCC(6) JCC(7) JCC(8) JCC(9) JCC(10) JCC(11) JCC(12) JCC(13) JCC(14) JCC(15)
static exec_fn *const jcc64[16] = {jcc64_0, jcc64_1, jcc64_2,  jcc64_3,  jcc64_4,  jcc64_5,  jcc64_6,  jcc64_7,
                                   jcc64_8, jcc64_9, jcc64_10, jcc64_11, jcc64_12, jcc64_13, jcc64_14, jcc64_15};

static void jcc(struct cpu *cpu, const struct uop *u)
{
    if (!cc_test(cpu->cc, u->in.cond))
        NEXT;
    uint64_t target = relative_target(cpu, u);
    cpu_cut_block(cpu, u);
    cpu->rip = target;
}

exec_fn *exec_select_jcc(const struct insn *in, bool code64)
{
    return code64 ? jcc64[in->cond & 15] : jcc;
}

static void jmp_relative(struct cpu *cpu, const struct uop *u)
{
    cpu->rip = relative_target(cpu, u);
}

static void jmp_indirect(struct cpu *cpu, const struct uop *u)
{
    uint64_t target = branch_target(cpu, u, rm_read(cpu, u, u->in.osize));
    check_target(cpu, u, target);
    cpu->rip = target;
}

static void call_relative(struct cpu *cpu, const struct uop *u)
{
    uint64_t target = relative_target(cpu, u);
    stack_push(cpu, u, u->in.osize, cpu_next_rip(cpu, u));
    cpu->rip = target;
}

static void call_indirect(struct cpu *cpu, const struct uop *u)
{
    uint64_t target = branch_target(cpu, u, rm_read(cpu, u, u->in.osize));
    check_target(cpu, u, target);
    stack_push(cpu, u, u->in.osize, cpu_next_rip(cpu, u));
    cpu->rip = target;
}

static void ret(struct cpu *cpu, const struct uop *u)
{
    uint64_t rsp = cpu->gpr[RSP];
    uint64_t target = branch_target(cpu, u, stack_pop(cpu, u, u->in.osize));
    if (unlikely(cpu->code64 ? !canonical(cpu, target)
                             : target > cpu->s.segment[CS].limit)) {
        cpu->gpr[RSP] = rsp;
        raise_gp(cpu, u, 0);
    }
    if (u->in.form == FORM_IMM)
        stack_set(cpu, cpu->gpr[RSP] + (uint16_t)u->in.imm);
    cpu->rip = target;
}

static inline uint64_t counter(const struct cpu *cpu, const struct uop *u)
{
    return cpu->gpr[RCX] & bits_mask_bytes(u->in.asize);
}

static inline void loop_common(struct cpu *cpu, const struct uop *u, bool condition)
{
    uint64_t count = (counter(cpu, u) - 1) & bits_mask_bytes(u->in.asize);
    uint64_t target = count && condition ? relative_target(cpu, u) : cpu_next_rip(cpu, u);
    reg_write(cpu, RCX, u->in.asize, count);
    cpu->rip = target;
}

static void loop(struct cpu *cpu, const struct uop *u)
{
    loop_common(cpu, u, true);
}

static void loope(struct cpu *cpu, const struct uop *u)
{
    loop_common(cpu, u, cpu->cc & CC_ZF);
}

static void loopne(struct cpu *cpu, const struct uop *u)
{
    loop_common(cpu, u, !(cpu->cc & CC_ZF));
}

static void jcxz(struct cpu *cpu, const struct uop *u)
{
    cpu->rip = counter(cpu, u) == 0 ? relative_target(cpu, u) : cpu_next_rip(cpu, u);
}

const struct exec_def exec_control[] = {
    {OP_JCC, FORM_REL, NULL, jcc},
    {OP_JMP, FORM_REL, NULL, jmp_relative},
    {OP_JMP, FORM_RM, NULL, jmp_indirect},
    {OP_CALL, FORM_REL, NULL, call_relative},
    {OP_CALL, FORM_RM, NULL, call_indirect},
    {OP_RET, EXEC_ANY_FORM, NULL, ret},
    {OP_LOOP, EXEC_ANY_FORM, NULL, loop},
    {OP_LOOPE, EXEC_ANY_FORM, NULL, loope},
    {OP_LOOPNE, EXEC_ANY_FORM, NULL, loopne},
    {OP_JCXZ, EXEC_ANY_FORM, NULL, jcxz},
    {0, 0, NULL, NULL},
};
