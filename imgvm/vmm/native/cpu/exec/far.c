/* SPDX-License-Identifier: MIT */
/* Far jumps, calls and returns; SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2, APM vol. 3).
 * Where Intel's and AMD's processors differ in the last four, the announced vendor decides: SYSCALL and SYSRET are #UD
 * outside 64-bit mode on Intel's, SYSENTER and SYSEXIT in long mode on AMD's. */
#include "exec.h"
#include "frame.h"
#include "segment.h"
#include "task.h"

static void far_pointer(struct cpu *cpu, const struct uop *u, uint16_t *selector, uint64_t *offset)
{
    if (!(u->in.flags & INSN_MEM)) {
        *offset = (uint32_t)u->in.imm;
        *selector = (uint16_t)(u->in.imm >> 32);
        return;
    }
    unsigned size = u->in.osize;
    uint64_t linear = operand_linear(cpu, u, size + 2, false);
    *offset = mem_read(cpu, u, linear, size);
    *selector = mem_read_16(cpu, u, linear + size);
}

static void far_real(struct cpu *cpu, const struct uop *u, uint16_t selector, uint64_t offset, bool call)
{
    if (offset > cpu->s.segment[CS].limit)
        raise_gp(cpu, u, 0);
    if (call) {
        unsigned size = u->in.osize;
        uint64_t rsp = cpu->gpr[RSP];
        uint64_t low = (rsp - 2 * size) & stack_mask(cpu);
        access_segment(cpu, u, SS, low, size, true);
        uint64_t at = access_segment(cpu, u, SS, (rsp - size) & stack_mask(cpu), size, true);
        mem_write(cpu, u, at, size, cpu->s.segment[CS].selector);
        mem_write(cpu, u, access_segment(cpu, u, SS, low, size, true), size, cpu_next_rip(cpu, u));
        stack_set(cpu, low);
    }
    segment_load_real(cpu, CS, selector);
    cpu->rip = u->in.osize == 2 ? offset & 0xffff : (uint32_t)offset;
    cpu_update_mode(cpu);
}

static uint64_t stack_at(struct cpu *cpu, const struct uop *u, uint64_t rsp, unsigned size, bool write)
{
    return cpu->code64 ? rsp : access_segment(cpu, u, SS, rsp & stack_mask(cpu), size, write);
}

