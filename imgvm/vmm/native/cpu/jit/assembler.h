/* SPDX-License-Identifier: MIT */
/* Bytes of host instructions. Registers by their hardware numbers. */
#ifndef IMGVM_CPU_JIT_ASSEMBLER_H
#define IMGVM_CPU_JIT_ASSEMBLER_H

#include <stdbool.h>
#include <stdint.h>

struct assembler {
    uint8_t *p; /* writes here */
};

enum { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };
#define T0 H_R14
#define T1 H_R15

static inline void put8(struct assembler *a, unsigned v) { *a->p++ = (uint8_t)v; }
static inline void put32(struct assembler *a, uint32_t v) { __builtin_memcpy(a->p, &v, 4); a->p += 4; }
static inline void put64(struct assembler *a, uint64_t v) { __builtin_memcpy(a->p, &v, 8); a->p += 8; }

/* prefix bytes before REX; opcode up to three bytes, low byte last */
struct opcode {
    uint8_t prefix;   /* 0x66 or 0 */
    bool w;           /* REX.W */
    bool rex;         /* REX needed for SPL..DIL */
    uint32_t code;    /* 0x89, 0x0fb6, ... */
};

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
    if (op.prefix)
        put8(a, op.prefix);
    put_rex(a, &op, reg, 0, rm);
    put_opcode(a, op.code);
    put8(a, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* [base + disp] */
static inline void op_rm(struct assembler *a, struct opcode op, unsigned reg, unsigned base, int32_t disp)
{
    if (op.prefix)
        put8(a, op.prefix);
    put_rex(a, &op, reg, 0, base);
    put_opcode(a, op.code);
    put8(a, (disp ? 0x80u : (base & 7) == 5 ? 0x40u : 0) | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == 4)
        put8(a, 0x24);
    if (disp)
        put32(a, (uint32_t)disp);
    else if ((base & 7) == 5)
        put8(a, 0);
}

/* gs:[disp] */
static inline void op_gs(struct assembler *a, struct opcode op, unsigned reg, uint32_t disp)
{
    put8(a, 0x65);
    if (op.prefix)
        put8(a, op.prefix);
    put_rex(a, &op, reg, 0, 0);
    put_opcode(a, op.code);
    put8(a, (reg & 7) << 3 | 4);
    put8(a, 0x25);
    put32(a, disp);
}

#define OPC(code_) ((struct opcode){.code = (code_)})
#define OPCW(code_) ((struct opcode){.code = (code_), .w = true})

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

#endif
