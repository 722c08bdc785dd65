/* SPDX-License-Identifier: MIT */
/* Interrupts and exceptions through IVT and IDT, and IRET (SDM vol. 3, chapter 6; vol. 2, INT and IRET).
 * Nothing of the processor changes before the last memory access has succeeded.
 * Not here yet: task gates and task switches, virtual-8086 extensions (VME). */
#include "exec.h"
#include "segment.h"

#define GATE_TASK 5u
#define GATE_INTERRUPT16 6u
#define GATE_TRAP16 7u
#define GATE_INTERRUPT32 14u
#define GATE_TRAP32 15u

/* A stack being written before it becomes the processor's. */
struct stack {
    uint64_t base, rsp, mask;
    struct x86_segment segment;
    bool user, flat;
};

static void push_to(struct cpu *cpu, struct stack *stack, unsigned size, uint64_t value)
{
    stack->rsp = (stack->rsp - size) & stack->mask;
    if (!stack->flat) {
        uint64_t last = stack->rsp + size - 1;
        bool down = stack->segment.attributes & SEG_EXPAND_CONFORM;
        if (down ? stack->rsp <= stack->segment.limit : last > stack->segment.limit)
            raise_error(cpu, NULL, EXC_SS, 0);
    }
    uint64_t linear = stack->flat ? stack->rsp : (uint32_t)(stack->base + stack->rsp);
    if (stack->user)
        access_write_slow(cpu, NULL, linear, size, value);
    else
        access_system_write(cpu, NULL, linear, size, value);
}

static uint64_t stack_mask_of(const struct x86_segment *ss)
{
    return ss->attributes & SEG_DB ? 0xffffffffu : 0xffffu;
}

static void deliver_real(struct cpu *cpu, uint8_t vector)
{
    uint64_t entry = cpu->s.idtr.base + 4u * vector;
    if (4u * vector + 3u > cpu->s.idtr.limit)
        raise_error(cpu, NULL, vector == EXC_DF ? EXC_GP : EXC_GP, 0);
    uint32_t target = (uint32_t)access_system_read(cpu, NULL, entry, 4);
    struct stack stack = {.base = cpu->seg_base[SS], .rsp = cpu->gpr[RSP] & 0xffff, .mask = 0xffff, .segment = cpu->s.segment[SS]};
    push_to(cpu, &stack, 2, cpu_get_eflags(cpu));
    push_to(cpu, &stack, 2, cpu->s.segment[CS].selector);
    push_to(cpu, &stack, 2, cpu->rip);
    *(uint16_t *)&cpu->gpr[RSP] = (uint16_t)stack.rsp;
    segment_load_real(cpu, CS, (uint16_t)(target >> 16));
    cpu->rip = target & 0xffff;
    cpu_set_eflags(cpu, 0, EFLAGS_IF | EFLAGS_TF | EFLAGS_AC | EFLAGS_RF);
    cpu_update_mode(cpu);
}

/* Stack pointer for a privilege (or IST entry) from the TSS. */
static uint64_t tss_rsp64(struct cpu *cpu, unsigned slot_offset)
{
    if (slot_offset + 7 > cpu->s.tr.limit)
        raise_error(cpu, NULL, EXC_TS, cpu->s.tr.selector & 0xfffc);
    uint64_t rsp = access_system_read(cpu, NULL, cpu->s.tr.base + slot_offset, 8);
    if ((uint64_t)((int64_t)(rsp << 16) >> 16) != rsp)
        raise_error(cpu, NULL, EXC_SS, 0);
    return rsp;
}

static void tss_stack32(struct cpu *cpu, unsigned cpl, uint16_t *selector, uint32_t *esp)
{
    bool wide = (cpu->s.tr.attributes & SEG_TYPE) >= 9;
    unsigned offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
    if (offset + (wide ? 5u : 3u) > cpu->s.tr.limit)
        raise_error(cpu, NULL, EXC_TS, cpu->s.tr.selector & 0xfffc);
    *esp = (uint32_t)access_system_read(cpu, NULL, cpu->s.tr.base + offset, wide ? 4 : 2);
    *selector = (uint16_t)access_system_read(cpu, NULL, cpu->s.tr.base + offset + (wide ? 4 : 2), 2);
}

