/* SPDX-License-Identifier: MIT */
/* Bytes of host instructions. Registers by their hardware numbers. */
#ifndef IMGVM_CPU_JIT_ASSEMBLER_H
#define IMGVM_CPU_JIT_ASSEMBLER_H

#include <stdbool.h>
#include <stdint.h>

struct assembler {
    uint8_t *p; /* writes here */
    /* Where struct cpu lies, seen from `p` as the code will run; beyond 2 GiB (`far`), only gs leads there. */
    int64_t cpu_from_start;
    const uint8_t *start;
    bool far;
};

enum { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };
#define T0 H_R14
#define T1 H_R15
#define NO_REG 0xff

enum { CC_OVERFLOW, CC_BELOW = 2, CC_AE, CC_EQUAL, CC_NE, CC_ABOVE = 7, CC_SIGN, CC_GREATER = 15 };

static inline void put8(struct assembler *a, unsigned v) { *a->p++ = (uint8_t)v; }
static inline void put32(struct assembler *a, uint32_t v) { __builtin_memcpy(a->p, &v, 4); a->p += 4; }
static inline void put64(struct assembler *a, uint64_t v) { __builtin_memcpy(a->p, &v, 8); a->p += 8; }

static inline void put_bytes(struct assembler *a, const uint8_t *bytes, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        put8(a, bytes[i]);
}
#define PUT(a, ...)                                        \
    do {                                                   \
        static const uint8_t bytes_[] = {__VA_ARGS__};     \
        put_bytes(a, bytes_, sizeof bytes_);               \
    } while (0)

/* prefix bytes before REX; opcode up to three bytes, low byte last */
struct opcode {
    uint8_t prefix;   /* 0x66 or 0 */
    uint8_t mandatory; /* 0xf2, 0xf3: between prefix and REX */
    bool w;           /* REX.W */
    bool rex;         /* REX needed for SPL..DIL */
    bool lock;
    uint32_t code;    /* 0x89, 0x0fb6, 0x0f38f0, ... */
};

#define OPC(code_) ((struct opcode){.code = (code_)})
#define OPCW(code_) ((struct opcode){.code = (code_), .w = true})
/* of 2, 4 or 8 bytes */
#define OPCS(code_, bytes_) ((struct opcode){.code = (code_), .prefix = (bytes_) == 2 ? 0x66 : 0, .w = (bytes_) == 8})

static inline void put_prefixes(struct assembler *a, const struct opcode *op)
{
    if (op->lock)
        put8(a, 0xf0);
    if (op->prefix)
        put8(a, op->prefix);
    if (op->mandatory)
        put8(a, op->mandatory);
}

static inline void put_opcode(struct assembler *a, uint32_t code)
{
    if (code > 0xffff)
        put8(a, code >> 16);
    if (code > 0xff)
        put8(a, (code >> 8) & 0xff);
    put8(a, code & 0xff);
}

static inline void put_rex(struct assembler *a, const struct opcode *op, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = 0x40 | (op->w ? 8u : 0) | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
    if (rex != 0x40 || op->rex)
        put8(a, rex);
}

