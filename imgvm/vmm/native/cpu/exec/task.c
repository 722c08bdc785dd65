/* SPDX-License-Identifier: MIT */
#include "task.h"

#include "debug.h"
#include "frame.h"
#include "segment.h"

/* Offsets in the two kinds of TSS (SDM vol. 3, figures 8-2 and 8-10). */
#define TSS_LINK 0u
#define TSS32_CR3 28u
#define TSS32_EIP 32u
#define TSS32_EFLAGS 36u
#define TSS32_GPR 40u
#define TSS32_SEGMENTS 72u /* ES CS SS DS FS GS */
#define TSS32_LDT 96u
#define TSS32_TRAP 100u
#define TSS32_BYTES 104u
#define TSS16_IP 14u
#define TSS16_FLAGS 16u
#define TSS16_GPR 18u
#define TSS16_SEGMENTS 34u /* ES CS SS DS */
#define TSS16_LDT 42u
#define TSS16_BYTES 44u

#define TYPE_BUSY 2u
#define DR7_LOCAL 0x155u /* L0-L3 and LE */

struct task {
    uint32_t eip, eflags, cr3, gpr[8];
    uint16_t segment[6], ldt;
    bool wide, trap;
};

static bool is_wide(const struct x86_segment *tss)
{
    return tss->attributes & 8;
}

static struct task read_task(struct cpu *cpu, const struct uop *u, const struct x86_segment *tss)
{
    struct task task = {.wide = is_wide(tss)};
    uint64_t base = tss->base;
    unsigned size = task.wide ? 4 : 2;
    if (task.wide) {
        task.cr3 = (uint32_t)access_system_read(cpu, u, base + TSS32_CR3, 4);
        task.trap = access_system_read(cpu, u, base + TSS32_TRAP, 2) & 1;
    }
    task.eip = (uint32_t)access_system_read(cpu, u, base + (task.wide ? TSS32_EIP : TSS16_IP), size);
    task.eflags = (uint32_t)access_system_read(cpu, u, base + (task.wide ? TSS32_EFLAGS : TSS16_FLAGS), size);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t at = base + (task.wide ? TSS32_GPR : TSS16_GPR) + i * size;
        task.gpr[i] = (uint32_t)access_system_read(cpu, u, at, size);
    }
    for (unsigned i = 0; i < (task.wide ? 6u : 4u); i++) {
        uint64_t at = base + (task.wide ? TSS32_SEGMENTS : TSS16_SEGMENTS) + i * size;
        task.segment[i] = (uint16_t)access_system_read(cpu, u, at, 2);
    }
    task.ldt = (uint16_t)access_system_read(cpu, u, base + (task.wide ? TSS32_LDT : TSS16_LDT), 2);
    return task;
}

/* What a switch saves: neither CR3 nor the LDT nor the inner stacks (table 8-2, step 8). */
static void save_task(struct cpu *cpu, const struct uop *u, uint32_t eflags)
{
    bool wide = is_wide(&cpu->s.tr);
    unsigned size = wide ? 4 : 2;
    uint64_t base = cpu->s.tr.base;
    access_system_write(cpu, u, base + (wide ? TSS32_EIP : TSS16_IP), size, cpu->rip);
    access_system_write(cpu, u, base + (wide ? TSS32_EFLAGS : TSS16_FLAGS), size, eflags);
    for (unsigned i = 0; i < 8; i++)
        access_system_write(cpu, u, base + (wide ? TSS32_GPR : TSS16_GPR) + i * size, size, cpu->gpr[i]);
    for (unsigned i = 0; i < (wide ? 6u : 4u); i++)
        access_system_write(cpu, u, base + (wide ? TSS32_SEGMENTS : TSS16_SEGMENTS) + i * size, 2,
                            cpu->s.segment[i].selector);
}

/* The TSS descriptor with the checks of table 8-1, as far as they come in the old task. */
static struct x86_segment find_tss(struct cpu *cpu, const struct uop *u, uint16_t selector, enum task_cause cause,
                                   uint32_t ext)
{
    uint32_t code = (selector & 0xfffcu) | ext;
    bool back = cause == TASK_IRET;
    uint64_t descriptor;
    if (selector & 4 || !segment_descriptor_try(cpu, u, selector, &descriptor))
        raise_error(cpu, u, back ? EXC_TS : EXC_GP, code);
    struct x86_segment tss = segment_from_descriptor(selector, descriptor);
    unsigned type = tss.attributes & (SEG_S | SEG_TYPE);
    if ((type & ~10u) != 1 || !!(type & TYPE_BUSY) != back)
        raise_error(cpu, u, back ? EXC_TS : EXC_GP, code);
    if (!(tss.attributes & SEG_P))
        raise_error(cpu, u, EXC_NP, code);
    if (tss.limit < (is_wide(&tss) ? TSS32_BYTES : TSS16_BYTES) - 1)
        raise_error(cpu, u, EXC_TS, code);
    return tss;
}