/* The stack segment of a more privileged ring, with the checks of SDM vol. 2, INT, INTER-PRIVILEGE-LEVEL-INTERRUPT. */
static struct x86_segment inner_stack_segment(struct cpu *cpu, uint16_t selector, unsigned cpl)
{
    if (!(selector & ~3))
        raise_error(cpu, NULL, EXC_TS, selector & 0xfffc);
    uint64_t descriptor = segment_descriptor(cpu, NULL, selector, EXC_TS);
    struct x86_segment ss = segment_from_descriptor(selector, descriptor);
    if ((selector & 3u) != cpl || (ss.attributes & SEG_DPL) >> SEG_DPL_SHIFT != cpl ||
        (ss.attributes & (SEG_S | SEG_CODE | SEG_WRITE_READ)) != (SEG_S | SEG_WRITE_READ))
        raise_error(cpu, NULL, EXC_TS, selector & 0xfffc);
    if (!(ss.attributes & SEG_P))
        raise_error(cpu, NULL, EXC_SS, selector & 0xfffc);
    segment_set_accessed(cpu, NULL, selector, descriptor);
    ss.attributes |= SEG_ACCESSED;
    return ss;
}

static void load_data_null(struct cpu *cpu)
{
    static const uint8_t data[] = {ES, DS, FS, GS};
    for (unsigned i = 0; i < 4; i++)
        segment_load_null(cpu, data[i], 0);
}

struct gate {
    uint64_t offset;
    uint16_t selector;
    unsigned type, dpl, ist;
};

static struct gate read_gate(struct cpu *cpu, uint8_t vector, bool soft, uint32_t ext)
{
    bool long_mode = cpu->s.efer & EFER_LMA;
    unsigned bytes = long_mode ? 16 : 8;
    uint32_t error = (uint32_t)vector * 8 + 2 + ext;
    if ((unsigned)vector * bytes + bytes - 1 > cpu->s.idtr.limit)
        raise_error(cpu, NULL, EXC_GP, error);
    uint64_t at = cpu->s.idtr.base + vector * bytes;
    uint64_t low = access_system_read(cpu, NULL, at, 8);
    struct gate gate = {
        .offset = (low & 0xffff) | ((low >> 48) << 16),
        .selector = (uint16_t)(low >> 16),
        .type = (unsigned)(low >> 40) & 0x1f,
        .dpl = (unsigned)(low >> 45) & 3,
        .ist = long_mode ? (unsigned)(low >> 32) & 7 : 0,
    };
    if (long_mode)
        gate.offset |= access_system_read(cpu, NULL, at + 8, 4) << 32;
    bool known = gate.type == GATE_INTERRUPT32 || gate.type == GATE_TRAP32 ||
                 (!long_mode && (gate.type == GATE_INTERRUPT16 || gate.type == GATE_TRAP16 || gate.type == GATE_TASK));
    if (!known || (soft && gate.dpl < cpu->cpl))
        raise_error(cpu, NULL, EXC_GP, error);
    if (!(low >> 47 & 1))
        raise_error(cpu, NULL, EXC_NP, error);
    return gate;
}

static bool pushes_rf(uint8_t vector, enum interrupt_source source)
{
    /* faults set RF in the pushed image, traps do not (SDM vol. 3, 17.3.1.1) */
    return source == INTERRUPT_EXCEPTION && vector != EXC_DB && vector != EXC_BP && vector != EXC_OF && vector != EXC_DF;
}

