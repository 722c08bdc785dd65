/* SPDX-License-Identifier: MIT */
#include "undo.h"

#include "exec.h"

_Noreturn void undo_abandon(struct cpu *cpu)
{
    cpu->undo->abandoned = true;
    __builtin_longjmp(cpu->landing, 1);
}

void undo_note(struct cpu *cpu, uint8_t *host, unsigned size)
{
    struct undo_log *undo = cpu->undo;
    if (undo->count == UNDO_RANGES || size > UNDO_BYTES - undo->used)
        undo_abandon(cpu);
    undo->range[undo->count++] = (struct undo_range){host, size, undo->used};
    fpu_copy(undo->before + undo->used, host, size);
    undo->used += size;
}

/* Newest first: where ranges overlap, the oldest knows what was there. */
void undo_take_back_again(const struct undo_log *undo)
{
    for (unsigned i = undo->count; i-- > 0;)
        fpu_copy(undo->range[i].host, undo->before + undo->range[i].at, undo->range[i].size);
}

void undo_take_back(struct undo_log *undo)
{
    for (unsigned i = 0; i < undo->count; i++)
        fpu_copy(undo->after + undo->range[i].at, undo->range[i].host, undo->range[i].size);
    undo_take_back_again(undo);
}

const struct undo_range *undo_compare(const struct undo_log *undo)
{
    for (unsigned i = 0; i < undo->count; i++)
        for (unsigned j = 0; j < undo->range[i].size; j++)
            if (undo->range[i].host[j] != undo->after[undo->range[i].at + j])
                return &undo->range[i];
    return NULL;
}
