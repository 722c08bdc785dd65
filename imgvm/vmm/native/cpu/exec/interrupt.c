/* SPDX-License-Identifier: MIT */
/* Interrupts and exceptions through IVT and IDT, and IRET (SDM vol. 3, chapters 6 and 20; vol. 2, INT and IRET).
 * Nothing of the processor changes before the last memory access has succeeded. */
#include "debug.h"
#include "exec.h"
#include "frame.h"
#include "segment.h"
#include "task.h"
#include "trace.h"

#define GATE_TASK 5u
#define GATE_INTERRUPT16 6u
#define GATE_TRAP16 7u
#define GATE_INTERRUPT32 14u
#define GATE_TRAP32 15u

/* Through a table of far pointers: the IVT, or the one at linear 0 of a virtual-8086 task (20.3.3). */
static void enter_vector16(struct cpu *cpu, const struct uop *u, uint64_t entry, uint32_t pushed_flags,
                           uint32_t cleared)
{
    uint32_t target = (uint32_t)access_system_read(cpu, u, entry, 4);
    struct frame frame = frame_current(cpu, u, false, 0);
    frame_push(cpu, &frame, 2, pushed_flags);
    frame_push(cpu, &frame, 2, cpu->s.segment[CS].selector);
    frame_push(cpu, &frame, 2, cpu->rip);
    stack_set(cpu, frame.rsp);
    segment_load_real(cpu, CS, (uint16_t)(target >> 16));
    cpu->rip = target & 0xffff;
    cpu_set_eflags(cpu, 0, cleared);
    cpu_update_mode(cpu);
}

static void deliver_real(struct cpu *cpu, uint8_t vector)
{
    if (4u * vector + 3u > cpu->s.idtr.limit)
        raise_error(cpu, NULL, EXC_GP, 0);
    enter_vector16(cpu, NULL, cpu->s.idtr.base + 4u * vector, cpu_get_eflags(cpu),
                   EFLAGS_IF | EFLAGS_TF | EFLAGS_AC | EFLAGS_RF);
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
    /* faults set RF in the pushed image, traps do not; a #DB says for itself (17.3.1.1, debug.c) */
    return source == INTERRUPT_EXCEPTION && vector != EXC_DB && vector != EXC_BP && vector != EXC_OF &&
           vector != EXC_DF;
}

/* The gate's code segment; *descriptor as it stands in the table. */
static struct x86_segment gate_code(struct cpu *cpu, const struct gate *gate, uint32_t ext, uint64_t *descriptor)
{
    bool long_mode = cpu->s.efer & EFER_LMA;
    uint32_t error = (gate->selector & 0xfffcu) | ext;
    if (!segment_descriptor_try(cpu, NULL, gate->selector, descriptor)) /* a null selector: error code EXT alone */
        raise_error(cpu, NULL, EXC_GP, error);
    struct x86_segment cs = segment_from_descriptor(gate->selector, *descriptor);
    if ((cs.attributes & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) || dpl_of(&cs) > cpu->cpl ||
        (long_mode && (cs.attributes & (SEG_L | SEG_DB)) != SEG_L))
        raise_error(cpu, NULL, EXC_GP, error);
    if (!(cs.attributes & SEG_P))
        raise_error(cpu, NULL, EXC_NP, error);
    /* from virtual-8086 mode only ring 0 may be entered (20.3.1.1) */
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    if (cpu->eflags & EFLAGS_VM && (conforming || dpl_of(&cs) != 0))
        raise_error(cpu, NULL, EXC_GP, error);
    bool reachable = long_mode ? canonical(cpu, gate->offset) : (uint32_t)gate->offset <= cs.limit;
    if (!reachable)
        raise_error(cpu, NULL, EXC_GP, ext);
    return cs;
}