static void deliver_protected(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error, uint32_t error)
{
    bool soft = source == INTERRUPT_SOFTWARE;
    bool long_mode = cpu->s.efer & EFER_LMA, v86 = cpu->eflags & EFLAGS_VM;
    uint32_t ext = soft || source == INTERRUPT_INT1 ? 0 : 1;
    struct gate gate = read_gate(cpu, vector, soft, ext);
    if (gate.type == GATE_TASK)
        internal_error(cpu, NULL, "task gates are not implemented yet");

    if (!(gate.selector & ~3))
        raise_error(cpu, NULL, EXC_GP, ext);
    uint64_t descriptor;
    if (!segment_descriptor_try(cpu, NULL, gate.selector, &descriptor))
        raise_error(cpu, NULL, EXC_GP, (gate.selector & 0xfffc) + ext);
    struct x86_segment cs = segment_from_descriptor(gate.selector, descriptor);
    unsigned dpl = (cs.attributes & SEG_DPL) >> SEG_DPL_SHIFT;
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    if ((cs.attributes & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) || dpl > cpu->cpl ||
        (long_mode && (cs.attributes & (SEG_L | SEG_DB)) != SEG_L))
        raise_error(cpu, NULL, EXC_GP, (gate.selector & 0xfffc) + ext);
    if (!(cs.attributes & SEG_P))
        raise_error(cpu, NULL, EXC_NP, (gate.selector & 0xfffc) + ext);
    unsigned new_cpl = conforming ? cpu->cpl : dpl;
    if (v86 && new_cpl != 0)
        raise_error(cpu, NULL, EXC_GP, (gate.selector & 0xfffc) + ext);

    bool inner = new_cpl < cpu->cpl;
    bool wide32 = gate.type >= GATE_INTERRUPT32;
    unsigned size = long_mode ? 8 : wide32 ? 4 : 2;
    uint64_t flags = cpu_get_eflags(cpu) | (pushes_rf(vector, source) ? EFLAGS_RF : 0);
    struct x86_segment old_ss = cpu->s.segment[SS];
    uint64_t old_rsp = cpu->gpr[RSP];
    struct stack stack = {.user = new_cpl == 3, .flat = long_mode, .mask = ~UINT64_C(0), .segment = old_ss};
    if (long_mode) {
        stack.rsp = gate.ist ? tss_rsp64(cpu, 36 + 8 * (gate.ist - 1)) : inner ? tss_rsp64(cpu, 4 + 8 * new_cpl) : old_rsp;
        stack.rsp &= ~UINT64_C(15);
    } else if (inner) {
        uint16_t selector;
        uint32_t esp;
        tss_stack32(cpu, new_cpl, &selector, &esp);
        stack.segment = inner_stack_segment(cpu, selector, new_cpl);
        stack.base = stack.segment.base;
        stack.mask = stack_mask_of(&stack.segment);
        stack.rsp = esp;
    } else {
        stack.base = old_ss.base;
        stack.mask = stack_mask_of(&old_ss);
        stack.rsp = old_rsp & stack.mask;
    }

    if (v86) {
        static const uint8_t order[] = {GS, FS, DS, ES};
        for (unsigned i = 0; i < 4; i++)
            push_to(cpu, &stack, size, cpu->s.segment[order[i]].selector);
    }
    if (long_mode || inner) {
        push_to(cpu, &stack, size, old_ss.selector);
        push_to(cpu, &stack, size, old_rsp);
    }
    push_to(cpu, &stack, size, flags);
    push_to(cpu, &stack, size, cpu->s.segment[CS].selector);
    push_to(cpu, &stack, size, cpu->rip);
    if (has_error)
        push_to(cpu, &stack, size, error);
    segment_set_accessed(cpu, NULL, gate.selector, descriptor);

    /* from here on nothing faults */
    uint32_t clear = EFLAGS_TF | EFLAGS_NT | EFLAGS_VM | EFLAGS_RF;
    if (!(gate.type & 1))
        clear |= EFLAGS_IF;
    cpu_set_eflags(cpu, 0, clear);
    cs.selector = (uint16_t)((gate.selector & ~3u) | new_cpl);
    cs.attributes |= SEG_ACCESSED;
    cpu_set_segment(cpu, CS, &cs);
    if (v86)
        load_data_null(cpu);
    if (inner) {
        if (long_mode)
            segment_load_null_ss(cpu, (uint16_t)new_cpl, new_cpl);
        else
            cpu_set_segment(cpu, SS, &stack.segment);
    }
    cpu_set_cpl(cpu, (uint8_t)new_cpl);
    cpu_update_mode(cpu);
    if (long_mode)
        cpu->gpr[RSP] = stack.rsp;
    else
        stack_set(cpu, stack.rsp);
    cpu->rip = long_mode ? gate.offset : wide32 ? (uint32_t)gate.offset : (uint16_t)gate.offset;
}

