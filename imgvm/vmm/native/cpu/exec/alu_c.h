/* SPDX-License-Identifier: MIT */
/* The operations of alu.h in plain C: what the manual says of result and flags, written out (SDM vol. 2, the
 * instructions' own pages). For hosts and tools without the host's own instruction; tests/native/test_alu.c holds the
 * two against each other on every flag that is defined.
 *
 * Values of `bits` bits stand in the low end of a uint64_t. `cc` is in the layout of cpu.cc. A flag that the manual
 * leaves undefined is given the value that follows from the same formula as when it is defined. */
#ifndef IMGVM_CPU_EXEC_ALU_C_H
#define IMGVM_CPU_EXEC_ALU_C_H

#include <stdbool.h>
#include <stdint.h>

#define ALU_C_CF 0x0100u
#define ALU_C_FIXED 0x0200u
#define ALU_C_PF 0x0400u
#define ALU_C_AF 0x1000u
#define ALU_C_ZF 0x4000u
#define ALU_C_SF 0x8000u
#define ALU_C_OF 0x0001u

static inline uint64_t alu_c_mask(unsigned bits)
{
    return bits == 64 ? ~UINT64_C(0) : (UINT64_C(1) << bits) - 1;
}

static inline bool alu_c_bit(uint64_t value, unsigned index)
{
    return value >> index & 1;
}

/* SF, ZF and PF of a result: PF says that its low byte has an even number of ones. */
static inline uint16_t alu_c_result_flags(uint64_t result, unsigned bits)
{
    uint16_t flags = ALU_C_FIXED;
    if (alu_c_bit(result, bits - 1))
        flags |= ALU_C_SF;
    if (!(result & alu_c_mask(bits)))
        flags |= ALU_C_ZF;
    if (!__builtin_parity((unsigned)result & 0xff))
        flags |= ALU_C_PF;
    return flags;
}

/* Carries out of every bit position tell CF and AF, the two topmost tell OF. */
static inline uint64_t alu_c_add_carry(uint64_t a, uint64_t b, bool carry, unsigned bits, uint16_t *cc)
{
    uint64_t result = (a + b + carry) & alu_c_mask(bits);
    uint64_t carries = (a & b) | ((a | b) & ~result);
    *cc = alu_c_result_flags(result, bits) | (alu_c_bit(carries, bits - 1) ? ALU_C_CF : 0) |
          (alu_c_bit(carries, 3) ? ALU_C_AF : 0) | (alu_c_bit(~(a ^ b) & (a ^ result), bits - 1) ? ALU_C_OF : 0);
    return result;
}

static inline uint64_t alu_c_sub_borrow(uint64_t a, uint64_t b, bool borrow, unsigned bits, uint16_t *cc)
{
    uint64_t result = (a - b - borrow) & alu_c_mask(bits);
    uint64_t borrows = (~a & b) | ((~a | b) & result);
    *cc = alu_c_result_flags(result, bits) | (alu_c_bit(borrows, bits - 1) ? ALU_C_CF : 0) |
          (alu_c_bit(borrows, 3) ? ALU_C_AF : 0) | (alu_c_bit((a ^ b) & (a ^ result), bits - 1) ? ALU_C_OF : 0);
    return result;
}

static inline uint64_t alu_c_add(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_add_carry(a, b, false, bits, cc);
}
static inline uint64_t alu_c_adc(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_add_carry(a, b, *cc & ALU_C_CF, bits, cc);
}
static inline uint64_t alu_c_sub(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_sub_borrow(a, b, false, bits, cc);
}
static inline uint64_t alu_c_sbb(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_sub_borrow(a, b, *cc & ALU_C_CF, bits, cc);
}

/* CF and OF are cleared, AF is undefined. */
static inline uint64_t alu_c_logic(uint64_t result, unsigned bits, uint16_t *cc)
{
    *cc = alu_c_result_flags(result, bits);
    return result & alu_c_mask(bits);
}
static inline uint64_t alu_c_and(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_logic(a & b, bits, cc);
}
static inline uint64_t alu_c_or(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_logic(a | b, bits, cc);
}
static inline uint64_t alu_c_xor(uint64_t a, uint64_t b, unsigned bits, uint16_t *cc)
{
    return alu_c_logic(a ^ b, bits, cc);
}

/* INC and DEC leave CF alone. */
static inline uint64_t alu_c_inc(uint64_t a, unsigned bits, uint16_t *cc)
{
    uint16_t carry = *cc & ALU_C_CF;
    uint64_t result = alu_c_add(a, 1, bits, cc);
    *cc = (*cc & ~ALU_C_CF) | carry;
    return result;
}
static inline uint64_t alu_c_dec(uint64_t a, unsigned bits, uint16_t *cc)
{
    uint16_t carry = *cc & ALU_C_CF;
    uint64_t result = alu_c_sub(a, 1, bits, cc);
    *cc = (*cc & ~ALU_C_CF) | carry;
    return result;
}
static inline uint64_t alu_c_neg(uint64_t a, unsigned bits, uint16_t *cc)
{
    return alu_c_sub(0, a, bits, cc);
}

