/* SPDX-License-Identifier: MIT */
/* The integer operations on values, as the host's own instruction: result and flags are the
 * silicon's, undefined ones included. `cc` is in the layout of cpu.cc (`lahf; seto al`).
 * alu_c.h says the same in plain C; tests/native/test_alu.c holds the two against each other. */
#ifndef IMGVM_CPU_EXEC_ALU_H
#define IMGVM_CPU_EXEC_ALU_H

#include <stdint.h>

#define ALU_CARRY_IN(cc) "btw $8, %w[in]\n\t"

/* a := a OP b, flags out */
#define ALU_BINARY(name, bits, suffix)                                                                     \
    static inline __attribute__((always_inline)) uint##bits##_t alu_##name##_##bits(                       \
        uint##bits##_t a, uint##bits##_t b, uint16_t *cc)                                                  \
    {                                                                                                      \
        uint16_t ax;                                                                                       \
        __asm__(#name #suffix " %[b], %[a]\n\tlahf\n\tseto %%al"                                           \
                : [a] "+&q"(a), "=&a"(ax) : [b] "rm"(b) : "cc");                                           \
        *cc = ax;                                                                                          \
        return a;                                                                                          \
    }
/* the same with the carry flag of *cc as input */
#define ALU_CARRY(name, bits, suffix)                                                                      \
    static inline __attribute__((always_inline)) uint##bits##_t alu_##name##_##bits(                       \
        uint##bits##_t a, uint##bits##_t b, uint16_t *cc)                                                  \
    {                                                                                                      \
        uint16_t ax = *cc;                                                                                 \
        __asm__("btw $8, %%ax\n\t" #name #suffix " %[b], %[a]\n\tlahf\n\tseto %%al"                        \
                : [a] "+&q"(a), "+&a"(ax) : [b] "r"(b) : "cc");                                            \
        *cc = ax;                                                                                          \
        return a;                                                                                          \
    }
/* one operand; CF kept where the instruction keeps it */
#define ALU_UNARY(name, bits, suffix)                                                                      \
    static inline __attribute__((always_inline)) uint##bits##_t alu_##name##_##bits(uint##bits##_t a,      \
                                                                                    uint16_t *cc)          \
    {                                                                                                      \
        uint16_t ax = *cc;                                                                                 \
        __asm__("btw $8, %%ax\n\t" #name #suffix " %[a]\n\tlahf\n\tseto %%al" : [a] "+&q"(a), "+&a"(ax) : : "cc"); \
        *cc = ax;                                                                                          \
        return a;                                                                                          \
    }
/* rotates and shifts by a masked, non-zero count: flags they do not touch come in and go out again */
#define ALU_SHIFT(name, bits, suffix)                                                                      \
    static inline __attribute__((always_inline)) uint##bits##_t alu_##name##_##bits(                       \
        uint##bits##_t a, uint8_t count, uint16_t *cc)                                                     \
    {                                                                                                      \
        uint16_t ax = *cc;                                                                                 \
        __asm__("addb $0x7f, %%al\n\tsahf\n\t" #name #suffix " %%cl, %[a]\n\tlahf\n\tseto %%al"            \
                : [a] "+&q"(a), "+&a"(ax) : "c"(count) : "cc");                                            \
        *cc = ax;                                                                                          \
        return a;                                                                                          \
    }
#define ALU_DOUBLE_SHIFT(name, bits, suffix)                                                               \
    static inline __attribute__((always_inline)) uint##bits##_t alu_##name##_##bits(                       \
        uint##bits##_t a, uint##bits##_t b, uint8_t count, uint16_t *cc)                                   \
    {                                                                                                      \
        uint16_t ax = *cc;                                                                                 \
        __asm__("addb $0x7f, %%al\n\tsahf\n\t" #name #suffix " %%cl, %[b], %[a]\n\tlahf\n\tseto %%al"      \
                : [a] "+&q"(a), "+&a"(ax) : [b] "r"(b), "c"(count) : "cc");                                \
        *cc = ax;                                                                                          \
        return a;                                                                                          \
    }
#define ALU_ALL(kind, name) kind(name, 8, b) kind(name, 16, w) kind(name, 32, l) kind(name, 64, q)
#define ALU_WIDE(kind, name) kind(name, 16, w) kind(name, 32, l) kind(name, 64, q)

ALU_ALL(ALU_BINARY, add)
ALU_ALL(ALU_BINARY, sub)
ALU_ALL(ALU_BINARY, and)
ALU_ALL(ALU_BINARY, or)
ALU_ALL(ALU_BINARY, xor)
ALU_ALL(ALU_CARRY, adc)
ALU_ALL(ALU_CARRY, sbb)
ALU_ALL(ALU_UNARY, inc)
ALU_ALL(ALU_UNARY, dec)
ALU_ALL(ALU_UNARY, neg)
ALU_ALL(ALU_SHIFT, rol)
ALU_ALL(ALU_SHIFT, ror)
ALU_ALL(ALU_SHIFT, rcl)
ALU_ALL(ALU_SHIFT, rcr)
ALU_ALL(ALU_SHIFT, shl)
ALU_ALL(ALU_SHIFT, shr)
ALU_ALL(ALU_SHIFT, sar)
ALU_WIDE(ALU_DOUBLE_SHIFT, shld)
ALU_WIDE(ALU_DOUBLE_SHIFT, shrd)

#endif
