/* SPDX-License-Identifier: MIT */
/* Segment registers: descriptors, loads and their checks (SDM vol. 3, chapters 3 and 5), the instructions
 * that read and write them. */
#include "segment.h"

#include "exec.h"

struct x86_segment segment_from_descriptor(uint16_t selector, uint64_t descriptor)
{
    struct x86_segment segment = {.selector = selector};
    segment.attributes = (uint32_t)(descriptor >> 40) & 0xf0ff;
    segment.base = ((descriptor >> 16) & 0xffffff) | ((descriptor >> 56) & 0xff) << 24;
    segment.limit = (uint32_t)((descriptor & 0xffff) | ((descriptor >> 32) & 0xf0000));
    if (segment.attributes & SEG_G)
        segment.limit = segment.limit << 12 | 0xfff;
    return segment;
}

/* Address of the descriptor, or false when the selector lies outside its table. */
static bool descriptor_linear(struct cpu *cpu, uint16_t selector, unsigned bytes, uint64_t *linear)
{
    uint64_t base = cpu->s.gdtr.base, limit = cpu->s.gdtr.limit;
    if (selector & 4) {
        if ((cpu->s.ldtr.attributes & SEG_UNUSABLE) || !(cpu->s.ldtr.selector & ~3))
            return false;
        base = cpu->s.ldtr.base;
        limit = cpu->s.ldtr.limit;
    }
    if ((uint64_t)(selector & ~7u) + bytes - 1 > limit)
        return false;
    *linear = base + (selector & ~7u);
    return true;
}

bool segment_descriptor_try(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t *descriptor)
{
    uint64_t linear;
    if (!(selector & ~3) || !descriptor_linear(cpu, selector, 8, &linear))
        return false;
    *descriptor = access_system_read(cpu, u, linear, 8);
    return true;
}

uint64_t segment_descriptor(struct cpu *cpu, const struct uop *u, uint16_t selector, uint8_t vector)
{
    uint64_t descriptor;
    if (!segment_descriptor_try(cpu, u, selector, &descriptor))
        raise_error(cpu, u, vector, selector & 0xfffc);
    return descriptor;
}

uint64_t segment_system_base_high(struct cpu *cpu, const struct uop *u, uint16_t selector, uint8_t vector)
{
    uint64_t linear;
    if (!descriptor_linear(cpu, selector, 16, &linear))
        raise_error(cpu, u, vector, selector & 0xfffc);
    uint64_t high = access_system_read(cpu, u, linear + 8, 8);
    if (high >> 40 & 0x1f) /* where the second half would have a type it has zeros (SDM vol. 3, figure 8-4) */
        raise_error(cpu, u, vector, selector & 0xfffc);
    return high << 32;
}

static uint64_t system_base(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t low)
{
    uint64_t base = low | segment_system_base_high(cpu, u, selector, EXC_GP);
    if (!canonical_in_register(cpu, base))
        raise_gp(cpu, u, selector & 0xfffc);
    return base;
}

void segment_set_accessed(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t descriptor)
{
    uint64_t linear;
    if (!(descriptor >> 40 & SEG_ACCESSED) && descriptor_linear(cpu, selector, 8, &linear))
        access_system_write(cpu, u, linear + 5, 1, (descriptor >> 40 & 0xff) | SEG_ACCESSED);
}

void cpu_set_segment(struct cpu *cpu, unsigned index, const struct x86_segment *value)
{
    cpu->s.segment[index] = *value;
    cpu->seg_base[index] = value->base;
    if (!cpu->code64)
        cpu_derive_segment(cpu, index);
}

void segment_load_real(struct cpu *cpu, unsigned index, uint16_t selector)
{
    struct x86_segment segment = cpu->s.segment[index];
    segment.selector = selector;
    segment.base = (uint64_t)selector << 4;
    if (cpu->eflags & EFLAGS_VM) {
        segment.limit = 0xffff;
        segment.attributes = SEG_P | SEG_S | 3 | (3 << SEG_DPL_SHIFT);
    } else {
        segment.attributes &= ~SEG_UNUSABLE;
    }
    cpu_set_segment(cpu, index, &segment);
}

static unsigned dpl_bits(uint32_t attributes)
{
    return (attributes & SEG_DPL) >> SEG_DPL_SHIFT;
}