/* register form */
static inline void op_rr(struct assembler *a, struct opcode op, unsigned reg, unsigned rm)
{
    put_prefixes(a, &op);
    put_rex(a, &op, reg, 0, rm);
    put_opcode(a, op.code);
    put8(a, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* A memory operand of the host: base + (index << scale) + disp; NO_REG where there is none. */
struct place {
    uint8_t base, index, scale;
    int32_t disp;
};

static inline void op_place(struct assembler *a, struct opcode op, unsigned reg, struct place at)
{
    bool no_base = at.base == NO_REG, no_index = at.index == NO_REG;
    put_prefixes(a, &op);
    put_rex(a, &op, reg, no_index ? 0 : at.index, no_base ? 0 : at.base);
    put_opcode(a, op.code);
    bool byte = (int8_t)at.disp == at.disp;
    unsigned mod = no_base ? 0 : at.disp == 0 && (at.base & 7) != 5 ? 0 : byte ? 1 : 2;
    if (no_base || !no_index || (at.base & 7) == 4) {
        put8(a, mod << 6 | (reg & 7) << 3 | 4);
        put8(a, (unsigned)at.scale << 6 | (no_index ? 4u : at.index & 7u) << 3 | (no_base ? 5u : at.base & 7u));
    } else {
        put8(a, mod << 6 | (reg & 7) << 3 | (at.base & 7u));
    }
    if (no_base || mod == 2)
        put32(a, (uint32_t)at.disp);
    else if (mod == 1)
        put8(a, (uint8_t)at.disp);
}

/* [base + disp] */
static inline void op_rm(struct assembler *a, struct opcode op, unsigned reg, unsigned base, int32_t disp)
{
    op_place(a, op, reg, (struct place){(uint8_t)base, NO_REG, 0, disp});
}

/* [cpu + disp], before an immediate of so many bytes. Relative to RIP, it is two bytes shorter than by gs, and faster where
 * a segment's base costs a cycle. */
static inline void op_cpu_imm(struct assembler *a, struct opcode op, unsigned reg, uint32_t disp, unsigned immediate)
{
    if (a->far) {
        put8(a, 0x65);
        op_place(a, op, reg, (struct place){NO_REG, NO_REG, 0, (int32_t)disp});
        return;
    }
    put_prefixes(a, &op);
    put_rex(a, &op, reg, 0, 0);
    put_opcode(a, op.code);
    put8(a, (reg & 7) << 3 | 5);
    put32(a, (uint32_t)(a->cpu_from_start + disp - (a->p + 4 + immediate - a->start)));
}

static inline void op_cpu(struct assembler *a, struct opcode op, unsigned reg, uint32_t disp)
{
    op_cpu_imm(a, op, reg, disp, 0);
}

/* [cpu + base + disp] */
static inline void op_cpu_at(struct assembler *a, struct opcode op, unsigned reg, unsigned base, uint32_t disp)
{
    put8(a, 0x65);
    op_place(a, op, reg, (struct place){(uint8_t)base, NO_REG, 0, (int32_t)disp});
}

/* add, or, ... cmp by its digit, with a 32-bit immediate */
static inline void alu_imm(struct assembler *a, unsigned digit, bool w, unsigned reg, uint32_t value)
{
    bool byte = (uint32_t)(int32_t)(int8_t)value == value;
    op_rr(a, (struct opcode){.code = byte ? 0x83 : 0x81, .w = w}, digit, reg);
    if (byte)
        put8(a, value & 0xff);
    else
        put32(a, value);
}
enum { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };

static inline void shift_imm(struct assembler *a, unsigned digit, bool w, unsigned reg, unsigned count)
{
    op_rr(a, (struct opcode){.code = 0xc1, .w = w}, digit, reg);
    put8(a, count);
}
enum { SHIFT_SHL = 4, SHIFT_SHR = 5, SHIFT_SAR = 7 };

static inline void mov_rr(struct assembler *a, unsigned to, unsigned from)
{
    op_rr(a, OPCW(0x89), from, to);
}

static inline void mov_imm64(struct assembler *a, unsigned reg, uint64_t value)
{
    if (value == (uint32_t)value) {
        if (reg >> 3)
            put8(a, 0x41);
        put8(a, 0xb8 | (reg & 7));
        put32(a, (uint32_t)value);
    } else if ((uint64_t)(int64_t)(int32_t)value == value) {
        op_rr(a, OPCW(0xc7), 0, reg);
        put32(a, (uint32_t)value);
    } else {
        put8(a, 0x48 | reg >> 3);
        put8(a, 0xb8 | (reg & 7));
        put64(a, value);
    }
}

/* Jumps with rel32; the address of the four bytes is returned, for whoever patches them. */
static inline uint8_t *put_jcc(struct assembler *a, unsigned condition)
{
    put8(a, 0x0f), put8(a, 0x80 | condition), put32(a, 0);
    return a->p - 4;
}
static inline uint8_t *put_jmp(struct assembler *a)
{
    put8(a, 0xe9), put32(a, 0);
    return a->p - 4;
}
/* rel32 := the way to `target`; both in the same mapping */
static inline void patch_jump(uint8_t *rel32, const uint8_t *target)
{
    int32_t distance = (int32_t)(target - (rel32 + 4));
    __builtin_memcpy(rel32, &distance, 4);
}

#endif
