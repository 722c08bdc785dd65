/* SPDX-License-Identifier: MIT */
#include "frame.h"

#define TSS64_RSP0 4u
#define TSS64_RSP_SLOTS 3u
#define TSS64_IST1 36u

static uint64_t mask_of(const struct x86_segment *ss)
{
    return ss->attributes & SEG_DB ? 0xffffffffu : 0xffffu;
}

struct frame frame_current(struct cpu *cpu, const struct uop *u, bool flat, uint32_t ext)
{
    struct frame frame = {.u = u, .segment = cpu->s.segment[SS], .flat = flat, .fault_code = ext};
    frame.user = cpu->cpl == 3;
    frame.base = flat ? 0 : frame.segment.base;
    frame.mask = flat ? ~UINT64_C(0) : mask_of(&frame.segment);
    frame.rsp = cpu->gpr[RSP] & frame.mask;
    return frame;
}

struct frame frame_from_tss(struct cpu *cpu, const struct uop *u, unsigned cpl, uint32_t ext)
{
    const struct x86_segment *tr = &cpu->s.tr;
    bool wide = (tr->attributes & SEG_TYPE) >= 9;
    unsigned offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
    if (offset + (wide ? 5u : 3u) > tr->limit)
        raise_error(cpu, u, EXC_TS, (tr->selector & 0xfffcu) | ext);
    uint64_t rsp = access_system_read(cpu, u, tr->base + offset, wide ? 4 : 2);
    uint16_t selector = (uint16_t)access_system_read(cpu, u, tr->base + offset + (wide ? 4 : 2), 2);

    uint32_t code = (selector & 0xfffcu) | ext;
    uint64_t descriptor;
    if (!segment_descriptor_try(cpu, u, selector, &descriptor))
        raise_error(cpu, u, EXC_TS, code);
    struct x86_segment ss = segment_from_descriptor(selector, descriptor);
    if ((selector & 3u) != cpl || (ss.attributes & SEG_DPL) >> SEG_DPL_SHIFT != cpl ||
        (ss.attributes & (SEG_S | SEG_CODE | SEG_WRITE_READ)) != (SEG_S | SEG_WRITE_READ))
        raise_error(cpu, u, EXC_TS, code);
    if (!(ss.attributes & SEG_P))
        raise_error(cpu, u, EXC_SS, code);
    segment_set_accessed(cpu, u, selector, descriptor);
    ss.attributes |= SEG_ACCESSED;
    return (struct frame){.u = u, .base = ss.base, .rsp = rsp, .mask = mask_of(&ss), .segment = ss, .fault_code = code};
}

struct frame frame_from_tss64(struct cpu *cpu, const struct uop *u, unsigned slot, uint32_t ext)
{
    const struct x86_segment *tr = &cpu->s.tr;
    unsigned offset = slot < TSS64_RSP_SLOTS ? TSS64_RSP0 + 8 * slot : TSS64_IST1 + 8 * (slot - TSS64_RSP_SLOTS - 1);
    if (offset + 7 > tr->limit)
        raise_error(cpu, u, EXC_TS, (tr->selector & 0xfffcu) | ext);
    uint64_t rsp = access_system_read(cpu, u, tr->base + offset, 8);
    return (struct frame){.u = u, .rsp = rsp, .mask = ~UINT64_C(0), .flat = true, .fault_code = ext};
}

static bool has_room(const struct cpu *cpu, const struct frame *frame, uint64_t first, unsigned bytes)
{
    uint64_t last = first + bytes - 1;
    if (frame->flat)
        return canonical(cpu, first) && canonical(cpu, last);
    if (frame->segment.attributes & SEG_EXPAND_CONFORM)
        return first > frame->segment.limit && last <= frame->mask;
    return last <= frame->segment.limit;
}

/* What is pushed may lie on both sides of the end of a 16-bit stack, but none of it across. */
void frame_check(struct cpu *cpu, struct frame *frame, unsigned slots, unsigned size)
{
    for (unsigned i = 1; i <= slots; i++)
        if (!has_room(cpu, frame, (frame->rsp - i * size) & frame->mask, size))
            raise_error(cpu, frame->u, EXC_SS, frame->fault_code);
    frame->checked = true;
}

void frame_push(struct cpu *cpu, struct frame *frame, unsigned size, uint64_t value)
{
    if (unlikely(!frame->checked)) {
        frame_check(cpu, frame, 1, size);
        frame->checked = false; /* that was for this one */
    }
    frame->rsp = (frame->rsp - size) & frame->mask;
    uint64_t linear = frame->flat ? frame->rsp : (uint32_t)(frame->base + frame->rsp);
    if (cpu->cpl == 3 && !frame->user)
        access_system_write(cpu, frame->u, linear, size, value); /* ring 3's AC is no excuse for ring 0's stack */
    else
        mem_write(cpu, frame->u, linear, size, value);
}
