/* SPDX-License-Identifier: MIT */
/* MOV MOVZX MOVSX MOVSXD LEA XCHG CMOVcc XLAT, flag moves, and what does nothing. */
#include "exec.h"
#include "exec_select.h"
#include "exec_sizes.h"

#define MOV_SIZE(bits)                                                                                \
    static void mov_rm_reg_r##bits(struct cpu *cpu, const struct uop *u)                              \
    {                                                                                                 \
        SET##bits(u->in.rm, GET##bits(u->in.reg));                                                    \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void mov_rm_reg_m##bits(struct cpu *cpu, const struct uop *u)                              \
    {                                                                                                 \
        mem_write_##bits(cpu, u, operand_linear(cpu, u, bits / 8, true), GET##bits(u->in.reg));       \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void mov_reg_rm_r##bits(struct cpu *cpu, const struct uop *u)                              \
    {                                                                                                 \
        SET##bits(u->in.reg, GET##bits(u->in.rm));                                                    \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void mov_reg_rm_m##bits(struct cpu *cpu, const struct uop *u)                              \
    {                                                                                                 \
        SET##bits(u->in.reg, mem_read_##bits(cpu, u, operand_linear(cpu, u, bits / 8, false)));       \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void mov_rm_imm_r##bits(struct cpu *cpu, const struct uop *u)                              \
    {                                                                                                 \
        SET##bits(u->in.rm, (uint##bits##_t)u->in.imm);                                               \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void mov_rm_imm_m##bits(struct cpu *cpu, const struct uop *u)                              \
    {                                                                                                 \
        mem_write_##bits(cpu, u, operand_linear(cpu, u, bits / 8, true), (uint##bits##_t)u->in.imm);  \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void xchg_r##bits(struct cpu *cpu, const struct uop *u)                                    \
    {                                                                                                 \
        uint##bits##_t a = GET##bits(u->in.rm), b = GET##bits(u->in.reg);                             \
        SET##bits(u->in.rm, b);                                                                       \
        SET##bits(u->in.reg, a);                                                                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    /* a memory operand locks the bus whatever the prefix (SDM vol. 2, XCHG) */                       \
    static void xchg_m##bits(struct cpu *cpu, const struct uop *u)                                    \
    {                                                                                                 \
        uint##bits##_t *p = mem_modify_ptr(cpu, u, operand_linear(cpu, u, bits / 8, true), bits / 8, true); \
        uint##bits##_t old = __atomic_exchange_n(p, GET##bits(u->in.reg), __ATOMIC_SEQ_CST);          \
        mem_done(cpu, u, p, bits / 8);                                                                \
        SET##bits(u->in.reg, old);                                                                    \
        NEXT;                                                                                         \
    }
MOV_SIZE(8)
MOV_SIZE(16)
MOV_SIZE(32)
MOV_SIZE(64)
static const exec_set mov_rm_reg = SET_OF(mov_rm_reg), mov_reg_rm = SET_OF(mov_reg_rm), mov_rm_imm = SET_OF(mov_rm_imm),
                      xchg = SET_OF(xchg);

/* widening loads, by source size; the destination's size is the operand size */
#define WIDEN(name, bits, type)                                                                       \
    static void name##_r##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        reg_write(cpu, u->in.reg, u->in.osize, (uint64_t)(int64_t)(type)GET##bits(u->in.rm));         \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_m##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        uint64_t linear = operand_linear(cpu, u, bits / 8, false);                                    \
        reg_write(cpu, u->in.reg, u->in.osize, (uint64_t)(int64_t)(type)mem_read_##bits(cpu, u, linear)); \
        NEXT;                                                                                         \
    }
WIDEN(movzx, 8, uint8_t)
WIDEN(movzx, 16, uint16_t)
WIDEN(movsx, 8, int8_t)
WIDEN(movsx, 16, int16_t)
WIDEN(movsx, 32, int32_t)

exec_fn *exec_select_widen(const struct insn *in, unsigned source_bytes)
{
    bool mem = in->flags & INSN_MEM;
    bool sign = in->op != OP_MOVZX;
    switch (source_bytes) {
    case 1: return sign ? (mem ? movsx_m8 : movsx_r8) : (mem ? movzx_m8 : movzx_r8);
    case 2: return sign ? (mem ? movsx_m16 : movsx_r16) : (mem ? movzx_m16 : movzx_r16);
    default: return mem ? movsx_m32 : movsx_r32;
    }
}

/* The effective address only: no segment base, no limit. */
static void lea(struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    uint64_t base = in->base == INSN_REG_RIP && u->ea_slow ? cpu_next_rip(cpu, u) : cpu->gpr[in->base];
    uint64_t address = base + (cpu->gpr[in->index] << in->scale) + (uint64_t)(int64_t)in->disp;
    if (unlikely(in->asize != 8))
        address &= in->asize == 4 ? 0xffffffffu : 0xffffu;
    reg_write(cpu, in->reg, in->osize, address);
    NEXT;
}

static void lea64(struct cpu *cpu, const struct uop *u)
{
    const struct insn *in = &u->in;
    cpu->gpr[in->reg] = cpu->gpr[in->base] + (cpu->gpr[in->index] << in->scale) + (uint64_t)(int64_t)in->disp;
    NEXT;
}

exec_fn *exec_select_lea(const struct insn *in, bool ea_slow)
{
    return in->osize == 8 && !ea_slow ? lea64 : lea;
}

/* The source is read, and may fault, whatever the condition; a 32-bit destination is always written. */
static void cmovcc(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t value = rm_read(cpu, u, size);
    if (cc_test(cpu->cc, u->in.cond))
        reg_write(cpu, u->in.reg, size, value);
    else if (size == 4)
        cpu->gpr[u->in.reg] = (uint32_t)cpu->gpr[u->in.reg];
    NEXT;
}

static void xlat(struct cpu *cpu, const struct uop *u)
{
    uint64_t offset = cpu->gpr[RBX] + (uint8_t)cpu->gpr[RAX];
    offset &= bits_mask_bytes(u->in.asize);
    uint64_t linear = cpu->code64 ? offset + cpu->seg_base[u->in.segment]
                                  : access_segment(cpu, u, u->in.segment, offset, 1, false);
    *reg8(cpu, RAX) = mem_read_8(cpu, u, linear);
    NEXT;
}

static void movbe(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    bool load = u->in.form == FORM_REG_RM;
    uint64_t value = load ? rm_read(cpu, u, size) : reg_read(cpu, u->in.reg, size);
    value = __builtin_bswap64(value) >> (64 - 8 * size);
    if (load)
        reg_write(cpu, u->in.reg, size, value);
    else
        rm_write(cpu, u, size, value);
    NEXT;
}

static void lahf(struct cpu *cpu, const struct uop *u)
{
    *((uint8_t *)&cpu->gpr[RAX] + 1) = (uint8_t)(((cpu->cc >> 8) & 0xd5) | 2);
    NEXT;
}

static void sahf(struct cpu *cpu, const struct uop *u)
{
    uint8_t ah = *((uint8_t *)&cpu->gpr[RAX] + 1);
    cpu->cc = (uint16_t)((cpu->cc & 0xff) | ((ah & 0xd5) | 2) << 8);
    NEXT;
}

static void clc(struct cpu *cpu, const struct uop *u)
{
    cpu->cc &= (uint16_t)~CC_CF;
    NEXT;
}

static void stc(struct cpu *cpu, const struct uop *u)
{
    cpu->cc |= CC_CF;
    NEXT;
}

static void cmc(struct cpu *cpu, const struct uop *u)
{
    cpu->cc ^= CC_CF;
    NEXT;
}

static void cld(struct cpu *cpu, const struct uop *u)
{
    cpu->eflags &= ~(uint64_t)EFLAGS_DF;
    NEXT;
}

static void std(struct cpu *cpu, const struct uop *u)
{
    cpu->eflags |= EFLAGS_DF;
    NEXT;
}

static void salc(struct cpu *cpu, const struct uop *u)
{
    *reg8(cpu, RAX) = cpu->cc & CC_CF ? 0xff : 0;
    NEXT;
}

static void nop(struct cpu *cpu, const struct uop *u)
{
    NEXT;
}

static void pause(struct cpu *cpu, const struct uop *u)
{
    if (unlikely(++cpu->pauses % PAUSES_A_CALL == 0) && cpu->callbacks.pause) {
        cpu_fpu_leave(cpu);
        cpu->callbacks.pause(cpu->opaque);
    }
    NEXT;
}

static void fence(struct cpu *cpu, const struct uop *u)
{
    atomic_thread_fence(memory_order_seq_cst);
    NEXT;
}

const struct exec_def exec_move[] = {
    {OP_MOV, FORM_RM_REG, &mov_rm_reg, NULL},
    {OP_MOV, FORM_REG_RM, &mov_reg_rm, NULL},
    {OP_MOV, FORM_RM_IMM, &mov_rm_imm, NULL},
    {OP_XCHG, FORM_RM_REG, &xchg, NULL},
    {OP_CMOVCC, EXEC_ANY_FORM, NULL, cmovcc},
    {OP_XLAT, EXEC_ANY_FORM, NULL, xlat},
    {OP_MOVBE, EXEC_ANY_FORM, NULL, movbe},
    {OP_LAHF, EXEC_ANY_FORM, NULL, lahf},
    {OP_SAHF, EXEC_ANY_FORM, NULL, sahf},
    {OP_CLC, EXEC_ANY_FORM, NULL, clc},
    {OP_STC, EXEC_ANY_FORM, NULL, stc},
    {OP_CMC, EXEC_ANY_FORM, NULL, cmc},
    {OP_CLD, EXEC_ANY_FORM, NULL, cld},
    {OP_STD, EXEC_ANY_FORM, NULL, std},
    {OP_SALC, EXEC_ANY_FORM, NULL, salc},
    {OP_NOP, EXEC_ANY_FORM, NULL, nop},
    {OP_PAUSE, EXEC_ANY_FORM, NULL, pause},
    {OP_PREFETCH, EXEC_ANY_FORM, NULL, nop},
    {OP_PREFETCHW, EXEC_ANY_FORM, NULL, nop},
    {OP_LFENCE, EXEC_ANY_FORM, NULL, fence},
    {OP_MFENCE, EXEC_ANY_FORM, NULL, fence},
    {OP_SFENCE, EXEC_ANY_FORM, NULL, fence},
    {0, 0, NULL, NULL},
};