void interrupt_deliver(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error, uint32_t error)
{
    if (!(cpu->s.cr0 & CR0_PE))
        deliver_real(cpu, vector);
    else
        deliver_protected(cpu, vector, source, has_error, error);
}

/* ---- IRET ---- */

static uint64_t frame_read(struct cpu *cpu, const struct uop *u, uint64_t rsp, unsigned slot, unsigned size)
{
    uint64_t at = (rsp + slot * size) & stack_mask(cpu);
    uint64_t linear = cpu->code64 ? at : access_segment(cpu, u, SS, at, size, false);
    return mem_read(cpu, u, linear, size);
}

static void iret_real(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    if (cpu->eflags & EFLAGS_VM && (cpu->eflags & EFLAGS_IOPL) != EFLAGS_IOPL)
        raise_gp(cpu, u, 0);
    uint64_t rsp = cpu->gpr[RSP];
    uint64_t rip = frame_read(cpu, u, rsp, 0, size), cs = frame_read(cpu, u, rsp, 1, size), flags = frame_read(cpu, u, rsp, 2, size);
    if (rip > cpu->s.segment[CS].limit)
        raise_gp(cpu, u, 0);
    stack_set(cpu, rsp + 3 * size);
    segment_load_real(cpu, CS, (uint16_t)cs);
    uint32_t mask = EFLAGS_STATUS | EFLAGS_TF | EFLAGS_IF | EFLAGS_DF | EFLAGS_NT | EFLAGS_RF;
    if (!(cpu->eflags & EFLAGS_VM))
        mask |= EFLAGS_IOPL;
    if (size == 4)
        mask |= EFLAGS_AC | EFLAGS_ID;
    cpu_set_eflags(cpu, (uint32_t)flags, mask);
    cpu->rip = rip;
    cpu_update_mode(cpu);
}

/* From protected mode back to virtual-8086 (only ring 0, 32-bit). */
static void iret_to_v86(struct cpu *cpu, const struct uop *u, uint64_t rsp, uint32_t rip, uint16_t cs, uint32_t flags)
{
    uint64_t new_esp = frame_read(cpu, u, rsp, 3, 4);
    uint16_t ss = (uint16_t)frame_read(cpu, u, rsp, 4, 4);
    static const uint8_t order[] = {ES, DS, FS, GS};
    uint16_t selector[4];
    for (unsigned i = 0; i < 4; i++)
        selector[i] = (uint16_t)frame_read(cpu, u, rsp, 5 + i, 4);
    cpu_set_eflags(cpu, flags, ~0u);
    segment_load_real(cpu, CS, cs);
    segment_load_real(cpu, SS, ss);
    for (unsigned i = 0; i < 4; i++)
        segment_load_real(cpu, order[i], selector[i]);
    cpu->gpr[RSP] = (uint32_t)new_esp;
    cpu->rip = rip & 0xffff;
    cpu_set_cpl(cpu, 3);
    cpu_update_mode(cpu);
}

/* Going outward, data segments that the outer ring may not use become null (SDM vol. 3, 5.8.6). */
static void drop_inner_segments(struct cpu *cpu)
{
    static const uint8_t data[] = {ES, DS, FS, GS};
    for (unsigned i = 0; i < 4; i++) {
        const struct x86_segment *segment = &cpu->s.segment[data[i]];
        unsigned dpl = (segment->attributes & SEG_DPL) >> SEG_DPL_SHIFT;
        bool conforming = (segment->attributes & (SEG_CODE | SEG_EXPAND_CONFORM)) == (SEG_CODE | SEG_EXPAND_CONFORM);
        if (segment->attributes & SEG_UNUSABLE || conforming || dpl >= cpu->cpl)
            continue;
        if (cpu->s.efer & EFER_LMA && data[i] >= FS) {
            /* the base stays: only the selector and the rights go */
            struct x86_segment kept = *segment;
            kept.selector = 0;
            kept.attributes |= SEG_UNUSABLE;
            cpu_set_segment(cpu, data[i], &kept);
        } else {
            segment_load_null(cpu, data[i], 0);
        }
    }
}