static void deliver_protected(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error,
                              uint32_t error)
{
    bool soft = source == INTERRUPT_SOFTWARE;
    bool long_mode = cpu->s.efer & EFER_LMA, v86 = cpu->eflags & EFLAGS_VM;
    uint32_t ext = soft ? 0 : 1;
    struct gate gate = read_gate(cpu, vector, soft, ext);
    if (gate.type == GATE_TASK) {
        if (pushes_rf(vector, source))
            cpu->eflags |= EFLAGS_RF;
        task_switch(cpu, NULL, gate.selector, TASK_EVENT, ext);
        if (has_error)
            task_push_error(cpu, error);
        task_debug_trap(cpu);
        return;
    }
    bool wide32 = gate.type >= GATE_INTERRUPT32;
    if (!wide32)
        gate.offset &= 0xffff;
    uint64_t descriptor;
    struct x86_segment cs = gate_code(cpu, &gate, ext, &descriptor);
    unsigned new_cpl = cs.attributes & SEG_EXPAND_CONFORM ? cpu->cpl : dpl_of(&cs);
    bool inner = new_cpl < cpu->cpl;
    unsigned size = long_mode ? 8 : wide32 ? 4 : 2;
    uint64_t flags = cpu_get_eflags(cpu) | (pushes_rf(vector, source) ? EFLAGS_RF : 0);
    uint16_t old_ss = cpu->s.segment[SS].selector;
    uint64_t old_rsp = cpu->gpr[RSP];
    struct frame frame;
    if (long_mode) {
        frame = gate.ist ? frame_from_tss64(cpu, NULL, 3 + gate.ist, ext)
                : inner  ? frame_from_tss64(cpu, NULL, new_cpl, ext)
                         : frame_current(cpu, NULL, true, ext);
        frame.rsp &= ~UINT64_C(15);
    } else {
        frame = inner ? frame_from_tss(cpu, NULL, new_cpl, ext) : frame_current(cpu, NULL, false, ext);
    }
    frame.user = new_cpl == 3;
    unsigned slots = 3 + (v86 ? 4 : 0) + (long_mode || inner ? 2 : 0) + has_error;
    frame_check(cpu, &frame, slots, size);

    if (v86) {
        static const uint8_t order[] = {GS, FS, DS, ES};
        for (unsigned i = 0; i < 4; i++)
            frame_push(cpu, &frame, size, cpu->s.segment[order[i]].selector);
    }
    if (long_mode || inner) {
        frame_push(cpu, &frame, size, old_ss);
        frame_push(cpu, &frame, size, old_rsp);
    }
    frame_push(cpu, &frame, size, flags);
    frame_push(cpu, &frame, size, cpu->s.segment[CS].selector);
    frame_push(cpu, &frame, size, cpu->rip);
    if (has_error)
        frame_push(cpu, &frame, size, error);
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
            cpu_set_segment(cpu, SS, &frame.segment);
    }
    cpu_set_cpl(cpu, (uint8_t)new_cpl);
    cpu_update_mode(cpu);
    if (long_mode)
        cpu->gpr[RSP] = frame.rsp;
    else
        stack_set(cpu, frame.rsp);
    cpu->rip = long_mode ? gate.offset : (uint32_t)gate.offset;
}

