/* SPDX-License-Identifier: MIT */
/* What a processor tells a trace. */
#ifndef IMGVM_CPU_EXEC_TRACE_H
#define IMGVM_CPU_EXEC_TRACE_H

#include "../../base/trace.h"
#include "exec.h"

/* C code that uses vector registers follows. */
static inline bool cpu_traces(struct cpu *cpu, enum trace_kind kind)
{
    if (likely(!(cpu->traced >> kind & 1)))
        return false;
    cpu_fpu_leave(cpu);
    return true;
}

void cpu_trace_delivery(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error, uint32_t error);
void cpu_trace_triple_fault(struct cpu *cpu);
void cpu_trace_mode(struct cpu *cpu); /* if it has changed */
void cpu_trace_msr(struct cpu *cpu, bool write, uint32_t index, uint64_t value, bool known);
void cpu_trace_exit(struct cpu *cpu, const char *why);

#endif