/* Shared by IRET and RETF to an outer or the same ring: loads CS and, when needed, SS:RSP from checked values. */
void interrupt_return(struct cpu *cpu, const struct uop *u, uint16_t cs_selector, uint64_t rip, bool with_stack, uint16_t ss_selector,
                      uint64_t new_rsp, uint64_t plain_rsp)
{
    unsigned rpl = cs_selector & 3;
    bool long_mode = cpu->s.efer & EFER_LMA;
    if (!(cs_selector & ~3))
        raise_gp(cpu, u, 0);
    uint64_t descriptor = segment_descriptor(cpu, u, cs_selector, EXC_GP);
    struct x86_segment cs = segment_from_descriptor(cs_selector, descriptor);
    unsigned dpl = (cs.attributes & SEG_DPL) >> SEG_DPL_SHIFT;
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    if ((cs.attributes & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) || rpl < cpu->cpl || (conforming ? dpl > rpl : dpl != rpl) ||
        (long_mode && (cs.attributes & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB)))
        raise_gp(cpu, u, cs_selector & 0xfffc);
    if (!(cs.attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, cs_selector & 0xfffc);
    bool to64 = long_mode && (cs.attributes & SEG_L);
    bool canonical = (uint64_t)((int64_t)(rip << 16) >> 16) == rip;
    if (to64 ? !canonical : (uint32_t)rip > cs.limit)
        raise_gp(cpu, u, 0);

    struct x86_segment ss = cpu->s.segment[SS];
    bool null_ss = false;
    if (with_stack) {
        if (!(ss_selector & ~3)) {
            null_ss = to64 && rpl != 3 && (ss_selector & 3u) == rpl;
            if (!null_ss)
                raise_gp(cpu, u, 0);
        } else {
            uint64_t ss_descriptor = segment_descriptor(cpu, u, ss_selector, EXC_GP);
            ss = segment_from_descriptor(ss_selector, ss_descriptor);
            if ((ss_selector & 3u) != rpl || (ss.attributes & SEG_DPL) >> SEG_DPL_SHIFT != rpl ||
                (ss.attributes & (SEG_S | SEG_CODE | SEG_WRITE_READ)) != (SEG_S | SEG_WRITE_READ))
                raise_gp(cpu, u, ss_selector & 0xfffc);
            if (!(ss.attributes & SEG_P))
                raise_error(cpu, u, EXC_SS, ss_selector & 0xfffc);
            segment_set_accessed(cpu, u, ss_selector, ss_descriptor);
            ss.attributes |= SEG_ACCESSED;
        }
    }
    segment_set_accessed(cpu, u, cs_selector, descriptor);
    cs.attributes |= SEG_ACCESSED;
    bool outer = rpl > cpu->cpl;
    cpu_set_segment(cpu, CS, &cs);
    cpu_set_cpl(cpu, (uint8_t)rpl);
    if (with_stack) {
        if (null_ss)
            segment_load_null_ss(cpu, ss_selector, rpl);
        else
            cpu_set_segment(cpu, SS, &ss);
    }
    cpu_update_mode(cpu);
    if (with_stack)
        stack_set(cpu, new_rsp);
    else
        stack_set(cpu, plain_rsp);
    if (outer)
        drop_inner_segments(cpu);
    cpu->rip = to64 ? rip : (uint32_t)rip;
}

static void iret_protected(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    bool long_mode = cpu->s.efer & EFER_LMA;
    if (cpu->eflags & EFLAGS_NT) {
        if (long_mode)
            raise_gp(cpu, u, 0);
        internal_error(cpu, u, "task returns are not implemented yet");
    }
    uint64_t rsp = cpu->gpr[RSP];
    uint64_t rip = frame_read(cpu, u, rsp, 0, size);
    uint16_t cs = (uint16_t)frame_read(cpu, u, rsp, 1, size);
    uint32_t flags = (uint32_t)frame_read(cpu, u, rsp, 2, size);
    if (!long_mode && size == 4 && (flags & EFLAGS_VM) && cpu->cpl == 0) {
        iret_to_v86(cpu, u, rsp, (uint32_t)rip, cs, flags);
        return;
    }
    unsigned old_cpl = cpu->cpl;
    bool with_stack = cpu->code64 || (cs & 3u) > cpu->cpl;
    uint64_t new_rsp = 0;
    uint16_t ss = 0;
    if (with_stack) {
        new_rsp = frame_read(cpu, u, rsp, 3, size);
        ss = (uint16_t)frame_read(cpu, u, rsp, 4, size);
    }
    interrupt_return(cpu, u, cs, rip, with_stack, ss, new_rsp, rsp + 3 * size);
    uint32_t mask = EFLAGS_STATUS | EFLAGS_TF | EFLAGS_DF | EFLAGS_NT;
    if (size != 2)
        mask |= EFLAGS_RF | EFLAGS_AC | EFLAGS_ID;
    if (old_cpl <= (cpu->eflags & EFLAGS_IOPL) >> 12)
        mask |= EFLAGS_IF;
    if (old_cpl == 0)
        mask |= EFLAGS_IOPL | (size != 2 ? EFLAGS_VIF | EFLAGS_VIP : 0);
    cpu_set_eflags(cpu, flags, mask);
}

static void iret(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.cr0 & CR0_PE) || (cpu->eflags & EFLAGS_VM))
        iret_real(cpu, u);
    else
        iret_protected(cpu, u);
    cpu->s.nmi_blocked = false;
    cpu->eflags &= ~(uint64_t)EFLAGS_RF; /* there are no code breakpoints to suppress yet */
    cpu_update_requests(cpu);
}

