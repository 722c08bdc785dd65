/* SPDX-License-Identifier: MIT */
/* What others ask of a processor (CPU_REQUEST_* of cpu.h), taken between two blocks. */
#ifndef IMGVM_CPU_EXEC_REQUESTS_H
#define IMGVM_CPU_EXEC_REQUESTS_H

#include "../cpu.h"

/* true: it was asked for, and is no longer. */
bool requests_take(struct cpu *cpu, uint32_t bit);
/* One request, highest priority first (SDM vol. 3, 6.9). true: the caller returns *exit. */
bool requests_handle(struct cpu *cpu, enum cpu_exit *exit);

#endif