/* ---- shifts and rotates by a masked, non-zero count ---- */

static inline uint16_t alu_c_carry_overflow(uint16_t cc, bool carry, bool overflow)
{
    cc &= ~(ALU_C_CF | 0xffu);
    return cc | (carry ? ALU_C_CF : 0) | (overflow ? ALU_C_OF : 0);
}

/* Rotates touch CF and OF only. OF is defined for a count of one: for ROL and RCL the change of the sign by CF, for
 * ROR and RCR the difference of the two topmost bits. */
static inline uint64_t alu_c_rol(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    unsigned by = count % bits;
    uint64_t result = by ? ((a << by) | (a >> (bits - by))) & alu_c_mask(bits) : a;
    bool carry = result & 1;
    *cc = alu_c_carry_overflow(*cc, carry, alu_c_bit(result, bits - 1) != carry);
    return result;
}
static inline uint64_t alu_c_ror(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    unsigned by = count % bits;
    uint64_t result = by ? ((a >> by) | (a << (bits - by))) & alu_c_mask(bits) : a;
    bool carry = alu_c_bit(result, bits - 1);
    *cc = alu_c_carry_overflow(*cc, carry, carry != alu_c_bit(result, bits - 2));
    return result;
}
static inline uint64_t alu_c_rcl(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    bool carry = *cc & ALU_C_CF;
    for (unsigned i = count % (bits + 1); i; i--) {
        bool out = alu_c_bit(a, bits - 1);
        a = ((a << 1) | carry) & alu_c_mask(bits);
        carry = out;
    }
    *cc = alu_c_carry_overflow(*cc, carry, alu_c_bit(a, bits - 1) != carry);
    return a;
}
static inline uint64_t alu_c_rcr(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    bool carry = *cc & ALU_C_CF;
    for (unsigned i = count % (bits + 1); i; i--) {
        bool out = a & 1;
        a = a >> 1 | (uint64_t)carry << (bits - 1);
        carry = out;
    }
    *cc = alu_c_carry_overflow(*cc, carry, alu_c_bit(a, bits - 1) != alu_c_bit(a, bits - 2));
    return a;
}

/* Shifts: CF is the last bit that went out; OF, defined for a count of one, the change of the sign. */
static inline uint64_t alu_c_shl(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    uint64_t result = count < bits ? a << count & alu_c_mask(bits) : 0;
    bool carry = count <= bits && alu_c_bit(a, bits - count);
    *cc = alu_c_carry_overflow(alu_c_result_flags(result, bits), carry, alu_c_bit(result, bits - 1) != carry);
    return result;
}
static inline uint64_t alu_c_shr(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    uint64_t result = count < bits ? a >> count : 0;
    bool carry = count <= bits && alu_c_bit(a, count - 1);
    *cc = alu_c_carry_overflow(alu_c_result_flags(result, bits), carry, alu_c_bit(a, bits - 1));
    return result;
}
static inline uint64_t alu_c_sar(uint64_t a, uint8_t count, unsigned bits, uint16_t *cc)
{
    int64_t value = (int64_t)(a << (64 - bits)) >> (64 - bits); /* the sign goes on to the left */
    uint64_t result = (uint64_t)(value >> (count > 63 ? 63 : count)) & alu_c_mask(bits);
    bool carry = alu_c_bit((uint64_t)value, count > 64 ? 63 : count - 1);
    *cc = alu_c_carry_overflow(alu_c_result_flags(result, bits), carry, false);
    return result;
}

/* Result and flags are undefined for a count above the operand's size, which 16 bits allow. */
static inline uint64_t alu_c_shld(uint64_t a, uint64_t b, uint8_t count, unsigned bits, uint16_t *cc)
{
    unsigned by = count > bits ? count - bits : count;
    uint64_t result = (by == bits ? b : (a << by) | (b >> (bits - by))) & alu_c_mask(bits);
    bool carry = alu_c_bit(a, bits - by);
    *cc = alu_c_carry_overflow(alu_c_result_flags(result, bits), carry, alu_c_bit(a ^ result, bits - 1));
    return result;
}
static inline uint64_t alu_c_shrd(uint64_t a, uint64_t b, uint8_t count, unsigned bits, uint16_t *cc)
{
    unsigned by = count > bits ? count - bits : count;
    uint64_t result = (by == bits ? b : (a >> by) | (b << (bits - by))) & alu_c_mask(bits);
    bool carry = alu_c_bit(a, by - 1);
    *cc = alu_c_carry_overflow(alu_c_result_flags(result, bits), carry, alu_c_bit(a ^ result, bits - 1));
    return result;
}

#endif