static void set_busy(struct cpu *cpu, const struct uop *u, uint16_t selector, bool busy)
{
    uint64_t at = cpu->s.gdtr.base + (selector & ~7u) + 5;
    uint64_t type = access_system_read(cpu, u, at, 1);
    access_system_write(cpu, u, at, 1, busy ? type | TYPE_BUSY : type & ~(uint64_t)TYPE_BUSY);
}

/* ---- in the new task: what it asks for is checked, and a fault is its own ---- */

static _Noreturn void invalid(struct cpu *cpu, uint8_t vector, uint16_t selector, uint32_t ext)
{
    raise_error(cpu, NULL, vector, (selector & 0xfffcu) | ext);
}

static void load_ldt(struct cpu *cpu, uint16_t selector, uint32_t ext)
{
    uint64_t descriptor;
    if (!(selector & ~3))
        return;
    if (selector & 4 || !segment_descriptor_try(cpu, NULL, selector, &descriptor))
        invalid(cpu, EXC_TS, selector, ext);
    struct x86_segment ldt = segment_from_descriptor(selector, descriptor);
    if ((ldt.attributes & (SEG_S | SEG_TYPE | SEG_P)) != (SEG_P | 2))
        invalid(cpu, EXC_TS, selector, ext);
    cpu->s.ldtr = ldt;
}

static struct x86_segment fetch(struct cpu *cpu, uint16_t selector, uint64_t *descriptor, uint32_t ext)
{
    if (!segment_descriptor_try(cpu, NULL, selector, descriptor))
        invalid(cpu, EXC_TS, selector, ext);
    return segment_from_descriptor(selector, *descriptor);
}

static void load_checked(struct cpu *cpu, unsigned index, struct x86_segment segment, uint64_t descriptor)
{
    segment_set_accessed(cpu, NULL, segment.selector, descriptor);
    segment.attributes |= SEG_ACCESSED;
    cpu_set_segment(cpu, index, &segment);
}

static void load_code(struct cpu *cpu, uint16_t selector, uint32_t ext)
{
    uint64_t descriptor;
    struct x86_segment cs = fetch(cpu, selector, &descriptor, ext);
    unsigned rpl = selector & 3;
    bool conforming = cs.attributes & SEG_EXPAND_CONFORM;
    if ((cs.attributes & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE) ||
        (conforming ? dpl_of(&cs) > rpl : dpl_of(&cs) != rpl))
        invalid(cpu, EXC_TS, selector, ext);
    if (!(cs.attributes & SEG_P))
        invalid(cpu, EXC_NP, selector, ext);
    load_checked(cpu, CS, cs, descriptor);
}

static void load_stack(struct cpu *cpu, uint16_t selector, uint32_t ext)
{
    uint64_t descriptor;
    struct x86_segment ss = fetch(cpu, selector, &descriptor, ext);
    if ((selector & 3u) != cpu->cpl || dpl_of(&ss) != cpu->cpl ||
        (ss.attributes & (SEG_S | SEG_CODE | SEG_WRITE_READ)) != (SEG_S | SEG_WRITE_READ))
        invalid(cpu, EXC_TS, selector, ext);
    if (!(ss.attributes & SEG_P))
        invalid(cpu, EXC_SS, selector, ext);
    load_checked(cpu, SS, ss, descriptor);
}

static void load_data(struct cpu *cpu, unsigned index, uint16_t selector, uint32_t ext)
{
    uint64_t descriptor;
    if (!(selector & ~3))
        return;
    struct x86_segment segment = fetch(cpu, selector, &descriptor, ext);
    uint32_t attributes = segment.attributes;
    bool code = attributes & SEG_CODE, conforming = code && (attributes & SEG_EXPAND_CONFORM);
    if (!(attributes & SEG_S) || (code && !(attributes & SEG_WRITE_READ)) ||
        (!conforming && MAX(cpu->cpl, selector & 3u) > dpl_of(&segment)))
        invalid(cpu, EXC_TS, selector, ext);
    if (!(attributes & SEG_P))
        invalid(cpu, EXC_NP, selector, ext);
    load_checked(cpu, index, segment, descriptor);
}