/* MOV SS, POP SS, LSS (SDM vol. 2, MOV: "IF SS is loaded") */
static void load_ss(struct cpu *cpu, const struct uop *u, uint16_t selector)
{
    unsigned rpl = selector & 3;
    if (!(selector & ~3)) {
        if (!cpu->code64 || cpu->cpl == 3 || rpl != cpu->cpl)
            raise_gp(cpu, u, 0);
        segment_load_null_ss(cpu, selector, cpu->cpl);
        return;
    }
    uint64_t descriptor = segment_descriptor(cpu, u, selector, EXC_GP);
    struct x86_segment segment = segment_from_descriptor(selector, descriptor);
    uint32_t kind = segment.attributes & (SEG_S | SEG_CODE | SEG_WRITE_READ);
    if (rpl != cpu->cpl || kind != (SEG_S | SEG_WRITE_READ) || dpl_bits(segment.attributes) != cpu->cpl)
        raise_gp(cpu, u, selector & 0xfffc);
    if (!(segment.attributes & SEG_P))
        raise_error(cpu, u, EXC_SS, selector & 0xfffc);
    segment_set_accessed(cpu, u, selector, descriptor);
    segment.attributes |= SEG_ACCESSED;
    cpu_set_segment(cpu, SS, &segment);
}

void segment_load_null_ss(struct cpu *cpu, uint16_t selector, unsigned cpl)
{
    struct x86_segment segment = {.selector = selector, .limit = 0xffffffff,
                                  .attributes = SEG_UNUSABLE | SEG_DB | cpl << SEG_DPL_SHIFT};
    cpu_set_segment(cpu, SS, &segment);
}

void segment_load_null(struct cpu *cpu, unsigned index, uint16_t selector)
{
    /* the base of FS and GS is cleared too (as Intel's processors do) */
    struct x86_segment segment = {.selector = selector, .attributes = SEG_UNUSABLE};
    cpu_set_segment(cpu, index, &segment);
}

