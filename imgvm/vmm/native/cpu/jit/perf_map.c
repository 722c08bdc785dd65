/* SPDX-License-Identifier: MIT */
#include "perf_map.h"

#include <stdio.h>

static void add(struct cpu *cpu, const void *start, size_t bytes, const char *name)
{
    cpu->callbacks.name_code(cpu->opaque, start, bytes, name);
}

void perf_map_stubs(struct cpu *cpu, const struct translator *jit)
{
    const struct {
        const void *start;
        const char *name;
    } stubs[] = {
        {jit->leave_by_exit, "jit:leave"}, {jit->enter, "jit:enter"}, {jit->dispatch, "jit:dispatch"},
        {jit->callout, "jit:callout"}, {jit->enter_unit, "jit:enter_unit"}, {jit->refill[0][0], "jit:refill_read"},
        {jit->refill[0][1], "jit:refill_write"}, {jit->refill[1][0], "jit:refill_user_read"},
        {jit->refill[1][1], "jit:refill_user_write"}, {jit->executable + jit->first_free, NULL},
    };
    for (unsigned i = 0; stubs[i].name; i++)
        add(cpu, stubs[i].start, (size_t)((const uint8_t *)stubs[i + 1].start - (const uint8_t *)stubs[i].start), stubs[i].name);
}

void perf_map_block(struct cpu *cpu, const struct block *block, ptrdiff_t bytes, const void *cold, ptrdiff_t cold_bytes)
{
    static const uint8_t bits[] = {[INSN_MODE_16] = 16, [INSN_MODE_32] = 32, [INSN_MODE_64] = 64};
    char name[40];
    cpu_fpu_leave(cpu);
    int end = snprintf(name, sizeof name, "ring%u-%u:%llx", cpu->cpl, bits[block->mode & 3],
                       (unsigned long long)block->translated_rip);
    add(cpu, block->translated, (size_t)bytes, name);
    snprintf(name + end, sizeof name - (size_t)end, ":cold");
    if (cold_bytes)
        add(cpu, cold, (size_t)cold_bytes, name);
}
