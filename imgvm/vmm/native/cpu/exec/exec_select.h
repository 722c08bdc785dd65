/* SPDX-License-Identifier: MIT */
/* Executors that are chosen by more than (operation, form, memory?, size). */
#ifndef IMGVM_CPU_EXEC_EXEC_SELECT_H
#define IMGVM_CPU_EXEC_EXEC_SELECT_H

#include "exec.h"

/* MOVZX, MOVSX, MOVSXD, by the source's size */
exec_fn *exec_select_widen(const struct insn *in, unsigned source_bytes);
exec_fn *exec_select_lea(const struct insn *in, bool ea_slow);
exec_fn *exec_select_jcc(const struct insn *in, bool code64);
/* string operations, by REP and size */
/* OPK_NATIVE rows */
bool exec_memory_is_destination(const struct insn *in); /* of a row with a memory operand */
void exec_select_native(struct cpu *cpu, struct uop *u);

#endif
