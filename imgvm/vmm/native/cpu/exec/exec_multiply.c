/* SPDX-License-Identifier: MIT */
/* MUL IMUL DIV IDIV and the widenings CBW..CQO; the decimal adjustments that only 16- and 32-bit code has. */
#include "exec.h"

static inline void set_cf_of(struct cpu *cpu, bool overflow)
{
    cpu->cc = (uint16_t)((cpu->cc & ~(CC_CF | CC_OF)) | (overflow ? CC_CF | CC_OF : 0));
}

/* SF, ZF and PF of a result: what the host leaves behind MUL is not architectural, only CF and OF are. */
static void mul(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t b = rm_read(cpu, u, size);
    if (size == 1) {
        uint16_t product = (uint16_t)((uint8_t)cpu->gpr[RAX] * b);
        *(uint16_t *)&cpu->gpr[RAX] = product;
        set_cf_of(cpu, product >> 8);
        NEXT;
    }
    unsigned __int128 product = (unsigned __int128)reg_read(cpu, RAX, size) * b;
    uint64_t high = (uint64_t)(product >> (8 * size)) & bits_mask_bytes(size);
    reg_write(cpu, RAX, size, (uint64_t)product);
    reg_write(cpu, RDX, size, high);
    set_cf_of(cpu, high != 0);
    NEXT;
}

static int64_t sign_extend(uint64_t value, unsigned size)
{
    switch (size) {
    case 1: return (int8_t)value;
    case 2: return (int16_t)value;
    case 4: return (int32_t)value;
    default: return (int64_t)value;
    }
}

static void imul_one(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    int64_t b = sign_extend(rm_read(cpu, u, size), size);
    if (size == 1) {
        int16_t product = (int16_t)((int8_t)cpu->gpr[RAX] * b);
        *(uint16_t *)&cpu->gpr[RAX] = (uint16_t)product;
        set_cf_of(cpu, product != (int8_t)product);
        NEXT;
    }
    __int128 product = (__int128)sign_extend(cpu->gpr[RAX], size) * b;
    reg_write(cpu, RAX, size, (uint64_t)product);
    reg_write(cpu, RDX, size, (uint64_t)(product >> (8 * size)));
    set_cf_of(cpu, product != sign_extend((uint64_t)product, size));
    NEXT;
}

static inline void imul_into(struct cpu *cpu, const struct uop *u, uint64_t first, uint64_t second)
{
    unsigned size = u->in.osize;
    __int128 product = (__int128)sign_extend(first, size) * sign_extend(second, size);
    reg_write(cpu, u->in.reg, size, (uint64_t)product);
    set_cf_of(cpu, product != sign_extend((uint64_t)product, size));
}

static void imul_two(struct cpu *cpu, const struct uop *u)
{
    uint64_t b = rm_read(cpu, u, u->in.osize);
    imul_into(cpu, u, cpu->gpr[u->in.reg], b);
    NEXT;
}

static void imul_three(struct cpu *cpu, const struct uop *u)
{
    imul_into(cpu, u, rm_read(cpu, u, u->in.osize), u->in.imm);
    NEXT;
}

static void div(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t divisor = rm_read(cpu, u, size);
    if (!divisor)
        raise_exception(cpu, u, EXC_DE);
    if (size == 1) {
        unsigned dividend = (uint16_t)cpu->gpr[RAX], quotient = dividend / (unsigned)divisor;
        if (quotient > 0xff)
            raise_exception(cpu, u, EXC_DE);
        *(uint16_t *)&cpu->gpr[RAX] = (uint16_t)(quotient | (dividend % (unsigned)divisor) << 8);
        NEXT;
    }
    if (size == 8) {
        if (cpu->gpr[RDX] >= divisor)
            raise_exception(cpu, u, EXC_DE);
        __asm__("divq %[d]" : "+a"(cpu->gpr[RAX]), "+d"(cpu->gpr[RDX]) : [d] "r"(divisor) : "cc");
        NEXT;
    }
    uint64_t dividend = reg_read(cpu, RDX, size) << (8 * size) | reg_read(cpu, RAX, size);
    uint64_t quotient = dividend / divisor;
    if (quotient > bits_mask_bytes(size))
        raise_exception(cpu, u, EXC_DE);
    reg_write(cpu, RAX, size, quotient);
    reg_write(cpu, RDX, size, dividend % divisor);
    NEXT;
}

