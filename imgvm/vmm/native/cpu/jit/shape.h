/* SPDX-License-Identifier: MIT */
/* How an instruction is translated: a pure question about its uop. */
#ifndef IMGVM_CPU_JIT_SHAPE_H
#define IMGVM_CPU_JIT_SHAPE_H

#include "assembler.h"
#include "jit.h"

/* How an instruction is re-encoded. */
struct shape {
    struct opcode op;
    unsigned size;        /* bytes of the memory operand */
    uint8_t reg;          /* guest register, or the digit */
    bool digit;
    bool reg_written, reg_read;
    bool rm_written, rm_read;
    uint8_t immediate;    /* bytes */
};

/* false: no integer row that can be encoded anew. */
bool shape_of(const struct uop *u, struct shape *s);

/* What has an emitter of its own: the stack, branches, addresses. */
enum special { SPECIAL_NONE, SPECIAL_LEA, SPECIAL_PUSH, SPECIAL_POP, SPECIAL_NOP, SPECIAL_MOV_IMM64, SPECIAL_LEAVE, SPECIAL_WIDEN,
               SPECIAL_JCC, SPECIAL_JMP, SPECIAL_JMP_RM, SPECIAL_CALL, SPECIAL_CALL_REG, SPECIAL_RET };

enum special special_of(const struct uop *u);

/* The row's code with vector registers as they are and its memory operand at [T0]; 0: it names general registers or
 * flags, and runs by its executor. */
unsigned inline_code(const struct uop *u, uint8_t code[NATIVE_MAX_BYTES + 1]);

#endif
