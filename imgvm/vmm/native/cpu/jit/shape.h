/* SPDX-License-Identifier: MIT */
/* How an instruction is translated: a pure question about its uop. */
#ifndef IMGVM_CPU_JIT_SHAPE_H
#define IMGVM_CPU_JIT_SHAPE_H

#include "assembler.h"
#include "jit.h"

/* How an integer instruction is re-encoded. */
struct shape {
    struct opcode op;
    unsigned size;        /* bytes of the memory operand */
    uint8_t reg;          /* guest register, or the digit */
    bool digit;
    bool reg_written, reg_read;
    bool rm_written, rm_read;
    uint8_t immediate;    /* bytes */
    bool traps;           /* #DE on the host is #DE in the guest */
    uint16_t also_written; /* registers that are no operand */
};

/* What has an emitter of its own: the stack, branches, addresses. */
enum special { SPECIAL_NONE, SPECIAL_LEA, SPECIAL_PUSH, SPECIAL_POP, SPECIAL_NOP, SPECIAL_MOV_IMM64, SPECIAL_LEAVE, SPECIAL_WIDEN,
               SPECIAL_PUSH_MEM, SPECIAL_PUSHF, SPECIAL_FENCE, SPECIAL_CLI, SPECIAL_STI, SPECIAL_SWAPGS, SPECIAL_BIT_STRING,
               SPECIAL_FROM_SREG, SPECIAL_CPUID, SPECIAL_RDTSC, SPECIAL_LFENCE, SPECIAL_JCC, SPECIAL_COUNTED, SPECIAL_JMP,
               SPECIAL_JMP_RM, SPECIAL_CALL, SPECIAL_CALL_RM, SPECIAL_RET };

/* A memory operand, as far as its address is known when translating. */
struct reference {
    struct insn in; /* base, index, scale, segment, disp */
    unsigned bytes; /* 0: there is none */
    bool write;
};

enum way { BY_EXECUTOR, BY_SHAPE, BY_SPECIAL, BY_NATIVE };

struct plan {
    enum way way;
    enum special special;
    struct shape shape;
    struct reference memory;
    /* general registers: bits of those written; one may be known to move by a constant */
    uint16_t written;
    uint8_t moved_register; /* 16: none */
    int32_t moved_by;
    uint16_t native_used;
    bool loses_flags; /* its code destroys EFLAGS, as that of a memory operand does */
    bool shows_flags; /* a fault, an executor or the outside can see the flags that were before it */
};

/* Outside 64-bit mode, as long as mmu.mode_key is what it is: base 0, limit 4 GiB, may be read and (but CS) written. */
static inline bool is_flat(const struct cpu *cpu, unsigned segment)
{
    return cpu->mmu.mode_key >> (MODE_KEY_FLAT + segment) & 1;
}

unsigned stack_pointer_bytes(const struct cpu *cpu);
/* Bytes at [stack pointer + disp]. */
struct reference stack_reference(const struct cpu *cpu, int32_t disp, unsigned bytes, bool write);
void plan_instruction(struct plan *plan, struct cpu *cpu, const struct uop *u);
void plan_by_executor(struct plan *plan);

/* false: no integer row that can be encoded anew. */
bool shape_of(const struct uop *u, struct shape *s);

#endif