/* Checks a code segment as the target of a direct far transfer or of a gate. */
static struct x86_segment code_target(struct cpu *cpu, const struct uop *u, uint16_t selector, unsigned rpl,
                                      bool through_gate, bool call, uint64_t *descriptor)
{
    bool long_mode = cpu->s.efer & EFER_LMA;
    *descriptor = segment_descriptor(cpu, u, selector, EXC_GP);
    struct x86_segment cs = segment_from_descriptor(selector, *descriptor);
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    bool bad = (cs.attributes & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE);
    bad |= long_mode && (cs.attributes & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB);
    if (through_gate)
        bad |= dpl_of(&cs) > cpu->cpl || (!call && !conforming && dpl_of(&cs) != cpu->cpl) ||
               (long_mode && !(cs.attributes & SEG_L));
    else
        bad |= conforming ? dpl_of(&cs) > cpu->cpl : rpl > cpu->cpl || dpl_of(&cs) != cpu->cpl;
    if (bad)
        raise_gp(cpu, u, selector & 0xfffc);
    if (!(cs.attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, selector & 0xfffc);
    return cs;
}

static void check_offset(struct cpu *cpu, const struct uop *u, const struct x86_segment *cs, uint64_t offset)
{
    bool to64 = (cpu->s.efer & EFER_LMA) && (cs->attributes & SEG_L);
    if (to64 ? !canonical(cpu, offset) : offset > cs->limit)
        raise_gp(cpu, u, 0);
}

static void enter_code(struct cpu *cpu, const struct uop *u, struct x86_segment cs, uint64_t descriptor, unsigned cpl,
                       uint64_t rip)
{
    segment_set_accessed(cpu, u, cs.selector, descriptor);
    cs.selector = (uint16_t)((cs.selector & ~3u) | cpl);
    cs.attributes |= SEG_ACCESSED;
    cpu_set_segment(cpu, CS, &cs);
    cpu_set_cpl(cpu, (uint8_t)cpl);
    cpu_update_mode(cpu);
    cpu->rip = cpu->code64 ? rip : (uint32_t)rip;
}

/* CALL through a call gate to an inner ring: new stack from the TSS, parameters copied (SDM vol. 3, 5.8.5). */
static void call_gate_inner(struct cpu *cpu, const struct uop *u, struct x86_segment cs, uint64_t descriptor,
                            uint64_t offset, unsigned size, unsigned parameters)
{
    bool long_mode = cpu->s.efer & EFER_LMA;
    unsigned cpl = dpl_of(&cs);
    struct frame frame = long_mode ? frame_from_tss64(cpu, u, cpl, 0) : frame_from_tss(cpu, u, cpl, 0);
    frame_check(cpu, &frame, 4 + parameters, size);
    uint64_t old_rsp = cpu->gpr[RSP];
    frame_push(cpu, &frame, size, cpu->s.segment[SS].selector);
    frame_push(cpu, &frame, size, old_rsp);
    for (unsigned p = parameters; p-- > 0;)
        frame_push(cpu, &frame, size, mem_read(cpu, u, stack_at(cpu, u, old_rsp + p * size, size, false), size));
    frame_push(cpu, &frame, size, cpu->s.segment[CS].selector);
    frame_push(cpu, &frame, size, cpu_next_rip(cpu, u));
    segment_set_accessed(cpu, u, cs.selector, descriptor);
    if (long_mode)
        segment_load_null_ss(cpu, (uint16_t)cpl, cpl);
    else
        cpu_set_segment(cpu, SS, &frame.segment);
    enter_code(cpu, u, cs, descriptor, cpl, offset);
    stack_set(cpu, frame.rsp);
}

static void far_task(struct cpu *cpu, const struct uop *u, uint16_t selector, bool call)
{
    cpu->rip = cpu_next_rip(cpu, u);
    task_switch(cpu, u, selector, call ? TASK_CALL : TASK_JUMP, 0);
    task_debug_trap(cpu);
}

/* Pushes CS and the return address, in the new code's way, without leaving the ring. */
static void push_return(struct cpu *cpu, const struct uop *u, unsigned size, bool flat)
{
    struct frame frame = frame_current(cpu, u, flat, 0);
    frame_check(cpu, &frame, 2, size);
    frame_push(cpu, &frame, size, cpu->s.segment[CS].selector);
    frame_push(cpu, &frame, size, cpu_next_rip(cpu, u));
    if (flat)
        cpu->gpr[RSP] = frame.rsp;
    else
        stack_set(cpu, frame.rsp);
}

static void far_gate(struct cpu *cpu, const struct uop *u, uint16_t gate_selector, uint64_t gate, bool call)
{
    bool long_mode = cpu->s.efer & EFER_LMA;
    unsigned type = (unsigned)(gate >> 40) & 15, dpl = (unsigned)(gate >> 45) & 3;
    bool task = !long_mode && (type == 1 || type == 5 || type == 9);
    if ((type != 12 && !(type == 4 && !long_mode) && !task) || dpl < cpu->cpl || dpl < (gate_selector & 3u))
        raise_gp(cpu, u, gate_selector & 0xfffc);
    if (!(gate >> 47 & 1))
        raise_error(cpu, u, EXC_NP, gate_selector & 0xfffc);
    if (task) {
        far_task(cpu, u, type == 5 ? (uint16_t)(gate >> 16) : gate_selector, call);
        return;
    }
    uint64_t offset = type == 4 ? gate & 0xffff : (gate & 0xffff) | (gate >> 48) << 16;
    if (long_mode)
        offset |= segment_system_base_high(cpu, u, gate_selector, EXC_GP);
    uint16_t selector = (uint16_t)(gate >> 16);
    uint64_t descriptor;
    struct x86_segment cs = code_target(cpu, u, selector, selector & 3, true, call, &descriptor);
    check_offset(cpu, u, &cs, offset);
    unsigned size = long_mode ? 8 : type == 12 ? 4 : 2;
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    if (call && !conforming && dpl_of(&cs) < cpu->cpl) {
        call_gate_inner(cpu, u, cs, descriptor, offset, size, long_mode ? 0 : (unsigned)(gate >> 32) & 31);
        return;
    }
    if (call)
        push_return(cpu, u, size, long_mode);
    enter_code(cpu, u, cs, descriptor, cpu->cpl, offset);
}

static void far_transfer(struct cpu *cpu, const struct uop *u, bool call)
{
    uint16_t selector;
    uint64_t offset;
    far_pointer(cpu, u, &selector, &offset);
    if (real_or_v86(cpu)) {
        far_real(cpu, u, selector, offset, call);
        return;
    }
    if (!(selector & ~3))
        raise_gp(cpu, u, 0);
    uint64_t descriptor = segment_descriptor(cpu, u, selector, EXC_GP);
    if (!(descriptor >> 44 & 1)) {
        far_gate(cpu, u, selector, descriptor, call);
        return;
    }
    struct x86_segment cs = code_target(cpu, u, selector, selector & 3, false, call, &descriptor);
    check_offset(cpu, u, &cs, offset);
    if (call)
        push_return(cpu, u, u->in.osize, cpu->code64);
    enter_code(cpu, u, cs, descriptor, cpu->cpl, offset);
}

static void jmp_far(struct cpu *cpu, const struct uop *u)
{
    far_transfer(cpu, u, false);
}

static void call_far(struct cpu *cpu, const struct uop *u)
{
    far_transfer(cpu, u, true);
}

static void retf(struct cpu *cpu, const struct uop *u)
{
    unsigned size = u->in.osize;
    uint64_t rsp = cpu->gpr[RSP], drop = u->in.form == FORM_IMM ? (uint16_t)u->in.imm : 0;
    uint64_t rip = mem_read(cpu, u, stack_at(cpu, u, rsp, size, false), size);
    uint16_t cs = (uint16_t)mem_read(cpu, u, stack_at(cpu, u, rsp + size, size, false), size);
    if (real_or_v86(cpu)) {
        if (rip > cpu->s.segment[CS].limit)
            raise_gp(cpu, u, 0);
        stack_set(cpu, rsp + 2 * size + drop);
        segment_load_real(cpu, CS, cs);
        cpu->rip = rip;
        cpu_update_mode(cpu);
        return;
    }
    bool outer = (cs & 3u) > cpu->cpl;
    interrupt_return(cpu, u, cs, rip, outer, rsp + 2 * size + (outer ? drop : 0), drop);
}

/* ---- fast system calls ---- */

/* Flat segments as SYSCALL and its kin make them, without looking at any table. */
static void flat_segments(struct cpu *cpu, uint16_t cs_selector, uint16_t ss_selector, unsigned cpl, bool code64)
{
    struct x86_segment cs = {.selector = cs_selector, .limit = 0xffffffff,
                             .attributes = SEG_G | (code64 ? SEG_L : SEG_DB) | SEG_P | SEG_S | SEG_CODE | SEG_WRITE_READ |
                                           SEG_ACCESSED | cpl << SEG_DPL_SHIFT};
    struct x86_segment ss = {.selector = ss_selector, .limit = 0xffffffff,
                             .attributes = SEG_G | SEG_DB | SEG_P | SEG_S | SEG_WRITE_READ | SEG_ACCESSED | cpl << SEG_DPL_SHIFT};
    cpu_set_segment(cpu, CS, &cs);
    cpu_set_segment(cpu, SS, &ss);
    cpu_set_cpl(cpu, (uint8_t)cpl);
    cpu_update_mode(cpu);
}

/* SYSCALL and SYSRET are stepped over by the TF they leave, not the one they found: the step belongs to the program. */
static void step_by_new_flags(struct cpu *cpu)
{
    if (likely(!(cpu->trap | (cpu->eflags & EFLAGS_TF))))
        return;
    cpu->trap = (cpu->trap & ~(uint32_t)DR6_BS) | (cpu->eflags & EFLAGS_TF ? DR6_BS : 0);
    cpu_update_boundary(cpu);
}

static bool is_amd(const struct cpu *cpu)
{
    return cpu->cpuid.vendor == CPU_VENDOR_AMD;
}

/* AMD's SYSCALL outside long mode: to 32-bit code at STAR's EIP. */
static void syscall_legacy(struct cpu *cpu, const struct uop *u, uint16_t cs)
{
    cpu->gpr[RCX] = cpu_next_rip(cpu, u);
    cpu_set_eflags(cpu, 0, EFLAGS_VM | EFLAGS_IF | EFLAGS_RF);
    flat_segments(cpu, cs, (uint16_t)(cs + 8), 0, false);
    cpu->rip = (uint32_t)cpu->s.star;
    step_by_new_flags(cpu);
}

static void syscall(struct cpu *cpu, const struct uop *u)
{
    if (!(cpu->s.efer & EFER_SCE) || !(cpu->code64 || is_amd(cpu)))
        raise_ud(cpu, u);
    uint16_t cs = (uint16_t)(cpu->s.star >> 32) & 0xfffc;
    if (!(cpu->s.efer & EFER_LMA)) {
        syscall_legacy(cpu, u, cs);
        return;
    }
    uint64_t target = cpu->code64 ? cpu->s.lstar : cpu->s.cstar;
    cpu->gpr[RCX] = cpu_next_rip(cpu, u);
    cpu->gpr[R11] = cpu_get_eflags(cpu) & ~EFLAGS_RF;
    cpu_set_eflags(cpu, 0, (uint32_t)cpu->s.sfmask | EFLAGS_RF);
    flat_segments(cpu, cs, (uint16_t)(cs + 8), 0, true);
    cpu->rip = target;
    step_by_new_flags(cpu);
}

/* An address that is not canonical faults here on Intel's processors, in ring 0, and on AMD's where it is fetched from.
 * AMD's SYSRET loads SS's selector alone: base, limit and attributes stay those of ring 0. */
static void sysret(struct cpu *cpu, const struct uop *u)
{
    bool amd = is_amd(cpu), from64 = cpu->code64, to64 = u->in.osize == 8;
    if (!(cpu->s.efer & EFER_SCE) || !(from64 || amd))
        raise_ud(cpu, u);
    if (!(cpu->s.cr0 & CR0_PE) || cpu->cpl || (to64 && !amd && !canonical(cpu, cpu->gpr[RCX])))
        raise_gp(cpu, u, 0);
    uint16_t base = (uint16_t)(cpu->s.star >> 48);
    uint64_t target = to64 ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
    uint32_t flags = from64 ? (uint32_t)cpu->gpr[R11] & 0x3c7fd7 : EFLAGS_IF;
    struct x86_segment ss = cpu->s.segment[SS];
    flat_segments(cpu, (uint16_t)((base + (to64 ? 16 : 0)) | 3), (uint16_t)((base + 8) | 3), 3, to64);
    if (amd) {
        ss.selector = (uint16_t)(base + 8);
        ss.attributes |= SEG_DPL; /* which is where this processor keeps its CPL */
        cpu_set_segment(cpu, SS, &ss);
        cpu_update_mode(cpu);
    }
    cpu_set_eflags(cpu, flags, from64 ? ~(uint32_t)EFLAGS_VM : EFLAGS_IF);
    cpu->rip = target;
    step_by_new_flags(cpu);
}

/* Not in long mode with AMD's; above ring 0 its SYSEXIT is #GP even there, as silicon has it. */
static void need_sysenter(struct cpu *cpu, const struct uop *u)
{
    if (is_amd(cpu) && (cpu->s.efer & EFER_LMA))
        raise_ud(cpu, u);
}

static void sysenter(struct cpu *cpu, const struct uop *u)
{
    uint16_t cs = (uint16_t)cpu->s.sysenter_cs & 0xfffc;
    need_sysenter(cpu, u);
    if (!(cpu->s.cr0 & CR0_PE) || !cs)
        raise_gp(cpu, u, 0);
    bool long_mode = cpu->s.efer & EFER_LMA;
    cpu_set_eflags(cpu, 0, EFLAGS_VM | EFLAGS_IF | EFLAGS_RF);
    flat_segments(cpu, cs, (uint16_t)(cs + 8), 0, long_mode);
    cpu->gpr[RSP] = long_mode ? cpu->s.sysenter_esp : (uint32_t)cpu->s.sysenter_esp;
    cpu->rip = long_mode ? cpu->s.sysenter_eip : (uint32_t)cpu->s.sysenter_eip;
}

static void sysexit(struct cpu *cpu, const struct uop *u)
{
    uint16_t cs = (uint16_t)cpu->s.sysenter_cs & 0xfffc;
    if (cpu->cpl)
        raise_gp(cpu, u, 0);
    need_sysenter(cpu, u);
    if (!(cpu->s.cr0 & CR0_PE) || !cs)
        raise_gp(cpu, u, 0);
    bool to64 = u->in.osize == 8;
    uint64_t rsp = cpu->gpr[RCX], rip = cpu->gpr[RDX];
    if (to64 && (!canonical(cpu, rsp) || !canonical(cpu, rip)))
        raise_gp(cpu, u, 0);
    flat_segments(cpu, (uint16_t)((cs + (to64 ? 32 : 16)) | 3), (uint16_t)((cs + (to64 ? 40 : 24)) | 3), 3, to64);
    cpu->gpr[RSP] = to64 ? rsp : (uint32_t)rsp;
    cpu->rip = to64 ? rip : (uint32_t)rip;
}

const struct exec_def exec_far[] = {
    {OP_JMP_FAR, EXEC_ANY_FORM, NULL, jmp_far},
    {OP_CALL_FAR, EXEC_ANY_FORM, NULL, call_far},
    {OP_RETF, EXEC_ANY_FORM, NULL, retf},
    {OP_SYSCALL, EXEC_ANY_FORM, NULL, syscall},
    {OP_SYSRET, EXEC_ANY_FORM, NULL, sysret},
    {OP_SYSENTER, EXEC_ANY_FORM, NULL, sysenter},
    {OP_SYSEXIT, EXEC_ANY_FORM, NULL, sysexit},
    {0, 0, NULL, NULL},
};