void interrupt_deliver(struct cpu *cpu, uint8_t vector, enum interrupt_source source, bool has_error, uint32_t error)
{
    if (unlikely(cpu->traced))
        cpu_trace_delivery(cpu, vector, source, has_error, error);
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
    bool v86 = cpu->eflags & EFLAGS_VM, virtual_flag = false;
    if (v86 && (cpu->eflags & EFLAGS_IOPL) != EFLAGS_IOPL) {
        /* IOPL below 3: only IRETW, and only with VME, whose VIF then plays IF (20.3.3.2, and vol. 2, IRET) */
        virtual_flag = (cpu->s.cr4 & CR4_VME) && size == 2;
        if (!virtual_flag)
            raise_gp(cpu, u, 0);
    }
    uint64_t rsp = cpu->gpr[RSP];
    uint64_t rip = frame_read(cpu, u, rsp, 0, size), cs = frame_read(cpu, u, rsp, 1, size);
    uint32_t flags = (uint32_t)frame_read(cpu, u, rsp, 2, size);
    if (rip > (v86 ? 0xffff : cpu->s.segment[CS].limit))
        raise_gp(cpu, u, 0);
    if (virtual_flag && ((flags & EFLAGS_TF) || ((flags & EFLAGS_IF) && (cpu->eflags & EFLAGS_VIP))))
        raise_gp(cpu, u, 0);
    stack_set(cpu, rsp + 3 * size);
    segment_load_real(cpu, CS, (uint16_t)cs);
    uint32_t mask = EFLAGS_STATUS | EFLAGS_TF | EFLAGS_DF | EFLAGS_NT;
    if (size == 4)
        mask |= EFLAGS_AC | EFLAGS_ID | EFLAGS_RF;
    if (!v86)
        mask |= EFLAGS_IOPL;
    if (virtual_flag) {
        mask |= EFLAGS_VIF;
        flags = (flags & ~EFLAGS_VIF) | (flags & EFLAGS_IF ? EFLAGS_VIF : 0);
    } else {
        mask |= EFLAGS_IF;
    }
    cpu_set_eflags(cpu, flags, mask);
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
    if (rip > 0xffff)
        raise_gp(cpu, u, 0);
    cpu_set_eflags(cpu, flags, ~0u);
    segment_load_real(cpu, CS, cs);
    segment_load_real(cpu, SS, ss);
    for (unsigned i = 0; i < 4; i++)
        segment_load_real(cpu, order[i], selector[i]);
    cpu->gpr[RSP] = (uint32_t)new_esp;
    cpu->rip = rip;
    cpu_set_cpl(cpu, 3);
    cpu_update_mode(cpu);
}

