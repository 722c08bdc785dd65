/* SPDX-License-Identifier: MIT */
/* Descriptors and segment registers, for the instructions and events that change them. */
#ifndef IMGVM_CPU_EXEC_SEGMENT_H
#define IMGVM_CPU_EXEC_SEGMENT_H

#include "exec.h"

static inline bool real_or_v86(const struct cpu *cpu)
{
    return !(cpu->s.cr0 & CR0_PE) || (cpu->eflags & EFLAGS_VM);
}
static inline unsigned dpl_of(const struct x86_segment *segment)
{
    return (segment->attributes & SEG_DPL) >> SEG_DPL_SHIFT;
}

/* Data segments and SS, with all checks. */
void segment_load(struct cpu *cpu, const struct uop *u, unsigned index, uint16_t selector);
void segment_load_real(struct cpu *cpu, unsigned index, uint16_t selector);
void segment_load_null(struct cpu *cpu, unsigned index, uint16_t selector);
void segment_load_null_ss(struct cpu *cpu, uint16_t selector, unsigned cpl);

/* Raw descriptor of a selector; raises `vector` with the selector when it is null or outside its table. */
uint64_t segment_descriptor(struct cpu *cpu, const struct uop *u, uint16_t selector, uint8_t vector);
bool segment_descriptor_try(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t *descriptor);
/* Bits 63:32 of the base of a 16-byte system descriptor. */
uint64_t segment_system_base_high(struct cpu *cpu, const struct uop *u, uint16_t selector, uint8_t vector);
struct x86_segment segment_from_descriptor(uint16_t selector, uint64_t descriptor);
void segment_set_accessed(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t descriptor);

#endif
