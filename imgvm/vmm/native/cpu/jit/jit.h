/* SPDX-License-Identifier: MIT */
/* The translator: a hot block becomes host code. It consumes the very uops that the interpreter runs; an
 * instruction without an emitter calls its executor. See docs/engine.md for the register map.
 *
 * Host registers while translated code runs:
 *   rax rcx rdx rbx rbp rsi rdi r8-r12   the guest's own
 *   r13                                  guest RSP
 *   r14 r15                              temporaries; guest R13-R15 stay in memory
 *   gs base                              struct cpu
 *   EFLAGS                               the guest's status flags, when the emitter says so; else cpu->cc */
#ifndef IMGVM_CPU_JIT_JIT_H
#define IMGVM_CPU_JIT_JIT_H

#include "../exec/exec.h"

#define JIT_TRANSLATE_AFTER 8 /* a good cpu_options.translate_after: what runs once or twice is not worth it */

extern const struct translator_ops jit_translator;

#endif