/* Going outward, data segments that the outer ring may not use become null (SDM vol. 3, 5.8.6). */
static void drop_inner_segments(struct cpu *cpu)
{
    static const uint8_t data[] = {ES, DS, FS, GS};
    for (unsigned i = 0; i < 4; i++) {
        const struct x86_segment *segment = &cpu->s.segment[data[i]];
        unsigned dpl = dpl_of(segment);
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

/* The code segment comes first, then the rest of the stack is looked at (SDM vol. 2, IRET and RET). */
void interrupt_return(struct cpu *cpu, const struct uop *u, uint16_t cs_selector, uint64_t rip, bool with_stack,
                      uint64_t frame, uint64_t drop)
{
    unsigned rpl = cs_selector & 3;
    bool long_mode = cpu->s.efer & EFER_LMA;
    if (!(cs_selector & ~3))
        raise_gp(cpu, u, 0);
    uint64_t descriptor = segment_descriptor(cpu, u, cs_selector, EXC_GP);
    struct x86_segment cs = segment_from_descriptor(cs_selector, descriptor);
    unsigned dpl = dpl_of(&cs);
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    if ((cs.attributes & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) || rpl < cpu->cpl ||
        (conforming ? dpl > rpl : dpl != rpl) ||
        (long_mode && (cs.attributes & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB)))
        raise_gp(cpu, u, cs_selector & 0xfffc);
    if (!(cs.attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, cs_selector & 0xfffc);
    bool to64 = long_mode && (cs.attributes & SEG_L);

    struct x86_segment ss = cpu->s.segment[SS];
    uint16_t ss_selector = 0;
    uint64_t new_rsp = frame + drop, ss_descriptor = 0;
    bool null_ss = false;
    if (with_stack) {
        new_rsp = frame_read(cpu, u, frame, 0, u->in.osize) + drop;
        ss_selector = (uint16_t)frame_read(cpu, u, frame, 1, u->in.osize);
        if (!(ss_selector & ~3)) {
            null_ss = to64 && rpl != 3 && (ss_selector & 3u) == rpl;
            if (!null_ss)
                raise_gp(cpu, u, 0);
        } else {
            ss_descriptor = segment_descriptor(cpu, u, ss_selector, EXC_GP);
            ss = segment_from_descriptor(ss_selector, ss_descriptor);
            if ((ss_selector & 3u) != rpl || dpl_of(&ss) != rpl ||
                (ss.attributes & (SEG_S | SEG_CODE | SEG_WRITE_READ)) != (SEG_S | SEG_WRITE_READ))
                raise_gp(cpu, u, ss_selector & 0xfffc);
            if (!(ss.attributes & SEG_P))
                raise_error(cpu, u, EXC_SS, ss_selector & 0xfffc);
        }
    }
    if (to64 ? !canonical(cpu, rip) : rip > cs.limit)
        raise_gp(cpu, u, 0);
    if (with_stack && !null_ss) {
        segment_set_accessed(cpu, u, ss_selector, ss_descriptor);
        ss.attributes |= SEG_ACCESSED;
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
    stack_set(cpu, new_rsp);
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
        uint16_t link = (uint16_t)access_system_read(cpu, u, cpu->s.tr.base, 2);
        cpu->rip = cpu_next_rip(cpu, u);
        task_switch(cpu, u, link, TASK_IRET, 0);
        task_debug_trap(cpu);
        return;
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
    interrupt_return(cpu, u, cs, rip, with_stack, rsp + 3 * size, 0);
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
    cpu->s.nmi_blocked = false; /* even if the IRET faults (6.7.1) */
    if (real_or_v86(cpu))
        iret_real(cpu, u);
    else
        iret_protected(cpu, u);
}

/* ---- INT n, INT3, INTO, INT1, BOUND, UD ---- */

/* INT n in virtual-8086 mode with VME: does the task's own IVT serve this vector? (20.3.3) */
static bool is_redirected(struct cpu *cpu, const struct uop *u, uint8_t vector)
{
    const struct x86_segment *tr = &cpu->s.tr;
    unsigned type = tr->attributes & SEG_TYPE;
    if ((type != 9 && type != 11) || tr->limit < 103)
        raise_gp(cpu, u, 0);
    uint64_t map = access_system_read(cpu, u, tr->base + 102, 2); /* the redirection map ends where this one begins */
    if (map < 32 || map - 32 + vector / 8 > tr->limit)
        raise_gp(cpu, u, 0);
    return !(access_system_read(cpu, u, tr->base + map - 32 + vector / 8, 1) >> (vector % 8) & 1);
}

static void deliver_redirected(struct cpu *cpu, uint8_t vector)
{
    bool iopl3 = (cpu->eflags & EFLAGS_IOPL) == EFLAGS_IOPL;
    uint32_t flags = cpu_get_eflags(cpu);
    if (!iopl3)
        flags = (flags & ~EFLAGS_IF) | EFLAGS_IOPL | (flags & EFLAGS_VIF ? EFLAGS_IF : 0);
    enter_vector16(cpu, NULL, 4u * vector, flags, EFLAGS_TF | EFLAGS_RF | EFLAGS_AC | (iopl3 ? EFLAGS_IF : EFLAGS_VIF));
}

static void software_interrupt(struct cpu *cpu, const struct uop *u, uint8_t vector, enum interrupt_source source)
{
    bool redirected = false;
    if (cpu->eflags & EFLAGS_VM && u->in.op == OP_INT) {
        redirected = (cpu->s.cr4 & CR4_VME) && is_redirected(cpu, u, vector);
        if (!redirected && (cpu->eflags & EFLAGS_IOPL) != EFLAGS_IOPL)
            raise_gp(cpu, u, 0);
    }
    /* a fault while delivering must find the instruction itself, not its successor */
    uint64_t this_rip = cpu_this_rip(cpu, u) & cpu_rip_mask(cpu);
    cpu->rip = cpu_next_rip(cpu, u);
    cpu->soft_interrupt_rip = this_rip;
    cpu->in_soft_interrupt = true;
    if (redirected)
        deliver_redirected(cpu, vector);
    else
        interrupt_deliver(cpu, vector, source, false, 0);
    cpu->in_soft_interrupt = false;
    cpu->trap &= ~(uint32_t)DR6_BS; /* TF went with the old flags (17.3.1.4) */
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
