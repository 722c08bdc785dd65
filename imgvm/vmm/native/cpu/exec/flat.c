/* SPDX-License-Identifier: MIT */
/* What is derived of segments outside 64-bit mode, for translated code: it leaves the checks of flat segments out and makes
 * those of others with one comparison. Everything here follows from the segment registers, CR0.PE and EFLAGS.VM. */
#include "segment.h"

/* The last byte that may be accessed, -1 if that is not the whole story (SDM vol. 3, 5.3 to 5.5). */
static int64_t last_offset(const struct cpu *cpu, const struct x86_segment *segment, bool write)
{
    unsigned type = segment->attributes & SEG_TYPE;
    bool code = type & SEG_CODE;
    if (segment->attributes & SEG_UNUSABLE || (!code && (type & SEG_EXPAND_CONFORM)))
        return -1;
    if (!real_or_v86(cpu) && (write ? code || !(type & SEG_WRITE_READ) : code && !(type & SEG_WRITE_READ)))
        return -1;
    return segment->limit;
}

static void derive(struct cpu *cpu, unsigned index)
{
    const struct x86_segment *segment = &cpu->s.segment[index];
    for (unsigned write = 0; write < 2; write++)
        cpu->seg_last[write][index] = last_offset(cpu, segment, write);
    if (index > DS)
        return;
    uint32_t bit = 1u << (MODE_KEY_FLAT + index);
    bool flat = !(uint32_t)segment->base && cpu->seg_last[index != CS][index] == UINT32_MAX;
    cpu->segment_key = flat ? cpu->segment_key | bit : cpu->segment_key & ~bit;
}

static uint32_t number_of(struct code_segments *segments, uint64_t what)
{
    unsigned i = (unsigned)((what * UINT64_C(0x9e3779b97f4a7c15)) >> 40) % CODE_SEGMENTS;
    segments->full = false;
    if (!what)
        return 0;
    while (!i || (segments->known[i] && segments->known[i] != what))
        i = (i + 1) % CODE_SEGMENTS;
    if (segments->known[i])
        return i;
    if (segments->count >= CODE_SEGMENTS / 2) {
        segments->full = true;
        return 0;
    }
    segments->known[i] = what;
    segments->count++;
    return i;
}

void cpu_derive_segment(struct cpu *cpu, unsigned index)
{
    if (index == CS)
        cpu_derive_segments(cpu);
    else
        derive(cpu, index);
    cpu_update_mode_key(cpu);
}

void cpu_derive_segments(struct cpu *cpu)
{
    const struct x86_segment *cs = &cpu->s.segment[CS];
    for (unsigned i = 0; i < 6; i++)
        derive(cpu, i);
    uint32_t number = number_of(&cpu->code_segments, cs->base << 32 | (uint32_t)~cs->limit);
    cpu->segment_key = (cpu->segment_key & (0xfu << MODE_KEY_FLAT)) | (uint32_t)cpu->stack32 << MODE_KEY_STACK32 |
                       number << MODE_KEY_CODE_SEGMENT;
}

void cpu_forget_code_segments(struct cpu *cpu)
{
    for (unsigned i = 0; i < CODE_SEGMENTS; i++)
        cpu->code_segments.known[i] = 0;
    cpu->code_segments.count = 0;
    cpu_derive_segments(cpu);
    cpu_update_mode_key(cpu);
}
