/* SPDX-License-Identifier: MIT */
#include "watch.h"

#include <stdlib.h>

#include "../exec/trace.h"

static uint64_t *look_count(struct cpu *cpu, bool code_written)
{
    uint32_t requests = atomic_load(&cpu->requests) & cpu->request_mask;
    if (requests & (CPU_REQUEST_INTR | CPU_REQUEST_NMI))
        return &cpu->counts.exit_interrupt;
    if (requests & ~CPU_REQUEST_CLOCK)
        return &cpu->counts.exit_request;
    if (requests)
        return &cpu->counts.exit_clock;
    return code_written ? &cpu->counts.exit_code : &cpu->counts.exit_other;
}

/* As count.def names it. */
static const char *exit_name(const struct cpu *cpu, const uint64_t *count)
{
#define COUNT(field, group, name) \
    if (count == &cpu->counts.field) \
        return name;
#include "../exec/count.def"
#undef COUNT
    return "";
}

static uint64_t *exit_count(struct cpu *cpu, bool code_written)
{
    switch (cpu->left_by) {
    case LEFT_UNLINKED:
        return &cpu->counts.exit_unlinked;
    case LEFT_COMPUTED:
        return &cpu->counts.exit_computed;
    case LEFT_DEAD:
        return &cpu->counts.exit_dead;
    case LEFT_EXECUTOR:
        return &cpu->counts.exit_executor;
    default:
        return look_count(cpu, code_written);
    }
}

void watch_left(struct cpu *cpu, bool code_written)
{
    uint64_t *count = exit_count(cpu, code_written);
    ++*count;
    if (unlikely(cpu->traced))
        cpu_trace_exit(cpu, exit_name(cpu, count));
}

bool watch_executors(struct cpu *cpu)
{
    cpu->counts.executors = calloc(OP_COUNT, sizeof *cpu->counts.executors);
    return cpu->counts.executors != NULL;
}