void segment_load(struct cpu *cpu, const struct uop *u, unsigned index, uint16_t selector)
{
    if (real_or_v86(cpu)) {
        segment_load_real(cpu, index, selector);
        return;
    }
    if (index == SS) {
        load_ss(cpu, u, selector);
        cpu_update_mode(cpu);
        return;
    }
    if (!(selector & ~3)) {
        segment_load_null(cpu, index, selector);
        return;
    }
    uint64_t descriptor = segment_descriptor(cpu, u, selector, EXC_GP);
    struct x86_segment segment = segment_from_descriptor(selector, descriptor);
    uint32_t attributes = segment.attributes;
    bool code = attributes & SEG_CODE;
    bool conforming = code && (attributes & SEG_EXPAND_CONFORM);
    unsigned privilege = MAX(cpu->cpl, selector & 3u);
    if (!(attributes & SEG_S) || (code && !(attributes & SEG_WRITE_READ)) ||
        (!conforming && privilege > dpl_bits(attributes)))
        raise_gp(cpu, u, selector & 0xfffc);
    if (!(attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, selector & 0xfffc);
    segment_set_accessed(cpu, u, selector, descriptor);
    segment.attributes |= SEG_ACCESSED;
    cpu_set_segment(cpu, index, &segment);
}

/* ---- instructions ---- */

static void mov_from_sreg(struct cpu *cpu, const struct uop *u)
{
    uint16_t selector = cpu->s.segment[u->in.reg].selector;
    if (u->in.flags & INSN_MEM)
        rm_write(cpu, u, 2, selector);
    else
        reg_write(cpu, u->in.rm, u->in.osize, selector);
    NEXT;
}

static void mov_to_sreg(struct cpu *cpu, const struct uop *u)
{
    if (u->in.reg == CS)
        raise_ud(cpu, u);
    segment_load(cpu, u, u->in.reg, (uint16_t)rm_read(cpu, u, 2));
    cpu->s.interrupt_shadow = cpu->ss_shadow = u->in.reg == SS;
    cpu_update_boundary(cpu);
    END_BLOCK;
}

/* Which register a PUSH or POP names stands in its row. */
static unsigned sreg_of_row(const struct uop *u)
{
    switch (isa_rows[u->in.row].opcode) {
    case 0x06: case 0x07: return ES;
    case 0x0e: return CS;
    case 0x16: case 0x17: return SS;
    case 0x1e: case 0x1f: return DS;
    case 0xa0: case 0xa1: return FS;
    default: return GS;
    }
}

static void push_sreg(struct cpu *cpu, const struct uop *u)
{
    stack_push(cpu, u, u->in.osize, cpu->s.segment[sreg_of_row(u)].selector);
    NEXT;
}

static void pop_sreg(struct cpu *cpu, const struct uop *u)
{
    unsigned index = sreg_of_row(u);
    uint64_t rsp = cpu->gpr[RSP];
    uint16_t selector = (uint16_t)stack_pop(cpu, u, u->in.osize);
    uint64_t popped = cpu->gpr[RSP];
    cpu->gpr[RSP] = rsp;
    segment_load(cpu, u, index, selector);
    if (index == SS)
        stack_set(cpu, popped);
    else
        cpu->gpr[RSP] = popped;
    cpu->s.interrupt_shadow = cpu->ss_shadow = index == SS;
    cpu_update_boundary(cpu);
    END_BLOCK;
}

/* LES LDS LFS LGS LSS: offset, then selector */
static void load_far_pointer(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    unsigned index = u->in.op == OP_LES ? ES : u->in.op == OP_LDS ? DS : u->in.op == OP_LFS ? FS : u->in.op == OP_LGS ? GS : SS;
    uint64_t linear = operand_linear(cpu, u, size + 2, false);
    uint64_t offset = mem_read(cpu, u, linear, size);
    uint16_t selector = mem_read_16(cpu, u, linear + size);
    segment_load(cpu, u, index, selector);
    reg_write(cpu, u->in.reg, size, offset);
    END_BLOCK;
}

/* LAR, LSL, VERR, VERW: is the descriptor visible from here? */
static bool probe_descriptor(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t *descriptor)
{
    if (real_or_v86(cpu))
        raise_ud(cpu, u);
    if (!segment_descriptor_try(cpu, u, selector, descriptor))
        return false;
    uint32_t attributes = (uint32_t)(*descriptor >> 40);
    bool conforming_code = (attributes & (SEG_S | SEG_CODE | SEG_EXPAND_CONFORM)) == (SEG_S | SEG_CODE | SEG_EXPAND_CONFORM);
    return conforming_code || MAX(cpu->cpl, selector & 3u) <= dpl_bits(attributes);
}

static void set_zf(struct cpu *cpu, bool value)
{
    cpu->cc = (uint16_t)((cpu->cc & ~CC_ZF) | (value ? CC_ZF : 0));
}

static void lar(struct cpu *cpu, const struct uop *u)
{
    /* system types that LAR accepts: all but reserved ones and interrupt and trap gates (SDM vol. 2, LAR) */
    static const uint16_t valid = 0x1a3e & ~0x0000, valid_long = 0x1a04;
    uint16_t selector = (uint16_t)rm_read(cpu, u, 2);
    uint64_t descriptor;
    bool ok = probe_descriptor(cpu, u, selector, &descriptor);
    uint32_t attributes = ok ? (uint32_t)(descriptor >> 40) : 0;
    if (ok && !(attributes & SEG_S))
        ok = (cpu->s.efer & EFER_LMA ? valid_long : valid) >> (attributes & SEG_TYPE) & 1;
    if (ok)
        reg_write(cpu, u->in.reg, u->in.osize, (descriptor >> 32) & 0x00ffff00);
    set_zf(cpu, ok);
    NEXT;
}

static void lsl(struct cpu *cpu, const struct uop *u)
{
    static const uint16_t valid = 0x0a0e, valid_long = 0x0a04; /* TSS and LDT */
    uint16_t selector = (uint16_t)rm_read(cpu, u, 2);
    uint64_t descriptor;
    bool ok = probe_descriptor(cpu, u, selector, &descriptor);
    struct x86_segment segment = {0};
    if (ok) {
        segment = segment_from_descriptor(selector, descriptor);
        if (!(segment.attributes & SEG_S))
            ok = (cpu->s.efer & EFER_LMA ? valid_long : valid) >> (segment.attributes & SEG_TYPE) & 1;
    }
    if (ok)
        reg_write(cpu, u->in.reg, u->in.osize, segment.limit);
    set_zf(cpu, ok);
    NEXT;
}

static void verr_verw(struct cpu *cpu, const struct uop *u)
{
    uint16_t selector = (uint16_t)rm_read(cpu, u, 2);
    uint64_t descriptor;
    bool ok = probe_descriptor(cpu, u, selector, &descriptor);
    uint32_t attributes = ok ? (uint32_t)(descriptor >> 40) : 0;
    bool code = attributes & SEG_CODE, bit = attributes & SEG_WRITE_READ;
    ok = ok && (attributes & SEG_S) && (u->in.op == OP_VERR ? !code || bit : !code && bit);
    set_zf(cpu, ok);
    NEXT;
}

static void arpl(struct cpu *cpu, const struct uop *u)
{
    if (real_or_v86(cpu))
        raise_ud(cpu, u);
    uint16_t destination = (uint16_t)rm_read(cpu, u, 2), source = (uint16_t)cpu->gpr[u->in.reg];
    bool adjust = (destination & 3) < (source & 3);
    if (adjust)
        rm_write(cpu, u, 2, (destination & ~3u) | (source & 3u));
    set_zf(cpu, adjust);
    NEXT;
}

static void need_protected(struct cpu *cpu, const struct uop *u)
{
    if (real_or_v86(cpu))
        raise_ud(cpu, u);
}

static void need_cpl0(struct cpu *cpu, const struct uop *u)
{
    if (cpu->cpl)
        raise_gp(cpu, u, 0);
}

static void umip_check(struct cpu *cpu, const struct uop *u)
{
    if (cpu->cpl && (cpu->s.cr4 & CR4_UMIP))
        raise_gp(cpu, u, 0);
}

static void sldt_str(struct cpu *cpu, const struct uop *u)
{
    need_protected(cpu, u);
    umip_check(cpu, u);
    uint16_t selector = u->in.op == OP_SLDT ? cpu->s.ldtr.selector : cpu->s.tr.selector;
    if (u->in.flags & INSN_MEM)
        rm_write(cpu, u, 2, selector);
    else
        reg_write(cpu, u->in.rm, u->in.osize, selector);
    NEXT;
}

static void lldt(struct cpu *cpu, const struct uop *u)
{
    need_protected(cpu, u);
    need_cpl0(cpu, u);
    uint16_t selector = (uint16_t)rm_read(cpu, u, 2);
    if (!(selector & ~3)) {
        cpu->s.ldtr = (struct x86_segment){.selector = selector, .attributes = SEG_UNUSABLE};
        NEXT;
    }
    if (selector & 4)
        raise_gp(cpu, u, selector & 0xfffc);
    uint64_t descriptor = segment_descriptor(cpu, u, selector, EXC_GP);
    struct x86_segment segment = segment_from_descriptor(selector, descriptor);
    if ((segment.attributes & (SEG_S | SEG_TYPE)) != 2)
        raise_gp(cpu, u, selector & 0xfffc);
    if (!(segment.attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, selector & 0xfffc);
    if (cpu->s.efer & EFER_LMA)
        segment.base = system_base(cpu, u, selector, segment.base);
    cpu->s.ldtr = segment;
    NEXT;
}

static void ltr(struct cpu *cpu, const struct uop *u)
{
    need_protected(cpu, u);
    need_cpl0(cpu, u);
    uint16_t selector = (uint16_t)rm_read(cpu, u, 2);
    if (!(selector & ~3))
        raise_gp(cpu, u, 0);
    if (selector & 4)
        raise_gp(cpu, u, selector & 0xfffc);
    uint64_t descriptor = segment_descriptor(cpu, u, selector, EXC_GP);
    struct x86_segment segment = segment_from_descriptor(selector, descriptor);
    unsigned type = segment.attributes & (SEG_S | SEG_TYPE);
    bool long_mode = cpu->s.efer & EFER_LMA;
    if (type != 9 && (type != 1 || long_mode))
        raise_gp(cpu, u, selector & 0xfffc);
    if (!(segment.attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, selector & 0xfffc);
    if (long_mode)
        segment.base = system_base(cpu, u, selector, segment.base);
    /* mark it busy, in the table too */
    access_system_write(cpu, u, cpu->s.gdtr.base + (selector & ~7u) + 5, 1, (descriptor >> 40 & 0xff) | 2);
    segment.attributes |= 2;
    cpu->s.tr = segment;
    NEXT;
}

const struct exec_def exec_segment[] = {
    {OP_MOV_FROM_SREG, EXEC_ANY_FORM, NULL, mov_from_sreg},
    {OP_MOV_TO_SREG, EXEC_ANY_FORM, NULL, mov_to_sreg},
    {OP_PUSH_SREG, EXEC_ANY_FORM, NULL, push_sreg},
    {OP_POP_SREG, EXEC_ANY_FORM, NULL, pop_sreg},
    {OP_LES, EXEC_ANY_FORM, NULL, load_far_pointer},
    {OP_LDS, EXEC_ANY_FORM, NULL, load_far_pointer},
    {OP_LFS, EXEC_ANY_FORM, NULL, load_far_pointer},
    {OP_LGS, EXEC_ANY_FORM, NULL, load_far_pointer},
    {OP_LSS, EXEC_ANY_FORM, NULL, load_far_pointer},
    {OP_LAR, EXEC_ANY_FORM, NULL, lar},
    {OP_LSL, EXEC_ANY_FORM, NULL, lsl},
    {OP_VERR, EXEC_ANY_FORM, NULL, verr_verw},
    {OP_VERW, EXEC_ANY_FORM, NULL, verr_verw},
    {OP_ARPL, EXEC_ANY_FORM, NULL, arpl},
    {OP_SLDT, EXEC_ANY_FORM, NULL, sldt_str},
    {OP_STR, EXEC_ANY_FORM, NULL, sldt_str},
    {OP_LLDT, EXEC_ANY_FORM, NULL, lldt},
    {OP_LTR, EXEC_ANY_FORM, NULL, ltr},
    {0, 0, NULL, NULL},
};