/* 128 by 64 bits, signed, without library calls: divide magnitudes. false: the quotient does not fit. */
static bool divide_signed_wide(int64_t high, uint64_t low, int64_t divisor, int64_t *quotient, int64_t *remainder)
{
    bool negative_dividend = high < 0, negative_divisor = divisor < 0;
    unsigned __int128 dividend = (unsigned __int128)(uint64_t)high << 64 | low;
    if (negative_dividend)
        dividend = -dividend;
    uint64_t d = negative_divisor ? -(uint64_t)divisor : (uint64_t)divisor;
    if ((uint64_t)(dividend >> 64) >= d)
        return false;
    uint64_t q = (uint64_t)dividend, r = (uint64_t)(dividend >> 64);
    __asm__("divq %[d]" : "+a"(q), "+d"(r) : [d] "r"(d) : "cc");
    bool negative = negative_dividend != negative_divisor;
    if (q > BIT(63) - !negative)
        return false;
    *quotient = (int64_t)(negative ? -q : q);
    *remainder = (int64_t)(negative_dividend ? -r : r);
    return true;
}

static void idiv(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    int64_t divisor = sign_extend(rm_read(cpu, u, size), size);
    int64_t quotient, remainder;
    if (!divisor)
        raise_exception(cpu, u, EXC_DE);
    if (size == 8) {
        if (!divide_signed_wide((int64_t)cpu->gpr[RDX], cpu->gpr[RAX], divisor, &quotient, &remainder))
            raise_exception(cpu, u, EXC_DE);
        cpu->gpr[RAX] = (uint64_t)quotient;
        cpu->gpr[RDX] = (uint64_t)remainder;
        NEXT;
    }
    int64_t dividend;
    if (size == 1)
        dividend = (int16_t)cpu->gpr[RAX];
    else
        dividend = sign_extend(reg_read(cpu, RDX, size) << (8 * size) | reg_read(cpu, RAX, size), 2 * size);
    if (divisor == -1 && dividend == INT64_MIN)
        raise_exception(cpu, u, EXC_DE);
    quotient = dividend / divisor;
    remainder = dividend % divisor;
    if (quotient != sign_extend((uint64_t)quotient, size))
        raise_exception(cpu, u, EXC_DE);
    if (size == 1) {
        *(uint16_t *)&cpu->gpr[RAX] = (uint16_t)((uint8_t)quotient | (uint8_t)remainder << 8);
    } else {
        reg_write(cpu, RAX, size, (uint64_t)quotient);
        reg_write(cpu, RDX, size, (uint64_t)remainder);
    }
    NEXT;
}

/* CBW CWDE CDQE, by operand size */
static void widen_accumulator(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    reg_write(cpu, RAX, size, (uint64_t)sign_extend(cpu->gpr[RAX], size / 2));
    NEXT;
}

/* CWD CDQ CQO */
static void widen_to_rdx(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    reg_write(cpu, RDX, size, sign_extend(cpu->gpr[RAX], size) < 0 ? ~UINT64_C(0) : 0);
    NEXT;
}

static void set_szp(struct cpu *cpu, uint8_t value)
{
    cpu->cc &= (uint16_t)~(CC_SF | CC_ZF | CC_PF);
    cpu->cc |= (uint16_t)((value & 0x80 ? CC_SF : 0) | (value ? 0 : CC_ZF) | (__builtin_parity(value) ? 0 : CC_PF));
}

