/* SPDX-License-Identifier: MIT */
/* Integer arithmetic and logic: ADD OR ADC SBB AND SUB XOR CMP TEST INC DEC NEG NOT, and the
 * read-modify-write pair CMPXCHG, XADD, each in every size and form; LOCK makes them the host's own atomics. */
#include "alu.h"
#include "exec_sizes.h"

/* A locked read-modify-write in RAM: compute, then try to swap; the memory operand may change in between. */
#define LOCKED_RMW(bits, p, old, result, compute)                                                     \
    do {                                                                                              \
        uint##bits##_t old = __atomic_load_n(p, __ATOMIC_SEQ_CST);                                    \
        for (;;) {                                                                                    \
            uint16_t before = cpu->cc;                                                                \
            uint##bits##_t result = compute;                                                          \
            if (__atomic_compare_exchange_n(p, &old, result, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) \
                break;                                                                                \
            cpu->cc = before;                                                                         \
        }                                                                                             \
    } while (0)

#define RMW(bits, compute)                                                                            \
    do {                                                                                              \
        uint64_t linear = operand_linear(cpu, u, bits / 8, true);                                     \
        uint##bits##_t *p = mem_modify_ptr(cpu, u, linear, bits / 8, true);                           \
        if (unlikely(u->in.flags & INSN_LOCK)) {                                                      \
            LOCKED_RMW(bits, p, a, r, compute);                                                       \
        } else {                                                                                      \
            uint##bits##_t a = *p;                                                                    \
            *p = compute;                                                                             \
        }                                                                                             \
        mem_done(cpu, u, p, bits / 8);                                                                \
    } while (0)

/* destination and source combinations of one binary operation in one size */
#define BINARY_SIZE(name, bits)                                                                       \
    static void name##_rm_reg_r##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        SET##bits(u->in.rm, alu_##name##_##bits(GET##bits(u->in.rm), GET##bits(u->in.reg), &cpu->cc)); \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_reg_m##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        uint##bits##_t b = GET##bits(u->in.reg);                                                      \
        RMW(bits, alu_##name##_##bits(a, b, &cpu->cc));                                               \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_reg_rm_r##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        SET##bits(u->in.reg, alu_##name##_##bits(GET##bits(u->in.reg), GET##bits(u->in.rm), &cpu->cc)); \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_reg_rm_m##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        uint##bits##_t b = mem_read_##bits(cpu, u, operand_linear(cpu, u, bits / 8, false));          \
        SET##bits(u->in.reg, alu_##name##_##bits(GET##bits(u->in.reg), b, &cpu->cc));                 \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_imm_r##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        SET##bits(u->in.rm, alu_##name##_##bits(GET##bits(u->in.rm), (uint##bits##_t)u->in.imm, &cpu->cc)); \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_imm_m##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        uint##bits##_t b = (uint##bits##_t)u->in.imm;                                                 \
        RMW(bits, alu_##name##_##bits(a, b, &cpu->cc));                                               \
        NEXT;                                                                                         \
    }

/* the same where the result is thrown away: CMP and TEST */
#define COMPARE_SIZE(name, alu, bits)                                                                 \
    static void name##_rm_reg_r##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        alu_##alu##_##bits(GET##bits(u->in.rm), GET##bits(u->in.reg), &cpu->cc);                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_reg_m##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        uint##bits##_t a = mem_read_##bits(cpu, u, operand_linear(cpu, u, bits / 8, false));          \
        alu_##alu##_##bits(a, GET##bits(u->in.reg), &cpu->cc);                                        \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_reg_rm_r##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        alu_##alu##_##bits(GET##bits(u->in.reg), GET##bits(u->in.rm), &cpu->cc);                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_reg_rm_m##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        uint##bits##_t b = mem_read_##bits(cpu, u, operand_linear(cpu, u, bits / 8, false));          \
        alu_##alu##_##bits(GET##bits(u->in.reg), b, &cpu->cc);                                        \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_imm_r##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        alu_##alu##_##bits(GET##bits(u->in.rm), (uint##bits##_t)u->in.imm, &cpu->cc);                 \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_imm_m##bits(struct cpu *cpu, const struct uop *u)                           \
    {                                                                                                 \
        uint##bits##_t a = mem_read_##bits(cpu, u, operand_linear(cpu, u, bits / 8, false));          \
        alu_##alu##_##bits(a, (uint##bits##_t)u->in.imm, &cpu->cc);                                   \
        NEXT;                                                                                         \
    }

#define UNARY_SIZE(name, bits)                                                                        \
    static void name##_rm_r##bits(struct cpu *cpu, const struct uop *u)                               \
    {                                                                                                 \
        SET##bits(u->in.rm, alu_##name##_##bits(GET##bits(u->in.rm), &cpu->cc));                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void name##_rm_m##bits(struct cpu *cpu, const struct uop *u)                               \
    {                                                                                                 \
        RMW(bits, alu_##name##_##bits(a, &cpu->cc));                                                  \
        NEXT;                                                                                         \
    }

#define NOT_SIZE(bits)                                                                                \
    static void not_rm_r##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        SET##bits(u->in.rm, (uint##bits##_t)~GET##bits(u->in.rm));                                    \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void not_rm_m##bits(struct cpu *cpu, const struct uop *u)                                  \
    {                                                                                                 \
        RMW(bits, (uint##bits##_t)~a);                                                                \
        NEXT;                                                                                         \
    }

/* SDM vol. 2, CMPXCHG: the destination is written in either case; 32-bit: RAX changes only when the comparison fails. */
#define CMPXCHG_SIZE(bits)                                                                            \
    static void cmpxchg_rm_reg_r##bits(struct cpu *cpu, const struct uop *u)                          \
    {                                                                                                 \
        uint##bits##_t old = GET##bits(u->in.rm);                                                     \
        alu_sub_##bits(GET##bits(RAX), old, &cpu->cc);                                                \
        if (cpu->cc & CC_ZF)                                                                          \
            SET##bits(u->in.rm, GET##bits(u->in.reg));                                                \
        else                                                                                          \
            SET##bits(RAX, old);                                                                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void cmpxchg_rm_reg_m##bits(struct cpu *cpu, const struct uop *u)                          \
    {                                                                                                 \
        uint64_t linear = operand_linear(cpu, u, bits / 8, true);                                     \
        uint##bits##_t *p = mem_modify_ptr(cpu, u, linear, bits / 8, true);                           \
        uint##bits##_t old = GET##bits(RAX);                                                          \
        __atomic_compare_exchange_n(p, &old, GET##bits(u->in.reg), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        mem_done(cpu, u, p, bits / 8);                                                                \
        alu_sub_##bits(GET##bits(RAX), old, &cpu->cc);                                                \
        if (!(cpu->cc & CC_ZF))                                                                       \
            SET##bits(RAX, old);                                                                      \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void xadd_rm_reg_r##bits(struct cpu *cpu, const struct uop *u)                             \
    {                                                                                                 \
        uint##bits##_t old = GET##bits(u->in.rm);                                                     \
        uint##bits##_t sum = alu_add_##bits(old, GET##bits(u->in.reg), &cpu->cc);                     \
        SET##bits(u->in.reg, old);                                                                    \
        SET##bits(u->in.rm, sum);                                                                     \
        NEXT;                                                                                         \
    }                                                                                                 \
    static void xadd_rm_reg_m##bits(struct cpu *cpu, const struct uop *u)                             \
    {                                                                                                 \
        uint64_t linear = operand_linear(cpu, u, bits / 8, true);                                     \
        uint##bits##_t *p = mem_modify_ptr(cpu, u, linear, bits / 8, true);                           \
        uint##bits##_t b = GET##bits(u->in.reg);                                                      \
        uint##bits##_t old = __atomic_fetch_add(p, b, __ATOMIC_SEQ_CST);                              \
        mem_done(cpu, u, p, bits / 8);                                                                \
        alu_add_##bits(old, b, &cpu->cc);                                                             \
        SET##bits(u->in.reg, old);                                                                    \
        NEXT;                                                                                         \
    }

#define EACH_SIZE(make, ...) make(__VA_ARGS__, 8) make(__VA_ARGS__, 16) make(__VA_ARGS__, 32) make(__VA_ARGS__, 64)
#define BINARY_SETS(name)                                                                             \
    static const exec_set name##_rm_reg = SET_OF(name##_rm_reg);                                      \
    static const exec_set name##_reg_rm = SET_OF(name##_reg_rm);                                      \
    static const exec_set name##_rm_imm = SET_OF(name##_rm_imm);
#define BINARY(name) EACH_SIZE(BINARY_SIZE, name) BINARY_SETS(name)

BINARY(add)
BINARY(or)
BINARY(adc)
BINARY(sbb)
BINARY(and)
BINARY(sub)
BINARY(xor)
EACH_SIZE(COMPARE_SIZE, cmp, sub)
BINARY_SETS(cmp)
EACH_SIZE(COMPARE_SIZE, test, and)
BINARY_SETS(test)
#define UNARY(name)                                                                                   \
    EACH_SIZE(UNARY_SIZE, name)                                                                       \
    static const exec_set name##_rm = SET_OF(name##_rm);
UNARY(inc)
UNARY(dec)
UNARY(neg)
NOT_SIZE(8)
NOT_SIZE(16)
NOT_SIZE(32)
NOT_SIZE(64)
static const exec_set not_rm = SET_OF(not_rm);
CMPXCHG_SIZE(8)
CMPXCHG_SIZE(16)
CMPXCHG_SIZE(32)
CMPXCHG_SIZE(64)
static const exec_set cmpxchg_rm_reg = SET_OF(cmpxchg_rm_reg);
static const exec_set xadd_rm_reg = SET_OF(xadd_rm_reg);

static void cmpxchg8b(struct cpu *cpu, const struct uop *u)
{
    uint64_t *p = mem_modify_ptr(cpu, u, operand_linear(cpu, u, 8, true), 8, true);
    uint64_t old = cpu->gpr[RDX] << 32 | (uint32_t)cpu->gpr[RAX];
    uint64_t wanted = cpu->gpr[RCX] << 32 | (uint32_t)cpu->gpr[RBX];
    bool equal = __atomic_compare_exchange_n(p, &old, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    mem_done(cpu, u, p, 8);
    cpu->cc &= (uint16_t)~CC_ZF;
    if (equal) {
        cpu->cc |= CC_ZF;
    } else {
        cpu->gpr[RAX] = (uint32_t)old;
        cpu->gpr[RDX] = old >> 32;
    }
    NEXT;
}

static void cmpxchg16b(struct cpu *cpu, const struct uop *u)
{
    uint64_t linear = operand_linear(cpu, u, 16, true);
    if (linear & 15)
        raise_gp(cpu, u, 0);
    void *p = mem_modify_ptr(cpu, u, linear, 16, true);
    uint64_t low = cpu->gpr[RAX], high = cpu->gpr[RDX];
    bool equal;
    __asm__ volatile("lock cmpxchg16b %[p]"
                     : [p] "+m"(*(unsigned __int128 *)p), "+a"(low), "+d"(high), "=@ccz"(equal)
                     : "b"(cpu->gpr[RBX]), "c"(cpu->gpr[RCX])
                     : "memory");
    mem_done(cpu, u, p, 16);
    cpu->cc &= (uint16_t)~CC_ZF;
    if (equal) {
        cpu->cc |= CC_ZF;
    } else {
        cpu->gpr[RAX] = low;
        cpu->gpr[RDX] = high;
    }
    NEXT;
}

#define BINARY_DEFS(OP, name)                                                                         \
    {OP, FORM_RM_REG, &name##_rm_reg, NULL}, {OP, FORM_REG_RM, &name##_reg_rm, NULL}, {OP, FORM_RM_IMM, &name##_rm_imm, NULL}

const struct exec_def exec_int[] = {
    BINARY_DEFS(OP_ADD, add),
    BINARY_DEFS(OP_OR, or),
    BINARY_DEFS(OP_ADC, adc),
    BINARY_DEFS(OP_SBB, sbb),
    BINARY_DEFS(OP_AND, and),
    BINARY_DEFS(OP_SUB, sub),
    BINARY_DEFS(OP_XOR, xor),
    BINARY_DEFS(OP_CMP, cmp),
    BINARY_DEFS(OP_TEST, test),
    {OP_INC, FORM_RM, &inc_rm, NULL},
    {OP_DEC, FORM_RM, &dec_rm, NULL},
    {OP_NEG, FORM_RM, &neg_rm, NULL},
    {OP_NOT, FORM_RM, &not_rm, NULL},
    {OP_CMPXCHG, FORM_RM_REG, &cmpxchg_rm_reg, NULL},
    {OP_XADD, FORM_RM_REG, &xadd_rm_reg, NULL},
    {OP_CMPXCHG8B, EXEC_ANY_FORM, NULL, cmpxchg8b},
    {OP_CMPXCHG16B, EXEC_ANY_FORM, NULL, cmpxchg16b},
    {0, 0, NULL, NULL},
};
