/* SPDX-License-Identifier: MIT */
/* Why translated code was left, for whoever watches. */
#ifndef IMGVM_CPU_JIT_WATCH_H
#define IMGVM_CPU_JIT_WATCH_H

#include "assembler.h"
#include "jit.h"

/* struct cpu.left_by, set on the way out; a fault comes out without setting it. */
enum translated_exit {
    LEFT_BY_FAULT,
    LEFT_UNLINKED, /* by an exit that leads to no block yet, or whose epoch is over */
    LEFT_COMPUTED, /* by a computed jump to an address that is not in the table */
    LEFT_DEAD,     /* at the head of a block that was killed */
    LEFT_EXECUTOR, /* an executor ended its block, and something is to be done first */
    LEFT_LOOK,     /* something wants a look */
};

static inline void watch_put_left(struct assembler *a, enum translated_exit why)
{
    op_cpu_imm(a, OPC(0xc6), 0, (uint32_t)offsetof(struct cpu, left_by), 1);
    put8(a, why);
}

/* Translated code was left as cpu->left_by says. */
void watch_left(struct cpu *cpu, bool code_written);

/* Calls of executors are counted from now on. */
bool watch_executors(struct cpu *cpu);

#endif
