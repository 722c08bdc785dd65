/* SPDX-License-Identifier: MIT */
/* BT BTS BTR BTC BSF BSR BSWAP SETcc. */
#include "exec.h"

enum bit_action { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

static inline uint64_t bit_apply(uint64_t value, uint64_t bit, enum bit_action action)
{
    switch (action) {
    case BIT_SET: return value | bit;
    case BIT_RESET: return value & ~bit;
    case BIT_COMPLEMENT: return value ^ bit;
    default: return value;
    }
}

#define BIT_RMW(bits)                                                                                 \
    do {                                                                                              \
        uint##bits##_t *p = mem_modify_ptr(cpu, u, linear, bits / 8, true);                           \
        if (u->in.flags & INSN_LOCK) {                                                                \
            uint##bits##_t seen = *p;                                                                 \
            while (!__atomic_compare_exchange_n(p, &seen, (uint##bits##_t)bit_apply(seen, bit, action), false, \
                                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))                  \
                ;                                                                                     \
            old = seen;                                                                               \
        } else {                                                                                      \
            old = *p;                                                                                 \
            *p = (uint##bits##_t)bit_apply(old, bit, action);                                         \
        }                                                                                             \
        mem_done(cpu, u, p, bits / 8);                                                                \
    } while (0)

static inline void bit_common(struct cpu *cpu, const struct uop *u, enum bit_action action)
{
    const struct insn *in = &u->in;
    unsigned size = in->osize, width = 8 * size;
    bool by_register = in->form == FORM_RM_REG;
    uint64_t index = by_register ? cpu->gpr[in->reg] : in->imm;
    uint64_t bit = BIT(index & (width - 1)), old;
    if (!(in->flags & INSN_MEM)) {
        old = reg_read(cpu, in->rm, size);
        if (action != BIT_TEST)
            reg_write(cpu, in->rm, size, bit_apply(old, bit, action));
    } else {
        uint64_t linear;
        if (by_register) {
            /* the register addresses a bit string: a signed displacement in operand-size units (SDM vol. 2, BT) */
            int64_t signed_index = size == 8 ? (int64_t)index : size == 4 ? (int32_t)index : (int16_t)index;
            int64_t displacement = (signed_index >> (size == 8 ? 6 : size == 4 ? 5 : 4)) * (int64_t)size;
            if (!u->ea_slow) {
                linear = operand_linear(cpu, u, size, action != BIT_TEST) + (uint64_t)displacement;
            } else {
                /* within the segment, with the address size's wrap: fold it into the displacement */
                struct uop moved = *u;
                moved.in.disp = (int32_t)(in->disp + displacement);
                linear = operand_linear(cpu, &moved, size, action != BIT_TEST);
            }
        } else {
            linear = operand_linear(cpu, u, size, action != BIT_TEST);
        }
        if (action == BIT_TEST)
            old = mem_read(cpu, u, linear, size);
        else if (size == 2)
            BIT_RMW(16);
        else if (size == 4)
            BIT_RMW(32);
        else
            BIT_RMW(64);
    }
    cpu->cc = (uint16_t)((cpu->cc & ~CC_CF) | (old & bit ? CC_CF : 0));
}

static void bt(struct cpu *cpu, const struct uop *u)
{
    bit_common(cpu, u, BIT_TEST);
    NEXT;
}

static void bts(struct cpu *cpu, const struct uop *u)
{
    bit_common(cpu, u, BIT_SET);
    NEXT;
}

static void btr(struct cpu *cpu, const struct uop *u)
{
    bit_common(cpu, u, BIT_RESET);
    NEXT;
}

static void btc(struct cpu *cpu, const struct uop *u)
{
    bit_common(cpu, u, BIT_COMPLEMENT);
    NEXT;
}

/* A zero source sets ZF and leaves the destination alone (SDM says undefined, every processor keeps it). */
static void bsf(struct cpu *cpu, const struct uop *u)
{
    uint64_t value = rm_read(cpu, u, u->in.osize);
    cpu->cc &= (uint16_t)~CC_ZF;
    if (value)
        reg_write(cpu, u->in.reg, u->in.osize, (uint64_t)__builtin_ctzll(value));
    else
        cpu->cc |= CC_ZF;
    NEXT;
}

static void bsr(struct cpu *cpu, const struct uop *u)
{
    uint64_t value = rm_read(cpu, u, u->in.osize);
    cpu->cc &= (uint16_t)~CC_ZF;
    if (value)
        reg_write(cpu, u->in.reg, u->in.osize, (uint64_t)(63 - __builtin_clzll(value)));
    else
        cpu->cc |= CC_ZF;
    NEXT;
}

/* 16-bit BSWAP is undefined; processors clear the register. */
static void bswap(struct cpu *cpu, const struct uop *u)
{
    unsigned r = u->in.rm;
    if (u->in.osize == 8)
        cpu->gpr[r] = __builtin_bswap64(cpu->gpr[r]);
    else if (u->in.osize == 4)
        cpu->gpr[r] = __builtin_bswap32((uint32_t)cpu->gpr[r]);
    else
        *(uint16_t *)&cpu->gpr[r] = 0;
    NEXT;
}

static void setcc(struct cpu *cpu, const struct uop *u)
{
    rm_write(cpu, u, 1, cc_test(cpu->cc, u->in.cond));
    NEXT;
}

const struct exec_def exec_bit[] = {
    {OP_BT, EXEC_ANY_FORM, NULL, bt},
    {OP_BTS, EXEC_ANY_FORM, NULL, bts},
    {OP_BTR, EXEC_ANY_FORM, NULL, btr},
    {OP_BTC, EXEC_ANY_FORM, NULL, btc},
    {OP_BSF, EXEC_ANY_FORM, NULL, bsf},
    {OP_BSR, EXEC_ANY_FORM, NULL, bsr},
    {OP_BSWAP, EXEC_ANY_FORM, NULL, bswap},
    {OP_SETCC, EXEC_ANY_FORM, NULL, setcc},
    {0, 0, NULL, NULL},
};