/* ---- INT n, INT3, INTO, INT1, BOUND, UD ---- */

static void software_interrupt(struct cpu *cpu, const struct uop *u, uint8_t vector, enum interrupt_source source)
{
    if (cpu->eflags & EFLAGS_VM && u->in.op == OP_INT && (cpu->eflags & EFLAGS_IOPL) != EFLAGS_IOPL)
        raise_gp(cpu, u, 0);
    /* a fault while delivering must find the instruction itself, not its successor */
    uint64_t this_rip = cpu_this_rip(cpu, u);
    cpu->rip = cpu_next_rip(cpu, u);
    cpu->soft_interrupt_rip = this_rip;
    cpu->in_soft_interrupt = true;
    interrupt_deliver(cpu, vector, source, false, 0);
    cpu->in_soft_interrupt = false;
}

static void int_n(struct cpu *cpu, const struct uop *u)
{
    software_interrupt(cpu, u, (uint8_t)u->in.imm, INTERRUPT_SOFTWARE);
}

static void int3(struct cpu *cpu, const struct uop *u)
{
    software_interrupt(cpu, u, EXC_BP, INTERRUPT_SOFTWARE);
}

static void int1(struct cpu *cpu, const struct uop *u)
{
    software_interrupt(cpu, u, EXC_DB, INTERRUPT_INT1);
}

static void into(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->cc & CC_OF))
        NEXT;
    software_interrupt(cpu, u, EXC_OF, INTERRUPT_SOFTWARE);
}

static void bound(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t linear = operand_linear(cpu, u, 2 * size, false);
    uint64_t low = mem_read(cpu, u, linear, size), high = mem_read(cpu, u, linear + size, size);
    unsigned shift = 64 - 8 * size;
    int64_t index = (int64_t)(cpu->gpr[u->in.reg] << shift) >> shift;
    if (index < (int64_t)(low << shift) >> shift || index > (int64_t)(high << shift) >> shift)
        raise_exception(cpu, u, EXC_BR);
    NEXT;
}

static void undefined(struct cpu *cpu, const struct uop *u)
{
    raise_ud(cpu, u);
}

const struct exec_def exec_interrupt[] = {
    {OP_IRET, EXEC_ANY_FORM, NULL, iret},
    {OP_INT, EXEC_ANY_FORM, NULL, int_n},
    {OP_INT3, EXEC_ANY_FORM, NULL, int3},
    {OP_INT1, EXEC_ANY_FORM, NULL, int1},
    {OP_INTO, EXEC_ANY_FORM, NULL, into},
    {OP_BOUND, EXEC_ANY_FORM, NULL, bound},
    {OP_UD0, EXEC_ANY_FORM, NULL, undefined},
    {OP_UD1, EXEC_ANY_FORM, NULL, undefined},
    {OP_UD2, EXEC_ANY_FORM, NULL, undefined},
    {0, 0, NULL, NULL},
};
