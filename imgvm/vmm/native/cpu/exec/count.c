/* SPDX-License-Identifier: MIT */
#include "../../base/count.h"

#include "../decode/isa.h"
#include "exec.h"

static const struct {
    const char *group, *name;
    size_t offset;
} counts[] = {
#define COUNT(field, group, name) {group, name, offsetof(struct cpu_counts, field)},
#include "count.def"
#undef COUNT
};

/* Not the mnemonics, which are shared: mov_to_cr, mov_from_sreg. */
static const char *const op_names[OP_COUNT] = {
#define OP(name, ...) [OP_##name] = #name,
#include "../decode/op.def"
#undef OP
};

static const char *const exception_names[32] = {
    [EXC_DE] = "de", [EXC_DB] = "db", [EXC_BP] = "bp", [EXC_OF] = "of", [EXC_BR] = "br", [EXC_UD] = "ud", [EXC_NM] = "nm",
    [EXC_DF] = "df", [EXC_TS] = "ts", [EXC_NP] = "np", [EXC_SS] = "ss", [EXC_GP] = "gp", [EXC_PF] = "pf", [EXC_MF] = "mf",
    [EXC_AC] = "ac", [EXC_XM] = "xm",
};

const char *exception_name(uint8_t vector)
{
    return vector < ARRAY_LEN(exception_names) && exception_names[vector] ? exception_names[vector] : "?";
}

static void tell_executor(const char *op, uint64_t calls, const struct count_sink *sink)
{
    char name[32];
    unsigned i = 0;
    for (; op[i] && i < sizeof name - 1; i++)
        name[i] = op[i] >= 'A' && op[i] <= 'Z' ? (char)(op[i] | 0x20) : op[i];
    name[i] = 0;
    count_tell(sink, "executors", name, calls);
}

static void tell_executors(const struct cpu_counts *c, const struct count_sink *sink)
{
    for (unsigned op = 0; c->executors && op < OP_COUNT; op++)
        if (c->executors[op])
            tell_executor(op_names[op], c->executors[op], sink);
}

void cpu_tell_counts(const struct cpu *cpu, const struct count_sink *sink)
{
    const struct cpu_counts *c = &cpu->counts;
    const struct mmu *mmu = &cpu->mmu;
    for (unsigned i = 0; i < ARRAY_LEN(counts); i++)
        count_tell(sink, counts[i].group, counts[i].name, *(const uint64_t *)((const uint8_t *)c + counts[i].offset));
    /* the others are told by who leaves; a fault jumps out of where it is */
    uint64_t told = c->exit_unlinked + c->exit_computed + c->exit_dead + c->exit_executor + c->exit_clock + c->exit_interrupt +
                    c->exit_request + c->exit_code + c->exit_other;
    count_tell(sink, "exits", "fault", c->entered - told);
    count_tell(sink, "mmu", "refills", mmu->refills);
    count_tell(sink, "mmu", "walks", mmu->walks);
    count_tell(sink, "mmu", "fetch_misses", mmu->fetch_misses);
    count_tell(sink, "mmu", "flushes", mmu->flushes);
    count_tell(sink, "mmu", "space_flushes", mmu->space_flushes);
    count_tell(sink, "mmu", "spaces_found", mmu->spaces_found);
    count_tell(sink, "mmu", "page_flushes", mmu->page_flushes);
    for (uint8_t vector = 0; vector < ARRAY_LEN(c->exceptions); vector++)
        if (c->exceptions[vector])
            count_tell(sink, "exceptions", exception_name(vector), c->exceptions[vector]);
    tell_executors(c, sink);
}
