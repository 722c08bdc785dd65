/* SPDX-License-Identifier: MIT */
/* A stack that is written before it becomes the processor's: what interrupts and far calls push. */
#ifndef IMGVM_CPU_EXEC_FRAME_H
#define IMGVM_CPU_EXEC_FRAME_H

#include "segment.h"

struct frame {
    const struct uop *u; /* whom a fault belongs to; NULL: the event being delivered */
    uint64_t base, rsp, mask;
    struct x86_segment segment;
    bool flat; /* 64-bit: no segment, canonical addresses */
    bool user;
    bool checked; /* frame_check has found room for all that will be pushed */
    uint32_t fault_code; /* error code of #SS: EXT, and the selector of a stack that is being switched to */
};

/* The current stack. `flat`: the one 64-bit code of the same ring would use. */
struct frame frame_current(struct cpu *cpu, const struct uop *u, bool flat, uint32_t ext);
/* The stack of ring `cpl` as the 16- or 32-bit TSS has it, with the checks of SDM vol. 2, INT and CALL. */
struct frame frame_from_tss(struct cpu *cpu, const struct uop *u, unsigned cpl, uint32_t ext);
/* The 64-bit TSS: RSP0-2 for `slot` 0-2, IST1-7 for 4-10. */
struct frame frame_from_tss64(struct cpu *cpu, const struct uop *u, unsigned slot, uint32_t ext);
void frame_push(struct cpu *cpu, struct frame *frame, unsigned size, uint64_t value);
/* Is there room for so many values? Raises the #SS that pushing them would; pages are not touched. */
void frame_check(struct cpu *cpu, struct frame *frame, unsigned slots, unsigned size);

#endif