/* Registers and bare selectors first: until a segment has been checked it cannot be used. */
static void take_registers(struct cpu *cpu, const struct task *task)
{
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = task->wide ? task->gpr[i] : task->gpr[i] | 0xffff0000u;
    cpu->rip = task->eip;
    cpu->s.ldtr = (struct x86_segment){.selector = task->ldt, .attributes = SEG_UNUSABLE};
    for (unsigned i = 0; i < 6; i++) {
        struct x86_segment bare = {.selector = task->segment[i], .attributes = SEG_UNUSABLE};
        if (i == CS || i == SS)
            bare.attributes = SEG_P | SEG_S | SEG_WRITE_READ | (i == CS ? SEG_CODE : 0) |
                              (task->segment[CS] & 3u) << SEG_DPL_SHIFT;
        cpu_set_segment(cpu, i, &bare);
    }
}

void task_switch(struct cpu *cpu, const struct uop *u, uint16_t selector, enum task_cause cause, uint32_t ext)
{
    struct x86_segment tss = find_tss(cpu, u, selector, cause, ext);
    uint16_t old_selector = cpu->s.tr.selector;
    unsigned old_bytes = is_wide(&cpu->s.tr) ? TSS32_BYTES : TSS16_BYTES;
    bool nested = cause == TASK_CALL || cause == TASK_EVENT;

    /* everything that will be touched is there: no page fault half-way (table 8-2, step 5) */
    if (cpu->s.tr.limit < old_bytes - 1)
        raise_error(cpu, u, EXC_TS, (old_selector & 0xfffcu) | ext);
    access_system_probe(cpu, u, cpu->s.tr.base, old_bytes, true);
    access_system_probe(cpu, u, tss.base, is_wide(&tss) ? TSS32_BYTES : TSS16_BYTES, nested);
    access_system_probe(cpu, u, cpu->s.gdtr.base + (selector & ~7u), 8, true);
    access_system_probe(cpu, u, cpu->s.gdtr.base + (old_selector & ~7u), 8, true);
    struct task task = read_task(cpu, u, &tss);
    cpu_fpu_leave(cpu);

    if (!nested)
        set_busy(cpu, u, old_selector, false);
    uint32_t eflags = cpu_get_eflags(cpu);
    save_task(cpu, u, cause == TASK_IRET ? eflags & ~EFLAGS_NT : eflags);
    if (nested) {
        access_system_write(cpu, u, tss.base + TSS_LINK, 2, old_selector);
        task.eflags |= EFLAGS_NT;
    }
    if (cause != TASK_IRET)
        set_busy(cpu, u, selector, true);

    /* the moment of no return: from here on it is the new task */
    cpu->in_soft_interrupt = false;
    cpu->trap = 0;
    tss.attributes |= TYPE_BUSY;
    cpu->s.tr = tss;
    cpu->s.cr0 |= CR0_TS;
    cpu->task_trap = task.trap;
    take_registers(cpu, &task);
    if (!task.wide)
        task.eflags &= 0xffff;
    cpu_set_eflags(cpu, task.eflags, ~0u);
    cpu_set_cpl(cpu, (uint8_t)(task.eflags & EFLAGS_VM ? 3 : task.segment[CS] & 3));
    if (cpu->s.dr[7] & DR7_LOCAL) {
        cpu->s.dr[7] &= ~(uint64_t)DR7_LOCAL;
        debug_update(cpu);
    }
    if (task.wide && (cpu->s.cr0 & CR0_PG)) {
        bool pae = cpu->s.cr4 & CR4_PAE;
        cpu->s.cr3 = task.cr3;
        mmu_load_cr3(&cpu->mmu, task.cr3, false);
        if (pae && !mmu_load_pdptes(&cpu->mmu, task.cr3))
            raise_error(cpu, NULL, EXC_GP, ext);
    }
    cpu_update_mode(cpu);

    load_ldt(cpu, task.ldt, ext);
    if (cpu->eflags & EFLAGS_VM) {
        for (unsigned i = 0; i < 6; i++)
            segment_load_real(cpu, i, task.segment[i]);
    } else {
        static const uint8_t data[] = {ES, DS, FS, GS};
        load_code(cpu, task.segment[CS], ext);
        cpu_update_mode(cpu);
        load_stack(cpu, task.segment[SS], ext);
        for (unsigned i = 0; i < 4; i++)
            load_data(cpu, data[i], task.segment[data[i]], ext);
    }
    cpu_update_mode(cpu);
    if (cpu->rip > cpu->s.segment[CS].limit)
        raise_error(cpu, NULL, EXC_GP, ext);
}

void task_push_error(struct cpu *cpu, uint32_t error)
{
    struct frame frame = frame_current(cpu, NULL, false, 1);
    frame_push(cpu, &frame, is_wide(&cpu->s.tr) ? 4 : 2, error);
    stack_set(cpu, frame.rsp);
}

void task_debug_trap(struct cpu *cpu)
{
    if (!cpu->task_trap)
        return;
    cpu->task_trap = false;
    cpu->trap |= DR6_BT;
    cpu_update_boundary(cpu);
}
