/* SPDX-License-Identifier: MIT */
/* Hardware task switches (SDM vol. 3, chapter 8 "Task Management"). */
#ifndef IMGVM_CPU_EXEC_TASK_H
#define IMGVM_CPU_EXEC_TASK_H

#include "exec.h"

enum task_cause { TASK_JUMP, TASK_CALL, TASK_IRET, TASK_EVENT };

/* Switches to the task of this TSS. cpu->rip is what the old task goes on with. `selector` is the operand's, a task
 * gate's or the back link; privileges were checked. u: the instruction, NULL for an event; ext: EXT of error codes.
 * A fault comes in the old task up to the moment of no return, in the new one afterwards. */
void task_switch(struct cpu *cpu, const struct uop *u, uint16_t selector, enum task_cause cause, uint32_t ext);
/* After a switch for an exception: its error code onto the new task's stack. */
void task_push_error(struct cpu *cpu, uint32_t error);
/* At the very end: the new task's debug trap bit (#DB with DR6.BT). */
void task_debug_trap(struct cpu *cpu);

#endif