/* SDM vol. 2, DAA and DAS */
static void decimal_adjust(struct cpu *cpu, const struct uop *u, int sign)
{
    uint8_t old = (uint8_t)cpu->gpr[RAX], al = old;
    bool old_cf = cpu->cc & CC_CF, cf = false, af = false;
    if ((old & 15) > 9 || (cpu->cc & CC_AF)) {
        al = (uint8_t)(al + sign * 6);
        cf = old_cf || (sign > 0 ? old > 0xf9 : old < 6);
        af = true;
    }
    if (old > 0x99 || old_cf) {
        al = (uint8_t)(al + sign * 0x60);
        cf = true;
    }
    *reg8(cpu, RAX) = al;
    cpu->cc = (uint16_t)((cpu->cc & ~(CC_CF | CC_AF)) | (cf ? CC_CF : 0) | (af ? CC_AF : 0));
    set_szp(cpu, al);
    NEXT;
}

static void daa(struct cpu *cpu, const struct uop *u)
{
    decimal_adjust(cpu, u, 1);
}

static void das(struct cpu *cpu, const struct uop *u)
{
    decimal_adjust(cpu, u, -1);
}

/* SDM vol. 2, AAA and AAS */
static void ascii_adjust(struct cpu *cpu, const struct uop *u, int sign)
{
    uint16_t ax = (uint16_t)cpu->gpr[RAX];
    bool adjust = (ax & 15) > 9 || (cpu->cc & CC_AF);
    if (adjust)
        ax = (uint16_t)(ax + sign * 0x106);
    *(uint16_t *)&cpu->gpr[RAX] = ax & 0xff0f;
    cpu->cc = (uint16_t)((cpu->cc & ~(CC_CF | CC_AF)) | (adjust ? CC_CF | CC_AF : 0));
    set_szp(cpu, ax & 0x0f);
    NEXT;
}

static void aaa(struct cpu *cpu, const struct uop *u)
{
    ascii_adjust(cpu, u, 1);
}

static void aas(struct cpu *cpu, const struct uop *u)
{
    ascii_adjust(cpu, u, -1);
}

static void aam(struct cpu *cpu, const struct uop *u)
{
    uint8_t base = (uint8_t)u->in.imm, al = (uint8_t)cpu->gpr[RAX];
    if (!base)
        raise_exception(cpu, u, EXC_DE);
    *(uint16_t *)&cpu->gpr[RAX] = (uint16_t)((al / base) << 8 | al % base);
    set_szp(cpu, al % base);
    NEXT;
}

static void aad(struct cpu *cpu, const struct uop *u)
{
    uint16_t ax = (uint16_t)cpu->gpr[RAX];
    uint8_t al = (uint8_t)(ax + (ax >> 8) * (uint8_t)u->in.imm);
    *(uint16_t *)&cpu->gpr[RAX] = al;
    set_szp(cpu, al);
    NEXT;
}

const struct exec_def exec_multiply[] = {
    {OP_MUL, FORM_RM, NULL, mul},
    {OP_IMUL, FORM_RM, NULL, imul_one},
    {OP_IMUL, FORM_REG_RM, NULL, imul_two},
    {OP_IMUL, FORM_REG_RM_IMM, NULL, imul_three},
    {OP_DIV, FORM_RM, NULL, div},
    {OP_IDIV, FORM_RM, NULL, idiv},
    {OP_CBW, EXEC_ANY_FORM, NULL, widen_accumulator},
    {OP_CWD, EXEC_ANY_FORM, NULL, widen_to_rdx},
    {OP_DAA, EXEC_ANY_FORM, NULL, daa},
    {OP_DAS, EXEC_ANY_FORM, NULL, das},
    {OP_AAA, EXEC_ANY_FORM, NULL, aaa},
    {OP_AAS, EXEC_ANY_FORM, NULL, aas},
    {OP_AAM, EXEC_ANY_FORM, NULL, aam},
    {OP_AAD, EXEC_ANY_FORM, NULL, aad},
    {0, 0, NULL, NULL},
};
